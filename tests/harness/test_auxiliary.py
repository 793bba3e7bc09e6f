"""Cells that a suite does not list: held-out scores and probes, from plan to results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.auxiliary import HeldOutScores, evenly
from harness.errors import HarnessError
from harness.gating.judging import gate
from harness.models import ModelView
from harness.randomness import draws_for
from harness.store import load_run
from harness.threats import Batch

PLUGIN = '''
import torch
from harness import DatasetInfo, ModelInfo, Options, ThreatInfo, hookimpl, option
from harness.info import Probe
from toy_plugin import RowSums, Toy, ToyAttack, ToyAttackOptions, ToyData, ToyModelOptions


class SplitData(ToyData):
    split: str = option("test", help="train or test: other images")
    plain: bool = option(False, help="whether the train split is the test split after all")


class SplitToy(Toy):
    def images(self, index):
        return super().images(index + (1000 if self.options.split == "train" and not self.options.plain else 0))

    def digest(self):
        return "same" if self.options.plain else super().digest()


class Detecting(RowSums):
    def ood_score(self, x):
        if self.kind == "blind":
            raise RuntimeError("no score")
        if self.kind == "bright":
            return x.amax(dim=(1, 2, 3))
        return (x.sum(dim=(1, 2, 3)) - 3.6).abs()


class Evading(ToyAttack):
    """Reads a threshold, and writes it down."""

    def run(self, model, batch):
        columns = super().run(model, batch)
        columns["threshold"] = [model.ood_threshold(0.05)] * len(batch.ids)
        return columns


def probes(options):
    table = {"eps": options.eps, "steps": 2}
    return [
        Probe(name="again", plugin="toy-attack", table=table, samples=9, judge="stronger", advice="use it"),
        Probe(name="large", plugin="toy-attack", table={"eps": 1.0, "steps": 3}, samples=6, judge="unbounded",
              advice="mend it"),
        Probe(name="rare", plugin="toy-attack", table=table, samples=3, judge="guaranteed", advice="x", default=False),
        *([Probe(name="absent", plugin="toy-atack", table={}, samples=3, judge="stronger", advice="x")]
          if options.kind == "absent" else []),
        *([Probe(name="dies", plugin="toy-attack", table={**table, "kind": "raises", "at": 0}, samples=3,
                 judge="stronger", advice="x")] if options.kind == "dies" else []),
    ]


@hookimpl
def register_datasets(register):
    register(DatasetInfo(name="split-toy", summary="toy with splits", factory=SplitToy, options=SplitData))


@hookimpl
def register_models(register):
    register(ModelInfo(name="detecting", summary="row sums that detect", options=ToyModelOptions,
                       factory=lambda o, c: Detecting(o), capabilities=frozenset({"Classifier", "Detector"})))


@hookimpl
def register_threats(register):
    common = {"options": ToyAttackOptions, "requires": frozenset({"Classifier"}), "budget_option": "eps"}
    register(ThreatInfo(name="weak", summary="moves nothing", factory=lambda o, c: Weak(o), probes=probes, **common))
    register(ThreatInfo(name="evading", summary="needs a threshold", factory=lambda o, c: Evading(o),
                        needs_reference=lambda o: o.kind != "aware of nothing", **common))


class Weak(ToyAttack):
    def _attack(self, model, batch):
        return batch.x.clone()
'''


@pytest.fixture
def place(workplace: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A suite on a data set with splits; plugins `weak`, with probes, and `evading`, which reads held-out scores."""
    workplace.write(PLUGIN, "aux_plugin.py")
    workplace.plugins = (*workplace.plugins, str(workplace.folder / "aux_plugin.py"))
    monkeypatch.syspath_prepend(str(Path(workplace.plugins[0]).parent))
    workplace.edit('name = "toy", samples = 30', 'name = "split-toy", samples = 30')
    workplace.edit('plugin = "torch"\nfactory = "tiny_nets:Rows"', 'plugin = "toy-model"')
    return workplace


def checks(entry: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    return {check["check"]: (check["ok"], check["message"]) for check in entry["audit"]}


def cell(run: Any, threat: str) -> dict[str, Any]:
    (found,) = (c for c in run.cells() if c["plugin"] == threat)
    return dict(found)


def weak(place: Any, **more: str) -> None:
    place.edit(
        'plugin = "toy-attack"\neps = [0.05, 0.2]',
        'plugin = "weak"\neps = 0.2' + "".join(f'\n{k} = "{v}"' for k, v in more.items()),
    )


def test_a_probe_that_beats_the_attack_makes_its_number_unreliable(place: Any) -> None:
    weak(place)
    run = place.run()
    found = cell(run, "weak")
    assert found["metrics"]["robust_accuracy"]["value"] == 1
    ok, message = checks(found)["again"]
    assert not ok
    assert message.endswith("samples that the attack left standing: the number is too high; use it")
    assert checks(found)["large"] == (True, "")
    assert not found["reliable"]
    assert "rare" not in checks(found)
    assert [c["id"] for c in run.cells()] == ["rows/clean/split-toy", "rows/weak[eps=0.2]/split-toy"]


def test_probes_can_be_asked_for_and_left_out(place: Any) -> None:
    weak(place)
    names = {
        wanted: set(checks(cell(place.run(out=place.folder / wanted, overrides=[f"suite.probes={wanted}"]), "weak")))
        for wanted in ("none", "default", "all")
    }
    assert names["default"] - names["none"] == {"again", "large"}
    assert names["all"] - names["default"] == {"rare"}


@pytest.mark.parametrize("kind", ["absent", "dies"])
def test_a_probe_that_cannot_run_is_told_and_takes_nothing_down(kind: str, place: Any) -> None:
    weak(place, kind=kind)
    run = place.run()
    found = cell(run, "weak")
    assert found["status"] == "ok"
    ok, message = checks(found)[kind]
    assert not ok
    assert ("did you mean 'toy-attack'" if kind == "absent" else "a fault of the threat") in message
    assert load_run(run.folder).complete()


def test_rows_of_probes_are_reused_and_hold_no_images(place: Any) -> None:
    weak(place)
    place.run()
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*.parquet")}
    run = place.run()
    assert {path: path.stat().st_mtime_ns for path in place.out.rglob("*.parquet")} == before
    info = json.loads((place.out / "run.json").read_text())
    probe = next(c for c in info["cells"] if c["role"] == "probe")
    assert "adversarial" not in run.columns(probe["id"])
    assert "adversarial" in run.columns("rows/weak[eps=0.2]/split-toy")
    assert probe["samples"] == 9


def test_two_workers_make_the_same_results(place: Any) -> None:
    weak(place)
    one, two = place.run(out=place.folder / "a"), place.run(out=place.folder / "b", workers=2)
    assert one.results == two.results


def test_probes_do_not_enter_gates_and_summaries(place: Any) -> None:
    weak(place)
    run = place.run()
    assert {row.cell for row in gate(run, run).rows} <= {c["id"] for c in run.cells()}
    assert all(set(s["cells"]) <= {c["id"] for c in run.cells()} for s in run.results["summaries"])


def detecting(place: Any, threat: str = "toy-attack", **more: str) -> None:
    place.edit('plugin = "toy-model"', 'plugin = "detecting"' + "".join(f'\n{k} = "{v}"' for k, v in more.items()))
    place.edit('plugin = "toy-attack"\neps = [0.05, 0.2]', f'plugin = "{threat}"\neps = 0.2')


def test_robust_accuracy_is_told_at_the_detectors_false_positive_rates(place: Any) -> None:
    detecting(place)
    run = place.run()
    found = cell(run, "toy-attack")
    values = [found["metrics"][f"robust_accuracy_at_detector_fpr[{rate}]"]["value"] for rate in ("1%", "5%", "10%")]
    rows = run.rows(found["id"], ["clean_correct", "success", "clean_ood_score", "adversarial_ood_score"])
    reference = next(c for c in run.info["cells"] if c["role"] == "reference")
    held_out = run.reader.raw(reference["id"], ["ood_score"])["ood_score"]
    for value, fpr in zip(values, (0.01, 0.05, 0.10), strict=True):
        threshold = np.quantile(held_out, 1 - fpr, method="higher")
        evades = rows["success"] & (rows["adversarial_ood_score"] <= threshold)
        expected = rows["clean_correct"] & (rows["clean_ood_score"] <= threshold) & ~evades
        assert value == pytest.approx(expected.mean())


def test_a_threat_is_given_the_threshold_of_held_out_images(place: Any) -> None:
    detecting(place, "evading")
    run = place.run(workers=2)
    reference = next(c for c in run.info["cells"] if c["role"] == "reference")
    held_out = run.reader.raw(reference["id"], ["ood_score"])["ood_score"]
    found = run.rows(cell(run, "evading")["id"], ["threshold"])["threshold"]
    assert set(found) == {np.quantile(held_out, 0.95, method="higher")}


def test_held_out_images_that_are_not_there_fail_the_cell_that_needs_them(place: Any) -> None:
    detecting(place, "evading")
    place.edit('name = "split-toy", samples = 30', 'name = "toy", samples = 30')
    run = place.run()
    found = cell(run, "evading")
    assert found["status"] == "failed"
    assert "needs held-out images" in found["error"]
    assert cell(run, "clean")["status"] == "ok"


def test_the_test_images_are_no_held_out_images(place: Any) -> None:
    detecting(place, "evading")
    place.edit("samples = 30 }", "samples = 30, plain = true }")
    assert "shares images with the test data" in cell(place.run(), "evading")["error"]


def test_what_the_suite_names_is_held_out(place: Any) -> None:
    detecting(place, "evading")
    place.edit("shard_size = 8", 'shard_size = 8\nheldout = { name = "split-toy", split = "train", samples = 12 }')
    run = place.run()
    assert next(c for c in run.info["cells"] if c["role"] == "reference")["samples"] == 12
    with pytest.raises(HarnessError, match="heldout"):
        place.run(overrides=["suite.heldout=no-such-set"])


def test_a_reference_that_fails_takes_down_those_who_read_it(place: Any) -> None:
    detecting(place, "evading", kind="blind")
    place.edit('[[threats]]\nplugin = "evading"', '[[threats]]\nplugin = "evading"\nname = "e"')
    found = cell(place.run(), "evading")
    assert found["status"] == "failed"
    assert "no score" in found["error"]


def test_ids_are_spread_evenly() -> None:
    ids = np.arange(100, 200)
    assert evenly(ids, 3).tolist() == [100, 150, 199]
    assert evenly(ids, 500) is ids
    assert len(set(evenly(ids, 64).tolist())) == 64


def test_a_failing_check_of_the_detector_withholds_its_numbers_and_no_others(place: Any) -> None:
    """Bright adversarial images are odd: the detector rejects what an attack that ignores it finds."""
    detecting(place, kind="bright")
    place.edit("eps = 0.2", "eps = 0.5")
    found = cell(place.run(overrides=["suite.dataset.samples=90"]), "toy-attack")
    ok, message = checks(found)["detector_ignored"]
    assert not ok
    withheld = [v for name, v in found["metrics"].items() if name.startswith(("robust_accuracy_at_", "evasion_rate"))]
    assert len(withheld) == 6
    assert all(v["value"] is None and v["reason"] == message for v in withheld)
    assert found["metrics"]["robust_accuracy"]["value"] is not None
    assert found["reliable"]


def test_two_runs_of_one_name_are_replayed_apart(place: Any) -> None:
    place.edit('plugin = "toy-attack"\neps = [0.05, 0.2]', 'plugin = "pgd"\neps = 0.1\nsteps = 2')
    folders = tuple(place.folder / part / "same" for part in "ab")
    for folder in folders:
        place.run(out=folder)
    run = place.run(replay=folders)
    ids = [c["id"] for c in run.cells()]
    assert len(ids) == len(set(ids)) == 4


def test_a_suite_cannot_ask_for_held_out_scores_itself(place: Any) -> None:
    detecting(place)
    place.write(place.suite.read_text() + '\n[[threats]]\nplugin = "held-out-scores"\n')
    with pytest.raises(HarnessError, match="planned by the harness itself"):
        place.run()


def test_a_cell_and_its_probe_that_fail_together_do_not_make_a_run_incomplete(place: Any) -> None:
    weak(place, kind="raises")
    run = place.run()
    assert cell(run, "weak")["status"] == "failed"
    assert any(row.cell == cell(run, "weak")["id"] for row in gate(run, run).rows)


def test_held_out_rows_hold_what_scores_are_made_with() -> None:
    class Featured:
        num_classes = 3

        def logits(self, x: Any) -> Any:
            return self.features(x) * 2

        def features(self, x: Any) -> Any:
            return x.sum(dim=(1, 2))

    x = torch.rand(4, 1, 2, 3)
    ids = torch.arange(4)
    for capabilities, extra in (({"Classifier", "Features"}, {"features"}), ({"Classifier"}, set())):
        view = ModelView(Featured(), capabilities, ids, 0, "attack")
        batch = Batch(x, ids % 3, ids, draws_for(ids, 0, "t"), clean_logits=Featured().logits(x))
        columns = HeldOutScores().run(view, batch)
        assert set(columns) == {"ood_score", "logits", *extra}
        assert torch.equal(columns["logits"], Featured().logits(x))
    assert columns["ood_score"].dtype == torch.float64
