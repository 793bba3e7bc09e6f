"""Snow, frost, fog and spatter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_corruptions import frost as frost_module
from harness_corruptions.colour import luma
from harness_corruptions.corruption import Corruption
from harness_corruptions.fog import fog, plasma, plasma_side
from harness_corruptions.frost import FILES, frost, frost_problem, texture, textures
from harness_corruptions.snow import draw_snow, enlarged, snow
from harness_corruptions.spatter import MUD, WATER, spatter
from harness_corruptions.weather import CORRUPTIONS, FOG, FROST, SNOW, SPATTER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from harness.errors import MissingDataError
from harness.randomness import draws_for

from .invariants import SIDES, check_images, check_randomness, check_tables, corrupted, images

each = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
SIZES = ((60, 90), (70, 50), (45, 80), (64, 64), (90, 60), (50, 55))


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the name of imagecorruptions with textures of one colour each, texture i being 40 i + 20 red."""
    folder = tmp_path / "imagecorruptions" / "frost"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError('to be found, not imported')\n")
    for number, (name, size) in enumerate(zip(FILES, SIZES, strict=True)):
        Image.new("RGB", size[::-1], (40 * number + 20, 100, 50)).save(folder / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield folder
    forget()


def forget() -> None:
    frost_module.texture.cache_clear()
    frost_module._scaled.cache_clear()


@each
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sides=SIDES, channels=st.sampled_from([1, 3]), severity=st.integers(1, 5))
def test_images(corruption: Corruption, sides: tuple[int, int], channels: int, severity: int) -> None:
    check_images(corruption, sides, channels, severity)


@each
def test_randomness_and_tables(corruption: Corruption) -> None:
    check_randomness(corruption)
    check_tables(corruption)


def test_names_and_groups() -> None:
    names = [(one.name, one.group) for one in CORRUPTIONS]
    assert names == [("snow", "weather"), ("frost", "weather"), ("fog", "weather"), ("spatter", "extra")]


# Fog


def by_diamonds_and_squares(wibbles: NDArray[np.float64], side: int, decay: float) -> NDArray[np.float64]:
    """The same map point by point, on a torus."""
    grid, numbers, step, amount = np.zeros((side, side)), iter(wibbles), side, 1.0
    while step > 1:
        half = step // 2
        for row, column, reach in ((half, half, (1, 1)), (0, half, (0, 0)), (half, 0, (0, 0))):
            for y in range(row, side, step):
                for x in range(column, side, step):
                    steps = (
                        [(1, 1), (1, -1), (-1, 1), (-1, -1)] if reach == (1, 1) else [(0, 1), (1, 0), (0, -1), (-1, 0)]
                    )
                    around = [grid[(y + half * a) % side, (x + half * b) % side] for a, b in steps]
                    grid[y, x] = sum(around) / 4 + amount * next(numbers)
        step, amount = half, amount / decay**2
    scaled: NDArray[np.float64] = (grid - grid.min()) / (grid.max() - grid.min())
    return scaled


@pytest.mark.parametrize(("side", "decay"), [(8, 2.0), (32, 1.4), (16, 3.0)])
def test_plasma_point_by_point(side: int, decay: float) -> None:
    wibbles = FOG.draw(draws_for(torch.arange(2), 0), 0, (1, side, side), (1.0, decay))["wibbles"]  # type: ignore[misc]
    maps = plasma(wibbles, side, decay)
    for one, numbers in zip(maps, wibbles, strict=True):
        expected = by_diamonds_and_squares(numbers.double().numpy(), side, decay)
        np.testing.assert_allclose(one.numpy(), expected, rtol=0, atol=1e-5)


def test_the_map_is_the_least_power_of_two_that_covers_the_image() -> None:
    assert [plasma_side(*sides) for sides in ((8, 8), (32, 20), (9, 33), (224, 224), (256, 1))] == [8, 32, 64, 256, 256]


def test_fog_keeps_the_range_of_the_image() -> None:
    draws = draws_for(torch.arange(1), 0)
    for value in (0.0, 0.4, 1.0):
        out = corrupted(FOG, 3, "imagenet-c", torch.full((1, 3, 16, 16), value), draws)
        c = FOG.severities["imagenet-c"][2][0]
        haze = plasma(FOG.draw(draws, 0, (3, 16, 16), (c, 1.7))["wibbles"], 16, 1.7)  # type: ignore[misc]
        expected = (value + c * haze) * value / (value + c)
        torch.testing.assert_close(out, expected[:, None].expand_as(out), rtol=0, atol=1e-6)
    assert fog(torch.zeros(1, 1, 8, 8), (1.5, 2), {"wibbles": torch.linspace(-1, 1, 63)[None]}, True).max() == 0


# Frost


def frost_of(which: float, top: float = 0.0, left: float = 0.0) -> dict[str, torch.Tensor]:
    return {"texture": torch.tensor([which]), "top": torch.tensor([top]), "left": torch.tensor([left])}


@pytest.mark.parametrize("number", range(6))
def test_frost_adds_the_texture(number: int) -> None:
    x = images(1, 3, 24, 20) * 0.5
    out = frost(x, (0.6, 0.3, 1.1), frost_of((number + 0.5) / 6), False)
    colour = texture(number).mean(dim=(1, 2)) / 255
    torch.testing.assert_close(out, 0.6 * x + 0.3 * colour[:, None, None], rtol=0, atol=2 / 255)


def test_the_original_never_shows_the_sixth_texture_and_weighs_grey_in_the_wrong_order() -> None:
    black = torch.zeros(1, 3, 8, 8)
    shown = {
        compat: {
            round(float(frost(black, (1, 1, 1.1), frost_of(u / 60), compat)[0, 0, 0, 0]) * 255 / 40 - 0.5)
            for u in range(60)
        }
        for compat in (False, True)
    }
    assert shown == {False: {0, 1, 2, 3, 4, 5}, True: {0, 1, 2, 3, 4}}
    grey = [float(frost(black[:, :1], (1, 1, 1.1), frost_of(0), compat)[0, 0, 0, 0]) * 255 for compat in (False, True)]
    assert grey[0] == pytest.approx(20 * 0.2989 + 100 * 0.587 + 50 * 0.114, abs=1)
    assert grey[1] == pytest.approx(50 * 0.2989 + 100 * 0.587 + 20 * 0.114, abs=1)


def test_crops_reach_all_of_a_texture(package: Path) -> None:
    rows, columns = np.mgrid[:60, :80]
    ramp = np.stack([rows * 4, columns * 2, 0 * rows], axis=-1).astype(np.uint8)
    Image.fromarray(ramp).save(package / FILES[0])
    black = torch.zeros(1, 3, 8, 12)
    bank = textures(8, 12, 1.1, black.device)
    assert [int(bank.height[0]), int(bank.width[0])] == [66, 88]
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(ramp).permute(2, 0, 1)[None].float(), size=(66, 88), mode="bicubic", align_corners=False
    )
    for compat, last in ((False, (58, 76)), (True, (57, 75))):
        for share, (top, left) in ((0.0, (0, 0)), (0.99999, last)):
            out = frost(black, (1, 1, 1.1), frost_of(0.0, share, share), compat)
            expected = whole[:, :, top : top + 8, left : left + 12].clamp(0, 255) / 255
            torch.testing.assert_close(out, expected, rtol=0, atol=0.51 / 255)


def test_textures_grow_with_the_image_and_shrink_for_small_ones() -> None:
    bank = textures(100, 50, 1.1, torch.device("cpu"))
    assert bank.height[0] in (110, 111)  # rounded up, an ulp above 110 too
    assert bank.width[0] in (165, 166)
    assert [int(bank.height[4]), int(bank.width[4])] == [111, 74]  # 90 x 60 pixels, times 1.1 x 100 / 90
    small = textures(8, 8, 0.2, torch.device("cpu"))
    assert [int(small.height[0]), int(small.width[0])] == [12, 18]


def test_without_the_textures_one_line_says_what_to_install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert frost_problem() == ""
    (package / FILES[3]).unlink()
    assert "frost4.jpg missing" in frost_problem()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps imagecorruptions" in frost_problem()
    with pytest.raises(MissingDataError, match=r"not installed: pip install --no-deps imagecorruptions$"):
        corrupted(FROST, 1, "imagenet-c", images(1, 3, 32, 32), draws_for(torch.arange(1), 0))


# Snow


@settings(max_examples=40, deadline=None)
@given(height=st.integers(2, 30), width=st.integers(2, 30), zoom=st.sampled_from([1.0, 1.25, 1.75, 2.0, 2.5, 3.0, 4.5]))
def test_fields_are_enlarged_as_by_scipy(height: int, width: int, zoom: float) -> None:
    field = torch.arange(height * width).float().mul(7).sin().view(1, height, width)
    expected = ndimage.zoom(field[0].double().numpy(), zoom, order=1)
    np.testing.assert_allclose(enlarged(field, zoom, True)[0].numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_without_flakes_snow_whitens(compat: bool, channels: int) -> None:
    x = images(2, channels, 20, 24)
    drawn = {"field": torch.full((2, 7, 8), -9.0), "angle": torch.tensor([0.2, 0.8])}
    out = snow(x, (0.1, 0.3, 3, 0.5, 10, 4, 0.7), drawn, compat)
    torch.testing.assert_close(out, (0.7 * x + 0.3 * x.maximum(luma(x) * 1.5 + 0.5)).clamp(max=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("compat", [False, True])
def test_flakes_lie_on_the_image_and_on_its_half_turn(compat: bool) -> None:
    black, draws = torch.zeros(2, 3, 40, 40), draws_for(torch.arange(2), 0)
    parameters = SNOW.severities["imagenet-c"][0]
    drawn = draw_snow(draws, 0, (3, 40, 40), parameters)
    assert drawn["field"].shape == (2, 14, 14)
    flakes = snow(black, parameters, drawn, compat) - 0.5 * (1 - parameters[-1])
    assert flakes.max() > 0.1
    assert flakes.min() >= -1e-6
    torch.testing.assert_close(flakes, flakes.flip(2, 3), rtol=0, atol=1e-6)
    levels = flakes * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3) == compat


# Spatter


def test_where_it_is_dry_nothing_changes_but_in_the_original_all_is_black() -> None:
    x = images(2, 3, 16, 16)
    dry = {"field": torch.full((2, 16, 16), -1.0)}
    for parameters in SPATTER.severities["cifar10-c"]:
        assert torch.equal(spatter(x, parameters, dry, False), x)
        assert torch.equal(spatter(x, parameters, dry, True), x if parameters[-1] else torch.zeros_like(x))
    half = {
        "field": torch.stack(
            [torch.full((16, 16), -1.0), torch.randn(16, 16, generator=torch.Generator().manual_seed(0))]
        )
    }
    out = spatter(x, (0.65, 0.3, 1, 0.69, 0.5, 0), half, True)
    assert out[0].max() == 0
    assert (out[1] >= x[1]).all()
    assert (out[1] > x[1]).any()


def test_mud_covers_and_water_brightens() -> None:
    x, wet = images(1, 3, 16, 16), {"field": torch.full((1, 16, 16), 1.0)}
    mud = spatter(x, (0.65, 0.3, 1, 0.65, 1.5, 1), wet, False)
    torch.testing.assert_close(mud, torch.tensor(MUD)[:, None, None].expand_as(x[0])[None], rtol=0, atol=1e-6)
    grey = spatter(x[:, :1], (0.65, 0.3, 1, 0.65, 1.5, 1), wet, False)
    torch.testing.assert_close(
        grey, torch.full_like(grey, (63 * 0.2989 + 42 * 0.587 + 20 * 0.114) / 255), rtol=0, atol=1e-6
    )
    draws = draws_for(torch.arange(8), 0)
    black = torch.zeros(8, 3, 32, 32)
    water = corrupted(SPATTER, 3, "cifar10-c", black, draws)
    brightest = torch.tensor(WATER) * SPATTER.severities["cifar10-c"][2][4]
    torch.testing.assert_close(water.amax(dim=(2, 3)), brightest.expand(8, 3), rtol=0, atol=1e-6)
