"""The threat of a backend: runs a library's attack on samples, and holds what comes back to box and budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.backends.options import BackendOptions
from harness.errors import HarnessError, ThreatError, one_line
from harness.threats import Batch, Budget, Columns

if TYPE_CHECKING:
    from torch import Tensor

    from harness.backends.served import Centre, ServedModel
    from harness.models import ModelView
    from harness.randomness import Draws

ROUNDING = 1e-4
"""Images that are over the budget by this part of it have been rounded, and are pulled back; others are refused."""


@dataclass(frozen=True)
class Returned:
    """What a library made of images.

    Attributes:
        images: (n, C, H, W), as they are; the harness checks them.
        claimed: bool (n,), the library's own verdict, where it gives one.
    """

    images: Tensor
    claimed: Tensor | None = None


Library = Callable[["ServedModel", "Tensor", "Tensor", int], Returned]
"""Attack images x (n, C, H, W) of labels y (n,), int64, with a seed for whatever the library seeds itself."""


class BackendThreat:
    """Runs `attack` on every sample that the model classifies rightly, each alone unless the options say `together`.

    Alone, because libraries draw from global generators, stop batches early and ask models about images without
    saying whose they are: only then do results not depend on neighbours, and evaluations are booked to the right
    sample. Global generators are seeded from the sample's own stream, and all global state is put back.

    Images that leave the budget or are not finite are replaced by the clean image, so they count as
    failures; a value outside [0, 1] is clipped.

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        claimed: the library's own verdict on the images as it returned them; if it gives none, whether the model
            misclassifies those, which is one more evaluation. The host's verdict is another column, and may differ.
        refused: whether the image was replaced by the clean one.
        gradient_steps, zero_gradient_steps, nonfinite_gradient_steps: see `ServedModel`.
    """

    def __init__(
        self,
        name: str,
        options: BackendOptions,
        attack: Library,
        *,
        files: tuple[Path, ...],
        centre: Centre,
        budget_given: bool,
    ) -> None:
        self.name = name
        self.options = options
        self.attack = attack
        self.files = files
        self.centre: Centre = centre
        self.budget_given = budget_given
        self.budget: Budget | None = options.budget

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        if self.options.together and model.stochastic:
            raise ThreatError(
                f"{self.name}: a model with randomness must be attacked one sample at a time: leave out together"
            )
        columns: dict[str, Any] = {"adversarial": batch.x.clone()}
        for name in ("claimed", "refused"):
            columns[name] = torch.zeros_like(batch.clean_correct)
        columns["budget_given"] = torch.full_like(batch.clean_correct, self.budget_given)
        for name in _COUNTS:
            columns[name] = torch.zeros_like(batch.y)
        rows = batch.clean_correct.nonzero()[:, 0]
        if self.options.budget.eps == 0 or not len(rows):
            return columns
        for part in [rows] if self.options.together else torch.split(rows, 1):
            self._attack(model, batch.x[part], batch.y[part], batch.draws[part], part, columns)
        return columns

    def _attack(
        self, model: ModelView, x: Tensor, y: Tensor, draws: Draws, rows: Tensor, columns: dict[str, Any]
    ) -> None:
        """Attack these samples and write their rows."""
        import torch

        from harness.backends.served import ServedModel
        from harness.backends.state import seeded_globals

        served = ServedModel(model, draws, y, self.centre)
        seed = int(draws[:1].bits("library", 0, ()))
        try:
            with seeded_globals(seed):
                returned = self.attack(served, x.clone(), y.clone(), seed)
                images = returned.images.detach().to(x)
                if images.shape != x.shape:
                    raise ThreatError(
                        f"{self.name}: {self.options.attack} returned {tuple(images.shape)} for {len(x)} image(s), not"
                        " an image for each: it is no attack that the harness can judge"
                    )
                claimed = returned.claimed
                if claimed is None:
                    with torch.no_grad():
                        claimed = served(images).argmax(dim=1) != y
        except HarnessError:
            raise
        except Exception as error:
            raise ThreatError(
                f"{self.name}: {self.options.attack} failed on {len(x)} sample(s) from {int(draws.ids[0])}:"
                f" {one_line(error)}"
            ) from error
        columns["adversarial"][rows], columns["refused"][rows] = inside(images, x, self.options.budget)
        columns["claimed"][rows] = claimed.to(rows.device)
        for name in _COUNTS:
            columns[name][rows] = getattr(served, name)


_COUNTS = ("gradient_steps", "zero_gradient_steps", "nonfinite_gradient_steps")


def inside(images: Tensor, x: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
    """The images (n, C, H, W) where they lie in the box and the budget around `x`, else `x`; and which were refused.

    Values outside [0, 1] are clipped first, and what rounding has put out of the budget is pulled back.
    """
    import torch

    order = {"linf": torch.inf, "l2": 2, "l1": 1}[budget.norm]
    usable = images.isfinite().flatten(1).all(dim=1)
    clipped = torch.where(usable[:, None, None, None], images, x).clamp(0.0, 1.0)
    moved = clipped.double() - x.double()
    norms = torch.linalg.vector_norm(moved.flatten(1), ord=order, dim=1)
    usable &= norms <= budget.eps * (1 + ROUNDING)
    over = norms > budget.eps
    factor = torch.where(over, budget.eps * (1 - 1e-7) / norms, 1.0)[:, None, None, None]
    kept = torch.where(over[:, None, None, None], (x.double() + moved * factor).to(x.dtype), clipped)
    return torch.where(usable[:, None, None, None], kept, x), ~usable
