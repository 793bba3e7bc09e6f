"""Runs side by side."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.gate_options import GateOptions
from harness.gating.comparison import compare
from harness.gating.judging import gate
from harness.gating.pairing import pair_rows
from harness.host import Host
from harness.report.compare_table import compare_view
from harness.report.wording import headline_metrics

PGD, CLEAN = "cnn/pgd[eps=8/255]/digits", "cnn/clean/digits"


def by_metric(document: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {(row["cell"], row["metric"]): row["runs"] for row in document["rows"]}


def test_runs_are_compared_with_the_first(write_run: Any, attacked: Any, clean: Any, host: Host) -> None:
    first = write_run("a", {PGD: attacked(400, 10, 40), CLEAN: clean(400, 10)})
    second = write_run("b", {PGD: attacked(400, 10, 80)})
    third = write_run("c", {PGD: attacked(400, 10, 40)}, identity={"seed": "9"})
    document = compare([first, second, third], host).to_json()
    assert document["runs"] == [str(r.folder) for r in (first, second, third)]
    one, two, three = by_metric(document)[PGD, "robust_accuracy"]
    assert one["difference"] is None
    assert two["difference"]["value"] == pytest.approx(-0.1)
    assert two["difference"]["low"] < -0.1 < two["difference"]["high"] < 0
    assert three["difference"]["value"] == 0
    assert [run["estimate"] is None for run in by_metric(document)[CLEAN, "clean_accuracy"]] == [False, True, True]
    assert compare([first, second], host, headline_metrics).to_json()["rows"][0]["metric"] == "robust_accuracy"


def test_other_samples_have_no_difference(write_run: Any, attacked: Any, host: Host) -> None:
    first = write_run("a", {PGD: attacked(400)})
    other = write_run("b", {PGD: attacked(400)}, identity={"dataset": "other"})
    torn = write_run("c", {PGD: attacked(400)}, without_shards=[PGD])
    document = compare([first, other, torn], host).to_json()
    _, two, three = by_metric(document)[PGD, "robust_accuracy"]
    assert two["difference"] is None
    assert "other samples" in two["reason"]
    assert three["difference"] is None
    assert "cannot be read" in three["reason"]
    out = io.StringIO()
    Console(file=out, width=300).print(compare_view(document))
    assert "without a difference" in out.getvalue()
    assert "run 2: " in out.getvalue()


def test_the_table_shows_values_and_differences(write_run: Any, attacked: Any, host: Host) -> None:
    runs = [write_run("a", {PGD: attacked(400, 10, 40)}), write_run("b", {PGD: attacked(400, 10, 80)})]
    out = io.StringIO()
    Console(file=out, width=300).print(compare_view(compare(runs, host).to_json()))
    assert "87.5 [" in out.getvalue()
    assert "-10.00 [" in out.getvalue()
    assert "attack success rate" not in out.getvalue()


def test_corruptions_that_one_run_lacks_are_told(write_run: Any, host: Host) -> None:
    def rows(*names: str) -> dict[str, Any]:
        n = 40
        return {
            "sample_id": np.tile(np.arange(n), len(names)),
            "corruption": np.repeat(np.array(names), n),
            "severity": np.full(n * len(names), 3),
            "correct": np.tile(np.arange(n) % 3 > 0, len(names)),
        }

    cell, variants = "cnn/corruptions/digits", ("corruption", "severity")
    runs = [
        write_run(str(number), {cell: rows(*names)}, variants=variants)
        for number, names in enumerate([("fog", "snow"), ("fog", "frost", "snow"), ("fog", "snow")])
    ]
    document = compare(runs, host).to_json()
    _, two, three = by_metric(document)[cell, "corruption_accuracy"]
    assert two["note"] == "40 rows are in one run only (corruption frost)"
    assert two["difference"]["value"] == 0
    assert "note" not in three
    out = io.StringIO()
    Console(file=out, width=300).print(compare_view(document))
    assert "differences of the rows that both runs have" in out.getvalue()
    assert out.getvalue().count("40 rows are in one run only (corruption frost)") == 1
    with pytest.raises(HarnessError, match=r"40 rows are in one run only \(corruption frost\)"):
        gate(runs[1], runs[0], GateOptions.model_validate({"rules": [{"metric": "corruption_accuracy"}]}), host)


def test_rows_are_paired_by_key() -> None:
    before = {"sample_id": np.array([3, 1, 2]), "kind": np.array(["a", "a", "b"]), "x": np.array([30, 10, 20])}
    after = {"sample_id": np.array([1, 2, 3, 4]), "kind": np.array(["a", "b", "a", "a"]), "x": np.array([1, 2, 3, 4])}
    pair = pair_rows(before, after, ("sample_id", "kind"))
    np.testing.assert_array_equal(pair.baseline["x"], 10 * pair.candidate["x"])
    assert pair.unmatched == 1
    nothing = pair_rows(before, {**after, "kind": np.array(["z"] * 4)}, ("sample_id", "kind"))
    assert (nothing.baseline["x"].size, nothing.unmatched) == (0, 7)


def test_unreliable_numbers_are_told(write_run: Any, attacked: Any, host: Host) -> None:
    first = write_run("a", {PGD: attacked(400, 10, 40)})
    second = write_run("b", {PGD: attacked(400, 10, 80)}, unreliable={PGD: "12 % of gradients are zero"})
    document = compare([first, second], host).to_json()
    one, two = by_metric(document)[PGD, "robust_accuracy"]
    assert "doubts" not in one
    assert two["doubts"] == ["12 % of gradients are zero"]
    out = io.StringIO()
    Console(file=out, width=300).print(compare_view(document))
    assert out.getvalue().count("UNRELIABLE") >= 1
    assert f"run 2, {PGD}: 12 % of gradients are zero" in out.getvalue()
