"""p-values against uniform ones, the likelihood gap, and the ratio of two models' likelihoods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from harness.metrics.base import CellRows
from harness.metrics.held_out import HELD_OUT_LIKELIHOOD_GAP, TWO_TAILED_UNIFORMITY, kolmogorov_distance
from harness.metrics.likelihood_ratio import likelihood_ratio_auroc
from harness.metrics.options import BackgroundOptions
from harness.typicality import Typicality


def rows_of(test, held_out, outside=()):
    """Rows of an out-of-distribution cell with scores "two-tailed" and "log-likelihood"."""
    both = np.r_[test, outside]
    two = Typicality.of(held_out).two_tailed(torch.from_numpy(both)).numpy()
    n = both.size
    names = np.array(["in"] * len(test) + ["far"] * len(outside), dtype=object)
    return {
        "sample_id": np.tile(np.r_[np.arange(len(test)), np.arange(len(outside))], 2),
        "set": np.tile(names, 2),
        "score": np.repeat(["two-tailed", "log-likelihood"], n).astype(object),
        "ood_score": np.r_[two, -both],
        "held_out_log_prob": np.full(2 * n, held_out.mean()),
        "held_out_log_prob_error": np.full(2 * n, held_out.std(ddof=1) / np.sqrt(held_out.size)),
        "held_out_count": np.full(2 * n, float(held_out.size)),
    }


def draw(n, mean, seed):
    return np.random.default_rng(seed).normal(mean, 10, n)


def test_the_distance_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    for values in (rng.random(50), rng.integers(0, 6, 50) / 5):
        found = kolmogorov_distance(values)(np.ones((1, 50), dtype=int))[0]
        assert found == pytest.approx(stats.kstest(values, "uniform").statistic)
        weights = rng.integers(1, 4, 50)
        repeated = stats.kstest(np.repeat(values, weights), "uniform").statistic
        assert kolmogorov_distance(values)(weights[None])[0] == pytest.approx(repeated)


def test_p_values_of_like_images_are_uniform_and_of_others_are_not():
    held_out = draw(1000, -100, 0)
    like = TWO_TAILED_UNIFORMITY.estimate(rows_of(draw(800, -100, 1), held_out, draw(300, 0, 2)), 0.95)[""]
    assert like.n == 800  # the other set is not asked
    assert like.low < 0.01
    assert like.value < 0.08
    shifted = TWO_TAILED_UNIFORMITY.estimate(rows_of(draw(800, -112, 1), held_out), 0.95)[""]
    assert like.high < shifted.low < shifted.value < shifted.high
    change = TWO_TAILED_UNIFORMITY.difference(
        rows_of(draw(800, -100, 1), held_out), rows_of(draw(800, -112, 1), held_out), 0.05
    )[""]
    assert change.p_increase < 0.01


def test_the_gap_has_the_errors_of_both_means():
    test, held_out = draw(400, -103, 1), draw(300, -100, 0)
    found = HELD_OUT_LIKELIHOOD_GAP.estimate(rows_of(test, held_out, draw(50, 0, 3)), 0.95)[""]
    assert found.value == pytest.approx(test.mean() - held_out.mean())
    error = np.sqrt(test.var(ddof=1) / 400 + held_out.var(ddof=1) / 300)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-5)
    assert found.high < 0
    worse = HELD_OUT_LIKELIHOOD_GAP.difference(rows_of(test, held_out), rows_of(test - 1.5, held_out), 0.05)[""]
    assert worse.value == pytest.approx(-1.5)


def test_without_the_score_there_is_nothing_to_say():
    rows = rows_of(draw(20, 0, 0), draw(20, 0, 1))
    other = dict(rows, score=np.repeat("energy", 40))
    for metric in (TWO_TAILED_UNIFORMITY, HELD_OUT_LIKELIHOOD_GAP):
        assert metric.estimate(other, 0.95) == {}
        assert metric.difference(other, other, 0.05) == {}
        broken = dict(rows, ood_score=np.full(40, np.nan))
        assert metric.estimate(broken, 0.95)[""].value is None


def cell(model, rows):
    return CellRows(f"{model}/ood/digits", model, "ood", "ood", "digits", rows)


def test_the_ratio_takes_out_what_the_background_explains():
    rng = np.random.default_rng(0)
    n = 150
    complexity = rng.normal(0, 20, 2 * n)  # what both models see
    outside = np.repeat([0.0, 1.0], n)
    names = np.repeat(["in", "far"], n).astype(object)
    base = {"sample_id": np.tile(np.arange(n), 2), "set": names, "score": np.repeat("log-likelihood", 2 * n)}
    semantic = complexity + 2 * outside + rng.normal(size=2 * n)
    order = rng.permutation(2 * n)
    model = cell("flow", {**base, "ood_score": semantic})
    background = {**base, "ood_score": complexity + 0.3 * rng.normal(size=2 * n)}
    noise = cell("noise", {name: np.asarray(values)[order] for name, values in background.items()})
    found = {
        s.subject: s
        for s in likelihood_ratio_auroc(BackgroundOptions(background="noise")).summarise([model, noise], 0.95)
    }
    assert set(found) == {"flow", "flow, far"}
    wanted = roc_auc_score(outside, semantic - background["ood_score"])
    assert found["flow"].estimate.value == pytest.approx(wanted)
    assert wanted > 0.85 > 0.6 > roc_auc_score(outside, semantic)
    assert found["flow, far"].cells == ("flow/ood/digits", "noise/ood/digits")
    (alone,) = likelihood_ratio_auroc(BackgroundOptions(background="gone")).summarise([model], 0.95)
    assert alone.estimate.reason == "no model 'gone' was scored by log-likelihood on these sets"
    assert likelihood_ratio_auroc(BackgroundOptions()).summarise([model, noise], 0.95) == ()
