"""Global state is seeded for a block and put back after it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from harness.backends.state import seeded_globals
from harness.testing.global_state import global_state


def numbers() -> list[float]:
    """One number of each generator that libraries draw from."""
    unseeded = np.random.RandomState()
    return [
        random.random(),
        float(np.random.rand()),  # noqa: NPY002
        float(unseeded.rand()),
        float(torch.rand(())),
    ]


def test_every_generator_follows_the_seed() -> None:
    with seeded_globals(3):
        first = numbers()
    with seeded_globals(3):
        again = numbers()
    with seeded_globals(4):
        other = numbers()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_seeded_generator_of_numpy_is_the_usual_one() -> None:
    usual = np.random.RandomState(5)
    with seeded_globals(0):
        inside = np.random.RandomState(5)
        assert isinstance(usual, np.random.RandomState)
        assert isinstance(inside, np.random.RandomState)
    assert isinstance(inside, np.random.RandomState)
    assert inside.rand() == usual.rand()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_all_is_as_before(error: Any) -> None:
    kind = np.random.RandomState
    errors = np.geterr()

    def block() -> None:
        with seeded_globals(1):
            numbers()
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            np.seterr(all="ignore")
            if error:
                raise error

    with global_state() as changed:
        if error:
            with pytest.raises(error):
                block()
        else:
            block()
    assert changed == []
    assert np.random.RandomState is kind
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert np.geterr() == errors
