"""Pixelation beside Pillow: the same bits."""

from __future__ import annotations

import numpy as np
import torch
from harness_corruptions.digital import PIXELATE
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from .invariants import images

SHARES = sorted({parameters[0] for table in PIXELATE.severities.values() for parameters in table})


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 120),
    width=st.integers(8, 120),
    share=st.sampled_from(SHARES),
    compat=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_bit_for_bit_what_pillow_gives(height: int, width: int, share: float, compat: bool, seed: int) -> None:
    assume(height <= 2 * width)  # Pillow averages along the other axis first where the image is higher
    x = images(1, 3, height, width, seed)
    picture = Image.fromarray((x[0] * 255).round().permute(1, 2, 0).to(torch.uint8).numpy())
    small = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    expected = np.array(small.resize((width, height), Image.Resampling.NEAREST if compat else Image.Resampling.BOX))
    out = (PIXELATE.once(x, (share,), {}, compat) * 255).round().to(torch.uint8)
    np.testing.assert_array_equal(out[0].permute(1, 2, 0).numpy(), expected)
    grey = PIXELATE.once(x[:, 1:2], (share,), {}, compat)
    assert torch.equal(grey, PIXELATE.once(x, (share,), {}, compat)[:, 1:2])


def test_a_half_and_a_quarter_are_means_of_squares() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8) * 4 / 255
    for share, side in ((0.5, 2), (0.25, 4)):
        means = torch.nn.functional.avg_pool2d(x, side).repeat_interleave(side, 2).repeat_interleave(side, 3)
        torch.testing.assert_close(PIXELATE.once(x, (share,), {}, False), means, rtol=0, atol=1 / 255)
