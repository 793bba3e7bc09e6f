"""The sanity test p_pi: images whose bits were flipped at random, which no eye can tell from the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from harness.errors import ThreatError
from harness.models import bits_per_dim
from harness.options import Amount, Options, option, problem
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_bitflip.grey_levels import Grid, bits_of, flip_bit, from_levels, on_grid

if TYPE_CHECKING:
    from torch import Tensor

    from harness.datasets import DatasetFacts
    from harness.models import ModelView


class BitFlipOptions(Options):
    """Options of `bitflip`."""

    pi: tuple[Amount, ...] = option(
        (Amount(0), Amount(0.5), Amount(1)),
        help="probabilities that a component's bit is flipped; 0, the clean image, is always among them",
    )
    bit: int = option(0, help="which bit of the grey level, 0 the least significant", ge=0)
    off_grid: Literal["refuse", "round"] = option(
        "refuse", help="an image that does not lie on the data set's grey levels is refused, or rounded to them first"
    )

    @field_validator("pi")
    @classmethod
    def _probabilities(cls, pi: tuple[Amount, ...]) -> tuple[Amount, ...]:
        for value in pi:
            if not 0 <= value <= 1:
                raise problem(f"{value} is no probability: it must be in [0, 1]")
        twice = next((value for value in pi if pi.count(value) > 1), None)
        if twice is not None:
            raise problem(f"{twice} is listed twice")
        if not any(pi):
            raise problem("no probability above 0 is given: nothing would be flipped")
        return pi if 0.0 in pi else (Amount(0), *pi)


class BitFlip:
    """Rows of every sample at every pi; the same uniform number decides about a component at each of them.

    A component flipped at one pi is flipped at every larger one, so that the images are as alike as they can be.

    Columns:
        sample_id, label: int64.
        pi: float64; 0 is the clean image (rounded to the grid where `off_grid` says so).
        bit: int64, which bit.
        flipped: int64, how many components changed.
        not_made: int64, how many flips were due and not made, because the result would be no grey level.
        rounded: int64, how many components of the clean image lay off the grid.
        prediction, correct, confidence, entropy, ood_score, log_prob: what the host says of the image
            (`harness.threats.Batch.judge`), by the model's capabilities.
        logit_change: float64, of a classifier: the largest change of log p(y | x) over the classes y, nats, against
            the clean image. A random model answers both with the same draw.
        bits_per_dim: float64, of a density that is no surrogate: -log p / (D ln 2) + log2(levels).
        delta_bits_per_dim: float64, bits_per_dim less that of the clean image, signed: above 0 where flipping makes
            the image less likely.
    """

    budget: Budget | None = None

    def __init__(self, options: BitFlipOptions, data: DatasetFacts) -> None:
        self.options = options
        self.levels = data.levels

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        grid = self._grid(batch)
        clean = batch.x.where(~grid.off, from_levels(grid.level, self.levels))
        chance = batch.draws.uniform("flip", 0, batch.x.shape[1:])
        first = self._answers(model, batch, clean)
        parts = []
        for pi in self.options.pi:
            flipped = flip_bit(grid.level, self.options.bit, chance < pi, self.levels)
            images = torch.where(flipped.made, from_levels(flipped.level, self.levels), clean)
            answers = first if pi == 0.0 else self._answers(model, batch, images)
            parts.append(
                {
                    "sample_id": batch.ids,
                    "label": batch.y,
                    "pi": torch.full_like(batch.ids, float(pi), dtype=torch.float64),
                    "bit": torch.full_like(batch.ids, self.options.bit),
                    "flipped": flipped.made.flatten(1).sum(dim=1),
                    "not_made": flipped.not_made.flatten(1).sum(dim=1),
                    "rounded": grid.off.flatten(1).sum(dim=1),
                    **_against(answers, first),
                }
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _grid(self, batch: Batch) -> Grid:
        """The batch's grey levels.

        Raises:
            ThreatError: an image lies off the grid, and that is to be refused.
        """
        grid = on_grid(batch.x, self.levels)
        if self.options.off_grid == "refuse" and bool(grid.off.any()):
            bad = grid.off.flatten(1).any(dim=1)
            first = int(bad.nonzero()[0, 0])
            value = float(batch.x[first][grid.off[first]][0])
            raise ThreatError(
                f"{int(bad.sum())} of {len(bad)} images do not lie on the {self.levels} grey levels that the data set"
                f" declares (sample {int(batch.ids[first])} holds {value:.6g}, that is {value * (self.levels - 1):.4f}"
                f' of {self.levels - 1}); set off_grid = "round", or the data set\'s levels'
            )
        return grid

    def _answers(self, model: ModelView, batch: Batch, images: Tensor) -> dict[str, Tensor]:
        """The host's columns for `images`, and of a classifier its `log_softmax` (B, K)."""
        import torch

        if batch.judge is None:
            raise ThreatError("bitflip needs the host's judgement of images (Batch.judge)")
        answers = batch.judge(images)
        if "Classifier" in model.capabilities:
            with torch.no_grad():
                answers["log_softmax"] = model.logits(images, batch.draws).double().log_softmax(dim=1)
        if "log_prob" in answers and model.density_tag != "surrogate":
            answers["bits_per_dim"] = bits_per_dim(answers["log_prob"], images.shape[1:], self.levels)
        return answers


def _against(answers: dict[str, Tensor], first: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns of images beside those of their clean versions."""
    columns = {name: values for name, values in answers.items() if name != "log_softmax"}
    if "log_softmax" in answers:
        after, before = answers["log_softmax"], first["log_softmax"]
        # A class that is impossible before and after did not change: not -inf less -inf.
        columns["logit_change"] = (after - before).abs().where(after != before, 0.0).amax(dim=1)
    if "bits_per_dim" in answers:
        after, before = answers["bits_per_dim"], first["bits_per_dim"]
        columns["delta_bits_per_dim"] = (after - before).where(after != before, 0.0)
    return columns


def build(options: BitFlipOptions, context: ThreatContext) -> BitFlip:
    """The threat.

    Raises:
        ThreatError: the data's grey levels have no such bit.
    """
    bits = bits_of(context.data.levels)
    if options.bit >= bits:
        raise ThreatError(
            f"bit {options.bit}: the {context.data.levels} grey levels of data set '{context.data.name}' have bits 0 to"
            f" {bits - 1}"
        )
    return BitFlip(options, context.data)
