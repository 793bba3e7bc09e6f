"""What a model can do: small protocols. A threat states which it needs, and the plan skips what cannot be paired.

Shapes and units everywhere: ``x`` is float32 (B, C, H, W) in [0, 1], ``y`` int64 (B,), likelihoods are in nats of the
density with respect to ``x``. A model whose answers are random has an attribute ``stochastic = True``, and each of its
methods then takes a keyword ``draws`` (`harness.randomness.Draws`), its only source of randomness; a deterministic
model's methods do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.datasets import DatasetSlice
    from harness.training import FitSession

DensityTag = Literal["exact", "bound", "surrogate"]


@runtime_checkable
class Classifier(Protocol):
    """Gives class scores."""

    num_classes: int

    def logits(self, x: Tensor) -> Tensor:
        """(B, K) unnormalised log-posterior. Log-likelihoods come in float64 or with their shared part removed."""
        ...


@runtime_checkable
class Density(Protocol):
    """Gives a log-likelihood; `density_tag` says whether it is exact, a bound or a surrogate."""

    density_tag: DensityTag

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) log p(x), nats."""
        ...


@runtime_checkable
class ClassDensity(Protocol):
    """Gives a log-likelihood for each class. The host derives `Classifier` and `Density` from it.

    An optional attribute ``log_prior`` (K,) replaces the uniform class prior.
    """

    num_classes: int
    density_tag: DensityTag

    def class_log_prob(self, x: Tensor) -> Tensor:
        """(B, K) log p(x | y) for every class y, nats."""
        ...


@runtime_checkable
class Detector(Protocol):
    """Gives a score of how far an image is from the training distribution."""

    def ood_score(self, x: Tensor) -> Tensor:
        """(B,), higher means more out-of-distribution."""
        ...


@runtime_checkable
class Features(Protocol):
    """Gives what a classifier makes of an image before it decides. Optional: see `OPTIONAL`."""

    def features(self, x: Tensor) -> Tensor:
        """(B, F), usually the input of the last linear layer."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Draws images."""

    def sample(self, y: Tensor, *, draws: Any) -> Tensor:
        """(B, C, H, W) in [0, 1], image i of class y[i]."""
        ...


@runtime_checkable
class Explainer(Protocol):
    """Says where in the image a decision comes from, for `harness explain`.

    Optional attribute ``heatmap_unit`` (text): what the maps hold. Optional methods ``explain_sample`` and
    ``explain_model`` give more pictures: see `harness.explanations`.
    """

    def heatmap(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, H', W')."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """Can be trained by `harness fit`."""

    def fit(self, data: DatasetSlice, recipe: Any, session: FitSession) -> None:
        """Train on `data` by `recipe` (the plugin's fit options), reporting to and checkpointing through `session`."""
        ...


PROTOCOLS: dict[str, type] = {
    p.__name__: p for p in (Classifier, Density, ClassDensity, Detector, Features, Sampler, Explainer, Trainable)
}
METHODS = {
    "Classifier": "logits",
    "Density": "log_prob",
    "ClassDensity": "class_log_prob",
    "Detector": "ood_score",
    "Features": "features",
    "Sampler": "sample",
    "Explainer": "heatmap",
    "Trainable": "fit",
}
OPTIONAL = frozenset({"Features"})
"""Capabilities that a plugin declares where some of its models have them: whether one does is seen from its method,
which a model without it sets to None. A threat cannot require them; it looks at the view it is given."""
_DERIVED = {"ClassDensity": ("Classifier", "Density"), "Classifier": ("Detector",), "Density": ("Detector",)}


def with_derived(capabilities: Iterable[str]) -> frozenset[str]:
    """The capabilities together with those that the host derives from them."""
    known = set(capabilities)
    pending = list(known)
    while pending:
        for name in _DERIVED.get(pending.pop(), ()):
            if name not in known:
                known.add(name)
                pending.append(name)
    return frozenset(known)


def offered(model: object, declared: Iterable[str]) -> frozenset[str]:
    """The declared capabilities that this very model has: all of them, but for the optional ones it lacks."""
    return frozenset(n for n in declared if n not in OPTIONAL or getattr(model, METHODS[n], None) is not None)


def mismatches(model: object, declared: Iterable[str]) -> list[str]:
    """Where declared capabilities and implemented methods disagree, in both directions, one phrase each."""
    declared = frozenset(declared)
    problems = [f"declares unknown capability '{name}'" for name in sorted(declared - METHODS.keys())]
    for name, method in METHODS.items():
        # Not isinstance(): a protocol of methods alone is content with a class that names them, whatever the value.
        lacking = [m for m in sorted(_members(PROTOCOLS[name])) if getattr(model, m, None) is None]
        found = getattr(model, method, None)
        # Of an optional one, only a method counts: many a network keeps a submodule called `features`.
        has = inspect.isroutine(found) if name in OPTIONAL else callable(found)
        if name in declared and lacking and name not in OPTIONAL:
            problems.append(f"declares {name} but lacks {', '.join(lacking)}")
        elif name not in declared and has:
            problems.append(f"has a method {method}() but does not declare {name}")
    return problems


def _members(protocol: type) -> set[str]:
    return {name for name in {*vars(protocol), *inspect.get_annotations(protocol)} if not name.startswith("_")}
