"""Other data sets as out-of-distribution sets: conversion, sizes, names; and one line for what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_ood.other_data import OtherData, open_other
from torch import Tensor
from torch.nn import functional as F

from harness.datasets import DatasetFacts, DatasetSlice, Ints, SliceSpec
from harness.errors import HarnessError
from harness.host import load_host
from harness.loading import open_dataset
from harness.suite import dataset_entry
from harness.threats import ThreatContext


class Given:
    """A data set of given images."""

    class_names = ("a",)

    def __init__(self, x: Tensor, levels: int = 256) -> None:
        self.x, self.levels = x, levels
        self.shape = tuple(x.shape[1:])

    def labels(self) -> Ints:
        return np.zeros(len(self.x), dtype=np.int64)

    def images(self, index: Ints) -> Tensor:
        return self.x[torch.from_numpy(np.asarray(index))]

    def digest(self) -> str:
        return "given"


def grey(n: int, shape: tuple[int, int, int], levels: int = 256, seed: int = 0) -> Tensor:
    level = torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return level.float() / (levels - 1)


def facts(shape: tuple[int, int, int], levels: int = 256) -> DatasetFacts:
    return DatasetFacts("ours", shape, levels, ("a",))


def other(x: Tensor, ours: DatasetFacts, resize: Any = "none", levels: int = 256, spec: Any = None) -> OtherData:
    return OtherData("theirs", DatasetSlice("theirs", Given(x, levels), spec), ours, resize)


def context(ours: DatasetFacts, x: Tensor | None = None) -> ThreatContext:
    """Opens `x` under any name, or else the data sets that ship with the harness."""
    host = load_host()

    def opened(table: Any) -> DatasetSlice:
        if x is not None:
            return DatasetSlice(table["name"], Given(x))
        return open_dataset(dataset_entry(table, host, "threat 'ood' dataset"), host, None)

    return ThreatContext(ours, opened, Path())


def test_images_of_the_same_kind_are_not_touched() -> None:
    x = grey(5, (3, 4, 6))
    found = other(x, facts((3, 4, 6)))
    assert found.conversion == ""
    assert torch.equal(found.load(np.array([3, 0]), "cpu"), x[[3, 0]])
    assert len(found) == 5


def test_grey_is_repeated_and_colour_weighed_by_itu_r_601() -> None:
    x = grey(4, (1, 5, 5))
    found = other(x, facts((3, 5, 5)))
    assert torch.equal(found.load(np.arange(4), "cpu"), x.expand(-1, 3, -1, -1))
    assert found.conversion == "grey repeated to RGB"
    colours = grey(4, (3, 5, 5))
    found = other(colours, facts((1, 5, 5)))
    assert found.conversion == "RGB to grey (ITU-R BT.601)"
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    expected = ((colours * weights).sum(dim=1, keepdim=True) * 255).round() / 255
    torch.testing.assert_close(found.load(np.arange(4), "cpu"), expected, atol=1 / 255 + 1e-6, rtol=0)
    white = other(torch.ones(2, 3, 5, 5), facts((1, 5, 5))).load(np.arange(2), "cpu")
    assert torch.equal(white, torch.ones(2, 1, 5, 5))


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 31)])
def test_another_size_is_resized_and_lands_on_the_grey_levels(mode: str, size: tuple[int, int]) -> None:
    x = grey(3, (1, 14, 14))
    found = other(x, facts((1, *size), 17), mode)
    images = found.load(np.arange(3), "cpu")
    assert images.dtype == torch.float32
    assert images.shape == (3, 1, *size)
    torch.testing.assert_close(images * 16, (images * 16).round())
    assert 0 <= images.min() <= images.max() <= 1
    assert found.conversion == f"resized {mode} 14x14 to {size[0]}x{size[1]}, rounded from 256 to 17 grey levels"


def test_resizing_is_pytorchs_with_antialiasing() -> None:
    x = grey(3, (3, 20, 20))
    images = other(x, facts((3, 8, 8)), "bilinear").load(np.arange(3), "cpu")
    expected = F.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(images, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    pixelated = other(x, facts((3, 40, 40)), "nearest").load(np.arange(3), "cpu")
    assert torch.equal(pixelated, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_images_keep_their_own_ids() -> None:
    x = grey(6, (1, 4, 4))

    class Classes(Given):
        class_names = ("a", "b")

        def labels(self) -> Ints:
            return np.array([0, 1, 0, 1, 0, 1])

    odd = DatasetSlice("theirs", Classes(x), SliceSpec(classes=("b",)))
    found = OtherData("theirs", odd, facts((1, 4, 4)), "none")
    assert len(found) == 3
    assert found.ids(np.array([0, 2])).tolist() == [1, 5]
    assert torch.equal(found.load(np.array([0, 2]), "cpu"), x[[1, 5]])


def test_a_set_is_called_after_its_data_set_or_as_it_says() -> None:
    ours = facts((1, 8, 8), 17)
    assert open_other({"name": "digits"}, "none", context(ours)).name == "digits"
    named = open_other({"name": "digits", "set": "train", "split": "train", "limit": 7}, "none", context(ours))
    assert (named.name, len(named)) == ("train", 7)


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (
            (3, 32, 32),
            (3, 28, 28),
            "set 'svhn': its images are 28x28, those of data set 'ours' 32x32; set resize",
        ),
        ((1, 4, 4), (4, 4, 4), "set 'svhn': its images have 4 channels, the data 1; only 1 and 3 convert"),
        ((2, 4, 4), (1, 4, 4), "set 'svhn': its images have 1 channels, the data 2; only 1 and 3 convert"),
    ],
)
def test_what_does_not_fit_is_one_line(
    ours: tuple[int, int, int], theirs: tuple[int, int, int], text: str, one_line: Callable[[str], str]
) -> None:
    with pytest.raises(HarnessError) as caught:
        open_other({"name": "svhn"}, "none", context(facts(ours), grey(2, theirs)))
    assert one_line(str(caught.value)).startswith(text)


def test_an_unknown_data_set_is_the_hosts_line() -> None:
    with pytest.raises(HarnessError, match="digts"):
        open_other({"name": "digts"}, "none", context(facts((1, 8, 8))))
