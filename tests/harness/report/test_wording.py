"""Names and numbers as reports write them."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.wording import audit_state, costs_last, heading, headline_metrics, interval, is_percentage, visible

TRICKY = st.text(alphabet=st.sampled_from("a[/]\n\t\r\x00\x1b\x9b\u202e\u2066\u200b\u2028\ufeff\ud800é文"), max_size=40)


@given(TRICKY, st.integers(0, 30))
def test_visible_text_is_one_line_of_printable_characters(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    shown.encode()


def test_visible_text_spells_out_what_it_cannot_show() -> None:
    assert visible("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert visible("two\nlines") == "two lines"
    assert visible("a" * 10, 5) == "aaaa…"
    assert visible("été 文 / [x]") == "été 文 / [x]"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clean_accuracy", "clean accuracy"),
        ("auroc[uniform]", "AUROC uniform"),
        ("aupr_in", "AUPR in"),
        ("fpr_ood_at_95_tpr_id[constant]", "FPR (OoD) at 95 % TPR (ID) constant"),
        ("fpr_ood_at_95_tpr_id_by_distance[near]", "FPR (OoD) at 95 % TPR (ID) by distance near"),
        ("fpr_id_at_95_tpr_ood", "FPR (ID) at 95 % TPR (OoD)"),
        ("bits_per_dim", "bits/dim"),
    ],
)
def test_headings(name: str, words: str) -> None:
    assert heading(name) == words


@pytest.mark.parametrize(
    "name", ["clean_accuracy", "attack_success_rate", "auroc[x]", "aupr_in", "mean_corruption_error"]
)
def test_shares_are_percentages(name: str) -> None:
    assert is_percentage(name)


@pytest.mark.parametrize("name", ["linf_median", "bits_per_dim", "forwards_mean", "fid", "l2_median[accuracy]"])
def test_other_numbers_are_not(name: str) -> None:
    assert not is_percentage(name)


@pytest.mark.parametrize(
    ("name", "estimate", "text"),
    [
        ("robust_accuracy", {"value": 0.972, "low": 0.949, "high": 0.987}, "97.2 [94.9, 98.7]"),
        ("robust_accuracy", {"value": 1.0, "low": 0.9954, "high": 1.0}, "100.0 [99.5, 100.0]"),
        ("l2_median", {"value": 0.51234, "low": 0.5, "high": 1234567.0}, "0.5123 [0.5, 1.235e+06]"),
        ("auroc", {"value": None, "low": None, "high": None, "reason": "one class"}, "undefined"),
    ],
)
def test_intervals(name: str, estimate: dict[str, Any], text: str) -> None:
    assert interval(name, estimate) == text


def test_headline_metrics_leave_out_what_another_one_says() -> None:
    attack = ["attack_success_rate", "clean_accuracy", "forwards_mean", "linf_median", "robust_accuracy"]
    assert headline_metrics(attack) == ["robust_accuracy"]
    assert headline_metrics(["bits_per_dim", "clean_accuracy"]) == ["clean_accuracy", "bits_per_dim"]
    assert headline_metrics(["aupr_in", "auroc", "auroc[a]", "fpr_ood_at_95_tpr_id"]) == ["auroc", "auroc[a]"]
    assert headline_metrics(["linf_median", "l2_median"]) == ["linf_median", "l2_median"]
    corrupted = [f"corruption_accuracy[{key}]" for key in ("all", "fog", "fog,1", "none")]
    assert headline_metrics(corrupted) == [corrupted[0], corrupted[3]]
    assert headline_metrics(["my_own_metric"]) == ["my_own_metric"]
    assert headline_metrics([]) == []


def test_costs_come_last() -> None:
    density = ["backwards_mean", "forwards_mean", "interpolation_log_prob_mean[0]", "interpolation_log_prob_sd[0]"]
    assert headline_metrics(density) == density[2:]
    assert headline_metrics(density[:2]) == density[:2]
    assert costs_last(density) == [*density[2:], *density[:2]]
    assert headline_metrics(["backwards_mean", "bits_per_dim"]) == ["bits_per_dim"]


@pytest.mark.parametrize(
    ("cell", "state"),
    [
        ({"reliable": True, "audit": [{"check": "c", "ok": True}]}, "reliable"),
        ({"reliable": False, "audit": [{"check": "c", "ok": False}]}, "UNRELIABLE"),
        ({"reliable": True, "audit": []}, ""),
    ],
)
def test_audit_state(cell: dict[str, Any], state: str) -> None:
    assert audit_state(cell) == state
