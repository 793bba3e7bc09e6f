"""A finished run taken up again: the stored images, and the very way that the attack took to them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import HarnessError, NothingToRunError
from harness.iterates import MOST, Way
from harness.retrace import Retracing
from harness.store import load_run


@pytest.fixture
def retracing(workplace: Any) -> Retracing:
    return Retracing.of(workplace.run(), "rows", None, None, ())


def stored(retracing: Retracing, cell: str, sample: int) -> Any:
    return retracing.run.reader.raw(cell, ["adversarial"], np.array([sample]))["adversarial"][0]


def test_the_way_leads_from_the_image_to_the_stored_one(retracing: Retracing) -> None:
    cells = retracing.attacks()
    assert [cell.threat for cell in cells] == ["toy-attack[eps=0.05]", "toy-attack[eps=0.2]"]
    (small, large), notes = retracing.attacked(4, cells)
    assert notes == []
    assert (small.repeated, large.repeated) == (True, True)
    assert torch.equal(large.x.flatten(), torch.tensor(stored(retracing, cells[1].id, 4)))
    x, _ = retracing.data.load(np.array([4]))
    assert torch.equal(large.iterates[0], x[0])  # the toy attack starts at the image
    assert large.iterates.shape[0] == 2  # and takes two steps, the last of which it does not look at
    halfway = (large.iterates[1] - x[0]).abs().max()
    assert float(halfway) == pytest.approx(0.1, abs=1e-6)


def test_what_is_asked_about_in_a_batch_is_what_is_asked_about_alone(workplace: Any) -> None:
    """The run evaluates 8 samples at a time, the repeated attack one: its images are the same."""
    retracing = Retracing.of(workplace.run(), "rows", None, None, ())
    for sample in range(0, 30, 7):
        attacked, _ = retracing.attacked(sample, retracing.attacks())
        assert all(image.repeated for image in attacked)


def test_an_attack_that_leaves_the_image_is_a_note(workplace: Any) -> None:
    workplace.edit("eps = [0.05, 0.2]", "eps = [0.0, 0.2]")
    retracing = Retracing.of(workplace.run(), "rows", None, None, ())
    attacked, notes = retracing.attacked(2, retracing.attacks())
    assert [image.threat for image in attacked] == ["toy-attack[eps=0.2]"]
    assert notes == ["toy-attack[eps=0]: left sample 2 as it is"]


def test_a_sample_that_an_attack_was_spared_is_a_note(workplace: Any) -> None:
    workplace.edit("eps = [0.05, 0.2]", "eps = [0.2]\nlimit = 5")
    retracing = Retracing.of(workplace.run(), "rows", None, None, ())
    assert retracing.attacked(20, retracing.attacks()) == (
        [],
        ["toy-attack[eps=0.2]: sample 20 was not among its samples"],
    )


def test_only_the_attacks_asked_for(retracing: Retracing) -> None:
    assert [cell.threat for cell in retracing.attacks(["*0.2]*"])] == ["toy-attack[eps=0.2]"]
    with pytest.raises(NothingToRunError, match=r"--only nope\*: no attack of model 'rows' matches"):
        retracing.attacks(["nope*"])


def test_another_model_than_that_of_the_run_is_refused(workplace: Any) -> None:
    run = workplace.run()
    workplace.edit("repeat_interleave(3, dim=1) * scale", "repeat_interleave(3, dim=1) * -scale", "tiny_nets.py")
    import sys

    del sys.modules["tiny_nets"]
    retracing = Retracing.of(run, "rows", None, None, ())
    with pytest.raises(HarnessError, match=r"model 'rows' is no longer what it was: of sample 1 .* run the"):
        retracing.attacked(1, retracing.attacks())


def test_other_data_than_those_of_the_run_are_refused(workplace: Any) -> None:
    run = workplace.run()
    retracing = Retracing.of(run, "rows", None, None, ())
    images = retracing.data.dataset.images
    retracing.data.dataset.images = lambda index: images(index) * 0.9
    with pytest.raises(HarnessError, match=r"the data are no longer those of run .*: sample 1 differs"):
        retracing.attacked(1, retracing.attacks())


def test_a_model_without_cells_is_one_line(workplace: Any) -> None:
    with pytest.raises(HarnessError, match="has no cell of model 'ghost' to explain"):
        Retracing.of(workplace.run(), "ghost", None, None, ())


def test_a_run_of_an_older_kind_is_one_line(workplace: Any) -> None:
    run = workplace.run()
    facts = json.loads((run.folder / "run.json").read_text())
    del facts["suite"]["models"]
    (run.folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(HarnessError, match=r"run.json does not say how cell rows/clean/toy was made"):
        Retracing.of(load_run(run.folder), "rows", None, None, ())


def test_images_asked_about_twice_in_a_row_count_once() -> None:
    way = Way()
    a, b = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    for image in (a, a, b, b, a):
        way.add(image[None])
    assert way.images().flatten(1)[:, 0].tolist() == [0, 1, 0]


def test_of_a_long_way_every_nth_image_is_kept_and_the_last() -> None:
    way = Way()
    for number in range(3 * MOST):
        way.add(torch.full((1, 1, 1, 1), float(number)))
    numbers = way.images().flatten().tolist()
    assert len(numbers) <= MOST + 2
    assert numbers[0] == 0
    assert numbers[-1] == 3 * MOST - 1
    steps = {b - a for a, b in itertools.pairwise(numbers[:-1])}
    assert steps == {4}
