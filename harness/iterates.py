"""The way an attack took: the same attack again on one sample, each image recorded at which it asks the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.evaluate import Setting, ShardTask, Workbench, evaluate_batch
from harness.loading import BuiltModel
from harness.models import ModelView, Reference
from harness.randomness import Draws

if TYPE_CHECKING:
    from torch import Tensor

    from harness.store import CellManifest, Run

MOST = 400
"""Images kept of one way: beyond, every second one is dropped, and only every second further one is taken."""


@dataclass
class Way:
    """Images in the order in which a model was asked about them, one after the other unlike."""

    kept: list[Tensor] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0
    _last: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """More images (n, C, H, W); one that is the same as the one before is not counted."""
        import torch

        for image in x.detach():
            if self._last is not None and torch.equal(image, self._last):
                continue
            self._last = image.clone()
            if self._seen % self._every == 0:
                self.kept.append(self._last)
            self._seen += 1
            if len(self.kept) > MOST:
                self.kept = self.kept[::2]
                self._every *= 2

    def images(self) -> Tensor:
        """float32 (T, C, H, W); the last image asked about is always there."""
        import torch

        if self._last is None:
            return torch.zeros(0)
        thinned = self._last is not self.kept[-1]
        return torch.stack([*self.kept, self._last] if thinned else self.kept)


class _RecordingView(ModelView):
    way: Way

    def _call(self, method: str, x: Tensor, draws: Draws | None, shape: tuple[int, ...]) -> Tensor:
        self.way.add(x)
        return super()._call(method, x, draws, shape)


@dataclass(frozen=True)
class _Recorded(BuiltModel):
    """A model whose views for an attack write down what they are asked about."""

    way: Way = field(default_factory=Way)

    def view(self, ids: Tensor, seed: int, purpose: Any, reference: Reference | None = None) -> ModelView:
        if purpose != "attack":
            return super().view(ids, seed, purpose, reference)
        view = _RecordingView(self.model, self.capabilities, ids, seed, purpose, reference, self.readout)
        view.way = self.way
        return view


def repeat_attack(
    run: Run, like: ShardTask, cell: CellManifest, sample_id: int, bench: Workbench
) -> tuple[Tensor, dict[str, Any]]:
    """Run the attack of a cell on one of its samples again, on the random numbers of the run.

    Args:
        like: any task of the same model, whose setting is taken.
        bench: what holds the model and the data, so that they are built once.

    Returns:
        The images at which the attack asked the model, float32 (T, C, H, W), see `Way`; and the sample's row as the
        repeated attack gives it.

    Raises:
        HarnessError: the model, the threat or its held-out scores cannot be had again.
    """
    task = replace(task_of(run, cell, sample_id, like.setting.device), setting=like.setting)
    data = bench.dataset(task)
    built = bench.model(task, data.facts)
    threat = bench.threat(task, data.facts)
    reference = bench.reference(task)
    recorded = _Recorded(built.model, built.capabilities, built.readout)
    x, y = data.load(task.ids)
    columns = evaluate_batch(recorded, threat, x, y, task.ids, task, reference)
    return recorded.way.images(), {name: values[0] for name, values in columns.items()}


def task_of(run: Run, cell: CellManifest, sample_id: int, device: str) -> ShardTask:
    """One sample of a cell as a shard of its own, as run.json describes the cell.

    Raises:
        HarnessError: run.json does not.
    """
    try:
        suite = run.info["suite"]
        model = without_defaults(suite["models"][cell.model])
        threat = next(t for t in (*suite["threats"], *_replays(run)) if t["label"] == cell.threat)
        setting = Setting(**{**run.info["setting"], "plugins": tuple(run.info["setting"]["plugins"])})
        dataset = suite["suite"]["dataset"]
    except (KeyError, TypeError, StopIteration) as error:
        raise HarnessError(
            f"{run.folder / 'run.json'} does not say how cell {cell.id} was made ({type(error).__name__}: {error})"
        ) from error
    options = {k: v for k, v in without_defaults(threat).items() if k not in ("plugin", "label", "limit")}
    held_out = [c for c in run.reader.cells.values() if c.role == "reference" and c.model == cell.model]
    there = [(c.digest, c.shards) for c in held_out if run.reader.is_complete(c.id)]
    return ShardTask(
        setting=replace(setting, folder=str(run.folder), device=device),
        cell=cell.id,
        digest=cell.digest,
        dataset=dataset,
        model=(cell.model, model["plugin"], {k: v for k, v in model.items() if k != "plugin"}),
        threat=(cell.threat, threat["plugin"], options),
        ids=np.array([sample_id], dtype=np.int64),
        reference=there[0] if there else None,
    )


def without_defaults(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of run.json as a suite would hold it: TOML has no null, so what is null was left out."""
    return {name: value for name, value in table.items() if value is not None}


def _replays(run: Run) -> list[dict[str, Any]]:
    """Threats that were added for one run (`--from`) and are no part of the suite, by what their cells say."""
    known = {threat["label"] for threat in run.info["suite"]["threats"]}
    cells = [c for c in run.reader.cells.values() if c.role == "cell" and c.threat not in known]
    return [{"plugin": c.plugin, "label": c.threat, **c.params} for c in cells]


def same_image(one: NDArray[Any], other: NDArray[Any], tolerance: float = 1e-6) -> bool:
    """Whether two images are the same up to rounding."""
    return one.size == other.size and float(np.abs(one.ravel() - other.ravel()).max(initial=0.0)) <= tolerance
