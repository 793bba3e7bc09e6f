"""Which adversarial images are shown, and the pictures of them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.errors import StoreError
from harness.report.examples import collect_examples, difference_picture, likely_shape, png, rank, safe_stem
from harness.store import RowReader


def test_successes_come_first_by_the_attacks_norm_then_failures(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    rows = runs.attack_rows(0.2)
    run = runs.write([cell], {cell["id"]: rows})
    found = collect_examples(run, runs.clean_images, limit=24)
    successes = [example.success for example in found]
    assert successes == sorted(successes, reverse=True)
    assert 0 < sum(successes) < len(found)
    sizes = [example.norms["linf"] for example in found if example.success]
    assert sizes == sorted(sizes)
    resisted = [example.norms["linf"] for example in found if not example.success]
    assert resisted == sorted(resisted, reverse=True)
    assert {e.sample_id for e in found} == set(rows["sample_id"][rows["clean_correct"]].tolist())


def test_pictures_show_what_was_stored(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    rows = runs.attack_rows(0.2)
    run = runs.write([cell], {cell["id"]: rows})
    for example in collect_examples(run, runs.clean_images, limit=3):
        wanted = rows["adversarial"][example.sample_id].reshape(8, 8)
        assert np.abs(np.asarray(Image.open(example.attacked)) / 255.0 - wanted).max() <= 0.5 / 255 + 1e-6
        assert example.clean is not None
        before = runs.clean_images(np.array([example.sample_id]))[0, 0]
        assert np.abs(np.asarray(Image.open(example.clean)) / 255.0 - before).max() <= 0.5 / 255 + 1e-6
        assert example.difference is not None
        assert example.difference.parent == run.folder / "examples"


def test_failures_that_came_closest_are_known_by_their_loss() -> None:
    rows = {
        "sample_id": np.arange(4), "success": np.zeros(4, bool), "clean_correct": np.ones(4, bool),
        "l2": np.array([4.0, 3.0, 2.0, 1.0]), "linf": np.full(4, 0.1), "loss_last": np.array([0.1, 0.9, np.nan, 0.5]),
    }  # fmt: skip
    assert rank(rows, "linf").tolist() == [1, 3, 0, 2]


def test_a_sample_with_several_rows_is_shown_once_at_its_strongest() -> None:
    rows = {
        "sample_id": np.array([7, 7, 8]), "success": np.array([False, True, True]), "clean_correct": np.ones(3, bool),
        "l2": np.array([1.0, 2.0, 3.0]), "linf": np.array([0.1, 0.1, 0.2]),
    }  # fmt: skip
    assert rank(rows, "l2").tolist() == [1, 2]


def test_norms_that_are_infinite_are_no_examples() -> None:
    rows = {
        "sample_id": np.arange(2), "success": np.array([True, False]), "clean_correct": np.ones(2, bool),
        "l2": np.array([1.0, np.inf]), "linf": np.array([0.1, np.inf]),
    }  # fmt: skip
    assert rank(rows, "l2").tolist() == [0]


def test_without_clean_images_there_is_only_the_attacked_picture(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    run = runs.write([cell], {cell["id"]: runs.attack_rows(0.2)})
    found = collect_examples(run, None, limit=2)
    assert [(e.clean, e.difference, e.gain) for e in found] == [(None, None, None)] * 2
    assert sorted(p.name for p in (run.folder / "examples").iterdir()) == sorted(e.attacked.name for e in found)


def test_images_of_other_data_than_the_runs_are_not_shown_as_clean(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    run = runs.write([cell], {cell["id"]: runs.attack_rows(0.2)})
    found = collect_examples(run, lambda ids: 1.0 - runs.clean_images(ids), limit=2)
    assert all(example.clean is None for example in found)


def test_a_run_without_stored_images_has_no_examples_and_no_folder(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    rows = runs.attack_rows(0.2)
    del rows["adversarial"]
    run = runs.write([cell, runs.cell("plain", "clean")], {cell["id"]: rows})
    assert collect_examples(run, runs.clean_images) == []
    assert not (run.folder / "examples").exists()


def test_pictures_of_an_earlier_report_go(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    run = runs.write([cell], {cell["id"]: runs.attack_rows(0.2)})
    collect_examples(run, runs.clean_images, limit=8)
    collect_examples(run, runs.clean_images, limit=1)
    assert len(list((run.folder / "examples").iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_one_line(runs: Any) -> None:
    cell = runs.attack_cell("plain", "0.2", 0.5)
    run = runs.write([cell], {cell["id"]: runs.attack_rows(0.2)})
    (run.folder / "examples").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write pictures into"):
        collect_examples(run, runs.clean_images)


@given(st.text(alphabet=st.sampled_from("aZ9/.\\\0é\u202e文☃ -\ud800"), max_size=80), st.integers(0, 10**12))
def test_file_names_are_safe_whatever_the_cell_is_called(cell: str, sample: int) -> None:
    stem = safe_stem(cell, sample)
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(stem) <= 80
    assert not stem.startswith("-")


def test_unlike_cells_have_unlike_file_names() -> None:
    assert safe_stem("a/b", 1) != safe_stem("a?b", 1)
    assert safe_stem("../../etc", 1).startswith("etc-")


@pytest.mark.parametrize(("size", "shape"), [(64, (1, 8, 8)), (3072, (3, 32, 32)), (65, None)])
def test_likely_shape(size: int, shape: tuple[int, int, int] | None) -> None:
    assert likely_shape(size) == shape


@given(st.floats(0.0, 1.0, width=32))
def test_a_difference_always_fits_and_says_its_factor(size: float) -> None:
    clean = np.zeros((1, 2, 2), np.float32)
    attacked = clean.copy()
    attacked[0, 0, 0] = size
    picture, gain = difference_picture(clean, attacked)
    assert 0.0 <= picture.min() <= picture.max() <= 1.0 + 1e-6
    assert gain <= 10.0
    assert picture[0, 0, 0] == pytest.approx(0.5 + gain * size, abs=1e-6)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (5, "L")])
def test_png_of_any_number_of_channels(channels: int, mode: str) -> None:
    image = Image.open(io.BytesIO(png(np.full((channels, 3, 4), 0.5, np.float32))))
    assert (image.mode, image.size) == (mode, (4, 3))
    assert np.asarray(image).flat[0] == 128


def test_rows_of_chosen_samples_are_those_rows_of_all(runs: Any) -> None:
    cells = [runs.attack_cell("plain", eps, 0.5) for eps in ("0.1", "0.2")]
    rows = {cell["id"]: runs.attack_rows(float(cell["params"]["eps"]), seed) for seed, cell in enumerate(cells)}
    run = runs.write(cells, rows)
    manifests = [
        replace(run.reader.cells[cell["id"]], family="pgd", budget=float(cell["params"]["eps"])) for cell in cells
    ]
    reader = RowReader(run.folder, manifests)
    ids = np.array([3, 4, 11, 20])
    names = ["sample_id", "success", "adversarial", "linf"]
    for cell in cells:
        everything, some = reader.rows(cell["id"], names), reader.rows(cell["id"], names, ids)
        chosen = np.isin(everything["sample_id"], ids)
        for name in names:
            np.testing.assert_array_equal(some[name], everything[name][chosen])
    larger = cells[1]["id"]
    assert (reader.rows(larger, ["linf"])["linf"] != rows[larger]["linf"]).any(), (
        "successes are shared with a larger eps"
    )
