"""Accuracies and the attack success rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import statistics
from harness.metrics.accuracy import (
    ATTACK_SUCCESS_RATE,
    CLEAN_ACCURACY,
    ROBUST_ACCURACY,
    WORST_CASE_ROBUST_ACCURACY,
)
from harness.metrics.base import CellRows


def rows(correct, success, ids=None):
    correct = np.asarray(correct, dtype=bool)
    ids = np.arange(correct.size) if ids is None else np.asarray(ids)
    return {"sample_id": ids, "clean_correct": correct, "success": np.asarray(success, dtype=bool)}


def test_values_and_intervals():
    r = rows([1, 1, 1, 1, 0], [1, 0, 0, 0, 0])
    clean, robust, rate = (m.estimate(r, 0.95)[""] for m in (CLEAN_ACCURACY, ROBUST_ACCURACY, ATTACK_SUCCESS_RATE))
    assert (clean.value, robust.value, rate.value) == (0.8, 0.6, 0.25)
    assert (clean.n, robust.n, rate.n) == (5, 5, 4)
    assert (robust.low, robust.high) == statistics.clopper_pearson(3, 5, 0.95)
    assert (rate.low, rate.high) == statistics.clopper_pearson(1, 4, 0.95)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_robust_accuracy_never_exceeds_clean_accuracy(samples):
    r = rows(*zip(*samples, strict=True))
    clean, robust = CLEAN_ACCURACY.estimate(r, 0.95)[""], ROBUST_ACCURACY.estimate(r, 0.95)[""]
    assert robust.value <= clean.value
    assert 0 <= robust.low <= robust.value <= robust.high <= 1


def test_an_attack_on_a_model_that_is_never_right_has_no_success_rate():
    estimate = ATTACK_SUCCESS_RATE.estimate(rows([0, 0], [0, 0]), 0.95)[""]
    assert estimate.value is estimate.low is estimate.high is None
    assert "classified correctly" in estimate.reason
    change = ATTACK_SUCCESS_RATE.difference(rows([0, 0], [0, 0]), rows([1, 1], [0, 1]), 0.05)[""]
    assert change.value is None
    assert change.reason.startswith("baseline: no sample")


def test_no_rows_are_undefined():
    assert CLEAN_ACCURACY.estimate(rows([], []), 0.95)[""].value is None


def test_difference_of_accuracies_is_mcnemar_over_pairs():
    base, new = rows([1] * 90 + [0] * 10, [0] * 100), rows([0] * 8 + [1] * 82 + [1] * 2 + [0] * 8, [0] * 100)
    change = CLEAN_ACCURACY.difference(base, new, 0.05)[""]
    expected = statistics.paired_proportions(8, 2, 100, 0.05)
    assert (change.value, change.low, change.high) == (expected.value, expected.low, expected.high)
    assert (change.p_decrease, change.p_increase) == statistics.mcnemar(8, 2)
    assert change.value == pytest.approx(change.candidate.value - change.baseline.value)
    assert change.n == 100


def test_a_comparison_with_itself_is_not_certain():
    r = rows([1] * 30, [0] * 30)
    change = ROBUST_ACCURACY.difference(r, r, 0.05)[""]
    assert change.value == 0
    assert change.low < -0.02
    assert change.spread > 0
    assert statistics.samples_needed(change.spread, 0.02, 0.05) > 30


def test_several_rows_of_a_sample_are_one_cluster():
    rng = np.random.default_rng(0)
    base, new = rng.random(100) < 0.8, rng.random(100) < 0.8
    single = CLEAN_ACCURACY.difference(rows(base, base), rows(new, new), 0.05)[""]
    ids = np.repeat(np.arange(100), 5)
    copied = CLEAN_ACCURACY.difference(
        rows(np.repeat(base, 5), np.zeros(500), ids), rows(np.repeat(new, 5), np.zeros(500), ids), 0.05
    )[""]
    assert copied.n == single.n == 100
    assert copied.value == pytest.approx(single.value)
    assert (copied.low, copied.high) == (pytest.approx(single.low, abs=0.01), pytest.approx(single.high, abs=0.01))
    assert CLEAN_ACCURACY.estimate(rows(np.repeat(base, 5), np.zeros(500), ids), 0.95)[""].n == 100


def test_difference_of_success_rates_is_of_the_two_ratios_and_covers_zero():
    rng = np.random.default_rng(1)
    covered = rejected = 0
    for _ in range(300):
        base = rows(rng.random(150) < 0.9, rng.random(150) < 0.5)
        new = rows(rng.random(150) < 0.7, rng.random(150) < 0.5)
        change = ATTACK_SUCCESS_RATE.difference(base, new, 0.05)[""]
        assert change.value == pytest.approx(change.candidate.value - change.baseline.value)
        covered += change.low <= 0
        rejected += change.p_increase < 0.05
    assert covered / 300 >= 0.93
    assert rejected / 300 <= 0.085


def cell(name: str, r, model: str = "m", dataset: str = "d", budget=None, norm: str = "") -> CellRows:
    return CellRows(f"{model}/{name}/{dataset}", model, name, name, dataset, r, budget, norm)


def test_worst_case_joins_attacks_by_sample():
    first = rows([1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 2, 3])
    second = rows([0, 1, 1, 1, 1], [0, 1, 0, 0, 0], [3, 2, 1, 0, 9])
    (summary,) = WORST_CASE_ROBUST_ACCURACY.summarise([cell("a", first), cell("b", second)], 0.95)
    assert summary.subject == "m"
    assert summary.cells == ("m/a/d", "m/b/d")
    assert (summary.estimate.value, summary.estimate.n) == (0.25, 4)  # only sample 1 withstands both; 9 is not shared
    assert (summary.estimate.low, summary.estimate.high) == statistics.clopper_pearson(1, 4, 0.95)


def test_worst_case_is_per_model_and_data_set_and_needs_two_attacks():
    r = rows([1, 1], [0, 1])
    cells = [cell("a", r, "x"), cell("b", r, "x"), cell("a", r, "y"), cell("a", r, "x", "e"), cell("b", r, "x", "e")]
    found = WORST_CASE_ROBUST_ACCURACY.summarise(cells, 0.95)
    assert [s.subject for s in found] == ["x on d", "x on e"]


def test_worst_case_is_of_one_norm_and_its_largest_budget():
    r = rows([1, 1], [0, 1])
    cells = [
        cell("a", r, budget=0.1, norm="linf"),
        cell("b", r, budget=8 / 255, norm="linf"),
        cell("unbounded", rows([1, 1], [1, 1]), norm="linf"),
        cell("c", r, budget=0.5, norm="l2"),
    ]
    (summary,) = WORST_CASE_ROBUST_ACCURACY.summarise(cells, 0.95)
    assert summary.subject == "m linf eps 0.1"
    assert summary.cells == ("m/a/d", "m/b/d")
    assert summary.estimate.value == 0.5


def test_attacks_that_share_no_sample_have_no_worst_case():
    cells = [cell("a", rows([1], [0], [0])), cell("b", rows([1], [0], [1]))]
    (summary,) = WORST_CASE_ROBUST_ACCURACY.summarise(cells, 0.95)
    assert summary.estimate.value is None
    assert "share no sample" in summary.estimate.reason
