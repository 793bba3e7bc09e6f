"""Every interval and test against SciPy, scikit-learn, a published value, a closed form or a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from sklearn.metrics import roc_auc_score

from harness import statistics as s

Z95 = 1.6448536269514722


# --- proportions


@pytest.mark.parametrize(("k", "n"), [(0, 30), (1, 30), (15, 30), (30, 30), (950, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson_is_scipys_exact_interval(k, n, level):
    ours = s.clopper_pearson(k, n, level)
    reference = stats.binomtest(k, n).proportion_ci(level, method="exact")
    assert ours == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_clopper_pearson_refuses_impossible_counts():
    for k, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            s.clopper_pearson(k, n, 0.95)


def test_a_clustered_proportion_without_repeats_is_clopper_pearson():
    outcome = np.arange(50) < 20
    assert s.clustered_proportion(outcome, np.arange(50), 0.95) == s.clopper_pearson(20, 50, 0.95)


def test_copies_of_a_sample_do_not_narrow_its_interval():
    outcome = np.arange(100) < 40
    single = s.clustered_proportion(outcome, np.arange(100), 0.95)
    copied = s.clustered_proportion(np.repeat(outcome, 5), np.repeat(np.arange(100), 5), 0.95)
    naive = s.clopper_pearson(200, 500, 0.95)
    assert copied == pytest.approx(single, abs=0.003)
    assert copied.high - copied.low > 2 * (naive.high - naive.low)


@pytest.mark.parametrize("value", [True, False])
def test_a_clustered_proportion_of_zero_or_one_counts_clusters(value):
    ids = np.repeat(np.arange(20), 5)
    interval = s.clustered_proportion(np.full(100, value), ids, 0.95)
    assert interval == s.clopper_pearson(20 * value, 20, 0.95)


def test_clustered_proportions_cover():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        p = rng.beta(2, 2, 60)
        outcome = rng.random((60, 4)) < p[:, None]
        low, high = s.clustered_proportion(outcome.ravel(), np.repeat(np.arange(60), 4), 0.95)
        hits += low <= 0.5 <= high
    assert hits / 400 >= 0.93


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 4), (7, 3), (60, 40), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    ours = s.mcnemar(lost, gained)
    n = lost + gained
    if n == 0:
        assert ours == (1.0, 1.0)
        return
    assert ours.p_decrease == pytest.approx(stats.binomtest(lost, n, 0.5, "greater").pvalue, rel=1e-9)
    assert ours.p_increase == pytest.approx(stats.binomtest(gained, n, 0.5, "greater").pvalue, rel=1e-9)


def test_bonett_price_gives_the_published_example():
    # Bonett & Price 2012 as in the R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6): 0.44, [0.2548067, 0.6251933].
    low, high = s.bonett_price(4, 26, 48, 0.025)
    assert (low, high) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


def test_bonett_price_without_discordance():
    low, high = s.bonett_price(0, 0, 98, 0.05)
    assert -low == high == pytest.approx(Z95 * math.sqrt(2) / 100)  # 2.33 / (n + 2)


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 7, 21), (20, 5, 300), (0, 9, 100), (9, 0, 100), (3, 3, 50)])
def test_score_bounds_solve_tangos_equation(lost, gained, n):
    low, high = s.score_bounds(lost, gained, n, 0.05)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    mirrored = s.score_bounds(gained, lost, n, 0.05)
    assert (mirrored.low, mirrored.high) == pytest.approx((-high, -low))

    # The restricted likelihood maximised numerically, not by Tango's formula.
    def unlikely(gain: float) -> float:
        same = 1 - 2 * gain + low
        return -(xlogy(lost, gain - low) + xlogy(gained, gain) + xlogy(n - lost - gained, same))

    limits = max(0.0, low), (1 + low) / 2
    gain = minimize_scalar(unlikely, bounds=limits, method="bounded", options={"xatol": 1e-11}).x
    error = math.sqrt(n * (2 * gain - low - low**2))
    assert (gained - lost - n * low - 0.25) / error == pytest.approx(Z95, rel=1e-4)


@pytest.mark.parametrize("n", [20, 100, 316, 5000])
def test_score_bound_without_discordance_has_a_closed_form(n):
    # (n d - 1/4)^2 = z^2 n d (1 - d)
    drop = max(np.roots([n**2 + Z95**2 * n, -(n / 2 + Z95**2 * n), 1 / 16]).real)
    assert s.score_bounds(0, 0, n, 0.05).low == pytest.approx(-drop, rel=1e-6)


def released(n: int, discordance: float, drop: float, margin: float) -> float:
    """Exact probability that the lower bound lies above -margin when the true difference is -drop."""
    lose, gain = (discordance + drop) / 2, (discordance - drop) / 2
    total = 0.0
    for lost in range(int(n * lose + 7 * math.sqrt(n * lose)) + 2):
        if stats.binom.pmf(lost, n, lose) < 1e-9:
            continue
        gained = np.arange(int(n * gain + 7 * math.sqrt(n * gain)) + 2)
        weights = stats.binom.pmf(lost, n, lose) * stats.binom.pmf(gained, n - lost, gain / (1 - lose))
        likely = weights > 1e-7
        passed = [s.paired_proportions(lost, int(g), n, 0.05).low > -margin for g in gained[likely]]
        total += float(weights[likely] @ np.array(passed))
    return total


@pytest.mark.parametrize("n", [117, 300])
@pytest.mark.parametrize("discordance", [0.0201, 0.04, 0.1])
def test_a_model_at_the_margin_is_released_in_at_most_five_percent(n, discordance):
    assert released(n, discordance, 0.02, 0.02) <= 0.0505


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000, 2000])
@pytest.mark.parametrize("discordance", [0.0201, 0.03, 0.06, 0.18])
def test_a_model_at_the_margin_is_released_in_at_most_five_percent_of_larger_runs(n, discordance):
    assert released(n, discordance, 0.02, 0.02) <= 0.0505


def test_an_unchanged_model_is_released_when_the_samples_suffice():
    rng = np.random.default_rng(2)
    draws = rng.multinomial(5000, [0.03, 0.03, 0.94], size=300)
    assert np.mean([s.paired_proportions(int(a), int(b), 5000, 0.05).low > -0.02 for a, b, _ in draws]) >= 0.95


def test_paired_mean_of_discordant_pairs_is_bonett_price():
    contributions = np.repeat([-1.0, 1.0, 0.0], [5, 5, 90])
    ours = s.paired_mean(0.0, contributions, 1.0, 0.05)
    low, high = s.bonett_price(5, 5, 100, 0.05)
    # Up to the pseudo-counts' n + 2 against n: both centres are zero here.
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)
    assert (ours.p_decrease, ours.p_increase) == pytest.approx((0.5, 0.5))


def test_paired_mean_of_clusters_keeps_its_size():
    rng = np.random.default_rng(3)
    rejected = covered = 0
    for _ in range(500):
        change = rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=80)  # the same for all rows of an image
        result = s.paired_mean(float(change.mean()), change.astype(float), 1.0, 0.05)
        rejected += result.p_decrease < 0.05
        covered += result.low <= 0
    assert rejected / 500 <= 0.075
    assert covered / 500 >= 0.94


def test_mean_interval_is_scipys_normal_one_and_copies_do_not_narrow_it():
    values = np.random.default_rng(4).exponential(size=60)
    ours = s.mean_interval(values, np.arange(60), 0.95)
    assert ours == pytest.approx(stats.norm.interval(0.95, values.mean(), stats.sem(values)))
    assert s.mean_interval(np.repeat(values, 3), np.repeat(np.arange(60), 3), 0.95) == pytest.approx(ours)


# --- AUROC


def delong_by_definition(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """AUROC and its variance from the full matrix of comparisons (DeLong et al., 1988)."""
    psi = (y[:, None] > x[None, :]) + 0.5 * (y[:, None] == x[None, :])
    v10, v01 = psi.mean(axis=1), psi.mean(axis=0)
    return float(psi.mean()), float(v10.var(ddof=1) / y.size + v01.var(ddof=1) / x.size)


@given(
    st.lists(st.integers(0, 8), min_size=2, max_size=30),
    st.lists(st.integers(0, 8), min_size=2, max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_auroc_and_its_variance_follow_the_definition_with_ties(negatives, positives):
    x, y = np.array(negatives, float), np.array(positives, float)
    components = s.auroc_components(x, [y])
    value, variance = delong_by_definition(x, y)
    assert components.value == pytest.approx(value, abs=1e-12)
    assert s.auroc_variance(components) == pytest.approx(variance, abs=1e-12)
    assert s.auroc_variance(components, np.arange(x.size + y.size)) == pytest.approx(variance, abs=1e-12)
    labels = np.r_[np.zeros(x.size), np.ones(y.size)]
    assert components.value == pytest.approx(roc_auc_score(labels, np.r_[x, y]), abs=1e-12)


def test_infinite_scores_are_ordinary():
    components = s.auroc_components(np.array([-np.inf, 0, 1]), [np.array([np.inf, np.inf, 0.5])])
    assert components.value == pytest.approx(8 / 9)


def test_macro_variance_is_that_of_simulated_means():
    rng = np.random.default_rng(5)
    values, variances = [], []
    for _ in range(1500):
        x = rng.normal(size=60)
        components = s.auroc_components(x, [rng.normal(1, 1, 40), rng.normal(2, 1, 50)])
        values.append(components.value)
        variances.append(s.auroc_variance(components))
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.1)
    assert np.mean(values) == pytest.approx(
        (stats.norm.cdf(1 / math.sqrt(2)) + stats.norm.cdf(math.sqrt(2))) / 2, abs=0.005
    )


def test_shared_images_are_clusters():
    """Attacked against clean scores of the same images: their covariance belongs to the variance."""
    rng = np.random.default_rng(6)
    values, joint, separate = [], [], []
    for _ in range(1000):
        x = rng.normal(size=50)
        components = s.auroc_components(x, [x + rng.normal(0.8, 0.3, 50)])
        values.append(components.value)
        joint.append(s.auroc_variance(components, np.tile(np.arange(50), 2)))
        separate.append(s.auroc_variance(components))
    assert np.mean(joint) == pytest.approx(np.var(values), rel=0.15)
    assert np.mean(separate) > 2 * np.var(values)


@pytest.mark.parametrize(("shift", "least"), [(1.0, 0.93), (2.5, 0.92)])
def test_auroc_intervals_cover_and_stay_in_the_unit_interval(shift, least):
    rng = np.random.default_rng(7)
    truth = stats.norm.cdf(shift / math.sqrt(2))
    hits = 0
    for _ in range(600):
        components = s.auroc_components(rng.normal(size=100), [rng.normal(shift, 1, 100)])
        low, high = s.auroc_interval(components, 0.95)
        assert 0 < low < high <= 1
        hits += low <= truth <= high
    assert hits / 600 >= least


@pytest.mark.parametrize(
    ("positives", "value", "low", "high"),
    [
        ([9.0] * 40, 1.0, 0.025 ** (1 / 40), 1.0),
        ([-9.0] * 40, 0.0, 0.0, 1 - 0.025 ** (1 / 40)),
        ([0.0] * 40, 0.5, 0.5 * 0.025 ** (1 / 40), 1 - 0.5 * 0.025 ** (1 / 40)),
    ],
)
def test_saturated_auroc_has_an_exact_bound_and_never_zero_width(positives, value, low, high):
    components = s.auroc_components(np.zeros(60), [np.array(positives)])
    assert components.value == value
    assert s.auroc_interval(components, 0.95) == pytest.approx((low, high))
    # Images that both groups share leave half as many independent pairs.
    shared = s.auroc_interval(components, 0.95, np.r_[np.arange(60), np.arange(40)])
    assert shared.high - shared.low > high - low


def test_paired_delong_follows_the_definition():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 40)), rng.normal(1, 1, (2, 50))
    psi = [(b[:, None] > a[None, :]).astype(float) for a, b in zip(x, y, strict=True)]
    change = psi[1] - psi[0]
    error = math.sqrt(change.mean(1).var(ddof=1) / 50 + change.mean(0).var(ddof=1) / 40)
    ours = s.auroc_difference(*(s.auroc_components(a, [b]) for a, b in zip(x, y, strict=True)), 0.05)
    assert ours.value == pytest.approx(change.mean())
    assert ours.low == pytest.approx(change.mean() - Z95 * error)
    assert ours.p_decrease == pytest.approx(stats.norm.cdf(change.mean() / error))
    assert ours.p_decrease + ours.p_increase == pytest.approx(1)


def test_paired_delong_keeps_its_size():
    rng = np.random.default_rng(9)
    rejected = 0
    for _ in range(800):
        x, y = rng.normal(size=100), rng.normal(1.5, 1, 100)
        models = [s.auroc_components(x + rng.normal(0, 0.5, 100), [y + rng.normal(0, 0.5, 100)]) for _ in range(2)]
        rejected += s.auroc_difference(*models, 0.05).p_decrease < 0.05
    assert 0.025 <= rejected / 800 <= 0.075


def test_models_with_the_same_scores_are_not_certainly_equal():
    components = s.auroc_components(np.arange(50.0), [np.arange(50.0) + 20])
    result = s.auroc_difference(components, components, 0.05)
    assert result.value == 0
    assert -result.low == result.high == pytest.approx(Z95 * math.sqrt(2 * 2 / 52**2))
    assert result.p_decrease == result.p_increase == 0.5


# --- bootstrap


def mean_of(values: np.ndarray) -> s.Statistic:
    return lambda weights: weights @ values / weights.sum(axis=-1)


def test_bootstrap_is_scipys_percentile_interval_of_the_same_draws():
    values = np.random.default_rng(10).exponential(size=80)
    ours = s.bootstrap(mean_of(values), s.sampling_units(np.arange(80)), 0.95)
    reference = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=999,
        method="percentile",
        random_state=np.random.default_rng(s.BOOTSTRAP_SEED),
    ).confidence_interval
    assert (float(ours.low), float(ours.high)) == pytest.approx((reference.low, reference.high), rel=1e-12)


def test_bootstrap_repeats_bit_for_bit_and_leaves_the_global_generator_alone():
    values = np.random.default_rng(11).normal(size=300)
    units = s.sampling_units(np.arange(300))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (s.bootstrap(mean_of(values), units, 0.95) for _ in range(2))
    assert first.distribution.tobytes() == second.distribution.tobytes()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_bootstrap_resamples_images_not_rows():
    values = np.random.default_rng(12).normal(size=60)
    single = s.bootstrap(mean_of(values), s.sampling_units(np.arange(60)), 0.95)
    copied = s.bootstrap(mean_of(np.repeat(values, 4)), s.sampling_units(np.repeat(np.arange(60), 4)), 0.95)
    assert (copied.low, copied.high) == (pytest.approx(single.low), pytest.approx(single.high))


def test_bootstrap_draws_within_strata():
    strata = np.repeat([0, 1], [30, 50])
    seen = []

    def share(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, :30].sum(axis=-1) / weights.sum(axis=-1)

    s.bootstrap(share, s.sampling_units(np.arange(80), strata), 0.95)
    drawn = np.concatenate(seen)
    assert (drawn[:, :30].sum(axis=1) == 30).all()
    assert (drawn[:, 30:].sum(axis=1) == 50).all()
    assert len(np.unique(drawn, axis=0)) > 900


def test_bootstrap_of_many_images_uses_little_memory():
    largest = 0

    def record(weights: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, weights.nbytes)
        return weights[:, 0].astype(float)

    for n in (100, 5000, 100_000):
        s.bootstrap(record, s.sampling_units(np.arange(n)), 0.95)
    assert largest <= 2**20


def test_censored_resamples_give_an_infinite_limit_not_nan():
    values = np.r_[np.linspace(1, 2, 52), np.full(48, np.inf)]

    def largest_half(weights: np.ndarray) -> np.ndarray:
        counts = np.cumsum(weights, axis=-1)
        return values[(counts < 50).sum(axis=-1)]

    result = s.bootstrap(largest_half, s.sampling_units(np.arange(100)), 0.95)
    assert 1 < result.low < 2
    assert np.isposinf(result.high)


def test_bootstrap_difference_is_paired():
    rng = np.random.default_rng(13)
    base = rng.normal(0, 10, 200)
    better = base + rng.normal(0.5, 0.5, 200)
    (result,) = s.bootstrap_difference(mean_of(base), mean_of(better), s.sampling_units(np.arange(200)), 0.05)
    assert result.value == pytest.approx((better - base).mean())
    assert 0 < result.low < result.value < result.high < 1  # unpaired noise would be 10 / sqrt(100)
    assert result.p_increase < 1e-3 < 0.9 < result.p_decrease


def test_bootstrap_difference_keeps_its_size():
    rng = np.random.default_rng(14)
    rejected = below = 0
    for _ in range(200):
        x = rng.normal(size=(2, 80))
        (result,) = s.bootstrap_difference(mean_of(x[0]), mean_of(x[1]), s.sampling_units(np.arange(80)), 0.05)
        rejected += result.p_decrease < 0.05
        below += result.low > 0
    assert rejected <= 20
    assert below <= 20


def test_an_unchanged_statistic_is_never_significant():
    values = np.random.default_rng(15).normal(size=50)
    (result,) = s.bootstrap_difference(mean_of(values), mean_of(values), s.sampling_units(np.arange(50)), 0.05)
    assert result == (0, 0, 0, 1, 1)


# --- several tests, sample sizes


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = s.holm(p_values)
    alpha, order = 0.05, np.argsort(p_values, kind="stable")
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > alpha:
            break
        rejected.add(int(i))
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


def test_holm_of_a_known_case():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([]) == []


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 30), (0, 0, 100), (3, 1, 200), (30, 30, 1000), (9, 0, 90)])
@pytest.mark.parametrize("margin", [0.01, 0.05, 0.2])
def test_samples_needed_agrees_with_the_bound(lost, gained, n, margin):
    result = s.paired_proportions(lost, gained, n, 0.05)
    if result.value + margin <= 0:
        return
    spread = s.spread_of(result.value, result.low, result.high, n, 0.05)
    needed = s.samples_needed(spread, result.value + margin, 0.05)
    if result.low > -margin:
        assert needed <= n or result.high - result.value > result.value - result.low
    else:
        assert needed > n


def test_without_discordance_about_three_hundred_samples_prove_one_point():
    enough = next(n for n in range(1, 1000) if s.paired_proportions(0, 0, n, 0.05).low > -0.01)
    assert 233 <= enough <= 320  # 2.33 / 0.01 by Bonett-Price alone; 300 is the exact answer, log(0.05) / log(0.99)


def test_detectable_effect_is_found_with_the_stated_power():
    rng = np.random.default_rng(16)
    n = 400
    effect = s.detectable_effect(2.0, n, 0.05, 0.8)
    found = [s.mean_difference(rng.normal(effect, 2.0, n), 0.05).p_increase < 0.05 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert s.samples_needed(2.0, effect, 0.05, 0.8) == pytest.approx(n, abs=1)


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(ValueError, match="margin"):
        s.samples_needed(0.2, 0.0, 0.05)


def test_a_mean_over_unchanged_sets_is_no_less_certain_than_each_of_them() -> None:
    one, ten = s.no_change_error([300, 300]), s.no_change_error([300] * 11)
    assert s.no_change_error([300]) < ten < one
