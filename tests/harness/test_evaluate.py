"""One shard: what the host adds to a threat's rows, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.errors import HarnessError, ModelError, ThreatError
from harness.evaluate import (
    Setting,
    ShardTask,
    Workbench,
    evaluate_batch,
    evaluate_shard,
    run_shard,
    samples_digest,
    workbench,
)
from harness.judge import perturbation_norms
from harness.loading import BuiltThreat
from harness.store import shard_facts, shard_path
from harness.threats import Batch, Budget

TOY = str(Path(__file__).parents[1] / "toy" / "toy_plugin.py")
Rows = dict[str, NDArray[Any]]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(
        folder=str(tmp_path), suite_folder=str(tmp_path), data_root=None, plugins=(TOY,), device="cpu", seed=3,
        microbatch=256, store_images=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return workbench(Setting("", "/", None, (TOY,), "cpu", 0, 256, True))


Evaluate = Callable[..., Rows]


@pytest.fixture
def task(setting: Setting) -> Callable[..., ShardTask]:
    def make(
        kind: str = "honest",
        *,
        model: Mapping[str, Any] | None = None,
        plugin: str = "toy-model",
        samples: int = 12,
        threat: str = "toy-attack",
        change: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ShardTask:
        table = {"eps": 0.1, "kind": kind, **options} if threat == "toy-attack" else options
        changed = Setting(**{**vars(setting), **(change or {})})
        model = model or {}
        data = data or {"name": "toy", "samples": 30}
        return ShardTask(
            changed, "cell", "d" * 64, data, ("m", plugin, model), ("t", threat, table), np.arange(samples)
        )

    return make


@pytest.fixture
def evaluate(task: Callable[..., ShardTask], bench: Workbench) -> Evaluate:
    def call(*arguments: Any, **options: Any) -> Rows:
        return evaluate_shard(task(*arguments, **options), bench)

    return call


# What the host adds


def test_rows_of_an_attack_carry_the_hosts_own_columns(evaluate: Evaluate) -> None:
    rows = evaluate()
    assert list(rows)[:4] == ["sample_id", "label", "clean_prediction", "clean_correct"]
    assert rows["sample_id"].tolist() == list(range(12))
    assert rows["label"].tolist() == [i % 3 for i in range(12)]
    expected = {"adversarial", "adversarial_prediction", "success", "linf", "l2", "l1", "l0", "forwards", "backwards"}
    assert expected <= rows.keys()
    assert rows["adversarial"].shape == (12, 1, 3, 3)
    assert 0 < rows["success"].sum() < 12


def test_success_is_judged_from_the_images_whatever_the_threat_says(evaluate: Evaluate) -> None:
    rows = evaluate("lies")
    assert not rows["success"].any()
    assert rows["label"].tolist() == [i % 3 for i in range(12)]
    assert rows["clean_correct"].tolist() == (rows["clean_prediction"] == rows["label"]).tolist()
    assert (rows["linf"] == 0).all()
    assert rows["forwards"].sum() > 0  # the count of the host, not the threat's zeros


def test_a_wrong_clean_prediction_is_no_success(evaluate: Evaluate) -> None:
    """A model that is wrong on every clean image has robust accuracy 0 and nothing to attack."""
    rows = evaluate(model={"scale": -10.0})
    assert not rows["clean_correct"].any()
    assert not rows["success"].any()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-0.25, 0.25, width=32), min_size=12, max_size=12))
def test_norms_are_those_of_numpy(values: list[float]) -> None:
    x = torch.full((2, 1, 2, 3), 0.5)
    images = x + torch.tensor(values, dtype=torch.float32).reshape(x.shape)
    difference = (images.double() - x.double()).numpy().reshape(2, -1)
    norms = perturbation_norms(images, x)
    for name, order in (("linf", np.inf), ("l2", 2), ("l1", 1), ("l0", 0)):
        assert np.allclose(norms[name].numpy(), np.linalg.norm(difference, order, axis=1), rtol=1e-12)


def test_evaluations_are_counted_for_each_sample_while_others_leave(evaluate: Evaluate) -> None:
    """Samples that fell in the first of three steps spend one forward and one backward, those that stand all three."""
    rows = evaluate(steps=3, eps=0.12)
    assert set(rows["forwards"].tolist()) <= {0, 1, 2, 3}
    assert (rows["forwards"] == rows["backwards"]).all()
    assert (rows["forwards"][rows["clean_correct"] & ~rows["success"]] == 3).all()
    assert len(set(rows["forwards"].tolist())) > 1
    assert (rows["forwards"][~rows["clean_correct"]] == 0).all()


def test_the_hosts_own_evaluations_are_not_counted(evaluate: Evaluate) -> None:
    rows = evaluate(threat="clean")
    assert (rows["forwards"] == 0).all()
    assert (rows["backwards"] == 0).all()


def test_a_random_model_gets_the_streams_of_its_samples(evaluate: Evaluate) -> None:
    rows = evaluate("noise", plugin="toy-random")
    again = evaluate("noise", plugin="toy-random", change={"microbatch": 5})
    other = evaluate("noise", plugin="toy-random", change={"seed": 4})
    assert np.array_equal(rows["logit"], again["logit"])
    assert not np.array_equal(rows["logit"], other["logit"])
    assert not np.array_equal(rows["noise"], other["noise"])
    assert len(np.unique(rows["logit"][:, 0])) == 12


def test_text_and_lists_of_fixed_length_are_columns(evaluate: Evaluate) -> None:
    rows = evaluate("noise")
    assert rows["noise"].shape == (12, 4)
    assert rows["who"].tolist() == [f"s{i}" for i in range(12)]


def test_rows_with_their_own_ids_stand_as_they_are(evaluate: Evaluate) -> None:
    rows = evaluate(threat="ood", sets=["uniform", "constant"])
    assert len(rows["sample_id"]) == 3 * 12
    assert sorted(set(rows["set"].tolist())) == ["constant", "in", "uniform"]
    assert (rows["forwards"] == 3).all()  # the sample's whole cost, on each of its rows


class Darker:
    """Shows each image at two brightnesses and takes the host's word."""

    budget: Budget | None = None

    def run(self, model: Any, batch: Batch) -> Mapping[str, Any]:
        assert batch.judge is not None
        found = [batch.judge(batch.x), batch.judge(0.5 * batch.x)]
        return {
            "sample_id": batch.ids.repeat(2),
            "brightness": [1.0] * len(batch.ids) + [0.5] * len(batch.ids),
            "correct": torch.cat([f["correct"] for f in found]),
        }


def test_a_shift_has_its_images_judged_and_booked(task: Callable[..., ShardTask], bench: Workbench) -> None:
    one = task(threat="clean")
    data = bench.dataset(one)
    x, y = data.load(one.ids)
    rows = evaluate_batch(bench.model(one, data.facts), BuiltThreat(Darker(), None), x, y, one.ids, one)
    assert len(rows["correct"]) == 24
    assert (rows["forwards"] == 2).all()


def test_an_attack_does_not_see_the_judge(task: Callable[..., ShardTask], bench: Workbench) -> None:
    class Curious(Darker):
        budget = Budget("linf", 0.1)

        def run(self, model: Any, batch: Batch) -> Mapping[str, Any]:
            assert batch.judge is None
            return {"adversarial": batch.x.clone()}

    one = task(threat="clean")
    data = bench.dataset(one)
    x, y = data.load(one.ids)
    rows = evaluate_batch(bench.model(one, data.facts), BuiltThreat(Curious(), Curious.budget), x, y, one.ids, one)
    assert not rows["success"].any()


@pytest.mark.parametrize("microbatch", [1, 5, 12, 100])
def test_microbatches_make_the_same_rows(microbatch: int, evaluate: Evaluate) -> None:
    whole, parts = evaluate(), evaluate(change={"microbatch": microbatch})
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        if values.dtype.kind == "f":
            assert np.allclose(values, parts[name], rtol=1e-5)
        else:
            assert np.array_equal(values, parts[name]), name


def test_images_are_left_out_where_the_suite_says_so(evaluate: Evaluate) -> None:
    rows = evaluate(change={"store_images": False})
    assert "adversarial" not in rows
    assert "success" in rows


# What it refuses


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "outside",
            r"1 of 12 adversarial images lie outside the budget: linf 0\.101.* > eps 0\.1; the rows are refused",
        ),
        ("negative", r"adversarial images lie outside \[0, 1\] \(or are not finite\)"),
        ("nan image", r"adversarial images lie outside \[0, 1\] \(or are not finite\)"),
        ("shape", r"adversarial images are torch\.float32 \(12, 1, 2, 3\), not torch\.float32 \(12, 1, 3, 3\)"),
        ("float64", r"adversarial images are torch\.float64"),
        ("short", r"column 'extra' has 11 entries for 12 rows"),
        ("object", r"column 'extra' holds Python objects"),
        ("scalar", r"column 'extra' has 0 dimensions"),
        ("shuffled", r"leave out the column sample_id"),
        ("claims success", r"the threat has a column 'success' but returned no adversarial images"),
        ("no images", r"the threat has a budget but returned no adversarial images"),
        ("no budget", r"needs a budget"),
        ("budget nan", r"threat 't': its budget is nan, but option eps is 0\.1"),
        ("grows its budget", r"12 of 12 adversarial images lie outside the budget"),
        ("claims clean", r"column 'clean_correct' is the host's"),
        ("nothing", r"the threat returned NoneType, not columns"),
        ("spoils clean", r"the threat changed what it was given in place"),
        ("spoils labels", r"the threat changed what it was given in place"),
        ("spoils logits", r"the threat changed what it was given in place"),
    ],
)
def test_rows_that_break_the_contract_are_refused(kind: str, message: str, evaluate: Evaluate) -> None:
    with pytest.raises(ThreatError, match=message) as caught:
        evaluate(kind)
    assert "\n" not in str(caught.value)


def test_rows_of_foreign_samples_are_refused(evaluate: Evaluate) -> None:
    with pytest.raises(ThreatError, match="rows name samples that are not in the batch"):
        evaluate("foreign")


def test_columns_that_come_and_go_are_refused(evaluate: Evaluate) -> None:
    with pytest.raises(ThreatError, match="column 'late' is in some batches and not in others"):
        evaluate("uneven", change={"microbatch": 4})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "logits are not finite for 12 of 12 images, first sample 0"),
        ("wrong shape", r"logits\(\) returned shape \(12, 2\) for 12 images, not \(12, 3\)"),
        ("in place", "the model changes its input in place"),
        ("factory raises", "model 'm': RuntimeError: no weights here"),
        ("factory exits", "model 'm': SystemExit: 0"),
        ("no method", "plugin 'toy-model' declares Classifier but lacks"),
    ],
)
def test_a_model_that_breaks_its_contract_is_refused(kind: str, message: str, evaluate: Evaluate) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        evaluate(model={"kind": kind})
    assert "\n" not in str(caught.value)


def test_nan_on_attacked_images_is_no_success_but_a_fault(evaluate: Evaluate) -> None:
    with pytest.raises(ModelError, match=r"logits are not finite for .* adversarial images"):
        evaluate(model={"kind": "nan under attack"}, eps=0.2)


def test_labels_beyond_the_models_classes_are_refused(evaluate: Evaluate) -> None:
    with pytest.raises(HarnessError, match="label 2 is out of range: the model has 2 classes"):
        evaluate(model={"kind": "two classes"})
    with pytest.raises(HarnessError, match="label 7 is out of range: the model has 3 classes"):
        evaluate(data={"name": "toy", "label_offset": 5})


# run_shard


def test_a_finished_shard_is_on_disk_with_its_facts(task: Callable[..., ShardTask], bench: Workbench) -> None:
    outcome = run_shard(task(), bench)
    assert (outcome.error, outcome.trace, outcome.samples, outcome.first_id) == ("", "", 12, 0)
    facts = shard_facts(shard_path(Path(task().setting.folder), "d" * 64, 0))
    assert facts == {"cell": "d" * 64, "samples": samples_digest(np.arange(12))}


@pytest.mark.parametrize(
    ("arguments", "error", "traced"),
    [
        ({"kind": "raises"}, "RuntimeError: a fault of the threat", True),
        ({"model": {"kind": "raises"}}, "RuntimeError: a fault of the model", True),
        ({"model": {"kind": "exits"}}, "SystemExit: 0", True),
        ({"model": {"kind": "factory raises"}}, "model 'm': RuntimeError: no weights here", True),
        ({"kind": "outside"}, "outside the budget", False),
    ],
)
def test_a_fault_is_one_line_and_its_traceback_is_kept_where_it_helps(
    arguments: dict[str, Any], error: str, traced: bool, task: Callable[..., ShardTask], bench: Workbench
) -> None:
    outcome = run_shard(task(**arguments), bench)
    assert error in outcome.error
    assert "\n" not in outcome.error
    assert bool(outcome.trace) is traced
    assert not outcome.fatal
    assert not list(Path(task().setting.folder).rglob("*.parquet"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20, unique=True))
def test_the_digest_of_samples_tells_sets_apart(ids: list[int]) -> None:
    array = np.sort(np.array(ids, dtype=np.int64))
    assert samples_digest(array) == samples_digest(array.copy())
    for changed in (array[:-1], np.append(array, array[-1] + 1), array + 1):
        if changed.size:
            assert samples_digest(changed) != samples_digest(array)
