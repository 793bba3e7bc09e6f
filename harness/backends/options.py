"""Options common to library backends, and what is wrong with the names given in them."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from harness.errors import HarnessError, did_you_mean
from harness.options import Amount, Options, eps_in_range, option
from harness.threats import Budget


class BackendOptions(Options):
    """Options of a threat that runs an attack of another library."""

    attack: str = option(help="name of the attack's class in the library")
    arguments: dict[str, Any] = option(
        default_factory=dict, help='the attack\'s own arguments, as the library names them; "2/255" is a number'
    )
    norm: Literal["linf", "l2", "l1"] = option(
        help="norm of the budget, over all entries of an image; handed to attacks that have a choice"
    )
    eps: Amount | None = option(
        None,
        help='largest norm of the perturbation; none or "inf" for an attack that looks for the smallest',
        unit="[0, 1] pixel values",
    )
    together: bool = option(
        False,
        help="hand over a batch at once: faster, but a sample's result may depend on its neighbours, and evaluations"
        " are right in sum only",
    )

    @field_validator("eps", mode="before")
    @classmethod
    def _inf_is_none(cls, eps: Any) -> Any:
        return None if eps == math.inf or eps == "inf" else eps

    _eps_in_range = field_validator("eps")(eps_in_range)

    @property
    def numbers(self) -> dict[str, Any]:
        """The arguments, fractions written as text as numbers."""
        return {name: _number(value) for name, value in self.arguments.items()}

    @property
    def budget(self) -> Budget:
        return Budget(self.norm, math.inf if self.eps is None else float(self.eps))


def _number(value: Any) -> Any:
    """A fraction written as text, such as "2/255", as a number; anything else as it is."""
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Amount(value))
    except (ValueError, ZeroDivisionError):
        return value


def library(module: str, name: str, install: str) -> Any:
    """Import a library.

    Raises:
        HarnessError: it is not installed (with the command that installs it), or does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            raise HarnessError(f"{name} is not installed: {install}") from None
        raise HarnessError(f"{name} does not load: {error}") from error
    except ImportError as error:
        raise HarnessError(f"{name} does not load: {error}") from error


def release(distribution: str) -> tuple[Path, ...]:
    """The file that names the installed release, so that results are not taken for those of another one."""
    found = importlib.metadata.distribution(distribution)
    return tuple(Path(str(found.locate_file(file))) for file in found.files or () if file.name == "METADATA")


def named(attack: str, classes: Mapping[str, type], what: str) -> type:
    """The attack's class.

    Raises:
        HarnessError: there is none of that name.
    """
    if attack not in classes:
        raise HarnessError(f"attack: {what} has no attack '{attack}'{did_you_mean(attack, classes)}")
    return classes[attack]


def parameters(attack: type, leave_out: Collection[str]) -> dict[str, Any]:
    """What an attack's constructor takes, name -> default, without `self` and the names left out."""
    found = list(inspect.signature(attack.__init__).parameters.values())[1:]  # type: ignore[misc]
    named_ones = (p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return {p.name: p.default for p in named_ones if p.name not in leave_out}


def check_arguments(
    attack: str, arguments: Mapping[str, Any], known: Mapping[str, Any], ours: Mapping[str, str]
) -> None:
    """Refuse arguments that the attack does not take, that the harness sets itself (`ours`: name -> what to do), or
    that are missing.

    Raises:
        HarnessError: one line.
    """
    for name in arguments:
        if name in ours:
            raise HarnessError(f"arguments.{name}: {ours[name]}")
        if name not in known:
            raise HarnessError(f"arguments.{name}: {attack} has no such argument{did_you_mean(name, known)}")
    missing = [
        name
        for name, default in known.items()
        if default is inspect.Parameter.empty and name not in arguments and name not in ours
    ]
    if missing:
        raise HarnessError(f"arguments: {attack} needs '{missing[0]}'")


def scaled_step(known: Mapping[str, Any], step: str, budget: str, eps: float) -> dict[str, float]:
    """A step size in the library's own proportion to the budget, where an attack takes both and has defaults."""
    defaults = known.get(step), known.get(budget)
    if not all(isinstance(default, (int, float)) and default > 0 for default in defaults):
        return {}
    return {step: eps * float(defaults[0] or 0.0) / float(defaults[1] or 1.0)}
