"""Models as the host builds them and as a threat sees them: capabilities derived, evaluations counted per sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from harness.capabilities import DensityTag, with_derived
from harness.errors import ModelError, ThreatError
from harness.randomness import Draws, draws_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from harness.datasets import DatasetFacts
    from harness.readout import Readout

T = TypeVar("T")
Purpose = Literal["attack", "eval"]
DETECTOR_FPRS = (0.01, 0.05, 0.10)
"""Shares of clean images that a detector may reject, at which robust accuracy with rejection is reported."""
CONFIDENCE_BINS: tuple[float, ...] = (
    *(0.05 * k / 7 for k in range(7)),
    *(0.05 + 0.06 * k for k in range(15)),
    *(0.95 + 0.05 * k / 7 for k in range(7)),
    1.0,
)
"""Edges of the bins in which probabilities are counted: 7 up to 0.05, 15 up to 0.95 and 7 up to 1, as the authors of
IB-INN take them, because nearly all probabilities of many classes are close to 0 or to 1. A bin includes its lower
edge, the last one both."""


@dataclass(frozen=True)
class ModelContext:
    """What the host gives a model factory.

    Attributes:
        name: the model's name in the suite, for messages.
        data: facts of the data the model will see (shape, classes, grey levels).
        device: where the host will put the model ("cpu", "cuda:0"); building on the CPU is fine.
        folder: folder of the suite file; relative paths in options start there.
    """

    name: str
    data: DatasetFacts
    device: str
    folder: Path


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model says of clean images held out from the test: where thresholds and medians come from.

    Attributes:
        columns: NumPy arrays of one length, as far as the model has them: `ood_score` (float64); `log_prob` (float64,
            nats) of a density; `logits` (n, K) of a classifier; `features` (n, F); and always `label` (int64).
    """

    columns: Mapping[str, Any]
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, column: str) -> Any:
        """A column.

        Raises:
            ThreatError: the model has no such score.
        """
        if column not in self.columns:
            raise ThreatError(f"the model has no {column}, so there is none of held-out images")
        return self.columns[column]

    def once(self, what: str, make: Callable[[Reference], T]) -> T:
        """What `make` makes of these columns; made once for each `what`, so that many batches share a fitted detector.

        The key must name all that the result depends on beside the columns, such as its device.
        """
        if what not in self._made:
            self._made[what] = make(self)
        made: T = self._made[what]
        return made

    def ood_threshold(self, fpr: float) -> float:
        """The smallest held-out score above which at most a share `fpr` of the held-out images lies."""
        import numpy as np

        return float(np.quantile(self["ood_score"], 1 - fpr, method="inverted_cdf"))


class ModelView:
    """A model serving one batch: what a threat is given.

    Every method takes the images and, unless they are the whole batch in its order, the `draws` of the samples they
    belong to (``draws[still_standing]``). They key the randomness of a random model and book each evaluation to its
    sample: `forwards` and `backwards` count them, int64 (B,).

    Where the data's classes are not the model's, a `readout` says what they are among its outputs: classes and their
    scores are then those of the data, everywhere.
    """

    def __init__(
        self,
        model: Any,
        capabilities: Iterable[str],
        ids: Tensor,
        seed: int,
        purpose: Purpose,
        reference: Reference | None = None,
        readout: Readout | None = None,
    ) -> None:
        import torch

        self._model = model
        self._reference = reference
        self._readout = readout
        self._own = frozenset(capabilities)
        self._streams = draws_for(ids, seed, "model", purpose)
        self.capabilities = with_derived(self._own)
        self.stochastic = bool(getattr(model, "stochastic", False))
        nothing = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        self._forwards, self._backwards = _Count(nothing), _Count(nothing.clone())

    @property
    def forwards(self) -> Tensor:
        return self._forwards.total()

    @property
    def backwards(self) -> Tensor:
        return self._backwards.total()

    @property
    def reference(self) -> Reference:
        """The model's scores of held-out clean images.

        Raises:
            ThreatError: the threat did not ask for them.
        """
        if self._reference is None:
            raise ThreatError("the threat uses held-out scores but does not say so (ThreatInfo.needs_reference)")
        return self._reference

    def ood_threshold(self, fpr: float) -> float:
        """The `ood_score` above which a detector rejects, set to reject a share `fpr` of held-out clean images."""
        return self.reference.ood_threshold(fpr)

    @property
    def num_classes(self) -> int:
        return self._outputs if self._readout is None else self._readout.width(self._outputs)

    @property
    def own_capabilities(self) -> frozenset[str]:
        """Without those that the host derives from others."""
        return self._own

    @property
    def density_tag(self) -> DensityTag:
        tag: DensityTag = self._model.density_tag
        return tag

    @property
    def logits_from(self) -> str:
        """Which answer `logits` is: "logits", or "class_log_prob" for a class density without a classifier."""
        return "logits" if "Classifier" in self._own else "class_log_prob"

    @property
    def ood_score_name(self) -> str:
        """Which score `ood_score` is: "own"; for a classifier without one "max-softmax", else "log-likelihood"."""
        if "Detector" in self._own:
            return "own"
        return "max-softmax" if "Classifier" in self.capabilities else "log-likelihood"

    def logits(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, K) class scores; for a class density log prior + log p(x | y), the part shared by all classes removed."""
        if "Classifier" in self._own:
            return self._read(self._call("logits", x, draws, (x.shape[0], self._outputs)))
        joint = self._joint(x, draws)
        return self._read(joint - joint.logsumexp(dim=1, keepdim=True))

    def log_prob(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """(B,) log p(x), nats; for a class density the sum over classes."""
        if "Density" in self._own:
            return self._call("log_prob", x, draws, (x.shape[0],))
        return self._joint(x, draws).logsumexp(dim=1)

    def class_log_prob(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, K) log p(x | y), nats."""
        return self._read(self._class_log_prob(x, draws))

    def class_log_prob_and_log_prob(self, x: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """`class_log_prob` and, summed over classes, `log_prob` (float64), by one evaluation."""
        scores = self._class_log_prob(x, draws)
        return self._read(scores), self._with_prior(scores).logsumexp(dim=1)

    def ood_score(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """(B,), higher is more out-of-distribution: see `ood_score_name`.

        Without a score of its own a classifier's is its maximum softmax probability, as `max_softmax` says it, and any
        other density's -log p(x).
        """
        if "Detector" in self._own:
            return self._call("ood_score", x, draws, (x.shape[0],))
        if "Classifier" in self.capabilities:
            return max_softmax(self.logits(x, draws))
        return -self.log_prob(x, draws)

    def features(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, F) features, for a model that has the optional capability `Features`.

        Raises:
            ThreatError: this model has none.
        """
        if "Features" not in self._own:
            raise ThreatError(
                "the model exposes no features; name the layer (option features of plugin torch), or give it a method"
                " features()"
            )
        return self._call("features", x, draws, (x.shape[0], -1))

    def sample(self, y: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) in [0, 1]: one image of each class in `y`, from the streams of `draws`."""
        wanted = self._asked_for(y)
        if bool(((wanted < 0) | (wanted >= self._outputs)).any()):
            raise ThreatError(f"sample() was asked for a class outside 0 to {self._outputs - 1}")
        images: Tensor = self._model.sample(wanted, draws=draws)
        return images

    def heatmap(self, x: Tensor, y: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, H', W'): where in the image the evidence for class `y` lies.

        Raises:
            ModelError: the model returned no maps.
        """
        extra = {"draws": self._own_streams(x, draws)} if self.stochastic else {}
        heat: Any = self._model.heatmap(x, self._asked_for(y), **extra)
        if not hasattr(heat, "ndim") or heat.ndim != 3 or len(heat) != len(x):
            found = tuple(heat.shape) if hasattr(heat, "shape") else type(heat).__name__
            raise ModelError(f"heatmap() returned {found} for {len(x)} images, not (B, H', W')")
        maps: Tensor = heat
        return maps

    def input_gradient(self, objective: Tensor, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Gradient with respect to `x` of the sum of `objective`, a model's output or what a loss made of it.

        `weights`, of the same shape, multiply its entries first: the derivative of a loss with respect to the logits,
        where that has a closed form, saves differentiating the loss.

        Raises:
            ThreatError: the objective does not depend differentiably on the input.
        """
        import torch

        if not objective.requires_grad:
            raise ThreatError(
                "the model gives no gradient: its output is detached from its input (torch.no_grad() or detach() inside"
                " the model?); a gradient attack cannot judge it. Declare a differentiable surrogate (harness.bpda, or"
                " option surrogates of plugin torch), or use an attack without gradients (square)"
            )
        weights = torch.ones_like(objective) if weights is None else weights
        (gradient,) = torch.autograd.grad(objective, x, weights, allow_unused=True)
        if gradient is None:
            raise ThreatError("the model's output does not depend on its input: the graph is interrupted")
        return gradient

    def _joint(self, x: Tensor, draws: Draws | None) -> Tensor:
        return self._with_prior(self._class_log_prob(x, draws))

    def _with_prior(self, scores: Tensor) -> Tensor:
        scores = scores.double()  # the shared part goes before anything is rounded again
        prior = getattr(self._model, "log_prior", None)
        return scores - math.log(self._outputs) if prior is None else scores + prior.to(scores)

    def _class_log_prob(self, x: Tensor, draws: Draws | None) -> Tensor:
        return self._call("class_log_prob", x, draws, (x.shape[0], self._outputs))

    @property
    def _outputs(self) -> int:
        """Classes of the model itself."""
        return int(self._model.num_classes)

    def _read(self, scores: Tensor) -> Tensor:
        return scores if self._readout is None else self._readout.of(scores)

    def _asked_for(self, y: Tensor) -> Tensor:
        return y if self._readout is None else self._readout.model_classes(y)

    def _call(self, method: str, x: Tensor, draws: Draws | None, shape: tuple[int, ...]) -> Tensor:
        draws = self._own_streams(x, draws)
        extra = {"draws": draws} if self.stochastic else {}
        out: Tensor = getattr(self._model, method)(x, **extra)
        if not hasattr(out, "requires_grad"):
            raise ModelError(f"{method}() returned a {type(out).__name__}, not a tensor of shape {shape}")
        if out.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, out.shape, strict=True)):
            wanted = str(shape).replace("-1", "any")
            raise ModelError(f"{method}() returned shape {tuple(out.shape)} for {x.shape[0]} images, not {wanted}")
        self._forwards.add(draws.slots)
        if out.requires_grad and x.requires_grad:
            out.register_hook(lambda _: self._backwards.add(draws.slots))  # type: ignore[no-untyped-call]
        return out

    def _own_streams(self, x: Tensor, draws: Draws | None) -> Draws:
        """The model's streams for the samples behind `x`, at the draw number the threat asks for."""
        if draws is None:
            if x.shape[0] != len(self._streams):
                raise ThreatError(
                    f"the model was given {x.shape[0]} of the batch's {len(self._streams)} images without their draws:"
                    " pass draws[index], so that the harness knows whose they are"
                )
            return self._streams
        if len(draws) != x.shape[0]:
            raise ThreatError(f"the model was given {x.shape[0]} images with the draws of {len(draws)} samples")
        return Draws(self._streams.key, draws.ids, draws.slots, draws.draw)


class _Count:
    """Evaluations booked to samples. An attack asks for the same samples many times: those are added up once."""

    def __init__(self, counts: Tensor) -> None:
        self._counts = counts
        self._slots: Tensor | None = None
        self._times = 0

    def add(self, slots: Tensor) -> None:
        """One more evaluation of each of these samples."""
        if slots is not self._slots:
            self.total()
            self._slots = slots
        self._times += 1

    def total(self) -> Tensor:
        if self._slots is not None and self._times:
            times = self._counts.new_full((1,), self._times).expand(len(self._slots))
            self._counts.index_add_(0, self._slots, times)
            self._times = 0
        return self._counts


def refuse_nan(scores: Tensor, ids: Tensor, name: str, what: str) -> None:
    """Raise a ModelError where scores (n, ...) are not a number: compared with a threshold they would say anything."""
    bad = scores.isnan().reshape(len(scores), -1).any(dim=1)
    if bad.any():
        first = int(ids[int(bad.nonzero()[0, 0])])
        raise ModelError(f"{name} is NaN for {int(bad.sum())} of {len(ids)} {what}, first sample {first}")


def split_top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit (B,) and all logits with that one masked by -inf (B, K)."""
    top, index = logits.max(dim=1)
    return top, logits.scatter(1, index[:, None], float("-inf"))


def bits_per_dim(log_prob: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """-log p(x) / (D ln 2) + log2(levels), bits per dimension, of densities `log_prob` (n,) in nats over [0, 1]^D.

    Args:
        shape: of an image, (C, H, W); D is the number of its entries.
        levels: grey levels that the data set declares.
    """
    return -log_prob / (math.prod(shape) * math.log(2)) + math.log2(levels)


def max_softmax(logits: Tensor) -> Tensor:
    """Maximum softmax probability p (Hendrycks & Gimpel 2017) as a score, higher is more out-of-distribution.

    log((1 - p) / p), float64 (n,), which orders images as 1 - p does and does not saturate.
    """
    top, others = split_top(logits.double())
    return others.logsumexp(dim=1) - top


def prepare(model: Any, device: str) -> Any:
    """Put a freshly built model on `device`, in eval mode, its parameters frozen: attacks need input gradients only.

    An object that is no `torch.nn.Module` is moved if it has a method ``to``.
    """
    import torch

    target: torch.device = torch.device(device)
    if isinstance(model, torch.nn.Module):
        return model.to(target).eval().requires_grad_(False)
    return model.to(target) if hasattr(model, "to") else model
