"""The global random generators: whether a plugin touches them, and what it does when they hold something else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _states() -> dict[str, Any]:
    """The state of each global generator, comparable."""
    legacy: Any = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is what is watched
    states: dict[str, Any] = {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "NumPy": (legacy[0], np.asarray(legacy[1]).tobytes(), *legacy[2:]),
        "random": random.getstate(),
    }
    if torch.cuda.is_available():
        states["CUDA"] = tuple(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
    return states


@contextmanager
def global_state() -> Iterator[list[str]]:
    """A list that holds, after the block, the names of the generators that were used in it."""
    changed: list[str] = []
    before = _states()
    yield changed
    after = _states()
    changed.extend(name for name in before if before[name] != after[name])


@contextmanager
def other_global_seed(seed: int) -> Iterator[None]:
    """Run a block with other numbers in the global generators; they are put back afterwards."""
    legacy, state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(legacy)  # noqa: NPY002
            random.setstate(state)
