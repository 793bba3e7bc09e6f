"""The rows of out-of-distribution sets: which images are scored, whose they are, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from harness_ood.ood import OOD, OODOptions, SetName, build
from harness_ood.other_data import OtherData
from harness_ood.partners import Partners
from harness_ood.sets import CHANGED, NOISE
from pydantic import ValidationError
from torch import Tensor

import harness
from harness.datasets import DatasetFacts, DatasetSlice, Ints, SliceSpec
from harness.errors import HarnessError, ModelError, ThreatError
from harness.host import load_host
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.testing import Check, parametrize_with_checks, synthetic_data, threat_checks
from harness.threats import Batch, ThreatContext

SHAPE = (2, 4, 4)
EVERY: tuple[Any, ...] = get_args(SetName)


class Given:
    """A data set of 30 images."""

    class_names = ("a",)
    levels = 256
    shape = SHAPE

    def __init__(self, seed: int, n: int = 30) -> None:
        level = torch.randint(256, (n, *SHAPE), generator=torch.Generator().manual_seed(seed))
        self.x = level.float() / 255
        self._digest = f"{seed} {n}"

    def labels(self) -> Ints:
        return np.zeros(len(self.x), dtype=np.int64)

    def images(self, index: Ints) -> Tensor:
        return self.x[torch.from_numpy(np.asarray(index))]

    def digest(self) -> str:
        return self._digest


OURS = DatasetSlice("ours", Given(0))
FEWER = OtherData("fewer", DatasetSlice("theirs", Given(1, 12)), OURS.facts, "none")


class Meter:
    """A detector that scores an image by what shines where."""

    def ood_score(self, x: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 1.5, x[0].numel()).view_as(x[0])
        return (x * weights).square().mean(dim=(1, 2, 3))


class Classes:
    num_classes = 3

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean(dim=(1, 2, 3)) * k for k in (1.0, 5.0, 40.0)], dim=1)


def rows(
    model: Any,
    capability: str,
    ids: Tensor,
    sets: tuple[Any, ...] = ("uniform", "constant"),
    seed: int = 0,
    **more: Any,
) -> Any:
    x = OURS.dataset.images(ids.numpy())
    view = ModelView(model, {capability}, ids, seed, "attack")
    batch = Batch(x, torch.zeros_like(ids), ids, draws_for(ids, seed, "threat", "ood"))
    return OOD(sets, 256, **more).run(view, batch), view, x


def scores_of(columns: Any, name: str) -> dict[int, float]:
    triples = zip(columns["sample_id"].tolist(), columns["set"], columns["ood_score"].tolist(), strict=True)
    return {i: score for i, of, score in triples if of == name}


def test_rows_hold_the_data_and_as_many_images_of_each_set() -> None:
    ids = torch.tensor([4, 9, 11])
    columns, view, x = rows(Meter(), "Detector", ids)
    assert columns["sample_id"].tolist() == [4, 9, 11] * 3
    assert columns["set"] == ["in"] * 3 + ["uniform"] * 3 + ["constant"] * 3
    assert columns["score"] == ["own"] * 9
    assert columns["ood_score"].dtype == torch.float64
    torch.testing.assert_close(columns["ood_score"][:3], Meter().ood_score(x).double())
    assert columns["distance"] == columns["conversion"] == [""] * 9
    assert columns["set_size"].tolist() == [0] * 9
    assert view.forwards.tolist() == [3, 3, 3]
    assert view.backwards.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", [n for n in EVERY if n != "interpolated"])
def test_a_set_is_scored_on_the_images_that_the_module_makes(name: str) -> None:
    ids = torch.tensor([4, 9, 11])
    columns, _, x = rows(Meter(), "Detector", ids, (name,))
    draws = draws_for(ids, 0, "threat", "ood")
    images = NOISE[name](draws, SHAPE, 256) if name in NOISE else CHANGED[name](x, draws, 256)
    torch.testing.assert_close(columns["ood_score"][3:], Meter().ood_score(images).double())


def test_interpolated_is_the_mean_of_an_image_and_its_partner() -> None:
    ids, partners = torch.arange(30), Partners(OURS)
    columns, _, x = rows(Meter(), "Detector", ids, ("interpolated",), partners=partners)
    batch = Batch(x, torch.zeros_like(ids), ids, draws_for(ids, 0, "threat", "ood"))
    other = partners.of(batch).x
    mean = ((x.double() + other.double()) / 2 * 255).round() / 255
    torch.testing.assert_close(columns["ood_score"][30:], Meter().ood_score(mean.float()).double())


def test_image_k_of_another_data_set_goes_with_sample_k_and_a_smaller_set_ends() -> None:
    ids = torch.tensor([2, 11, 12, 29])
    columns, view, _ = rows(Meter(), "Detector", ids, (), others=(FEWER,))
    assert columns["set"] == ["in"] * 4 + ["fewer"] * 2
    assert columns["sample_id"].tolist() == [2, 11, 12, 29, 2, 11]
    assert columns["image_id"].tolist() == [2, 11, 12, 29, 2, 11]
    assert columns["set_size"].tolist() == [0] * 4 + [12] * 2
    expected = Meter().ood_score(FEWER.load(np.array([2, 11]), "cpu")).double()
    torch.testing.assert_close(columns["ood_score"][4:], expected)
    assert view.forwards.tolist() == [2, 2, 1, 1]
    places = np.array([2, 12, 29])  # of a suite with these samples, image 1 goes with sample 12
    gaps, _, _ = rows(Meter(), "Detector", torch.tensor([12, 29]), (), others=(FEWER,), own=places)
    assert gaps["sample_id"].tolist() == [12, 29, 12, 29]
    assert gaps["image_id"].tolist() == [12, 29, 1, 2]
    none, _, _ = rows(Meter(), "Detector", torch.tensor([20, 21]), (), others=(FEWER,))
    assert none["set"] == ["in"] * 2


def test_near_and_far_are_marked() -> None:
    distance = {"fewer": "near", "uniform": "far"}
    columns, _, _ = rows(Meter(), "Detector", torch.arange(2), others=(FEWER,), distance=distance)
    assert columns["distance"] == ["", "", "far", "far", "", "", "near", "near"]


def test_a_classifier_without_a_score_is_judged_by_its_softmax() -> None:
    columns, _, x = rows(Classes(), "Classifier", torch.arange(5))
    assert set(columns["score"]) == {"max-softmax"}
    p = Classes().logits(x).double().softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(columns["ood_score"][:5], ((1 - p) / p).log(), rtol=1e-6, atol=1e-6)


def test_several_scores_are_rows_of_their_own() -> None:
    class Both(Classes, Meter):
        density_tag = "exact"

        def log_prob(self, x: Tensor) -> Tensor:
            return -x.sum(dim=(1, 2, 3))

    ids = torch.arange(4)
    x = OURS.dataset.images(ids.numpy())
    view = ModelView(Both(), {"Detector", "Density"}, ids, 0, "attack")
    batch = Batch(x, torch.zeros_like(ids), ids, draws_for(ids, 0, "threat", "ood"))
    columns = OOD(("uniform",), 256, scores=("own", "log-likelihood")).run(view, batch)
    assert columns["score"] == (["own"] * 4 + ["log-likelihood"] * 4) * 2
    assert columns["set"] == ["in"] * 8 + ["uniform"] * 8
    torch.testing.assert_close(columns["ood_score"][:4], Meter().ood_score(x).double())
    torch.testing.assert_close(columns["ood_score"][4:8], x.sum(dim=(1, 2, 3)).double())


def test_an_image_belongs_to_its_sample_id_not_to_the_batch() -> None:
    every = {"sets": EVERY, "others": (FEWER,), "partners": Partners(OURS)}
    whole, _, _ = rows(Meter(), "Detector", torch.arange(15), **every)
    part, _, _ = rows(Meter(), "Detector", torch.tensor([7, 2]), **every)
    other, _, _ = rows(Meter(), "Detector", torch.arange(15), seed=1, **every)
    for name in ("in", *EVERY, "fewer"):
        ours, mine = scores_of(whole, name), scores_of(part, name)
        assert mine == pytest.approx({i: ours[i] for i in (7, 2)})
        if name in NOISE or name == "interpolated":
            assert sum(score != ours[i] for i, score in scores_of(other, name).items()) > 5
        alone, _, _ = rows(Meter(), "Detector", torch.arange(15), **{**every, "sets": (name,) if name in EVERY else ()})
        assert scores_of(alone, name) == ours


class Noisy:
    stochastic = True

    def ood_score(self, x: Tensor, *, draws: Draws) -> Tensor:
        return draws.normal("score", 0, ())


def test_a_random_detector_answers_each_set_afresh() -> None:
    sets, more = ("uniform", "constant", "rotated"), {"others": (FEWER,)}
    columns, _, _ = rows(Noisy(), "Detector", torch.arange(12), sets, **more)
    assert len(columns["ood_score"].unique()) == 60
    for name in ("constant", "fewer"):
        alone, _, _ = rows(Noisy(), "Detector", torch.arange(12), (name,) if name in sets else (), **more)
        assert scores_of(alone, name) == scores_of(columns, name)


class Broken:
    def ood_score(self, x: Tensor) -> Tensor:
        constant = (x == x[:, :, :1, :1]).flatten(1).all(dim=1)
        return torch.where(constant & (x[:, 0, 0, 0] > 0.3), float("nan"), 0.0)


def test_a_score_that_is_not_a_number_is_one_line() -> None:
    with pytest.raises(ModelError) as caught:
        rows(Broken(), "Detector", torch.arange(10, 30))
    images = NOISE["constant"](draws_for(torch.arange(10, 30), 0, "threat", "ood"), SHAPE, 256)
    bad = torch.arange(10, 30)[images[:, 0, 0, 0] > 0.3]
    assert str(caught.value) == (f"score 'own' is NaN for {len(bad)} of 20 images of set 'constant' (first: {bad[0]})")


MNIST = {"name": "mnist"}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"sets": ["uniform", "uniform"]}, "'uniform' is listed twice"),
        ({"sets": []}, "no set is named, here or in sets: there is nothing to tell the data from"),
        ({"datasets": [{"split": "test"}]}, "every data set needs a name, such as { name = 'mnist', split = 'test' }"),
        ({"datasets": [MNIST, MNIST]}, "two sets are called 'mnist': name one of them otherwise, with its key set"),
        (
            {"datasets": [{**MNIST, "set": "uniform"}]},
            "two sets are called 'uniform': name one of them otherwise, with its key set",
        ),
        ({"datasets": [{**MNIST, "set": 3}]}, "the key set of data set 'mnist' is no text"),
        ({"near": ["unifrm"]}, "'unifrm' is none of the sets; did you mean 'uniform'?"),
        ({"near": ["uniform"], "far": ["uniform"]}, "'uniform' is near already"),
        ({"datasets": [MNIST], "far": ["mnst"]}, "'mnst' is none of the sets; did you mean 'mnist'?"),
    ],
)
def test_a_mistake_in_options_is_one_line(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        OODOptions.model_validate(table)
    (error,) = caught.value.errors()
    assert error["msg"] == text


def test_a_set_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        OODOptions.model_validate({"sets": ["svhn"]})
    assert caught.value.errors()[0]["msg"].startswith("Input should be 'uniform', 'constant', 'gaussian'")


def test_sets_of_other_data_alone_are_enough() -> None:
    options = OODOptions.model_validate({"sets": [], "datasets": [{**MNIST, "set": "digits of others"}]})
    assert options.datasets[0]["set"] == "digits of others"


def test_it_is_built_from_options() -> None:
    data = DatasetFacts("ours", SHAPE, 256, ("a",))
    opened: list[Any] = []

    def open_dataset(table: Any) -> DatasetSlice:
        opened.append(dict(table))
        return DatasetSlice("theirs", Given(1))

    options = OODOptions.model_validate(
        {"sets": ["interpolated"], "datasets": [{"name": "svhn", "set": "s"}], "near": ["s"], "far": ["interpolated"]}
    )
    few = DatasetSlice("ours", OURS.dataset, SliceSpec(limit=5))
    threat = build(options, ThreatContext(data, open_dataset, Path(), lambda: few))
    assert opened == [{"name": "svhn"}]
    assert threat.own is not None
    assert threat.own.tolist() == [0, 1, 2, 3, 4]
    assert threat.partners is not None
    assert len(threat.partners.pool) == 30
    assert threat.distance == {"s": "near", "interpolated": "far"}
    assert [o.name for o in threat.others] == ["s"]
    plain = build(OODOptions(), ThreatContext(data, lambda table: pytest.fail("opens a data set"), Path()))
    assert (plain.sets, plain.partners) == (("uniform", "constant"), None)
    with pytest.raises(ThreatError, match="needs the images to pair"):
        rows(Meter(), "Detector", torch.arange(3), ("interpolated",))


def test_the_suites_own_images_are_no_set() -> None:
    own = DatasetSlice("ours", Given(0), SliceSpec(limit=5))

    def built(theirs: DatasetSlice) -> OOD:
        options = OODOptions.model_validate({"sets": [], "datasets": [{"name": "x"}]})
        return build(options, ThreatContext(OURS.facts, lambda table: theirs, Path(), lambda: own))

    with pytest.raises(ThreatError, match="set 'x': 5 of its 30 images are the suite's own: they are not out-of-"):
        built(DatasetSlice("x", Given(0)))
    others = DatasetSlice("x", Given(0), SliceSpec(classes=("a",)))
    others.ids = np.arange(5, 30)  # such as other classes of the same data: what open-set recognition asks
    assert len(built(others).others[0]) == 25


def test_what_a_model_lacks_is_known_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(
        """
        [suite]
        name = "scores"
        dataset = { name = "digits", split = "test", limit = 20 }
        [models.cnn]
        plugin = "torch"
        checkpoint = "builtin:digits-cnn"
        [[threats]]
        plugin = "ood"
        scores = ["energy", "typicality", "two-tailed"]
        [[threats]]
        plugin = "ood"
        name = "features"
        scores = ["knn"]
        """
    )
    found = harness.run(tmp_path / "suite.toml", out=tmp_path / "run", workers=1, device="cpu")
    status = {cell["threat"].partition("[")[0]: (cell["status"], cell["error"]) for cell in found.cells()}
    assert status["ood"] == (
        "skipped",
        "threat 'ood' on model 'cnn': score 'typicality' needs a model with Density;"
        " score 'two-tailed' needs a model with Density",
    )
    assert status["features"][0] == "failed"
    assert "threat 'features' on model 'cnn': score 'knn' needs a model with Features (option" in status["features"][1]
    assert not list((tmp_path / "run").glob("shards/*/*"))


HOST = load_host()


@parametrize_with_checks(
    check
    for options in (
        {"sets": list(EVERY)},
        {"datasets": [{"name": "digits"}], "resize": "bilinear"},
    )
    for check in threat_checks("ood", options, host=HOST, data=synthetic_data((3, 6, 5), 5))
)
def test_conformance(check: Check) -> None:
    check()


SUITE = """
[suite]
name = "ood"
dataset = { name = "digits", split = "test", limit = 30, subset = "stratified" }
[models.mine]
plugin = "torch"
factory = "ood_nets:rows"
[[threats]]
plugin = "ood"
sets = ["uniform", "interpolated", "rotated"]
datasets = [{ name = "digits", split = "train", set = "others", limit = 20 }]
near = ["others"]
"""
NETS = """
import torch
def rows():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The suite's model, importable for as long as a test runs."""
    (tmp_path / "ood_nets.py").write_text(NETS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("ood_nets", None)


@pytest.mark.usefixtures("nets")
def test_a_run_of_a_suite(tmp_path: Path) -> None:
    (tmp_path / "ood.toml").write_text(SUITE)
    run = harness.run(tmp_path / "ood.toml", out=tmp_path / "run", workers=1)
    (cell,) = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert cell["status"] == "ok"
    found = run.rows(cell["id"], ["sample_id", "set", "distance", "set_size"])
    names, counts = np.unique(found["set"], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "in": 30,
        "uniform": 30,
        "interpolated": 30,
        "rotated": 30,
        "others": 20,
    }
    assert set(found["distance"][found["set"] == "others"].tolist()) == {"near"}
    assert set(found["set_size"][found["set"] == "others"].tolist()) == {20}


@pytest.mark.usefixtures("nets")
def test_a_limit_of_the_run_changes_no_row(tmp_path: Path) -> None:
    """Partners and places come from the suite's data, however few samples a run takes."""
    (tmp_path / "ood.toml").write_text(SUITE.replace(', subset = "stratified"', ""))
    parts = []
    for limit in (None, 7):
        run = harness.run(tmp_path / "ood.toml", out=tmp_path / f"run-{limit}", workers=1, limit=limit)
        (cell,) = run.cells()
        found = run.rows(cell["id"], ["sample_id", "set", "ood_score", "image_id"])
        early = found["sample_id"] < 7
        parts.append({name: column[early] for name, column in found.items()})
    whole, part = parts
    assert len(part["set"]) == 7 * 5
    for name in ("sample_id", "set", "image_id"):
        assert np.array_equal(whole[name], part[name])
    np.testing.assert_allclose(whole["ood_score"], part["ood_score"], rtol=1e-5, atol=1e-6)


def test_a_set_of_another_size_is_one_line(tmp_path: Path, one_line: Callable[[str], str]) -> None:
    data = DatasetFacts("digits", (1, 9, 9), 17, ("a",))
    options = OODOptions.model_validate({"datasets": [{"name": "ours"}]})
    with pytest.raises(HarnessError) as caught:
        build(options, ThreatContext(data, lambda table: OURS, Path()))
    assert "only 1 and 3 convert" in one_line(str(caught.value))
