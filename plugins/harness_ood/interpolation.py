"""Log-likelihood on the straight line between two images of the data: does it sag, as it should, or rise?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import ModelError
from harness.models import bits_per_dim
from harness.options import Options, option
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_ood.partners import Partners, partners_of

if TYPE_CHECKING:
    from harness.models import ModelView


class InterpolationOptions(Options):
    """Options of `interpolation`. The paper takes 500 pairs: ``limit = 500``."""

    points: int = option(24, help="values of t, evenly spaced from 0 to 1, both included", ge=3)


class Interpolation:
    """log p(t x_A + (1 - t) x_B) at evenly spaced t (Zimmermann et al. 2021, section 3.4, eq. 4; Fetaya et al. 2020).

    x_A is the sample and x_B its partner, another image of the data drawn from the sample's stream. The mixtures are
    not rounded to grey levels: between two levels the density is asked, not the data. A random model answers along a
    whole line with one draw, so that its noise does not bend the curve.

    Columns:
        sample_id, label: int64, of x_A.
        t: float64, in [0, 1]; 1 is the sample, 0 its partner.
        partner: int64, the sample id of x_B.
        log_prob: float64, nats.
        bits_per_dim: float64, of a density that is no surrogate: -log p / (D ln 2) + log2(levels).
    """

    budget: Budget | None = None

    def __init__(self, points: int, partners: Partners, levels: int) -> None:
        self.points = points
        self.partners = partners
        self.levels = levels

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        pairs = self.partners.of(batch)
        curves = []
        for k in range(self.points):
            # Divided last, so that the ends are the two images to the bit.
            x = (k * batch.x.double() + (self.points - 1 - k) * pairs.x.double()) / (self.points - 1)
            with torch.no_grad():
                curves.append(model.log_prob(x.float(), batch.draws).double())
        log_prob = torch.stack(curves)
        bad = log_prob.isnan().any(dim=0)
        if bad.any():
            raise ModelError(
                f"log_prob is NaN on {int(bad.sum())} of {len(bad)} lines between images (first: sample"
                f" {int(batch.ids[bad][0])} and its partner {int(pairs.ids[bad][0])})"
            )
        t = torch.arange(self.points, device=batch.ids.device).double() / (self.points - 1)
        columns: dict[str, Any] = {
            "sample_id": batch.ids.repeat(self.points),
            "label": batch.y.repeat(self.points),
            "t": t.repeat_interleave(len(batch.ids)),
            "partner": pairs.ids.repeat(self.points),
            "log_prob": log_prob.flatten(),
        }
        if model.density_tag != "surrogate":
            columns["bits_per_dim"] = bits_per_dim(columns["log_prob"], batch.x.shape[1:], self.levels)
        return columns


def build(options: InterpolationOptions, context: ThreatContext) -> Interpolation:
    """The threat.

    Raises:
        HarnessError: the data's images cannot be opened to pair them.
    """
    return Interpolation(options.points, partners_of(context), context.data.levels)
