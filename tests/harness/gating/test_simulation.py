"""What the gate promises, by enumeration where one cell is concerned and by simulation over correlated cells."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from harness.gate_options import GateMode, GateOptions
from harness.gating.judging import gate
from harness.gating.verdicts import Finding, Limits, judge
from harness.host import Host
from harness.metrics.base import Estimate, PairedDifference
from harness.metrics.paired import compared
from harness.statistics import holm, paired_proportions

CELLS = 40
DISCORDANCE = np.linspace(0.02, 0.18, CELLS)


@functools.cache
def difference(lost: int, gained: int, n: int, alpha: float = 0.05) -> PairedDifference:
    nothing = Estimate(0.0, 0.0, 0.0, n)
    return compared(paired_proportions(lost, gained, n, alpha), n, nothing, nothing, alpha)


def limits(mode: GateMode, comparisons: int = 1, max_drop: float = 0.02) -> Limits:
    return Limits(mode, alpha=0.05, max_drop=max_drop, tolerance=0.01, comparisons=comparisons)


def judged(lost: Any, gained: Any, n: int, mode: GateMode) -> list[Finding]:
    """The verdicts of one run: a cell for each pair of counts, judged as `gate` does."""
    differences = [difference(int(a), int(b), n) for a, b in zip(lost, gained, strict=True)]
    still = difference(0, 0, n)
    if mode == "noninferior":
        return [judge(d, still, "higher", limits(mode)) for d in differences]
    adjusted = holm([d.p_decrease or 0.0 for d in differences])
    held = limits(mode, len(differences))
    return [judge(d, still, "higher", held, p) for d, p in zip(differences, adjusted, strict=True)]


def correlated_counts(
    rng: np.random.Generator, n: int, drop: NDArray[Any], correlation: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lost and gained samples of each cell; one sample's fates in the cells share a normal factor."""
    shared = rng.standard_normal((n, 1), dtype=np.float32)
    own = rng.standard_normal((n, drop.size), dtype=np.float32)
    fate = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    lost = stats.norm.ppf((DISCORDANCE + drop) / 2)
    gained = stats.norm.isf((DISCORDANCE - drop) / 2)
    return (fate < lost).sum(axis=0), (fate > gained).sum(axis=0)


@functools.cache
def passing_gains(n: int, max_drop: float) -> dict[int, int]:
    """For each number of lost samples, the smallest number of gained ones with which `noninferior` passes."""
    held, still = limits("noninferior", max_drop=max_drop), difference(0, 0, n)
    found: dict[int, int] = {}
    gained = 0
    for lost in range(n // 4):
        while judge(difference(lost, gained, n), still, "higher", held).verdict != "ok" and gained < n // 4:
            gained += 1
        found[lost] = gained
    return found


def pass_probability(n: int, drop: float, discordance: float, max_drop: float) -> float:
    """Exact probability that one cell passes."""
    p_lost, p_gained = (discordance + drop) / 2, (discordance - drop) / 2
    least = passing_gains(n, max_drop)
    lost = np.array(list(least))
    enough = np.array(list(least.values()))
    tail = stats.binom.sf(enough - 1, n - lost, min(p_gained / (1 - p_lost), 1.0))
    return float(stats.binom.pmf(lost, n, p_lost) @ tail)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_detect_fails_an_unchanged_model_in_at_most_five_of_a_hundred_runs(correlation: float) -> None:
    rng, runs = np.random.default_rng(1), 400
    failures = 0
    for _ in range(runs):
        counts = correlated_counts(rng, 1000, np.zeros(CELLS), correlation)
        verdicts = {finding.verdict for finding in judged(*counts, 1000, "detect")}
        assert verdicts <= {"ok", "regressed"}
        failures += "regressed" in verdicts
    assert failures <= 0.05 * runs


@pytest.mark.parametrize("cell", [8, 16, 39])  # 5.3, 8.6 and 18 % discordance
def test_detect_catches_a_true_loss_of_five_points_on_two_thousand_samples(cell: int) -> None:
    rng, runs = np.random.default_rng(2), 150
    drop = np.zeros(CELLS)
    drop[cell] = 0.05
    caught = 0
    for _ in range(runs):
        caught += judged(*correlated_counts(rng, 2000, drop, 0.5), 2000, "detect")[cell].verdict == "regressed"
    assert caught >= 0.95 * runs


@pytest.mark.parametrize("max_drop", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("n", [100, 137, 200, 300, 700, 1800, 5000])
def test_noninferior_releases_a_model_that_lost_max_drop_in_at_most_five_of_a_hundred_runs(
    n: int, max_drop: float
) -> None:
    for discordance in (max_drop, 1.05 * max_drop, 1.2 * max_drop, 0.06, 0.1, 0.18):
        if discordance >= max_drop:
            assert pass_probability(n, max_drop, discordance, max_drop) <= 0.05


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("dropped", [1, CELLS])
def test_more_cells_release_a_worse_model_no_more_often(dropped: int, correlation: float) -> None:
    rng, runs, n = np.random.default_rng(3), 150, 2000
    drop = np.zeros(CELLS)
    drop[:dropped] = 0.02
    released = 0
    for _ in range(runs):
        findings = judged(*correlated_counts(rng, n, drop, correlation), n, "noninferior")
        released += all(finding.verdict == "ok" for finding in findings)
    assert released <= 0.05 * runs


def test_noninferior_releases_an_unchanged_model_in_at_least_95_of_a_hundred_runs() -> None:
    assert pass_probability(5000, 0.0, 0.06, 0.02) >= 0.95


@pytest.mark.parametrize("mode", ["detect", "noninferior"])
def test_thirty_samples_are_inconclusive_and_name_the_count_needed(mode: GateMode) -> None:
    for lost in range(7):
        for gained in range(7 - lost):
            (finding,) = judged([lost], [gained], 30, mode)
            if abs(lost - gained) <= 2:
                assert finding.verdict == "inconclusive"
            if finding.verdict == "inconclusive":
                assert finding.samples_needed is not None
                assert finding.samples_needed > 30
                assert str(finding.samples_needed) in finding.reason


@pytest.mark.parametrize("mode", ["detect", "noninferior"])
@pytest.mark.parametrize("max_drop", [0.005, 0.01, 0.02, 0.1])
def test_no_change_passes_from_about_three_samples_per_max_drop(mode: GateMode, max_drop: float) -> None:
    held = limits(mode, max_drop=max_drop)

    def verdict(n: int) -> str:
        return judge(difference(0, 0, n), difference(0, 0, n), "higher", held).verdict

    assert verdict(round(3.3 / max_drop)) == "ok"
    assert verdict(round(2.3 / max_drop)) == "inconclusive"
    # Fewer prove nothing: a model that lost max_drop shows no lost sample in more than one run of twenty.
    assert (1 - max_drop) ** (2.8 / max_drop) > 0.05


def test_the_gate_judges_as_simulated(write_run: Any, attacked: Any, host: Host) -> None:
    """`judged` above is what `gate` does with the rows of two runs."""
    n, cells = 400, [f"cnn/pgd[eps={i}/255]/digits" for i in range(1, 7)]
    before, after = (40, 40, 40, 40, 40, 40), (40, 42, 46, 55, 70, 38)
    baseline = write_run("a", {c: attacked(n, 0, k) for c, k in zip(cells, before, strict=True)})
    candidate = write_run("b", {c: attacked(n, 0, k, shift=3) for c, k in zip(cells, after, strict=True)})
    # Shifted by three: three of the fallen stand again, and as many others fall.
    lost, gained = [max(0, b + 3 - a) for a, b in zip(before, after, strict=True)], [3] * len(cells)
    for mode in ("detect", "noninferior"):
        rules = GateOptions.model_validate({"mode": mode, "max_drop": 0.02, "rules": [{"metric": "robust_accuracy"}]})
        rows = {row.cell: row for row in gate(candidate, baseline, rules, host).rows}
        for cell, finding in zip(cells, judged(lost, gained, n, mode), strict=True):
            assert (rows[cell].verdict, rows[cell].samples_needed) == (finding.verdict, finding.samples_needed)
