"""Global state that attack libraries use: seeded for a sample, and as before afterwards, also after an exception."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed every global generator with `seed` (in [0, 2^32)); on leaving put back what libraries are known to touch.

    That is the generators of Python, NumPy and torch (all devices), torch's gradient mode and default type, and
    NumPy's treatment of floating-point errors. Within the block ``numpy.random.RandomState()`` without a seed, which
    ART's decision-based attacks use and which NumPy seeds from the operating system, is seeded by NumPy's global
    generator.
    """
    import torch

    python, legacy, errors = random.getstate(), np.random.get_state(), np.geterr()  # noqa: NPY002
    grad, kind, unseeded = torch.is_grad_enabled(), torch.get_default_dtype(), np.random.RandomState
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            np.random.RandomState = _SeededRandomState  # type: ignore[misc]
            yield
        finally:
            np.random.RandomState = unseeded  # type: ignore[misc]
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(kind)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            np.seterr(**errors)


_RANDOM_STATE = np.random.RandomState


class _OfEveryRandomState(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _RANDOM_STATE)


class _SeededRandomState(_RANDOM_STATE, metaclass=_OfEveryRandomState):
    """NumPy's generator, its default seed drawn from the global one."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**32, dtype=np.uint32) if seed is None else seed)  # noqa: NPY002
