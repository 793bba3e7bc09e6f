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
    DatasetInfo(
        name="mnist",
        summary="MNIST: four official idx .gz files in mnist/ under the data root",
        source="LeCun, Bottou, Bengio and Haffner (1998), Gradient-Based Learning Applied to Document Recognition",
        factory="harness_datasets.idx:build_mnist",
        options="harness_datasets.idx:IdxOptions",
    ),
    DatasetInfo(
        name="fashion-mnist",
        summary="Fashion-MNIST: four official idx .gz files in fashion_mnist/ under the data root",
        source="Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747",
        factory="harness_datasets.idx:build_fashion_mnist",
        options="harness_datasets.idx:IdxOptions",
    ),
    DatasetInfo(
        name="cifar10",
        summary="CIFAR-10: the official python or binary version, packed or extracted, under the data root",
        source="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
        factory="harness_datasets.cifar:build_cifar10",
        options="harness_datasets.cifar:CifarOptions",
    ),
    DatasetInfo(
        name="cifar100",
        summary="CIFAR-100 (fine labels): the official python or binary version, packed or extracted",
        source="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
        factory="harness_datasets.cifar:build_cifar100",
        options="harness_datasets.cifar:CifarOptions",
    ),
    DatasetInfo(
        name="imagefolder",
        summary="a folder of images with one subfolder per class, such as ImageNet's validation set",
        factory="harness_datasets.imagefolder:build",
        options="harness_datasets.imagefolder:ImageFolderOptions",
    ),
)


@hookimpl
def register_datasets(register: Callable[[DatasetInfo], None]) -> None:
    for info in _DATASETS:
        register(info)
