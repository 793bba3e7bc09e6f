"""Every native corruption beside the original, fed the same draws: within one grey level, at every severity.

On small images here; `benchmarks/corruptions.py parity` makes the table on photos.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from harness_corruptions import reference
from harness_corruptions.feeding import FEEDS, Native, numbers_for
from numpy.typing import NDArray

from harness.randomness import draws_for

from .record_reference import images

catalogue = pytest.importorskip("harness_corruptions.catalogue")

installed = all(importlib.util.find_spec(name) for name in ("imagecorruptions", "cv2", "skimage"))
pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not installed, reason="imagecorruptions, OpenCV or scikit-image is not installed"),
]
CODEC = 2
"""Grey levels between two JPEG codecs."""


def differences(name: str, severity: int, image: NDArray[np.uint8]) -> NDArray[np.int64]:
    one = catalogue.corruptions()[name]
    parameters = one.severities["imagenet-c"][severity - 1]
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float().div(255)
    drawn = dict(one.draw(draws_for(torch.tensor([3]), 0), 0, tuple(x.shape[1:]), parameters)) if one.draw else {}
    ours = one.once(x, parameters, drawn, True)[0].permute(1, 2, 0).mul(255).round().numpy()
    if one.draw is None:
        theirs = reference.run(image, name, severity)
    else:
        native = Native({key: values[0].numpy() for key, values in drawn.items()}, image, parameters)
        theirs = reference.fed(image, name, severity, numbers_for(name, native))
    difference: NDArray[np.int64] = np.abs(ours.astype(np.int64) - theirs)
    return difference


@pytest.mark.parametrize("size", ["small", "wide"])
@pytest.mark.parametrize("name", reference.NAMES)
def test_within_a_grey_level_of_the_original(name: str, size: str) -> None:
    for severity in (1, 2, 3, 4, 5):
        difference = differences(name, severity, images()[size])
        assert difference.max() <= (CODEC if name == "jpeg_compression" else 1), severity


def test_what_is_random_is_fed() -> None:
    assert set(FEEDS) == set(reference.RANDOM)
    drawing = {name for name, one in catalogue.corruptions().items() if one.draw is not None}
    assert drawing == set(FEEDS)
