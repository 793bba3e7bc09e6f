"""A finished run taken up again: its model and data, and for one sample what its attacks made of it and by what way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import HarnessError, NothingToRunError, did_you_mean
from harness.evaluate import ShardTask, Workbench, workbench
from harness.explanations import AttackedImage
from harness.gate_options import matches_glob
from harness.iterates import repeat_attack, same_image, task_of
from harness.loading import BuiltModel

if TYPE_CHECKING:
    from harness.datasets import DatasetSlice
    from harness.store import CellManifest, Run

_SAME_IMAGE = 1e-4


@dataclass(frozen=True)
class Retracing:
    """One model of a run, ready to be asked again."""

    run: Run
    model: str
    device: str
    task: ShardTask
    bench: Workbench
    data: DatasetSlice
    built: BuiltModel

    @classmethod
    def of(
        cls, run: Run, model: str, device: str | None, data_root: Path | None, plugins: tuple[str, ...]
    ) -> Retracing:
        """Build the model and open the data as the run did.

        Args:
            device, data_root: those of the run where None; a run made on a GPU is taken up on the CPU where there is
                none.
            plugins: loaded beside those of the run.

        Raises:
            HarnessError: the run has no cell of the model; its checkpoint, data or plugins are not there.
        """
        cells = [c for c in run.reader.cells.values() if c.model == model and c.role == "cell"]
        if not cells:
            raise HarnessError(f"run {run.folder} has no cell of model '{model}' to explain")
        task = task_of(run, cells[0], 0, "cpu")
        setting = task.setting
        setting = replace(
            setting,
            data_root=str(data_root) if data_root is not None else setting.data_root,
            plugins=(*setting.plugins, *(p for p in plugins if p not in setting.plugins)),
            device=_device(device, str(run.info["setting"]["device"])),
        )
        task = replace(task, setting=setting)
        bench = workbench(setting)
        data = bench.dataset(task)
        return cls(run, model, setting.device, task, bench, data, bench.model(task, data.facts))

    @property
    def seed(self) -> int:
        return self.task.setting.seed

    def attacks(self, only: Sequence[str] = ()) -> list[CellManifest]:
        """The cells of this model that store adversarial images, of those that match one of the patterns.

        Raises:
            NothingToRunError: a pattern matches none.
        """
        reader = self.run.reader
        cells = [
            cell
            for cell in reader.cells.values()
            if cell.role == "cell" and cell.model == self.model and "adversarial" in reader.columns(cell.id)
        ]
        for pattern in only:
            if not any(matches_glob(cell.id, pattern) for cell in cells):
                near = did_you_mean(pattern, [cell.id for cell in cells])
                raise NothingToRunError(f"--only {pattern}: no attack of model '{self.model}' matches{near}")
        return [cell for cell in cells if not only or any(matches_glob(cell.id, pattern) for pattern in only)]

    def attacked(self, sample_id: int, attacks: Sequence[CellManifest]) -> tuple[list[AttackedImage], list[str]]:
        """What these attacks made of a sample, and a line on each that has nothing to show.

        Raises:
            HarnessError: model or data are no longer those of the run.
        """
        found, notes = [], []
        for cell in attacks:
            rows = self._stored(cell, sample_id)
            if rows is None:
                notes.append(f"{cell.threat}: sample {sample_id} was not among its samples")
            elif float(rows["linf"]) == 0:
                notes.append(f"{cell.threat}: left sample {sample_id} as it is")
            else:
                image, note = self._attacked(cell, sample_id, rows)
                found.append(image)
                notes += [note] if note else []
        return found, notes

    def _stored(self, cell: CellManifest, sample_id: int) -> dict[str, Any] | None:
        names = ("sample_id", "adversarial", "linf", "clean_prediction", "adversarial_prediction")
        rows = self.run.reader.raw(cell.id, names, np.array([sample_id], dtype=np.int64))
        return {name: values[0] for name, values in rows.items()} if len(rows["sample_id"]) else None

    def _attacked(self, cell: CellManifest, sample_id: int, row: dict[str, Any]) -> tuple[AttackedImage, str]:
        import torch

        x, _ = self.data.load(np.array([sample_id], dtype=np.int64))
        stored = torch.from_numpy(np.array(row["adversarial"], dtype=np.float32)).reshape(x.shape)
        if abs(float((stored - x).abs().max()) - float(row["linf"])) > _SAME_IMAGE:
            raise HarnessError(f"the data are no longer those of run {self.run.folder}: sample {sample_id} differs")
        try:
            way, again = repeat_attack(self.run, self.task, cell, sample_id, self.bench)
        except HarnessError as error:
            note = f"{cell.threat}: its way is not shown, because it cannot be repeated ({error})"
            return AttackedImage(cell.threat, stored.to(self.device), torch.zeros(0, *x.shape[1:]), False), note
        self._check_model(cell, row, again)
        repeated = same_image(again["adversarial"], row["adversarial"])
        note = "" if repeated else f"{cell.threat}: repeated on sample {sample_id}, it did not end at the stored image"
        return AttackedImage(cell.threat, stored.to(self.device), way.to(self.device), repeated), note

    def _check_model(self, cell: CellManifest, row: dict[str, Any], again: dict[str, Any]) -> None:
        """A model with randomness is judged over the same draws, so that its verdict on a clean image is the same."""
        if int(again["clean_prediction"]) != int(row["clean_prediction"]):
            raise HarnessError(
                f"model '{self.model}' is no longer what it was: of sample {int(row['sample_id'])} it says class"
                f" {int(again['clean_prediction'])}, in the run it said {int(row['clean_prediction'])} ({cell.id});"
                " run the suite again"
            )


def _device(wanted: str | None, of_run: str) -> str:
    import torch

    from harness.runner import pick_device

    if wanted is not None:
        return pick_device(wanted)
    return "cpu" if of_run.startswith("cuda") and not torch.cuda.is_available() else of_run
