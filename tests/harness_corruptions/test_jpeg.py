"""JPEG as tensor arithmetic beside Pillow: the same bits."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from harness_corruptions.digital import JPEG
from harness_corruptions.jpeg import through_pillow
from harness_corruptions.jpeg_codec import colour_through_jpeg, grey_through_jpeg, quantisation_table
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from .invariants import images


def pillow(levels: Tensor, quality: int) -> Tensor:
    """(C, H, W) written and read, C = 1 or 3."""
    pixels = levels.permute(1, 2, 0).to(torch.uint8).numpy().squeeze()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    read = np.array(Image.open(file))
    return torch.from_numpy(read).view(*levels.shape[1:], -1).permute(2, 0, 1).float()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 50),
    width=st.integers(8, 50),
    quality=st.integers(1, 100),
    noise=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_bit_for_bit_what_pillow_gives(height: int, width: int, quality: int, noise: float, seed: int) -> None:
    x = images(1, 3, height, width, seed)
    random = images(1, 3, height, width, seed + 1).flip(2) * 1.5 - 0.25
    levels = ((x * (1 - noise) + random * noise).clamp(0, 1) * 255).round()
    assert torch.equal(colour_through_jpeg(levels, quality)[0], pillow(levels[0], quality))
    grey = levels[:, 0]
    assert torch.equal(grey_through_jpeg(grey, quality), pillow(grey, quality))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [63, 64, 80])
def test_large_images_go_through_pillow_and_come_out_the_same(channels: int, side: int) -> None:
    x = images(2, channels, side, side)
    levels = (x * 255).round()
    expected = torch.stack([pillow(one, 15) for one in levels])
    assert torch.equal((JPEG.once(x, (15,), {}, True) * 255).round(), expected)
    assert torch.equal(through_pillow(levels.to(torch.uint8), 15), expected.to(torch.uint8))


def test_a_number_of_channels_that_has_no_colours_is_as_many_grey_images() -> None:
    x = images(2, 2, 17, 19)
    out = JPEG.once(x, (30,), {}, False)
    each = [JPEG.once(x[:, c : c + 1], (30,), {}, False) for c in range(2)]
    assert torch.equal(out, torch.cat(each, dim=1))


def test_a_grey_image_is_as_one_of_three_equal_channels() -> None:
    x = images(1, 1, 32, 32)
    grey = JPEG.once(x, (25,), {}, True)
    colour = JPEG.once(x.expand(-1, 3, -1, -1), (25,), {}, True)
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_quantisation_tables_are_those_that_pillow_writes() -> None:
    for quality in (1, 7, 25, 50, 80, 100):
        file = BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
        written = Image.open(file).quantization  # type: ignore[attr-defined]
        for chroma in (False, True):
            ours = quantisation_table(quality, chroma, torch.device("cpu"))
            assert sorted(ours.flatten().tolist()) == sorted(written[int(chroma)])


def test_quality_100_keeps_a_grey_image_within_two_levels() -> None:
    levels = (images(2, 1, 24, 24) * 255).round()[:, 0]
    assert (grey_through_jpeg(levels, 100) - levels).abs().max() <= 2
