"""What `harness fit` gives a `Trainable` model: progress, a place for checkpoints, and the state to resume from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import checkpoints
from harness.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class FitSession:
    """One training run.

    Attributes:
        out: the checkpoint to write.
        header: what goes into its header beside what the model adds (plugin, options, recipe, data digest, classes).
        seed: the seed of everything random in training; a model draws from its own generator made from it.
        progress: called as progress(done, total, {"loss": ...}) at least once an epoch.
        resume: continue from the state left beside `out` by an interrupted run.
        notes: what the model adds to the header of the finished checkpoint, for whoever loads it; JSON.
    """

    out: Path
    header: Mapping[str, Any]
    seed: int
    progress: Callable[[int, int, Mapping[str, float]], None]
    resume: bool = True
    device: str = "cpu"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def state_path(self) -> Path:
        """Where the state of an unfinished training lies; gone once the training is finished."""
        return self.out.with_name(self.out.name + ".resume")

    def save_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep everything needed to go on exactly here: weights, optimiser, generator state, position."""
        _save(self.state_path, tensors, {**self.header, "state": dict(state)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state of an interrupted run with the same header, or None."""
        if not self.resume or not self.state_path.is_file():
            return None
        tensors, header = checkpoints.load(self.state_path)
        state = header.pop("state", None)
        return (tensors, state) if state is not None and header == _as_json(self.header) else None

    def finish(self, tensors: Mapping[str, Tensor], **results: Any) -> None:
        """Write the final checkpoint, with the model's `notes` and `results` (such as the last loss) in its header."""
        notes = {"notes": self.notes} if self.notes else {}
        _save(self.out, tensors, {**self.header, **notes, "results": results})
        self.state_path.unlink(missing_ok=True)


def _save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    try:
        checkpoints.save(path, tensors, header)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write {path}: {reason}; what was saved before is still there") from error


def _as_json(header: Mapping[str, Any]) -> Any:
    """A header as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(dict(header)))
