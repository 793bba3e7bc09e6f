"""The adversarial images of an earlier run, shown to a model: transfer, and a cheap check on a gain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from harness.errors import HarnessError, did_you_mean
from harness.gate_options import matches_glob
from harness.judge import norm_of
from harness.loading import BUDGET_TOLERANCE
from harness.options import Amount, Options, eps_in_range, option
from harness.store import CellManifest, load_run, read_shards, shard_path
from harness.threats import Batch, Budget, Columns, Norm, ThreatContext
from harness_attacks.losses import margin_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView


class ReplayOptions(Options):
    """Options of `replay`."""

    run: str = option(help="folder of the run whose adversarial images are shown; relative to the suite file")
    cells: str = option("*", help="which of its cells, as '*/pgd*'; by default all that stored adversarial images")
    norm: Norm = option("linf", help="norm of the budget")
    eps: Amount = option(help="images further than this from the clean one are left out", unit="[0, 1] pixel values")

    _eps_in_range = field_validator("eps")(eps_in_range)


@dataclass(frozen=True)
class Source:
    """A cell with stored adversarial images; `paths` are its shards, `firsts` their first sample ids, ascending."""

    id: str
    digest: str
    paths: tuple[Path, ...]
    firsts: NDArray[np.int64]

    def images(self, ids: NDArray[np.int64], norm: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Positions in `ids` of the samples that the cell has, their images (n, C*H*W) and norms (n,)."""
        holding = np.unique(np.searchsorted(self.firsts, ids, side="right") - 1)
        paths = [self.paths[shard] for shard in holding if shard >= 0]
        if not paths:
            return np.empty(0, dtype=np.int64), np.empty((0, 0)), np.empty(0)
        rows = read_shards(paths, ["sample_id", "adversarial", norm])
        _, position, row = np.intersect1d(ids, rows["sample_id"], return_indices=True)
        return position, rows["adversarial"][row], rows[norm][row]


class Replay:
    """Shows a model the adversarial images that a run stored, those inside the budget; the strongest is kept.

    Images made against another model say what transfers; images made against an earlier version of this one say whether
    a gain is one: an image that fools the candidate counts against it, whatever its own attack finds.

    Columns, one row a sample:
        adversarial: (B, C, H, W), the image with the largest margin of a wrong class; the clean one if there is none.
        replayed: int64, images shown.
        source: id of the cell that the kept image comes from, "" where there is none.
    """

    def __init__(self, options: ReplayOptions, sources: tuple[Source, ...]) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.sources = sources
        self.budget: Budget | None = Budget(options.norm, self.eps)
        self.inputs = [source.digest for source in sources]

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        ids = batch.ids.cpu().numpy()
        best = batch.x.clone()
        margin = torch.full((len(ids),), -torch.inf, dtype=torch.float64, device=batch.x.device)
        replayed = torch.zeros_like(batch.y)
        source = np.full(len(ids), "", dtype=f"<U{max((len(s.id) for s in self.sources), default=1)}")
        for one in self.sources:
            position, images, norms = one.images(ids, self.options.norm)
            # An image that an attack did not move says nothing that the clean one does not.
            inside = (norms <= self.eps * (1 + BUDGET_TOLERANCE) + BUDGET_TOLERANCE) & (norms > 0)
            rows = torch.from_numpy(position[inside]).to(batch.x.device)
            if not len(rows):
                continue
            x = self._shaped(images[inside], batch.x)
            self._check_origin(x, batch.x[rows], norms[inside])
            with torch.no_grad():
                found = margin_of(model.logits(x, batch.draws[rows].numbered(0)), batch.y[rows])
            better = found > margin[rows]
            best[rows[better]], margin[rows[better]] = x[better], found[better]
            source[rows[better].cpu().numpy()] = one.id
            replayed[rows] += 1
        return {"adversarial": best, "replayed": replayed, "source": source}

    def _shaped(self, images: NDArray[Any], like: Tensor) -> Tensor:
        import torch

        if images.shape[1] != like[0].numel():
            sizes = f"{images.shape[1]} values, not {like[0].numel()}"
            raise HarnessError(f"run {self.options.run} stores images of {sizes}")
        return torch.from_numpy(images).to(like).reshape(-1, *like.shape[1:])

    def _check_origin(self, x: Tensor, clean: Tensor, norms: NDArray[Any]) -> None:
        """Sample ids mean the same images only in the same data set."""
        sizes = norm_of(x - clean, self.options.norm).cpu().numpy()
        if np.abs(sizes - norms).max() > 1e-5 * (1 + norms.max()):
            raise HarnessError(
                f"run {self.options.run} was made on other images: its samples are not those of this suite"
            )


def build(options: ReplayOptions, context: ThreatContext) -> Replay:
    """The threat.

    Raises:
        HarnessError: the folder is no finished run, or no cell of it that is meant stored adversarial images.
    """
    run = load_run(context.folder / options.run)
    cells = [cell for cell in run.reader.cells.values() if cell.role == "cell" and run.reader.is_complete(cell.id)]
    chosen = [cell for cell in cells if matches_glob(cell.id, options.cells)]
    sources = tuple(_source(run.folder, cell) for cell in chosen if "adversarial" in run.columns(cell.id))
    if not sources:
        known = [cell.id for cell in cells]
        why = "none of its cells stored adversarial images" if chosen else f"no cell of it fits '{options.cells}'"
        raise HarnessError(f"run {options.run}: {why}{did_you_mean(options.cells, known) if not chosen else ''}")
    return Replay(options, sources)


def _source(folder: Path, cell: CellManifest) -> Source:
    firsts = sorted(cell.shards)
    paths = tuple(shard_path(folder, cell.digest, first) for first in firsts)
    return Source(cell.id, cell.digest, paths, np.asarray(firsts, dtype=np.int64))
