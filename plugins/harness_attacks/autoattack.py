"""AutoAttack: four attacks that fail for different reasons, each on what the ones before left standing.

Croce & Hein 2020, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks*
(arXiv 2003.01690), section 5; the settings for l1 from arXiv 2103.01208, section 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.errors import ThreatError
from harness.options import option
from harness.threats import Batch, Budget, Columns, Norm, ThreatContext
from harness_attacks.apgd import APGD, APGDOptions
from harness_attacks.attacked import randomness
from harness_attacks.ball_options import BallOptions, check_diameter
from harness_attacks.fab import FAB, FABOptions
from harness_attacks.square import Square, SquareOptions

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.options import Amount

_COUNTS = ("gradient_steps", "zero_gradient_steps", "nonfinite_gradient_steps", "queries")
_RAND_EOT = 20
_JUDGED_ON = 10  # fresh draws that choose between two attacks' images of one sample, for a random model
_FRESH = 1 << 30  # number of the first of them: no attack gets there


class AutoAttackOptions(BallOptions):
    """Options of `autoattack`."""

    version: Literal["standard", "plus", "rand"] = option(
        "standard",
        help="standard: APGD on cross-entropy and targeted DLR, targeted FAB, Square; plus: more restarts, untargeted"
        " DLR and FAB too; rand, for a model with randomness: APGD on cross-entropy and DLR over 20 draws a step",
    )


class _Part(Protocol):
    def run(self, model: ModelView, batch: Batch) -> Columns: ...


class AutoAttack:
    """Runs the attacks one after the other, each on the samples that still stand.

    For a model with randomness (`rand` only) both attacks run on all samples, and of each sample's images the one is
    returned on which the label's mean log-odds, over ten draws that no attack saw, are the lowest.

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        stochastic, eot: as those of APGD.
        attack: which attack broke the sample: "apgd-ce", "apgd-t", "fab-t", "square", "apgd-dlr" or "fab"; "" if none
            did. (Whether the image counts the host decides.)
        gradient_steps, zero_gradient_steps, nonfinite_gradient_steps, queries: sums over the attacks.
        loss_first, loss_last: those of APGD on cross-entropy.
        success_step, restart: when the attack that broke the sample did, as that attack says; -1 if none did.
    """

    def __init__(self, options: AutoAttackOptions, num_classes: int) -> None:
        self.options = options
        self.budget: Budget | None = Budget(options.norm, float(options.eps))
        self.parts = parts(options.version, options.norm, options.eps, num_classes)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        if model.stochastic and self.options.version != "rand":
            raise ThreatError(
                f'autoattack: the model is random, and version "{self.options.version}" would follow the noise of'
                ' single draws; set version = "rand"'
            )
        nothing = torch.zeros_like(batch.y)
        found: dict[str, Any] = {
            "adversarial": batch.x.clone(),
            "attack": nothing - 1,
            **randomness(model, nothing, _RAND_EOT),
            **{name: nothing.clone() for name in _COUNTS},
            "loss_first": torch.full_like(nothing, float("nan"), dtype=torch.float64),
            "loss_last": torch.full_like(nothing, float("nan"), dtype=torch.float64),
            "success_step": nothing - 1,
            "restart": nothing - 1,
        }
        odds = torch.full_like(found["loss_first"], float("-inf"))
        rows = (batch.clean_correct & (self.options.eps > 0)).nonzero()[:, 0]
        for number, (name, part) in enumerate(self.parts.items()):
            if not len(rows):
                break
            columns = part.run(model, _only(batch, rows, name))
            for count in _COUNTS:
                if count in columns:
                    found[count][rows] += columns[count]
            if number == 0:
                found["loss_first"][rows], found["loss_last"][rows] = columns["loss_first"], columns["loss_last"]
            if model.stochastic:
                taken = self._better(model, batch, rows, columns["adversarial"], odds)
            else:
                # A sample that stands keeps the first attack's image, the one of the highest loss.
                taken = columns["success_step"] >= 0 if number else torch.ones_like(rows, dtype=torch.bool)
            found["adversarial"][rows[taken]] = columns["adversarial"][taken]
            broken = taken & (columns["success_step"] >= 0)
            found["attack"][rows[broken]] = number
            for column in ("success_step", "restart"):
                found[column][rows[broken]] = columns[column][broken]
            if not model.stochastic:
                rows = rows[~broken]
        names = ["", *self.parts]
        found["attack"] = [names[number + 1] for number in found["attack"].tolist()]
        return found

    def _better(self, model: ModelView, batch: Batch, rows: Tensor, images: Tensor, odds: Tensor) -> Tensor:
        """Whose `images` (n, C, H, W) are worse for the label than what was found before, bool (n,); updates `odds`."""
        import torch

        from harness_attacks.losses import log_odds_against

        draws = batch.draws[rows]
        mean = torch.zeros_like(odds[rows])
        with torch.no_grad():
            for draw in range(_JUDGED_ON):
                logits = model.logits(images, draws.numbered(_FRESH + draw))
                mean += log_odds_against(logits, batch.y[rows]).values() / _JUDGED_ON
        better = mean > odds[rows]
        odds[rows] = torch.maximum(mean, odds[rows])
        return better


def _only(batch: Batch, rows: Tensor, name: str) -> Batch:
    """The samples at `rows`, with streams of their own for the attack `name`."""
    logits, verdict = (None if t is None else t[rows] for t in (batch.clean_logits, batch.clean_prediction))
    return Batch(batch.x[rows], batch.y[rows], batch.ids[rows], batch.draws[rows].stream(name), logits, verdict)


def parts(version: str, norm: Norm, eps: Amount, num_classes: int) -> dict[str, _Part]:
    """The attacks of a version by name, in order.

    With fewer classes than DLR needs (3, or 4 where it is targeted) the margin takes its place.
    """

    def apgd(loss: str, **options: Any) -> APGD:
        if loss == "dlr" and num_classes < (4 if "targets" in options else 3):
            loss = "margin"
        return APGD(APGDOptions.model_validate({"norm": norm, "eps": eps, "loss": loss, **options}))

    def fab(**options: Any) -> FAB:
        return FAB(FABOptions.model_validate({"norm": norm, "eps": eps, **options}))

    if version == "rand":
        return {"apgd-ce": apgd("cross-entropy", eot=_RAND_EOT), "apgd-dlr": apgd("dlr", eot=_RAND_EOT)}
    square = Square(SquareOptions(norm=norm, eps=eps))
    if version == "plus":
        return {
            "apgd-ce": apgd("cross-entropy", restarts=5),
            "apgd-dlr": apgd("dlr", restarts=5),
            "fab": fab(targeted=False, restarts=5),
            "square": square,
            "apgd-t": apgd("dlr", targets=9),
            "fab-t": fab(),
        }
    sparse: dict[str, Any] = {"large_radii": True} if norm == "l1" else {}
    return {
        "apgd-ce": apgd("cross-entropy", restarts=5 if sparse else 1, **sparse),
        "apgd-t": apgd("dlr", targets=5 if sparse else 9, **sparse),
        "fab-t": fab(),
        "square": square,
    }


def build(options: AutoAttackOptions, context: ThreatContext) -> AutoAttack:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space.
    """
    check_diameter("autoattack", options.norm, options.eps, context.data)
    return AutoAttack(options, context.data.num_classes)
