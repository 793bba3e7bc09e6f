"""What `harness fit` gives a `Trainable` model: progress, a place for checkpoints, and the state to resume from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import checkpoints
from harness.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from harness.datasets import Ints


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


def in_batches(order: Ints, size: int) -> Iterator[Ints]:
    """Sample ids in their order, `size` at a time."""
    for start in range(0, order.size, size):
        yield order[start : start + size]


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each purpose and epoch: 63 bits of a hash."""
    digest = hashlib.blake2b(repr((seed, purpose, number)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def above(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with names that begin with `prefix`."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each weight, for `FitSession.save_state`."""
    entries = optimizer.state_dict()["state"].items()
    return {f"optimizer.{i}.{name}": v for i, entry in entries for name, v in entry.items() if hasattr(v, "dtype")}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what `optimizer_tensors` took; its options stay as they are."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in below(tensors, "optimizer.").items():
        index, _, entry = name.partition(".")
        entries.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
