"""The front of the conformance kit: the checks of a model or a threat, by name or from its facts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.info import ModelInfo, ThreatInfo
from harness.testing.checks import Check, run_checks

if TYPE_CHECKING:
    from harness.datasets import DatasetSlice
    from harness.host import Host
    from harness.loading import BuiltModel


def model_checks(
    model: ModelInfo | str,
    options: Mapping[str, Any] | None = None,
    *,
    host: Host | None = None,
    data: DatasetSlice | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    samples: int = 5,
    quick_recipe: Mapping[str, Any] | None = None,
    checkpoint_option: str = "checkpoint",
) -> list[Check]:
    """The checks that apply to a model plugin with given options. The model is built when the first check runs.

    Args:
        model: its facts, or its name among the plugins of `host` (all installed ones by default).
        options: what stands in a suite's model table.
        data: images it can take; `synthetic_data()`, 1 x 8 x 8 and 10 classes, by default.
        folder: where relative paths in the options start; the working directory by default.
        samples: images used, 3 or more.
        quick_recipe: fit options with which training takes seconds; without it training is not checked.
        checkpoint_option: the option that takes the path of a checkpoint.
    """
    from harness.testing.checks_of_gradients import check_gradients
    from harness.testing.checks_of_models import CHECKS, ModelSubject, check_checkpoint_round_trip
    from harness.testing.toys import synthetic_data

    info = _found(host).models.get(model) if isinstance(model, str) else model
    subject = ModelSubject(
        info,
        dict(options or {}),
        data or synthetic_data(),
        folder or Path.cwd(),
        device,
        seed,
        samples,
        quick_recipe,
        checkpoint_option,
    )
    functions: list[Callable[[Any], None]] = [
        function for function, needs in CHECKS.items() if not needs or needs & info.capabilities
    ]
    if info.capabilities & {"Classifier", "Density", "ClassDensity", "Detector"}:
        functions.append(check_gradients)
    if quick_recipe is not None and "Trainable" in info.capabilities:
        functions.append(check_checkpoint_round_trip)
    return [_bound(function, subject, info.name) for function in functions]


def check_model(
    model: ModelInfo | str,
    options: Mapping[str, Any] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **settings: Any,
) -> None:
    """Run all of `model_checks(model, options, **settings)`.

    Args:
        expected_failures: check name -> why it is known to fail.

    Raises:
        AssertionError: one line for each check that failed, saying what to fix.
    """
    run_checks(model_checks(model, options, **settings), expected_failures or {})


def threat_checks(
    threat: ThreatInfo | str,
    options: Mapping[str, Any] | None = None,
    *,
    host: Host | None = None,
    data: DatasetSlice | None = None,
    model: BuiltModel | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    samples: int = 6,
) -> list[Check]:
    """The checks that apply to a threat with given options. The threat is built when the first check runs.

    Args:
        threat: its facts, or its name among the plugins of `host` (all installed ones by default).
        options: what stands in a suite's threat table.
        data: the images; `synthetic_data()`, 1 x 8 x 8 and 10 classes, by default.
        model: the model it runs against; by default a toy that has what the threat requires.
        folder: where relative paths in the options start; the working directory by default.
        samples: images used, 3 or more.
    """
    from harness.testing.checks_of_threats import CHECKS, ThreatSubject
    from harness.testing.toys import synthetic_data

    plugins = _found(host)
    info = plugins.threats.get(threat) if isinstance(threat, str) else threat
    root = os.environ.get("HARNESS_DATA")
    subject = ThreatSubject(
        info,
        dict(options or {}),
        data or synthetic_data(),
        folder or Path.cwd(),
        plugins,
        Path(root) if root else None,
        model,
        device,
        seed,
        samples,
    )
    return [_bound(function, subject, info.name) for function in CHECKS]


def check_threat(
    threat: ThreatInfo | str,
    options: Mapping[str, Any] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **settings: Any,
) -> None:
    """Run all of `threat_checks(threat, options, **settings)`.

    Args:
        expected_failures: check name -> why it is known to fail.

    Raises:
        AssertionError: one line for each check that failed, saying what to fix.
    """
    run_checks(threat_checks(threat, options, **settings), expected_failures or {})


def _bound(function: Callable[[Any], None], subject: Any, owner: str) -> Check:
    return Check(function.__name__.removeprefix("check_"), owner, partial(function, subject))


def _found(host: Host | None) -> Host:
    from harness.host import load_host

    return load_host() if host is None else host
