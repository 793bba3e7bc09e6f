"""What the tests of IB-INN share: the data, the shipped models, small networks."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_ib_inn.layouts import Couplings, Layout
from harness_ib_inn.model import IBINN, build
from harness_ib_inn.options import IBINNOptions
from harness_ib_inn.subnetworks import pointwise

from harness.datasets import DatasetSlice
from harness.host import load_host
from harness.loading import open_dataset
from harness.models import ModelContext, prepare
from harness.suite import dataset_entry

torch.set_num_threads(1)


class Given:
    """Data and models by name; each is made once."""

    toy = Layout("toy", (2, 1, 1), (Couplings(4, partial(pointwise, width=8)),), alpha=1.0, rank=1)

    @staticmethod
    @cache
    def digits(split: str) -> DatasetSlice:
        host = load_host()
        return open_dataset(dataset_entry({"name": "digits", "split": split}, host, "digits"), host, None)

    @classmethod
    def model(cls, **options: Any) -> IBINN:
        """A model for digits, as the engine would build it."""
        context = ModelContext("mine", cls.digits("test").facts, "cpu", Path.cwd())
        return prepare(build(IBINNOptions.model_validate(options), context), "cpu")  # type: ignore[no-any-return]

    @staticmethod
    def shaken(layout: Layout, num_classes: int, levels: int, **more: Any) -> IBINN:
        """An untrained network in float64, moved away from the start, where couplings change nothing."""
        model = IBINN(layout, num_classes, levels, **more).double().eval().requires_grad_(False)
        draws = torch.Generator().manual_seed(1)
        for parameter in model.blocks.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        return model


@pytest.fixture(scope="session")
def given() -> Given:
    return Given()
