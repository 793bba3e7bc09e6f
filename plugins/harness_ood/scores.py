"""Out-of-distribution scores: what each is, what it needs, and all of them at once for a batch. Higher is further out.

Scores that need to know what the training data look like read it off held-out images (`ModelView.reference`): a
stratified 1,000 of the train split, or what the suite names as `heldout`, never the test images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

from harness.capabilities import with_derived
from harness.errors import ThreatError
from harness.models import max_softmax
from harness.typicality import Typicality
from harness_ood.feature_detectors import Mahalanobis, NearestNeighbours, ViM

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView, Reference
    from harness.randomness import Draws

D = TypeVar("D")
ScoreName = Literal[
    "own",
    "max-softmax",
    "energy",
    "entropy",
    "max-logit",
    "log-likelihood",
    "typicality",
    "complexity",
    "two-tailed",
    "gradient-norm",
    "score-sum",
    "mahalanobis",
    "knn",
    "vim",
]

_OF_GRADIENT = ("gradient-norm", "score-sum")


@dataclass(frozen=True)
class Score:
    """A score.

    Attributes:
        summary: what it is, for people.
        source: the paper.
        needs: the capabilities that a model must have, derived ones included.
        reference: columns of held-out images that it is made with.
        of: the score (B,) of the images asked about, higher is more out-of-distribution.
    """

    summary: str
    source: str
    needs: frozenset[str]
    of: Callable[[Asked], Tensor]
    reference: tuple[str, ...] = ()


def score_all(view: ModelView, x: Tensor, draws: Draws, names: Sequence[str]) -> dict[str, Tensor]:
    """Scores of images by name, float64 (B,), higher is more out-of-distribution.

    What several scores need is asked of the model once. A random model answers all of them with one draw.

    Args:
        x: (B, C, H, W) in [0, 1].
        draws: streams of the samples that the images belong to.
        names: keys of `SCORES`.

    Raises:
        ThreatError: a name is unknown, or this model has no such score; one line that says what is missing.
    """
    missing = [reason for name in names if (reason := lacking(view.own_capabilities, name))]
    if missing:
        raise ThreatError("; ".join(missing))
    asked = Asked(view, x, draws)
    if any(name in _OF_GRADIENT for name in names):
        _ = asked.gradient  # first, so that log p is the same pass whatever the order of names
    return {name: SCORES[name].of(asked).detach().double() for name in names}


def lacking(own: frozenset[str], name: str) -> str:
    """Why a model of these capabilities, those of its own, has no such score, in a line; empty where it has."""
    score = SCORES.get(name)
    if score is None:
        return f"there is no score '{name}' (there are: {', '.join(SCORES)})"
    if name == "own" and "Detector" not in own:
        return "score 'own': the model has no ood_score() of its own"
    absent = sorted(score.needs - with_derived(own))
    if absent:
        advice = " (option features of plugin torch names the layer)" if "Features" in absent else ""
        return f"score '{name}' needs a model with {' and '.join(absent)}{advice}"
    if name == "energy" and "Classifier" not in own:
        return "score 'energy': the logits come from class densities, so the energy is -log p(x): use 'log-likelihood'"
    return ""


def needs_reference(names: Iterable[str]) -> bool:
    """Whether any of these scores is made with held-out images."""
    return any(SCORES[name].reference for name in names if name in SCORES)


def held_out_likelihood(view: ModelView, names: Iterable[str]) -> dict[str, float]:
    """Columns that say how likely held-out images are, the same for every row: what test images are compared with.

    Returns:
        `held_out_log_prob`, the mean in nats, `held_out_log_prob_error`, its standard error, and `held_out_count`, of
        how many; nothing where none of
        the scores is made with held-out likelihoods.
    """
    if not any("log_prob" in SCORES[name].reference for name in names):
        return {}
    log_prob = view.reference["log_prob"]
    error = float(log_prob.std(ddof=1)) / math.sqrt(len(log_prob))
    count = float(len(log_prob))
    return {"held_out_log_prob": float(log_prob.mean()), "held_out_log_prob_error": error, "held_out_count": count}


class Asked:
    """What a model says of one batch of images, each answer asked for once, when a score first wants it."""

    def __init__(self, view: ModelView, x: Tensor, draws: Draws) -> None:
        self.view, self.x, self.draws = view, x, draws

    @property
    def reference(self) -> Reference:
        return self.view.reference

    @cached_property
    def own(self) -> Tensor:
        import torch

        with torch.no_grad():
            return self.view.ood_score(self.x, self.draws)

    @cached_property
    def logits(self) -> Tensor:
        """(B, K) float64."""
        import torch

        with torch.no_grad():
            return self.view.logits(self.x, self.draws).double()

    @cached_property
    def features(self) -> Tensor:
        """(B, F) float64."""
        import torch

        with torch.no_grad():
            return self.view.features(self.x, self.draws).double()

    @cached_property
    def log_prob(self) -> Tensor:
        """(B,) nats, float64."""
        import torch

        if "gradient" in self.__dict__:
            return self.gradient[0]
        with torch.no_grad():
            return self.view.log_prob(self.x, self.draws).double()

    @cached_property
    def gradient(self) -> tuple[Tensor, Tensor]:
        """log p(x), nats, and its gradient with respect to the image, float64 (B,) and (B, D)."""
        import torch

        x = self.x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            log_prob = self.view.log_prob(x, self.draws)
            slope = self.view.input_gradient(log_prob, x)
        return log_prob.detach().double(), slope.double().flatten(1)

    def fitted(self, name: str, make: Callable[[Reference, Tensor], D]) -> D:
        """A detector made of held-out images, once for all batches, on the images' device."""
        return self.reference.once(f"{name} on {self.x.device}", lambda held_out: make(held_out, self.x))


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax, nats; what underflows contributes nothing."""
    import torch

    total: Tensor = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    return total


def png_bits(x: Tensor) -> Tensor:
    """Size in bits of each image (B, C, H, W) as an 8-bit PNG file, float64 (B,).

    One channel is stored as grey, three as RGB, any other number as grey images below each other. A codec takes one
    image at a time, on the CPU.
    """
    import torch
    from PIL import Image

    grey = (x.detach() * 255).round().clamp(0, 255).byte().cpu()
    grey = grey.permute(0, 2, 3, 1) if x.shape[1] == 3 else grey.flatten(1, 2)
    sizes = []
    for image in grey.contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png", optimize=True)
        sizes.append(8 * file.tell())
    return torch.tensor(sizes, dtype=torch.float64, device=x.device)


def _complexity(asked: Asked) -> Tensor:
    # In bits of the density on [0, 1]; the constant D log2(levels) that makes it a probability of grey levels is the
    # same for every image of the run, and orders nothing.
    return -asked.log_prob / math.log(2) - png_bits(asked.x)


def _typicality(asked: Asked) -> Tensor:
    return (asked.log_prob - float(asked.reference["log_prob"].mean())).abs()


def _two_tailed(asked: Asked) -> Tensor:
    held_out = asked.fitted("two-tailed", lambda reference, _: Typicality.of(reference["log_prob"]))
    return held_out.two_tailed(asked.log_prob)


def _gradient_norm(asked: Asked) -> Tensor:
    log_prob, slope = asked.gradient
    length: Tensor = slope.norm(dim=1)
    return -(log_prob + length.log())


_DETECTOR, _CLASSIFIER, _DENSITY, _FEATURES = (
    frozenset({name}) for name in ("Detector", "Classifier", "Density", "Features")
)
SCORES: dict[str, Score] = {
    "own": Score("the model's own ood_score", "", _DETECTOR, lambda a: a.own),
    "max-softmax": Score(
        "log((1 - p) / p) of the largest softmax probability p",
        "Hendrycks & Gimpel 2017",
        _CLASSIFIER,
        lambda a: max_softmax(a.logits),
    ),
    "energy": Score("-logsumexp of the logits", "Liu et al. 2020", _CLASSIFIER, lambda a: -a.logits.logsumexp(dim=1)),
    "entropy": Score("entropy of the softmax, nats", "", _CLASSIFIER, lambda a: entropy(a.logits)),
    "max-logit": Score(
        "minus the largest logit", "Hendrycks et al. 2022", _CLASSIFIER, lambda a: -a.logits.amax(dim=1)
    ),
    "log-likelihood": Score("-log p(x), nats", "", _DENSITY, lambda a: -a.log_prob),
    "typicality": Score(
        "distance of log p(x) from its mean over held-out images, nats: the typicality test for one image",
        "Nalisnick et al. 2019, Detecting out-of-distribution inputs to deep generative models using typicality",
        _DENSITY,
        _typicality,
        ("log_prob",),
    ),
    "complexity": Score(
        "-log2 p(x) minus the size in bits of the image as 8-bit PNG", "Serra et al. 2020", _DENSITY, _complexity
    ),
    "two-tailed": Score(
        "minus the smaller share of held-out images that are less, or more, likely; half the p-value, negated",
        "Mackowiak et al. 2021, appendix A.1",
        _DENSITY,
        _two_tailed,
        ("log_prob",),
    ),
    "gradient-norm": Score(
        # The paper gives no sign. A small value is taken as out-of-distribution because log p, whose spread is far
        # larger than that of the other term, decides: a small p is.
        "-log ||grad p(x)|| = -(log p(x) + log ||grad log p(x)||): the density's slope, small where p is",
        "Noise conditional maximum likelihood estimation 2022, appendix A.2.2",
        _DENSITY,
        _gradient_norm,
    ),
    "score-sum": Score(
        "sum of the entries of the score grad log p(x), with its sign",
        "Meng et al. 2020, Autoregressive score matching",
        _DENSITY,
        lambda a: a.gradient[1].sum(dim=1),
    ),
    "mahalanobis": Score(
        "squared Mahalanobis distance of the features from the nearest class mean",
        "Lee et al. 2018",
        _FEATURES,
        lambda a: a.fitted("mahalanobis", Mahalanobis.of)(a.features),
        ("features", "label"),
    ),
    "knn": Score(
        "distance of the normalised features from the tenth nearest of held-out images",
        "Sun et al. 2022",
        _FEATURES,
        lambda a: a.fitted("knn", NearestNeighbours.of)(a.features),
        ("features",),
    ),
    "vim": Score(
        "virtual logit (length of the features outside their principal space) minus logsumexp of the logits",
        "Wang et al. 2022",
        _FEATURES | _CLASSIFIER,
        lambda a: a.fitted("vim", ViM.of)(a.features, a.logits),
        ("features", "logits"),
    ),
}
