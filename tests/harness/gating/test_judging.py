"""Two runs -> verdicts, on run folders written for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.errors import ExitCode, HarnessError
from harness.gate_options import GateOptions, matches_glob
from harness.gating.comparability import IncompleteRunError
from harness.gating.judging import GateReport, gate
from harness.host import Host

Columns = dict[str, Any]
PGD = "cnn/pgd[eps=8/255]/digits"
CLEAN = "cnn/clean/digits"
OOD = "cnn/ood/digits"


def options(**table: Any) -> GateOptions:
    return GateOptions.model_validate(table)


def verdicts(report: GateReport) -> dict[tuple[str, str], str]:
    return {(row.cell, row.metric): row.verdict for row in report.rows}


def detector(n: int, overlap: float, seed: int = 0) -> Columns:
    draw = np.random.default_rng(seed)
    inside, outside = draw.normal(0, 1, n), draw.normal(3 - overlap, 1, n)
    return {
        "sample_id": np.arange(2 * n),
        "set": np.array(["in"] * n + ["uniform"] * n),
        "score": np.repeat("own", 2 * n),
        "ood_score": np.concatenate([inside, outside]),
    }


@pytest.mark.parametrize("mode", ["detect", "noninferior"])
def test_a_baseline_passes_against_itself_where_n_suffices(
    mode: str, write_run: Any, attacked: Any, clean: Any, host: Host
) -> None:
    run = write_run("a", {CLEAN: clean(359, 9), PGD: attacked(359, 9, 60)})
    report = gate(run, run, options(mode=mode), host)
    assert report.exit_code == ExitCode.OK
    assert verdicts(report) == {(CLEAN, "clean_accuracy"): "ok", (PGD, "robust_accuracy"): "ok"}
    assert all(row.difference == 0 and row.low < 0 < row.high for row in report.rows)


@pytest.mark.parametrize("mode", ["detect", "noninferior"])
@pytest.mark.parametrize("fallen", [3, 5])
def test_thirty_samples_are_inconclusive_and_name_the_count(
    mode: str, fallen: int, write_run: Any, attacked: Any, host: Host
) -> None:
    baseline, candidate = write_run("a", {PGD: attacked(30, 1, 3)}), write_run("b", {PGD: attacked(30, 1, fallen)})
    report = gate(candidate, baseline, options(mode=mode), host)
    assert report.exit_code == ExitCode.INCONCLUSIVE
    for row in report.rows:
        assert row.verdict == "inconclusive"
        assert row.samples_needed is not None
        assert row.samples_needed > 60
        assert str(row.samples_needed) in row.reason


@pytest.mark.parametrize("mode", ["detect", "noninferior"])
@pytest.mark.parametrize("max_drop", [0.01, 0.02, 0.05])
def test_the_count_named_is_the_count_that_suffices(
    mode: str, max_drop: float, write_run: Any, attacked: Any, host: Host
) -> None:
    rules = options(mode=mode, max_drop=max_drop, rules=[{"metric": "robust_accuracy"}])

    def row(n: int) -> Any:
        run = write_run(f"run{n}", {PGD: attacked(n)})
        return gate(run, run, rules, host).rows[0]

    needed = row(30).samples_needed
    assert 2.3 < needed * max_drop < 4
    assert row(round(1.05 * needed)).verdict == "ok"
    assert row(round(0.9 * needed)).verdict == "inconclusive"


def test_a_plain_regression_fails_in_both_modes(write_run: Any, attacked: Any, host: Host) -> None:
    baseline = write_run("a", {PGD: attacked(1000, 20, 100)})
    candidate = write_run("b", {PGD: attacked(1000, 20, 200)})
    for mode in ("detect", "noninferior"):
        report = gate(candidate, baseline, options(mode=mode), host)
        assert report.exit_code == ExitCode.REGRESSED
        worst = report.rows[0]
        assert (worst.metric, worst.verdict) == ("robust_accuracy", "regressed")
        assert worst.difference == pytest.approx(-0.1)
        assert worst.high is not None
        assert worst.high < 0
        assert report.rows[-1].verdict == "ok"  # clean accuracy did not change


def test_detect_lets_a_significant_loss_within_the_tolerance_pass(write_run: Any, attacked: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {PGD: attacked(2000)}), write_run("b", {PGD: attacked(2000, 0, 15)})
    rules = [{"metric": "robust_accuracy"}]
    row = gate(candidate, baseline, options(rules=rules), host).rows[0]
    assert row.p_adjusted is not None
    assert row.p_adjusted < 0.001
    assert row.verdict == "ok"
    strict = gate(candidate, baseline, options(tolerance=0.005, rules=rules), host)
    assert strict.rows[0].verdict == "regressed"
    assert (
        gate(candidate, baseline, options(rules=[{**rules[0], "tolerance": 0.0}]), host).rows[0].verdict == "regressed"
    )


def test_a_drop_of_exactly_the_tolerance_is_not_larger(write_run: Any, attacked: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {PGD: attacked(1000)}), write_run("b", {PGD: attacked(1000, 0, 10)})
    assert gate(candidate, baseline, options(rules=[{"metric": "robust_accuracy"}]), host).rows[0].verdict == "ok"


def test_holm_is_over_the_whole_suite(write_run: Any, attacked: Any, host: Host) -> None:
    cells = [f"cnn/pgd[eps={i}/255]/digits" for i in range(1, 9)]
    baseline = write_run("a", {cell: attacked(400) for cell in cells})
    candidate = write_run("b", {cell: attacked(400, 0, 7 if cell == cells[0] else 0) for cell in cells})
    rules = [{"metric": "robust_accuracy"}]
    corrected = gate(candidate, baseline, options(rules=rules), host)
    raw = gate(candidate, baseline, options(rules=rules, correction="none"), host)
    row = {r.cell: r for r in corrected.rows}[cells[0]]
    assert corrected.comparisons == 8
    assert row.p == pytest.approx(0.5**7)
    assert row.p_adjusted == pytest.approx(8 * 0.5**7)
    assert (row.verdict, raw.rows[0].verdict) == ("ok", "regressed")
    assert (corrected.exit_code, raw.exit_code) == (ExitCode.OK, ExitCode.REGRESSED)


def test_lower_is_better_for_the_attack_success_rate(write_run: Any, attacked: Any, host: Host) -> None:
    rules = [{"metric": "attack_success_rate"}]
    few, many = write_run("a", {PGD: attacked(2000, 0, 100)}), write_run("b", {PGD: attacked(2000, 0, 300)})
    for mode in ("detect", "noninferior"):
        worse = gate(many, few, options(mode=mode, rules=rules), host).rows[0]
        better = gate(few, many, options(mode=mode, rules=rules), host).rows[0]
        assert (worse.verdict, better.verdict) == ("regressed", "ok")
        assert worse.difference == pytest.approx(0.1)
        assert better.p is not None
        assert better.p > 0.9


def test_auroc_is_gated_by_variant(write_run: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {OOD: detector(800, 0.0)}), write_run("b", {OOD: detector(800, 1.5)})
    every = gate(candidate, baseline, options(rules=[{"metric": "auroc"}]), host)
    assert {row.metric for row in every.rows} >= {"auroc[uniform]"}
    assert {row.verdict for row in every.rows} == {"regressed"}
    one = gate(candidate, baseline, options(rules=[{"metric": "auroc[uniform]"}]), host)
    assert [row.metric for row in one.rows] == ["auroc[uniform]"]
    same = gate(baseline, baseline, options(mode="noninferior", rules=[{"metric": "auroc"}]), host)
    assert same.exit_code == ExitCode.OK


def test_thirty_images_of_a_detector_are_inconclusive(write_run: Any, host: Host) -> None:
    run = write_run("a", {OOD: detector(30, 0.0)})
    for mode in ("detect", "noninferior"):
        report = gate(run, run, options(mode=mode, rules=[{"metric": "auroc[uniform]"}]), host)
        assert report.rows[0].verdict == "inconclusive"
        assert report.rows[0].samples_needed is not None


def test_floors_are_judged_on_the_interval(write_run: Any, attacked: Any, host: Host) -> None:
    run = write_run("a", {PGD: attacked(1000, 0, 500)})

    def verdict(floor: float, **more: Any) -> Any:
        rules = [{"metric": "robust_accuracy", "floor": floor, **more}]
        return gate(run, run, options(rules=rules), host).rows[0]

    assert verdict(0.45).verdict == "ok"
    assert verdict(0.49).verdict == "inconclusive"  # 0.5 is above, its interval's lower bound is not
    assert verdict(0.49).samples_needed > 5000
    assert verdict(0.60).verdict == "regressed"
    assert "floor" in verdict(0.60).reason


def test_a_floor_is_a_ceiling_where_lower_is_better(write_run: Any, attacked: Any, host: Host) -> None:
    run = write_run("a", {PGD: attacked(1000, 0, 500)})
    for limit, expected in ((0.60, "ok"), (0.51, "inconclusive"), (0.40, "regressed")):
        rules = [{"metric": "attack_success_rate", "floor": limit}]
        row = gate(run, run, options(rules=rules), host).rows[0]
        assert row.verdict == expected
        assert expected == "ok" or "ceiling" in row.reason


def test_a_rule_that_warns_does_not_fail(write_run: Any, attacked: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {PGD: attacked(500)}), write_run("b", {PGD: attacked(500, 0, 100)})
    rules = [{"metric": "robust_accuracy", "severity": "warn"}, {"metric": "clean_accuracy"}]
    report = gate(candidate, baseline, options(rules=rules), host)
    assert verdicts(report)[PGD, "robust_accuracy"] == "regressed"
    assert report.exit_code == ExitCode.OK
    assert report.counts == {"ok": 1}


def test_missing_fails_and_new_is_reported(write_run: Any, attacked: Any, clean: Any, host: Host) -> None:
    other = "cnn/pgd[eps=2/255]/digits"
    baseline = write_run("a", {CLEAN: clean(400), PGD: attacked(400)})
    candidate = write_run("b", {CLEAN: clean(400), other: attacked(400)})
    report = gate(candidate, baseline, options(), host)
    assert verdicts(report)[PGD, "robust_accuracy"] == "missing"
    assert verdicts(report)[other, "robust_accuracy"] == "new"
    assert report.exit_code == ExitCode.REGRESSED
    only_new = gate(
        candidate, baseline, options(rules=[{"metric": "robust_accuracy", "select": {"threat": "*=2/*"}}]), host
    )
    assert only_new.exit_code == ExitCode.OK


def test_a_new_number_is_still_held_to_its_floor(write_run: Any, attacked: Any, clean: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {CLEAN: clean(400)}), write_run("b", {PGD: attacked(400, 0, 300)})
    rules = [{"metric": "robust_accuracy", "floor": 0.5}]
    assert gate(candidate, baseline, options(rules=rules), host).rows[0].verdict == "regressed"


def test_a_failed_cell_is_an_error_and_a_skipped_one_missing(
    write_run: Any, attacked: Any, clean: Any, host: Host
) -> None:
    baseline = write_run("a", {CLEAN: clean(400), PGD: attacked(400)})
    crashed = write_run("b", {CLEAN: clean(400)}, failed={PGD: "model returned NaN"})
    skipped = write_run("c", {CLEAN: clean(400)}, skipped={PGD: "needs Classifier"})
    report = gate(crashed, baseline, options(), host)
    assert verdicts(report)[PGD, "robust_accuracy"] == "error"
    assert "model returned NaN" in report.rows[0].reason
    assert report.exit_code == ExitCode.FAILED
    assert gate(skipped, baseline, options(), host).exit_code == ExitCode.REGRESSED
    both = gate(crashed, crashed, options(), host)
    assert [row.verdict for row in both.rows] == ["error", "ok"]


def test_an_unreliable_number_cannot_pass(write_run: Any, attacked: Any, host: Host) -> None:
    cells = {PGD: attacked(500, 5, 50)}
    fine, masked = write_run("a", cells), write_run("b", cells, unreliable={PGD: "gradients are zero"})
    for candidate, baseline in ((masked, fine), (fine, masked)):
        report = gate(candidate, baseline, options(rules=[{"metric": "robust_accuracy"}]), host)
        assert report.rows[0].verdict == "unreliable"
        assert "gradients are zero" in report.rows[0].reason
        assert report.exit_code == ExitCode.INCONCLUSIVE
    worse = write_run("c", {PGD: attacked(500, 5, 200)}, unreliable={PGD: "gradients are zero"})
    assert gate(worse, fine, options(), host).exit_code == ExitCode.REGRESSED


def test_regressed_beats_error_beats_inconclusive(write_run: Any, attacked: Any, host: Host) -> None:
    small, other = "cnn/pgd[eps=1/255]/digits", "cnn/square/digits"
    baseline = write_run("a", {PGD: attacked(500), small: attacked(30), other: attacked(500)})
    rules = options(rules=[{"metric": "robust_accuracy"}])
    candidate = write_run("b", {PGD: attacked(500, 0, 90), small: attacked(30)}, failed={other: "died"})
    report = gate(candidate, baseline, rules, host)
    assert [row.verdict for row in report.rows] == ["regressed", "error", "inconclusive"]
    assert report.exit_code == ExitCode.REGRESSED
    candidate = write_run("c", {PGD: attacked(500), small: attacked(30)}, failed={other: "died"})
    assert gate(candidate, baseline, rules, host).exit_code == ExitCode.FAILED


def test_an_undefined_number_is_inconclusive_with_its_reason(write_run: Any, attacked: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {PGD: attacked(400, 0, 300)}), write_run("b", {PGD: attacked(400, 0, 10)})
    row = gate(candidate, baseline, options(rules=[{"metric": "linf_median"}]), host).rows[0]
    assert row.candidate is not None
    assert row.candidate.value is None
    assert row.verdict == "inconclusive"
    assert row.candidate.reason in row.reason
    assert row.candidate.reason


def test_clean_accuracy_is_judged_once_a_model(write_run: Any, attacked: Any, clean: Any, host: Host) -> None:
    run = write_run("a", {PGD: attacked(400, 9), CLEAN: clean(400, 9), "mlp/clean/digits": clean(400, 30)})
    judged = {row.cell for row in gate(run, run, options(), host).rows if row.metric == "clean_accuracy"}
    assert judged == {CLEAN, "mlp/clean/digits"}
    only_attacked = write_run("b", {PGD: attacked(400, 9)})
    rows = gate(only_attacked, only_attacked, options(), host).rows
    assert {(r.cell, r.metric) for r in rows} == {(PGD, "clean_accuracy"), (PGD, "robust_accuracy")}


def test_rows_are_paired_by_sample_id_and_variant(write_run: Any, host: Host) -> None:
    n = 400
    noise = np.repeat(np.array([0.1, 0.2]), n)
    columns = {
        "sample_id": np.tile(np.arange(n), 2), "noise": noise, "clean_correct": np.ones(2 * n, dtype=bool),
        "success": np.tile(np.arange(n) % 3 == 0, 2),
    }  # fmt: skip
    order = np.random.default_rng(0).permutation(2 * n)
    shuffled = {key: values[order] for key, values in columns.items()}
    cell = "cnn/bitflip/digits"
    baseline = write_run("a", {cell: columns}, variants=("noise",))
    candidate = write_run("b", {cell: shuffled}, variants=("noise",))
    row = gate(candidate, baseline, options(rules=[{"metric": "robust_accuracy"}]), host).rows[0]
    assert (row.difference, row.p, row.n) == (0, 1, n)


def test_runs_that_cannot_be_compared_are_refused(write_run: Any, attacked: Any, host: Host) -> None:
    run = write_run("a", {PGD: attacked(400)})
    limited = write_run("b", {PGD: attacked(400)}, limited=True)
    for pair in ((limited, run), (run, limited)):
        with pytest.raises(HarnessError, match="--limit") as caught:
            gate(*pair, options(), host)
        assert caught.value.exit_code == ExitCode.USAGE
    seed = write_run("c", {PGD: attacked(400)}, identity={"seed": "7"})
    with pytest.raises(HarnessError, match=r"seed differs \(7 and 0\)"):
        gate(seed, run, options(), host)
    threats = write_run("d", {"cnn/square/digits": attacked(400)}, identity={"threats": "u"})
    with pytest.raises(
        HarnessError, match=r"threats differ \(only in the candidate: square; only in the baseline: pgd"
    ):
        gate(threats, run, options(), host)
    data = write_run("e", {PGD: attacked(400)}, identity={"dataset": "e"})
    with pytest.raises(HarnessError, match="data set differs"):
        gate(data, run, options(), host)
    other = write_run("f", {PGD: {**attacked(400), "sample_id": np.arange(400) + 5}})
    with pytest.raises(HarnessError, match="10 rows are in one run only"):
        gate(other, run, options(), host)


def test_the_gate_does_not_speak_of_an_incomplete_run(write_run: Any, attacked: Any, host: Host) -> None:
    run = write_run("a", {PGD: attacked(400)})
    torn = write_run("b", {PGD: attacked(400)}, without_shards=[PGD])
    for pair in ((torn, run), (run, torn)):
        with pytest.raises(IncompleteRunError, match="lacks rows") as caught:
            gate(*pair, options(), host)
        assert caught.value.exit_code == ExitCode.INCONCLUSIVE


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": "robust_acuracy"}, "did you mean 'robust_accuracy'"),
        ({"metric": "linf_mean_of_successes"}, "neither more nor less"),
        ({"metric": "auroc"}, r"rules\[0\] \(metric = 'auroc'\) selects nothing: no selected cell has this metric"),
        ({"metric": "robust_accuracy", "select": {"threat": "cw*"}}, "no threat matches 'cw*'"),
        ({"metric": "robust_accuracy", "select": {"model": "mlp"}}, "no model matches 'mlp'"),
        ({"metric": "worst_case_robust_accuracy"}, "number over several cells"),
    ],
)
def test_a_wrong_rule_is_a_usage_error(
    rule: dict[str, Any], message: str, write_run: Any, attacked: Any, host: Host
) -> None:
    run = write_run("a", {PGD: attacked(400)})
    with pytest.raises(HarnessError, match=message.replace("cw*", r"cw\*")) as caught:
        gate(run, run, options(rules=[rule]), host)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("pgd[eps=2/255]", "pgd[eps=2/255]", True),
        ("pgd[eps=*]", "pgd[eps=8/255]", True),
        ("pgd[e]", "pgde", False),
        ("pgd", "pgd[eps=8/255]", False),
        ("p?d", "pgd", True),
        ("p?d", "pd", False),
        ("*", "", True),
        ("a.c", "abc", False),
        ("(x|y)*", "(x|y)+\n", True),
    ],
)
def test_only_star_and_question_mark_are_wildcards(pattern: str, text: str, fits: bool) -> None:
    assert matches_glob(text, pattern) is fits


def test_rules_select_by_label_or_plugin_name(write_run: Any, attacked: Any, host: Host) -> None:
    small = "cnn/pgd[eps=2/255]/digits"
    run = write_run("a", {PGD: attacked(400), small: attacked(400)})

    def chosen(**select: str) -> set[str]:
        rules = [{"metric": "robust_accuracy", "select": select}]
        return {row.cell for row in gate(run, run, options(rules=rules), host).rows}

    assert chosen(threat="pgd") == chosen(threat="pgd*") == chosen() == {PGD, small}
    assert chosen(threat="pgd[eps=2/255]") == {small}


def test_the_report_holds_everything(write_run: Any, attacked: Any, host: Host) -> None:
    baseline, candidate = write_run("a", {PGD: attacked(400, 4, 9)}), write_run("b", {PGD: attacked(400, 4, 90)})
    document = gate(candidate, baseline, options(rules=[{"metric": "robust_accuracy", "floor": 0.1}]), host).to_json()
    assert (document["schema"], document["verdict"], document["exit_code"]) == (1, "regressed", 1)
    (row,) = document["rows"]
    expected = {
        "cell", "metric", "model", "threat", "dataset", "direction", "severity", "verdict", "reason", "baseline",
        "candidate", "difference", "low", "high", "p", "p_adjusted", "n", "minimal_detectable_effect",
        "samples_needed", "max_drop", "tolerance", "floor",
    }  # fmt: skip
    assert set(row) == expected
    assert row["candidate"]["value"] == pytest.approx(306 / 400)


@pytest.mark.parametrize(
    "table", [{"max_drop": 2}, {"tolerance": 1}, {"rules": [{"metric": "clean_accuracy", "max_drop": 5}]}]
)
def test_a_limit_that_no_share_can_reach_is_refused(
    table: dict[str, Any], write_run: Any, clean: Any, host: Host
) -> None:
    run = write_run("a", {CLEAN: clean(359, 9)})
    with pytest.raises(HarnessError, match=r"is a share, from 0 to 1; \d points are 0\.0\d"):
        gate(run, run, options(**table), host)
