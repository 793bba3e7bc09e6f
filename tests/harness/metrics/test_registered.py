"""Every registered metric can be imported, and works on exactly the columns it declares."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from harness.info import resolve
from harness.metrics.base import CellRows
from harness.metrics.registered import METRICS

N = 40
SCORES = np.random.default_rng(0).normal(size=2 * N)
COLUMNS = {
    "sample_id": np.arange(2 * N),
    "clean_correct": np.arange(2 * N) % 8 > 0,
    "success": np.arange(2 * N) % 4 > 0,
    "linf": np.linspace(0.01, 0.3, 2 * N),
    "l2": np.linspace(0.1, 3, 2 * N),
    "forwards": np.arange(2 * N) % 41,
    "backwards": np.arange(2 * N) % 40,
    "set": np.repeat(["in", "uniform"], N),
    "score": np.repeat("own", 2 * N),
    "held_out_log_prob": np.full(2 * N, -0.2),
    "held_out_log_prob_error": np.full(2 * N, 0.1),
    "held_out_count": np.full(2 * N, 1000.0),
    "table": np.repeat("imagenet-c", 2 * N),
    "distance": np.repeat(["", "far"], N),
    "confidence": np.linspace(0.2, 0.9999, 2 * N),
    "negative_log_likelihood": np.linspace(0.01, 2, 2 * N),
    "class_confidence_count": np.tile(np.arange(29) % 5 == 0, (2 * N, 1)).astype(int),
    "class_confidence_sum": np.tile(np.where(np.arange(29) % 5 == 0, 0.1, 0), (2 * N, 1)),
    "corruption": np.repeat(["none", "fog"], N),
    "severity": np.repeat([0, 3], N),
    "pi": np.repeat([0.0, 1.0], N),
    "t": np.repeat([0.0, 1.0], N),
    "log_prob": np.cos(np.arange(2 * N)),
    "delta_bits_per_dim": np.where(np.arange(2 * N) < N, 0.0, np.sin(np.arange(2 * N))),
    "logit_change": np.where(np.arange(2 * N) < N, 0.0, np.arange(2 * N) % 7 / 5),
    "correct": np.arange(2 * N) % 5 > 0,
    "entropy": np.arange(2 * N) % 13 / 10,
    "bits_per_dim": np.arange(2 * N) % 11 / 3,
    "clean_bits_per_dim": np.arange(2 * N) % 9 / 2,
    "ood_score": SCORES + np.repeat([0, 1], N),
    "robust_at_detector_fpr": (np.arange(2 * N) % 5)[:, None] > np.arange(1, 4),
    "clean_correct_mean": np.arange(2 * N) % 7 > 0,
    "success_mean": np.arange(2 * N) % 3 > 0,
    "label": np.zeros(2 * N, dtype=int),
    "adversarial_prediction": (np.arange(2 * N) % 4 > 0).astype(int),
    "minimal_norm": np.where(np.arange(2 * N) % 8 > 0, np.linspace(0.01, 0.3, 2 * N), 0.0),
    "curve": np.tile([0.1, 0.2], (2 * N, 1)),
    "evades_at_detector_fpr": (np.arange(2 * N) % 5)[:, None] < np.arange(1, 4),
    **{f"clean_{score}": SCORES for score in ("ood_score", "one_tailed_score", "two_tailed_score")},
    **{f"adversarial_{score}": 0.8 * SCORES[::-1] for score in ("ood_score", "one_tailed_score", "two_tailed_score")},
}


def rows_for(info):
    rows = {name: COLUMNS[name] for name in info.columns}
    if info.columns[1] == "pi" or "t" in rows:
        return {**rows, "sample_id": rows["sample_id"] % N}
    if "corruption" in rows:  # the clean and the corrupted rows are the same images
        return {**rows, "sample_id": rows["sample_id"] % N}
    score = {"two_tailed_uniformity": "two-tailed", "held_out_likelihood_gap": "log-likelihood"}.get(info.name)
    return {**rows, "score": np.repeat(score, 2 * N)} if score else rows


CELL = [info for info in METRICS if info.scope == "cell"]


def test_names_are_those_of_the_design():
    assert {info.name: info.direction for info in METRICS} == {
        "clean_accuracy": "higher",
        "robust_accuracy": "higher",
        "attack_success_rate": "lower",
        "linf_median": "higher",
        "l2_median": "higher",
        "linf_mean_of_successes": "none",
        "l2_mean_of_successes": "none",
        "auroc": "higher",
        "aupr_out": "higher",
        "aupr_in": "higher",
        "fpr_ood_at_95_tpr_id": "lower",
        "auroc_by_distance": "higher",
        "aupr_prevalence": "none",
        "fpr_ood_at_95_tpr_id_by_distance": "lower",
        "fpr_id_at_95_tpr_ood": "lower",
        "detection_accuracy": "higher",
        "tied_scores": "lower",
        "two_tailed_uniformity": "lower",
        "held_out_likelihood_gap": "none",
        "likelihood_ratio_auroc": "higher",
        "expected_calibration_error": "lower",
        "maximum_calibration_error": "lower",
        "overconfidence_error": "lower",
        "aurc": "lower",
        "corruption_accuracy": "higher",
        "entropy_rise": "none",
        "corruption_auroc": "none",
        "corruption_bits_per_dim": "none",
        "mean_corruption_error": "lower",
        "relative_mean_corruption_error": "lower",
        "bits_per_dim": "lower",
        "cross_entropy": "lower",
        "bitflip_bits_per_dim": "lower",
        "delta_bits_per_dim": "none",
        "signed_delta_bits_per_dim": "none",
        "bitflip_accuracy": "higher",
        "bitflip_accuracy_change": "higher",
        "bitflip_logit_change": "none",
        "bitflip_auroc": "none",
        "interpolation_log_prob_mean": "none",
        "interpolation_log_prob_sd": "none",
        "interpolation_convex_share": "higher",
        "robust_accuracy_at_detector_fpr": "higher",
        "clean_accuracy_by_mean": "higher",
        "robust_accuracy_by_mean": "higher",
        "minimal_norm_median": "higher",
        "robust_accuracy_at": "higher",
        "detection_auroc_of_attacked": "higher",
        "detection_auroc_of_attacked_one_tailed": "higher",
        "detection_auroc_of_attacked_two_tailed": "higher",
        "evasion_rate": "lower",
        "forwards_mean": "none",
        "backwards_mean": "none",
        "worst_case_robust_accuracy": "higher",
    }


@pytest.mark.parametrize("info", CELL, ids=lambda info: info.name)
def test_a_cell_metric_needs_only_its_columns(info):
    metric = resolve(info.metric, info.name)
    rows = rows_for(info)
    estimates = metric.estimate(rows, 0.95)
    variant = "" if "" in estimates else next(iter(estimates))
    estimate = estimates[variant]
    assert estimate.low <= estimate.value <= estimate.high
    assert all(type(v) is float for v in (estimate.value, estimate.low, estimate.high))
    assert type(estimate.n) is int
    change = metric.difference(rows, rows, 0.05)[variant]
    assert change.value == 0
    assert change.low <= 0 <= change.high
    assert change.p_decrease >= 0.5
    assert change.p_increase >= 0.5
    assert all(type(v) is float for v in (change.value, change.low, change.high, change.spread, change.p_decrease))


@pytest.mark.parametrize("info", CELL, ids=lambda info: info.name)
def test_the_order_of_rows_does_not_matter(info):
    metric = resolve(info.metric, info.name)
    order = np.random.default_rng(1).permutation(2 * N)
    rows = rows_for(info)
    first = metric.estimate(rows, 0.95)
    second = metric.estimate({name: column[order] for name, column in rows.items()}, 0.95)
    for key, estimate in first.items():
        assert second[key].value == pytest.approx(estimate.value)
        assert (second[key].low, second[key].high) == (pytest.approx(estimate.low), pytest.approx(estimate.high))


def test_the_group_metric_needs_only_its_columns():
    (info,) = (info for info in METRICS if info.scope == "group" and info.options is None)
    rows = {name: COLUMNS[name] for name in info.columns}
    cells = [CellRows(name, "m", name, "pgd", "d", rows) for name in "ab"]
    (summary,) = resolve(info.metric, info.name).summarise(cells, 0.95)
    assert summary.estimate.value == pytest.approx(np.mean(COLUMNS["clean_correct"] & ~COLUMNS["success"]))


def test_registration_imports_nothing_heavy():
    code = (
        "import sys, harness.metrics.registered;"
        "sys.exit(any(m in sys.modules for m in ('scipy', 'sklearn', 'torch', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
