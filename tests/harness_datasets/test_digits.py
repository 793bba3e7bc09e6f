"""The embedded digits: the file scikit-learn ships, the fixed split, upsampling."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from harness_datasets import digits
from harness_datasets.digits import Digits, DigitsOptions

from harness.datasets import DatasetContext, DatasetSlice


def test_equal_to_load_digits() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    pixels, labels = digits.load()
    np.testing.assert_array_equal(pixels, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_without_the_shipped_file_scikit_learn_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Digits(DigitsOptions())
    monkeypatch.setattr(digits, "_shipped_file", lambda: None)
    fallback = Digits(DigitsOptions())
    assert fallback.digest() == expected.digest()
    assert torch.equal(fallback.images(np.arange(359)), expected.images(np.arange(359)))


def test_scikit_learn_is_not_imported() -> None:
    code = (
        "import sys; from harness_datasets.digits import Digits, DigitsOptions; Digits(DigitsOptions()).labels();"
        " sys.exit(any(name in sys.modules for name in ('sklearn', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_split_is_fixed_stratified_and_complete() -> None:
    test, train = Digits(DigitsOptions()), Digits(DigitsOptions(split="train"))
    assert (test.labels().size, train.labels().size) == (359, 1438)
    assert np.bincount(test.labels()).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    both = np.concatenate([test.images(np.arange(359)).numpy(), train.images(np.arange(1438)).numpy()])
    pixels, _ = digits.load()
    assert sorted(map(bytes, (both * 16).astype(np.uint8))) == sorted(map(bytes, pixels))
    # Pinned: a changed split would silently put training images into the test set of the shipped checkpoints.
    assert test.digest().startswith("529920734689fd26")
    assert test.digest() != train.digest()


def test_images_are_sixteenths() -> None:
    data = DatasetSlice("digits", Digits(DigitsOptions()))
    x, y = data.load(np.array([5, 0, 5]))
    assert x.shape == (3, 1, 8, 8)
    assert torch.equal(x[0], x[2])
    assert torch.equal((x * 16).round(), x * 16)
    assert y.tolist() == data.labels()[[5, 0, 5]].tolist()
    assert data.facts.levels == 17
    assert data.facts.class_names == tuple("0123456789")


@pytest.mark.parametrize("size", [8, 9, 16, 28, 32])
def test_upsampling_keeps_the_grey_levels(size: int) -> None:
    small, large = Digits(DigitsOptions()), Digits(DigitsOptions(size=size))
    x, up = small.images(np.arange(20)), large.images(np.arange(20))
    assert large.shape == (1, size, size)
    assert torch.equal(up, torch.nn.functional.interpolate(x, size=(size, size), mode="nearest-exact"))
    assert (small.digest() == large.digest()) == (size == 8)


def test_factory_needs_no_root() -> None:
    assert digits.build(DigitsOptions(split="train"), DatasetContext()).labels().size == 1438
