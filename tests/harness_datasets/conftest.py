"""A cache folder per test, so that tests neither see nor leave anything in the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.datasets import DatasetContext
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HARNESS_CACHE", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> DatasetContext:
    return DatasetContext(tmp_path)


@pytest.fixture
def real() -> DatasetContext:
    """The data root with the real files."""
    folder = os.environ.get("HARNESS_DATA")
    if not folder:
        pytest.skip("needs the real data sets: set HARNESS_DATA to the folder that holds mnist/, cifar10/, ...")
    return DatasetContext(Path(folder))


@pytest.fixture
def pictures() -> NDArray[np.uint8]:
    """Twelve random colour images, uint8 (12, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Calls a function that must refuse with one clear line, which is returned."""

    def call(function: Callable[..., Any], *arguments: Any, kind: type[HarnessError] = HarnessError) -> str:
        with pytest.raises(kind) as caught:
            function(*arguments)
        text = str(caught.value)
        assert "\n" not in text
        assert 20 < len(text) < 600
        return text

    return call
