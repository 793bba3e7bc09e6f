"""The probes of PGD: within their budget, and each kind of deception flagged while honest models are not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from harness_attacks.noise import NoiseOptions
from harness_attacks.options import PGDOptions
from harness_attacks.probes import probes_of

from harness.audit import audit
from harness.info import resolve
from harness.standard_probes import FEW, probes_of_ball
from harness.testing.zoo import ZOO

SWEEP = Path(__file__).parents[2] / "benchmarks" / "audit.py"


@pytest.fixture(scope="module")
def benchmark_of_audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_audit", SWEEP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def options(**table) -> PGDOptions:
    return PGDOptions.model_validate({"eps": "8/255", **table})


@pytest.mark.parametrize("table", [{}, {"norm": "l2", "eps": 0.5, "steps": 7, "restarts": 3, "loss": "margin"}])
def test_probes_have_names_of_their_own_and_options_that_their_threats_accept(benchmark_of_audit, table) -> None:
    probes = probes_of(options(**table))
    assert len({probe.name for probe in probes}) == len(probes)
    for probe in probes:
        path, _ = benchmark_of_audit.THREATS[probe.plugin]
        assert resolve(path, probe.plugin).model_validate(dict(probe.table))
        assert benchmark_of_audit.threat_of(probe.plugin, probe.table)
        assert probe.default == (probe.samples == FEW)


def test_a_probe_keeps_the_budget_as_it_was_written() -> None:
    written = {probe.table["eps"] for probe in probes_of(options()) if "eps" in probe.table}
    assert written == {"8/255"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_probe_runs_in_every_norm(benchmark_of_audit, plain_cnn, digits, norm: str) -> None:
    x, y = digits[0][:6], digits[1][:6]
    table = {"norm": norm, "eps": {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm], "steps": 3}
    rest = probes_of_ball(NoiseOptions.model_validate({"norm": norm, "eps": table["eps"]}))
    for probe in [*probes_of(options(**table)), *rest]:
        threat = benchmark_of_audit.threat_of(probe.plugin, {**probe.table, **SHORT.get(probe.plugin, {})})
        rows = benchmark_of_audit.rows_of(plain_cnn, threat, x, y, 0)
        assert {"clean_correct", "success"} <= set(rows) or {"task_posed", "task_solved"} <= set(rows)


SHORT = {"square": {"queries": 5}, "noise": {"images": 2}, "pgd": {"restarts": 1, "steps": 3}}


def test_the_other_loss_is_another() -> None:
    def losses(**table) -> set[str]:
        return {probe.table["loss"] for probe in probes_of(options(**table)) if "other" in probe.name}

    assert losses() == {"margin"}
    assert losses(loss="margin") == {"cross-entropy"}


@pytest.mark.parametrize("table", [{"target": "random"}, {"target": 3}, {"evade": "penalty"}])
def test_attacks_with_another_goal_are_only_probed_with_an_unbounded_budget(table) -> None:
    (probe,) = probes_of(options(**table))
    assert probe.judge == "unbounded"
    assert not {"target", "evade"} & set(probe.table["attack"])


def test_no_budget_no_probes() -> None:
    assert probes_of(options(eps=0)) == ()


def test_default_probes_cost_at_most_200_calls_a_sample(benchmark_of_audit, digits) -> None:
    """On a model that withstands everything."""

    class Constant(torch.nn.Module):
        stochastic = False
        num_classes = 10

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return 1e-9 * x.flatten(1)[:, :10] + torch.nn.functional.one_hot(torch.tensor([3]), 10)

    x, y = digits
    x = x[y == 3][:8]
    calls = 0
    for probe in probes_of(options()):
        if probe.default:
            threat = benchmark_of_audit.threat_of(probe.plugin, probe.table)
            rows = benchmark_of_audit.rows_of(Constant(), threat, x, torch.full((len(x),), 3), 0)
            calls += int((rows["forwards"] + rows["backwards"]).max())
    assert 150 < calls <= 200


MECHANISMS = {
    "quantised-16": "zero_gradients",
    "ripple": "probe_square",
    "input-noise": "random_without_eot",
    "shrunk-logits": "nonfinite_gradients",
    "cold-softmax-twice": "zero_gradients",
    "flipped-gradient": "loss_not_increasing",
    "narrowed-gradient": "probe_unbounded",
    "detached": "refused",
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_each_mechanism_is_flagged_by_default(benchmark_of_audit, plain_cnn, digits, name: str) -> None:
    x, y = digits[0][:64], digits[1][:64]
    cell = benchmark_of_audit.Cell("plain", name, "linf", 0.1, 0, 64, 1)
    model = benchmark_of_audit.prepare(next(d for d in ZOO if d.name == name).wrap(plain_cnn), "cpu")
    record = benchmark_of_audit.evaluated(model, cell, x, y, everything=False)
    assert MECHANISMS[name] in record["flags"]
    message = record["flags"][MECHANISMS[name]]
    assert "\n" not in message
    assert len(message) > 60


def test_honest_models_are_not_flagged(benchmark_of_audit, digits_cnn, digits) -> None:
    x, y = digits[0][:32], digits[1][:32]
    cell = benchmark_of_audit.Cell("either", "", "linf", 0.1, 0, 32, 1)
    record = benchmark_of_audit.evaluated(digits_cnn, cell, x, y, everything=False)
    assert record["flags"] == {}


def test_a_detector_at_the_boundary_stops_plain_pgd_and_not_an_adaptive_attack(
    benchmark_of_audit, plain_cnn, digits
) -> None:
    """Scores beside the rows, as the host adds them for a model with a detector."""
    x, y = digits[0][:48], digits[1][:48]
    model = next(d.wrap for d in ZOO if d.name == "boundary-detector")(plain_cnn)

    def attacked(**table) -> tuple[float, list[str]]:
        threat = benchmark_of_audit.threat_of("pgd", {"eps": 0.2, "steps": 15, **table})
        rows = dict(benchmark_of_audit.rows_of(model, threat, x, y, 0))
        with torch.no_grad():
            limit = np.quantile(model.ood_score(x).numpy(), 0.95)
            rows["adversarial_ood_score"] = model.ood_score(torch.from_numpy(rows["adversarial"])).numpy()
        rows["ood_threshold"] = np.full((len(x), 3), limit)
        evaded = rows["success"] & (rows["adversarial_ood_score"] <= limit)
        return float(evaded.mean()), [check.check for check in audit(rows) if not check.ok]

    naive, flags = attacked()
    adaptive, no_flags = attacked(early_stop=False, loss="margin")
    assert naive < 0.2
    assert adaptive > 0.8
    assert "detector_ignored" in flags
    assert "detector_ignored" not in no_flags


@pytest.mark.slow
def test_the_sweep(benchmark_of_audit, tmp_path: Path) -> None:
    """A few minutes of the sweep in a random order: no honest run flagged, no wide gap missed."""
    benchmark_of_audit.sweep(tmp_path, 150, 0, 1)
    records = benchmark_of_audit.read(tmp_path)
    assert len(records) > 10
    for record in records:
        flags = benchmark_of_audit.flagged(record, default=False)
        gap = record["robust"] - record["adaptive"]
        assert flags or gap <= benchmark_of_audit.GAP, record["key"]
        assert record["deception"] or not flags or gap > 0.02, record["key"]
