"""Out-of-distribution scores of the data beside those of images that no training distribution holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from harness.errors import ModelError
from harness.options import Options, option
from harness.threats import Batch, Budget, Columns, ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

SetName = Literal["uniform", "constant"]


class OODOptions(Options):
    """Options of `ood`."""

    sets: tuple[SetName, ...] = option(
        ("uniform", "constant"),
        help='"uniform": every pixel and channel a grey level at random; "constant": one random colour an image',
    )

    @field_validator("sets")
    @classmethod
    def _once_each(cls, sets: tuple[SetName, ...]) -> tuple[SetName, ...]:
        if not sets:
            raise PydanticCustomError("option", "no set is named: there is nothing to tell the data from")
        twice = next((name for name in sets if sets.count(name) > 1), None)
        if twice:
            raise PydanticCustomError("option", "{text}", {"text": f"'{twice}' is listed twice"})
        return sets


class OOD:
    """Rows of the data (`set` = "in") and of as many images of each set, all scored alike.

    An image of a set is drawn from the random stream of the sample whose id it bears, at the data's own grey levels
    (pixels are k / (levels - 1)), so that a score cannot tell it by its quantisation.

    Columns:
        sample_id: int64; in a set the number of the image there.
        set: "in", or the set's name.
        ood_score: float64, higher is more out-of-distribution.
        score: which score that is, "own" or "max-softmax".
    """

    budget: Budget | None = None

    def __init__(self, sets: tuple[SetName, ...], levels: int) -> None:
        self.sets = sets
        self.levels = levels

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        names = ["in", *self.sets]
        scores = []
        for name in names:
            x = batch.x if name == "in" else SETS[name](batch.draws, tuple(batch.x.shape[1:]), self.levels)
            # A random model answers for each set with a draw of its own, whichever sets are asked for.
            draws = batch.draws.numbered(0 if name == "in" else 1 + list(SETS).index(name))
            with torch.no_grad():
                scores.append(_not_nan(model.ood_score(x, draws), name, batch.ids).double())
        n = len(batch.ids)
        return {
            "sample_id": batch.ids.repeat(len(names)),
            "set": [name for name in names for _ in range(n)],
            "ood_score": torch.cat(scores),
            "score": [model.ood_score_name] * (n * len(names)),
        }


def uniform_noise(draws: Draws, shape: tuple[int, ...], levels: int) -> Tensor:
    """float32 (B, *shape), every entry one of `levels` grey levels in [0, 1], each as likely."""
    return _grey(draws.integers("uniform", 0, shape, levels), levels)


def constant_colour(draws: Draws, shape: tuple[int, ...], levels: int) -> Tensor:
    """float32 (B, *shape), each image of one colour: every channel at a grey level of its own, the same everywhere."""
    channels, height, width = shape
    colour = _grey(draws.integers("constant", 0, (channels, 1, 1), levels), levels)
    return colour.expand(-1, -1, height, width).contiguous()


SETS: dict[str, Callable[[Draws, tuple[int, ...], int], Tensor]] = {
    "uniform": uniform_noise,
    "constant": constant_colour,
}


def build(options: OODOptions, context: ThreatContext) -> OOD:
    return OOD(options.sets, context.data.levels)


def _grey(level: Tensor, levels: int) -> Tensor:
    return level.float().div_(levels - 1)


def _not_nan(scores: Tensor, name: str, ids: Tensor) -> Tensor:
    bad = scores.isnan()
    if bool(bad.any()):
        first: Any = ids[bad][0].item()
        what = "the data" if name == "in" else f"set '{name}'"
        raise ModelError(
            f"ood_score() returned NaN for {int(bad.sum())} of {len(ids)} images of {what} (first: sample {first})"
        )
    return scores
