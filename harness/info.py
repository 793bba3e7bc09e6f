"""What a plugin registers: plain facts and the path of a factory, never the heavy module itself.

A path is written ``"package.module:attribute"`` and imported on first use, so that listing plugins imports no torch.
A one-file plugin may give the object instead of its path.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.errors import PluginError

Direction = Literal["higher", "lower", "none"]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Facts common to everything that can be registered."""

    name: str
    summary: str
    source: str = ""  # paper or page the thing comes from

    @property
    def kind(self) -> str:
        return type(self).__name__.removesuffix("Info").lower()


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Info):
    """A model plugin.

    `factory(options, context: ModelContext)` returns the model; `options` is a subclass of `harness.options.Options`;
    `fit_options` another one with the training recipe, for a model whose `capabilities` hold "Trainable".
    """

    factory: str | Callable[..., Any]
    capabilities: frozenset[str]
    options: str | type | None = None
    fit_options: str | type | None = None


ProbeJudge = Literal["stronger", "unbounded", "guaranteed"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A further attack by which the audit finds out whether an attack failed or the model withstood.

    The plan runs threat `plugin` with the options `table` on the first `samples` samples of the cell, beside it.

    Attributes:
        name: of the check in results.json.
        judge: what its rows say about the cell's. "stronger": it fools images that the attack did not fool.
            "unbounded": nothing withstands such a budget, so robust accuracy must be at chance. "guaranteed": there is
            an adversarial image for every sample, so it must succeed on at least 95 %.
        advice: what to do where it raises its flag, half a sentence.
        default: whether it runs unless the suite says ``probes = "all"``.
    """

    name: str
    plugin: str
    table: Mapping[str, Any]
    samples: int
    judge: ProbeJudge
    advice: str
    default: bool = True


@dataclass(frozen=True, kw_only=True)
class ThreatInfo(Info):
    """A threat plugin.

    `factory(options, context: ThreatContext)` returns an object with `run(model, batch) -> columns`. `requires` names
    the capabilities a model must have. `budget_option` names the option that sets the strength of an attack (`eps`):
    cells that differ in nothing else form one family, whose successes are shared (an adversarial image for a smaller
    budget is one for a larger). `variants` names the columns that, beside ``sample_id``, tell rows of one sample apart.
    `needs_reference`, or what it says of the options, is whether the threat uses the model's scores of held-out images
    (`ModelView.reference`). `lacking(options, capabilities)` says what a model of these capabilities, those of its own,
    lacks for these options, in a line, and "" where nothing. `probes(options)` gives the attacks that audit this one.
    """

    factory: str | Callable[..., Any]
    requires: frozenset[str] = frozenset()
    options: str | type | None = None
    budget_option: str | None = None
    variants: tuple[str, ...] = ()
    needs_reference: bool | Callable[[Any], bool] = False
    lacking: Callable[[Any, frozenset[str]], str] | None = None
    probes: str | Callable[[Any], Sequence[Probe]] | None = None
    internal: bool = False  # planned by the harness, never by a suite


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(Info):
    """A dataset plugin: `factory(options, context: DatasetContext)` returns a `harness.datasets.Dataset`."""

    factory: str | Callable[..., Any]
    options: str | type | None = None


@dataclass(frozen=True, kw_only=True)
class MetricInfo(Info):
    """A metric: `metric` is (the path of) a `harness.metrics.Metric`, or of a `GroupMetric` where `scope` is "group".

    It applies to every cell whose rows have all of `columns`, and is given those of `optional` that they have too.
    `direction` says which way is better, once for all gates.
    A metric of scope "group" may have `options`, given in the suite as ``[metrics.NAME]``: `metric` is then (the path
    of) a factory, ``factory(options) -> GroupMetric``.
    """

    metric: str | Any
    columns: tuple[str, ...]
    direction: Direction
    optional: tuple[str, ...] = ()
    unit: str = ""
    scope: Literal["cell", "group"] = "cell"
    options: str | type | None = None


@dataclass(frozen=True, kw_only=True)
class ExecutorInfo(Info):
    """An executor: `factory(context: ExecutorContext)` returns a `harness.executors.Executor`."""

    factory: str | Callable[..., Any]


def resolve(path: str | Any, owner: str) -> Any:
    """Import what a registered path names.

    Raises:
        PluginError: one line naming `owner`, the path and the cause.
    """
    if not isinstance(path, str):
        return path
    module, _, attribute = path.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:
        raise PluginError(f"{owner}: cannot load '{path}': {type(error).__name__}: {error}") from error
    return target
