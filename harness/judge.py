"""What a model says of images: of the clean ones, and, afresh, of those that a threat returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from harness.errors import HarnessError, ModelError, ThreatError
from harness.loading import BUDGET_TOLERANCE
from harness.models import DETECTOR_FPRS, max_softmax, refuse_nan
from harness.randomness import draws_for
from harness.threats import Norm

if TYPE_CHECKING:
    from torch import Tensor

    from harness.loading import BuiltModel
    from harness.models import Reference
    from harness.threats import Budget

DRAWS = 10
"""How often a random model is asked about an image, on draws that no attack ever sees."""
GREY_STEPS = 255

OF_IMAGES = (
    *("adversarial_prediction", "success", "found", "minimal_norm", "linf", "l2", "l1", "l0", "success_rounded"),
    *("success_mean", "adversarial_correct_share", "clean_ood_score", "adversarial_ood_score"),
    *("robust_at_detector_fpr", "evades_at_detector_fpr", "ood_threshold"),
)
"""Columns that the host alone derives, from the images a threat returns."""
OF_CLEAN = ("clean_prediction", "clean_correct", "clean_correct_share", "clean_correct_mean", "predicted_among")
"""Columns that the host alone derives, for every threat."""


@dataclass(frozen=True)
class Answer:
    """What a model says of n images.

    Attributes:
        logits: (n, K); of a random model the log-softmax, averaged over the draws.
        prediction: int64 (n,); of a random model the class that most draws name, ties to the likelier.
        share: float64 (n,), draws that name the label; None for a model without randomness.
    """

    logits: Tensor
    prediction: Tensor
    share: Tensor | None = None


class Judge:
    """Decides for one batch, on a view of the model that no threat sees.

    A random model is asked `DRAWS` times: one lucky draw is no success of an attack, nor a failure of the model. Clean
    and attacked images meet the same draws, so images that were not moved are never a success.
    """

    def __init__(self, built: BuiltModel, x: Tensor, y: Tensor, ids: Tensor, seed: int, reference: Reference | None):
        self.model = built.view(ids, seed, "eval")
        self.reads_out = built.readout is not None
        self.detects = "Detector" in built.capabilities or reference is not None
        self.x, self.y, self.ids = x, y, ids
        self.reference = reference
        self._draws = draws_for(ids, seed, "judge")

    def clean(self) -> tuple[Answer, dict[str, Tensor]]:
        """The answer for the clean images, and its columns.

        Raises:
            HarnessError: a label that the model does not know.
            ModelError: logits that name no class, or a model that changes its input.
        """
        classes = self.model.num_classes
        if not 0 <= int(self.y.min()) <= int(self.y.max()) < classes:
            wrong = int(self.y.max()) if int(self.y.min()) >= 0 else int(self.y.min())
            raise HarnessError(f"label {wrong} is out of range: the model has {classes} classes")
        answer = self._answer(self.x, "images")
        columns = {"clean_prediction": answer.prediction, "clean_correct": answer.prediction == self.y}
        if answer.share is not None:
            columns["clean_correct_share"] = answer.share
            columns["clean_correct_mean"] = answer.logits.argmax(dim=1) == self.y
        if self.reads_out:
            columns["predicted_among"] = self.y.new_full((len(self.y),), classes)
        return answer, columns

    def attacked(self, images: Tensor, budget: Budget | None, clean: Answer) -> dict[str, Tensor]:
        """The columns of stored images: range, budget, prediction, norms.

        Raises:
            ThreatError: images outside the box or the budget, or of another shape.
        """
        norms = self._inside(images, budget)
        answer = self._answer(images, "adversarial images")
        right = clean.prediction == self.y
        fooled = right & (answer.prediction != self.y)
        columns = {"adversarial_prediction": answer.prediction, **norms}
        assert budget is not None
        if math.isinf(budget.eps):
            size = norms[budget.norm].where(fooled, math.inf)
            columns |= {"found": fooled, "minimal_norm": size.masked_fill(~right, 0.0)}
        else:
            columns |= {"success": fooled, "success_rounded": self._rounded(images, budget, fooled)}
            if answer.share is not None:
                mean = answer.logits.argmax(dim=1) != self.y
                columns["success_mean"] = mean & (clean.logits.argmax(dim=1) == self.y)
        if answer.share is not None:
            columns["adversarial_correct_share"] = answer.share
        if self.detects:
            columns |= self._detected(images, right, answer.prediction == self.y, bounded=not math.isinf(budget.eps))
        return columns

    def shifted(self, images: Tensor) -> dict[str, Tensor]:
        """The columns of images that a shift made of the batch's, in its order: see `harness.threats.Batch`.

        Raises:
            ThreatError: images of another shape, or outside [0, 1].
        """
        import torch

        self._check_images(images, "shifted images")
        columns: dict[str, Tensor] = {}
        capabilities = self.model.capabilities
        if "Classifier" in capabilities:
            answer = self._answer(images, "shifted images")
            log_probs = answer.logits.double().log_softmax(dim=1)
            columns |= {"prediction": answer.prediction, "correct": answer.prediction == self.y}
            columns["confidence"] = log_probs.amax(dim=1).exp()
            columns["entropy"] = torch.special.entr(log_probs.exp()).sum(dim=1)
            if self.model.ood_score_name == "max-softmax":
                columns["ood_score"] = max_softmax(answer.logits)  # as `ModelView.ood_score`, without asking again
        with torch.no_grad():
            if self.model.ood_score_name == "own":
                columns["ood_score"] = self.model.ood_score(images, self._draws).double().clone()
            if "Density" in capabilities:
                columns["log_prob"] = self.model.log_prob(images, self._draws).double().clone()
            if self.model.ood_score_name == "log-likelihood":
                columns["ood_score"] = -columns["log_prob"]
        for name in columns.keys() & {"ood_score", "log_prob"}:
            refuse_nan(columns[name], self.ids, name, "shifted images")
        return columns

    def _answer(self, images: Tensor, what: str, rows: Tensor | None = None) -> Answer:
        """`rows`: whose images these are, if not the whole batch in its order."""
        import torch

        draws = self._draws if rows is None else self._draws[rows]
        y = self.y if rows is None else self.y[rows]
        with torch.no_grad():
            if not self.model.stochastic:
                # A copy, because a model may answer into the same memory every time.
                logits = _judgeable(self.model.logits(images, draws), draws.ids, what).clone()
                return Answer(logits, logits.argmax(dim=1))
            votes = torch.zeros(len(images), self.model.num_classes, dtype=torch.int64, device=images.device)
            likelihood = torch.zeros_like(votes, dtype=torch.float64)
            for draw in range(DRAWS):
                logits = _judgeable(self.model.logits(images, draws.numbered(draw)), draws.ids, what).double()
                votes += torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])
                likelihood += logits.log_softmax(dim=1) / DRAWS
        prediction = (votes + 0.5 * likelihood.softmax(dim=1)).argmax(dim=1)
        return Answer(likelihood, prediction, votes.gather(1, y[:, None])[:, 0].double() / DRAWS)

    def _inside(self, images: Tensor, budget: Budget | None) -> dict[str, Tensor]:
        x = self.x
        if budget is None:
            raise ThreatError("a threat that returns adversarial images needs a budget")
        self._check_images(images, "adversarial images")
        norms = perturbation_norms(images, x)
        size = norms[budget.norm]
        over = ~(
            size <= budget.eps * (1 + BUDGET_TOLERANCE) + BUDGET_TOLERANCE
        )  # so that a budget of NaN holds nothing
        if over.any():
            raise ThreatError(
                f"{int(over.sum())} of {len(x)} adversarial images lie outside the budget: {budget.norm}"
                f" {float(size.max()):.6g} > eps {budget.eps:.6g}; the rows are refused"
            )
        return norms

    def _check_images(self, images: Tensor, what: str) -> None:
        """
        Raises:
            ThreatError: of another shape or type than the batch's, or outside [0, 1].
        """
        import torch

        x = self.x
        if images.shape != x.shape or images.dtype != x.dtype:
            raise ThreatError(f"{what} are {images.dtype} {tuple(images.shape)}, not {x.dtype} {tuple(x.shape)}")
        if not (torch.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
            raise ThreatError(f"{what} lie outside [0, 1] (or are not finite)")

    def _rounded(self, images: Tensor, budget: Budget, fooled: Tensor) -> Tensor:
        """bool (B,), whether an image that fools still does once it is stored in 8 bits."""
        rows = fooled.nonzero()[:, 0]
        outcome = fooled.clone()
        if len(rows):
            stored = in_eight_bits(images[rows], self.x[rows], budget)
            outcome[rows] = self._answer(stored, "rounded images", rows).prediction != self.y[rows]
        return outcome

    def _detected(self, images: Tensor, right: Tensor, still_right: Tensor, *, bounded: bool) -> dict[str, Tensor]:
        """The detector's scores and thresholds, and who withstands a classifier that may also reject (Tramèr 2022)."""
        import torch

        with torch.no_grad():
            clean = self.model.ood_score(self.x, self._draws).double().clone()
            attacked = self.model.ood_score(images, self._draws).double().clone()
        for scores, what in ((clean, "images"), (attacked, "adversarial images")):
            refuse_nan(scores, self.ids, "ood_score", what)
        columns = {"clean_ood_score": clean, "adversarial_ood_score": attacked}
        if self.reference is not None:
            thresholds = clean.new_tensor([self.reference.ood_threshold(fpr) for fpr in DETECTOR_FPRS])
            evades = right[:, None] & ~still_right[:, None] & (attacked[:, None] <= thresholds)
            columns |= {"ood_threshold": thresholds.expand(len(clean), -1), "evades_at_detector_fpr": evades}
            if bounded:
                columns["robust_at_detector_fpr"] = right[:, None] & (clean[:, None] <= thresholds) & ~evades
        return columns


def perturbation_norms(images: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Norms of ``images - x`` over all entries of a sample, float64 (B,), in [0, 1] units; l0 counts what changed."""
    import torch

    # A float32 difference of values in [0, 1] is within 6e-8 of the true one; the sums are formed in float64.
    difference = images - x
    norms = {norm: norm_of(difference, norm) for norm in get_args(Norm)}
    return {**norms, "l0": torch.count_nonzero(difference.flatten(1), dim=1)}


def norm_of(difference: Tensor, norm: Norm) -> Tensor:
    """Norm of each difference (n, C, H, W) over all its entries, float64 (n,)."""
    import torch

    size = difference.abs().flatten(1)
    if norm == "linf":
        return size.amax(dim=1).double()
    if norm == "l1":
        return size.sum(dim=1, dtype=torch.float64)
    length: Tensor = torch.linalg.vector_norm(size, dim=1, dtype=torch.float64)
    return length


def in_eight_bits(images: Tensor, x: Tensor, budget: Budget) -> Tensor:
    """`images` as an 8-bit file holds them: rounded to multiples of 1/255 and kept inside the budget where that can be.

    Never truncated towards black, which moves every pixel the same way. Where rounding leaves the ball the entries go
    to the nearest grey level on the side of the clean image `x` instead.
    """
    import torch

    steps, origin = images.double() * GREY_STEPS, x.double() * GREY_STEPS
    nearest = steps.round()
    still = origin.round()
    inward = torch.where(steps >= origin, steps.floor().maximum(still), steps.ceil().minimum(still))
    limit = budget.eps * (1 + BUDGET_TOLERANCE)
    if budget.norm == "linf":
        outside = (nearest - origin).abs() > limit * GREY_STEPS
    else:
        outside = (perturbation_norms(nearest / GREY_STEPS, x.double())[budget.norm] > limit)[:, None, None, None]
    return (torch.where(outside, inward, nearest) / GREY_STEPS).clamp_(0.0, 1.0).to(images.dtype)


def _judgeable(logits: Tensor, ids: Tensor, what: str) -> Tensor:
    """Logits that name a class: no NaN, no +inf, and not all -inf (a class of probability zero is a class still)."""
    import torch

    bad = torch.isnan(logits).any(dim=1) | ~torch.isfinite(logits.amax(dim=1))
    if bad.any():
        first = int(ids[int(bad.nonzero()[0, 0])])
        raise ModelError(f"logits are not finite for {int(bad.sum())} of {len(ids)} {what}, first sample {first}")
    return logits
