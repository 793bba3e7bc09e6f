"""Data sets: scikit-learn's digits, MNIST and Fashion-MNIST (idx), CIFAR, npz files and image folders."""

from __future__ import annotations

from collections.abc import Callable

from harness.hookspecs import hookimpl
from harness.info import DatasetInfo

_DATASETS = (
    DatasetInfo(
        name="digits",
        summary="scikit-learn's 1,797 handwritten digits, 8x8; needs no file",
        source="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI repository",
        factory="harness_datasets.digits:build",
        options="harness_datasets.digits:DigitsOptions",
    ),
    DatasetInfo(
        name="npz",
        summary="a NumPy .npz file: arrays x and y, or encoded images (jpeg, offsets) and y",
        source="https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html",
        factory="harness_datasets.npz:build",
        options="harness_datasets.npz:NpzOptions",
    ),
)


@hookimpl
def register_datasets(register: Callable[[DatasetInfo], None]) -> None:
    for info in _DATASETS:
        register(info)
