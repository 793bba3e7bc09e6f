"""Corruption metrics: means by hand, AUROC against scikit-learn, mean corruption error and its reference."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from harness.metrics.alexnet import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, NOISES, SEVERITIES, STANDARD
from harness.metrics.base import CellRows
from harness.metrics.corruption import (
    CORRUPTION_ACCURACY,
    CORRUPTION_AUROC,
    CORRUPTION_BITS_PER_DIM,
    ENTROPY_RISE,
    parts,
)
from harness.metrics.corruption_error import (
    mean_corruption_error,
    relative_mean_corruption_error,
)
from harness.metrics.options import ReferenceOptions

MEANS = (CORRUPTION_ACCURACY, CORRUPTION_AUROC, CORRUPTION_BITS_PER_DIM, ENTROPY_RISE)


def rows_of(names, severities, n=60, seed=0, shift=0.3):
    """Every sample clean and under each corruption and severity, the worse the more severe."""
    rng = np.random.default_rng(seed)
    hard, base = rng.random(n), rng.normal(size=n)
    cells = [("none", 0), *((name, s) for name in names for s in severities)]
    level = np.array([s for _, s in cells])
    return {
        "sample_id": np.tile(np.arange(n) * 3, len(cells)),
        "corruption": np.repeat([name for name, _ in cells], n).astype(object),
        "severity": np.repeat(level, n),
        "table": np.repeat("imagenet-c", n * len(cells)),
        "correct": np.concatenate([hard > 0.1 + 0.1 * s + 0.05 * rng.random(n) for s in level]),
        "entropy": np.concatenate([np.abs(base) + 0.2 * s + 0.1 * rng.random(n) for s in level]),
        "ood_score": np.concatenate([base + shift * s + 0.3 * rng.normal(size=n) for s in level]),
        "bits_per_dim": np.concatenate([3 + base / 10 - 0.1 * s for s in level]),
    }


def pick(rows, key):
    name, severity = (*key.split(","), None)[:2]
    chosen = rows["corruption"] == name if name != "mean" else np.isin(rows["corruption"].astype(str), STANDARD)
    return chosen if severity is None else chosen & (rows["severity"] == int(severity))


def test_keys():
    rows = rows_of(["fog", "gaussian_noise", "speckle_noise"], (1, 3))
    assert [key for key, _ in parts(rows)] == [
        *("", "without_noise", "mean,1", "mean,3", "all"),
        *("gaussian_noise", "gaussian_noise,1", "gaussian_noise,3", "fog", "fog,1", "fog,3"),
        *("speckle_noise", "speckle_noise,1", "speckle_noise,3", "none"),
    ]
    only_extra = rows_of(["spatter"], (2,))
    assert [key for key, _ in parts(only_extra)] == ["all", "spatter", "spatter,2", "none"]


def test_accuracy_entropy_and_likelihood_by_hand():
    rows = rows_of(["gaussian_noise", "fog", "contrast", "saturate"], (1, 2, 5))
    accuracy = CORRUPTION_ACCURACY.estimate(rows, 0.95)
    bits = CORRUPTION_BITS_PER_DIM.estimate(rows, 0.95)
    rise = ENTROPY_RISE.estimate(rows, 0.95)
    clean = rows["entropy"][:60]
    for key in ("gaussian_noise,2", "fog", "saturate,5", "mean,5"):
        chosen = pick(rows, key)
        assert accuracy[key].value == pytest.approx(rows["correct"][chosen].mean())
        assert bits[key].value == pytest.approx(rows["bits_per_dim"][chosen].mean())
        assert rise[key].value == pytest.approx(rows["entropy"][chosen].mean() - clean.mean())
        for found in (accuracy, bits, rise):
            assert found[key].low < found[key].value < found[key].high
            assert found[key].n == 60
    named = [accuracy[name].value for name in ("gaussian_noise", "fog", "contrast")]
    assert accuracy[""].value == pytest.approx(np.mean(named))
    assert accuracy["without_noise"].value == pytest.approx(np.mean(named[1:]))
    assert accuracy["none"].value == pytest.approx(rows["correct"][:60].mean())
    assert "none" not in rise


def test_the_rise_in_entropy_is_paired():
    rows = rows_of(["fog"], (3,), n=300)
    paired = ENTROPY_RISE.estimate(rows, 0.95)["fog,3"]
    assert paired.high - paired.low < 0.02  # while the entropies themselves differ by 0.6 between images
    some = {name: values[40:] for name, values in rows.items()}  # forty samples without their clean row
    assert ENTROPY_RISE.estimate(some, 0.95)["fog,3"].n == 260
    none = {name: values[300:] for name, values in rows.items()}
    assert ENTROPY_RISE.estimate(none, 0.95) == {}
    order = np.random.default_rng(0).permutation(600)
    mixed = {name: values[order] for name, values in rows.items()}
    assert ENTROPY_RISE.estimate(mixed, 0.95)["fog,3"].value == pytest.approx(paired.value)


def test_intervals_treat_the_rows_of_a_sample_as_one():
    rows = rows_of(["fog", "snow"], SEVERITIES, n=80)
    clustered = CORRUPTION_ACCURACY.estimate(rows, 0.95)[""]
    apart = dict(rows, sample_id=np.arange(len(rows["sample_id"])))
    naive = CORRUPTION_ACCURACY.estimate(apart, 0.95)[""]
    assert clustered.value == naive.value
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)
    assert clustered.n == 80


def test_auroc_is_scikit_learns_and_the_mean_over_severities():
    rows = rows_of(["gaussian_noise", "fog", "spatter"], (1, 4))
    found = CORRUPTION_AUROC.estimate(rows, 0.95)
    clean = rows["ood_score"][:60]
    for key in ("gaussian_noise,1", "fog,4", "spatter,4"):
        scores = np.r_[clean, rows["ood_score"][pick(rows, key)]]
        assert found[key].value == pytest.approx(roc_auc_score([0] * 60 + [1] * 60, scores))
        assert found[key].low < found[key].value < found[key].high
    assert found["fog"].value == pytest.approx((found["fog,1"].value + found["fog,4"].value) / 2)
    assert found[""].value == pytest.approx((found["fog"].value + found["gaussian_noise"].value) / 2)
    assert "none" not in found
    # The same images on both sides: narrower than if they were others.
    apart = dict(rows, sample_id=np.arange(len(rows["sample_id"])))
    wide = CORRUPTION_AUROC.estimate(apart, 0.95)["fog,4"]
    assert found["fog,4"].high - found["fog,4"].low < wide.high - wide.low


def test_auroc_says_why_it_is_not_there():
    rows = rows_of(["fog"], (1, 2))
    broken = dict(rows, ood_score=np.where(rows["severity"] == 2, np.nan, rows["ood_score"]))
    found = CORRUPTION_AUROC.estimate(broken, 0.95)
    assert found["fog,1"].value is not None
    assert found["fog,2"].reason == "60 of 120 ood_score values are NaN"
    assert CORRUPTION_AUROC.difference(rows, broken, 0.05)["fog,2"].value is None
    unpaired = {name: values[60:] for name, values in rows.items()}
    assert "fewer than two" in CORRUPTION_AUROC.estimate(unpaired, 0.95)["fog,1"].reason


@pytest.mark.parametrize("metric", MEANS)
def test_differences_are_paired(metric):
    rows = rows_of(["fog", "snow"], (1, 3), n=200)
    other = rows_of(["fog", "snow"], (1, 3), n=200, seed=5, shift=0.8)
    before, after = metric.estimate(rows, 0.9), metric.estimate(other, 0.9)
    changes = metric.difference(rows, other, 0.05)
    assert changes.keys() == before.keys()
    for key, change in changes.items():
        assert change.value == pytest.approx(after[key].value - before[key].value, abs=1e-12)
        assert change.low <= change.value <= change.high
    still = metric.difference(rows, rows, 0.05)["fog,3"]
    assert still.value == 0


# --- mean corruption error --------------------------------------------------------------------------------------------


def wrong_rows(rates, clean, n=1000, seed=0):
    """Rows of a model with these error rates, to the nearest sample, the errors spread at random."""
    rng = np.random.default_rng(seed)
    cells = [("none", 0, clean), *((c, s, rates[c][s - 1]) for c in STANDARD for s in SEVERITIES)]
    wrong = [rng.permutation(n) < round(rate * n) for _, _, rate in cells]
    return {
        "sample_id": np.tile(np.arange(n), len(cells)),
        "table": np.repeat("imagenet-c", n * len(cells)),
        "corruption": np.repeat([c for c, _, _ in cells], n).astype(object),
        "severity": np.repeat([s for _, s, _ in cells], n),
        "correct": ~np.concatenate(wrong),
    }


def cell(model, rows, dataset="imagefolder", threat="corruptions", classes=1000):
    return CellRows(f"{model}/{threat}/{dataset}", model, threat, "corruptions", dataset, rows, classes=classes)


def value(factory, cells, reference="alexnet"):
    summaries = factory(ReferenceOptions(reference=reference)).summarise(cells, 0.95)
    return {summary.subject: summary for summary in summaries}


ALEX = wrong_rows(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR)
HALF = wrong_rows({c: tuple(e / 2 for e in errors) for c, errors in ALEXNET_ERRORS.items()}, 0.2, seed=1)


def test_the_constants_are_the_published_averages():
    published = [
        *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360),
        *(0.866816, 0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
    ]
    np.testing.assert_allclose([np.mean(e) for e in ALEXNET_ERRORS.values()], published, atol=1e-6)
    assert len(STANDARD) == 15
    assert all(name.endswith("noise") for name in NOISES)


def test_alexnet_has_a_mean_corruption_error_of_100_percent():
    for factory in (mean_corruption_error, relative_mean_corruption_error):
        found = value(factory, [cell("alex", ALEX)])["alex"].estimate
        assert found.value == pytest.approx(1, abs=2e-3)
        assert found.low < 1 < found.high
        assert found.n == 1000


def test_a_model_with_half_the_errors():
    found = value(mean_corruption_error, [cell("half", HALF)])["half"].estimate
    assert found.value == pytest.approx(0.5, abs=1e-3)
    assert 0.48 < found.low < found.value < found.high < 0.52
    relative = value(relative_mean_corruption_error, [cell("half", HALF)])["half"].estimate
    rates = np.array(list(ALEXNET_ERRORS.values()))
    wanted = ((rates / 2 - 0.2).sum(axis=1) / (rates - ALEXNET_CLEAN_ERROR).sum(axis=1)).mean()
    assert relative.value == pytest.approx(wanted, abs=5e-3)


def test_a_model_of_the_run_as_the_reference():
    cells = [cell("alex", ALEX, "digits"), cell("half", HALF, "digits")]
    found = value(mean_corruption_error, cells, "alex")
    assert found["alex"].estimate.value == 1
    assert found["half"].estimate.value == pytest.approx(0.5, abs=1e-3)
    assert found["half"].cells == ("half/corruptions/digits", "alex/corruptions/digits")
    assert found["alex"].cells == ("alex/corruptions/digits",)
    # Other samples of the reference are left aside.
    part = {name: values[ALEX["sample_id"] < 700] for name, values in ALEX.items()}
    assert value(mean_corruption_error, [cell("alex", part), cell("half", HALF)], "alex")["half"].estimate.n == 700


def test_what_is_missing_is_named():
    fog = HALF["corruption"] == "fog"
    for gone, missing in (
        (fog, "missing: fog"),
        (fog & (HALF["severity"] == 2), "missing: fog severity 2"),
        (
            HALF["severity"] > 3,
            "missing: gaussian_noise severity 4, gaussian_noise severity 5, shot_noise severity 4 and",
        ),
        (HALF["corruption"] == "none", "missing: the clean images"),
        (fog & (HALF["sample_id"] == 3), "fog severity 1, fog severity 2, fog severity 3 and 2 more"),
    ):
        rows = {name: values[~gone] for name, values in HALF.items()}
        estimate = value(mean_corruption_error, [cell("m", rows)])["m"].estimate
        assert estimate.value is None
        assert missing in estimate.reason
        both = value(mean_corruption_error, [cell("m", HALF), cell("ref", rows)], "ref")["m"].estimate
        assert both.reason.startswith("the reference ref: needs every sample")


def test_mnist_c_has_none():
    rows = dict(HALF, table=np.repeat("mnist-c", len(HALF["correct"])).astype(object))
    assert value(mean_corruption_error, [cell("m", rows)])["m"].estimate.reason.startswith("MNIST-C has other corr")


def test_alexnet_is_no_reference_for_other_data():
    estimate = value(mean_corruption_error, [cell("m", HALF, "cifar10", classes=10)])["m"].estimate
    assert "are of ImageNet-C and its 1,000 classes, not of cifar10 with 10; give" in estimate.reason
    assert "(class_names of npz), else name a model of the suite" in estimate.reason
    assert value(mean_corruption_error, [cell("m", HALF, "npz")])["m"].estimate.value is not None
    estimate = value(mean_corruption_error, [cell("m", HALF), cell("b", HALF)], "gone")["m"].estimate
    assert estimate.reason == "no model 'gone' ran these corruptions on these data; b, m did"


def test_several_threats_are_told_apart():
    cells = [cell("m", HALF), cell("m", HALF, threat="corruptions[compat=true]")]
    assert set(value(mean_corruption_error, cells)) == {
        "m under corruptions on imagefolder",
        "m under corruptions[compat=true] on imagefolder",
    }


def test_a_model_that_is_never_wrong_is_not_certain():
    never = dict(HALF, correct=np.ones(len(HALF["correct"]), bool))
    found = value(mean_corruption_error, [cell("m", never)])["m"].estimate
    assert found.value == found.low == 0
    assert 0.003 < found.high < 0.01
    nothing = value(mean_corruption_error, [cell("m", HALF), cell("ref", never)], "ref")["m"].estimate
    assert nothing.reason == (
        "the reference makes no errors under gaussian_noise, shot_noise, impulse_noise and 12 more"
    )
    itself = value(mean_corruption_error, [cell("ref", never)], "ref")["ref"].estimate
    assert (itself.value, itself.reason) == (None, nothing.reason)


def test_a_model_that_is_always_wrong_leaves_the_others_their_numbers():
    always = dict(HALF, correct=np.zeros(len(HALF["correct"]), bool))
    found = value(relative_mean_corruption_error, [cell("always", always), cell("half", HALF)])
    alone = value(relative_mean_corruption_error, [cell("half", HALF)])
    assert found["half"].estimate == alone["half"].estimate
    assert found["half"].estimate.value is not None
    # A corruption adds nothing to it; that is known of 1,000 images, not of all.
    estimate = found["always"].estimate
    assert estimate.value == 0
    assert estimate.low < 0 < estimate.high
    assert estimate.high == pytest.approx(-estimate.low)
    assert 0.01 < estimate.high < 0.1


def losing(per_corruption, n=200, clean=0):
    """Rows of a model that is right on all images but the first `clean`, and in fog on `per_corruption` fewer."""
    rows = wrong_rows(dict.fromkeys(STANDARD, (0.5,) * 5), 0, n)
    ids, fog, unharmed = rows["sample_id"], rows["corruption"] == "fog", rows["corruption"] == "none"
    rows["correct"] = np.where(unharmed, ids >= clean, rows["correct"])
    rows["correct"] = np.where(fog, ids >= clean + per_corruption, rows["correct"])
    return rows


@pytest.mark.parametrize("factory", [mean_corruption_error, relative_mean_corruption_error])
def test_a_reference_without_loss_in_some_resamples_is_said(factory):
    cells = [cell("m", losing(40)), cell("ref", losing(1))]
    estimate = value(factory, cells, "ref")["m"].estimate
    assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    # One image of 200 is in no resample with probability 0.995^200 = 0.37; fog then counts 40, the others 1.
    ratio = 100 * (40 + 14) / 15
    assert estimate.reason.startswith(f"{ratio:.1f} % of these images, without an interval: in 3")
    what = "makes no errors under" if factory is mean_corruption_error else "loses nothing, over all severities, under"
    assert f"% of the resamples of the images the reference {what} a corruption" in estimate.reason


def test_a_reference_without_loss_in_few_resamples_keeps_its_bounds():
    cells = [cell("m", losing(40)), cell("ref", losing(5))]  # e^-5 = 0.7 % of resamples, less than a tail
    estimate = value(mean_corruption_error, cells, "ref")["m"].estimate
    assert estimate.value == pytest.approx((8 + 14) / 15)
    assert 1 < estimate.low < estimate.value < estimate.high < 10
    assert "they count as beyond both bounds" in estimate.reason
    whole = value(mean_corruption_error, [cell("m", losing(40)), cell("ref", losing(20))], "ref")["m"].estimate
    assert whole.reason == ""


def test_a_loss_of_nothing_is_nothing_whatever_the_rates():
    # 3 of 30 images wrong everywhere: as float rates 0.1 * 5 - 5 * 0.1 is not 0.
    reference = losing(0, n=30, clean=3)
    cells = [cell("m", losing(2, n=30, clean=7)), cell("ref", reference)]
    found = value(relative_mean_corruption_error, cells, "ref")
    for name in ("m", "ref"):
        assert found[name].estimate.value is None
        assert found[name].estimate.reason == "the reference loses nothing, over all severities, under fog"


def test_intervals_cover():
    rng = np.random.default_rng(0)
    truth = np.mean([0.5 * np.sum(e) / np.sum(e) for e in ALEXNET_ERRORS.values()])
    n, hits = 120, 0
    for _ in range(30):
        hard = rng.random(n)
        rows = dict(wrong_rows(ALEXNET_ERRORS, 0.4, n))
        rate = np.array([0.0 if c == "none" else ALEXNET_ERRORS[c][s - 1] / 2 for c, s in zip(
            rows["corruption"], rows["severity"], strict=True)])  # fmt: skip
        rows["correct"] = hard[rows["sample_id"]] > rate
        found = value(mean_corruption_error, [cell("m", rows)])["m"].estimate
        hits += found.low <= truth <= found.high
    assert hits >= 25


def test_a_mean_below_nothing_has_its_interval_around_it():
    rows = rows_of(["fog"], (1,))
    rows["bits_per_dim"] = rows["bits_per_dim"] - 10
    estimate = CORRUPTION_BITS_PER_DIM.estimate(rows, 0.95)["fog"]
    assert estimate.low < estimate.value < estimate.high < 0


def test_alexnet_is_no_reference_for_other_constants():
    rows = {**wrong_rows(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR, n=50), "table": np.repeat("cifar10-c", 50 * 76)}
    (found,) = mean_corruption_error(ReferenceOptions(reference="alexnet")).summarise([cell("a", rows)], 0.95)
    assert found.estimate.value is None
    assert "cifar10-c" in found.estimate.reason


def test_the_reference_is_as_bad_as_itself_for_certain():
    rows = wrong_rows(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR, n=50)
    (found,) = mean_corruption_error(ReferenceOptions(reference="a")).summarise([cell("a", rows)], 0.95)
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == (1.0, 1.0, 1.0)


def test_a_mean_over_some_of_the_standard_corruptions_says_so():
    found = CORRUPTION_ACCURACY.estimate(rows_of(["fog", "snow", "spatter"], (1, 3)), 0.95)
    assert found[""].value is not None
    assert found[""].reason.startswith("a mean over 2 of the 15 standard corruptions, without gaussian_noise, ")
    assert found["fog"].reason == found["all"].reason == ""
    whole = CORRUPTION_ACCURACY.estimate(wrong_rows(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR, n=50), 0.95)
    assert whole[""].reason == ""


def test_mnist_c_has_a_mean_over_its_own_corruptions():
    rows = rows_of(["fog", "zigzag", "shot_noise"], (1,))
    rows["table"] = np.repeat("mnist-c", len(rows["severity"])).astype(object)
    found = CORRUPTION_ACCURACY.estimate(rows, 0.95)
    assert list(found) == ["all", "shot_noise", "shot_noise,1", "fog", "fog,1", "zigzag", "zigzag,1", "none"]
    assert found["all"].value == pytest.approx(np.mean(rows["correct"][rows["corruption"] != "none"]))
    assert found["all"].reason == ""
    # Of files in another layout the mean is over the standard ones.
    other = dict(rows, table=np.repeat("cifar10-c", len(rows["severity"])).astype(object))
    assert list(CORRUPTION_ACCURACY.estimate(other, 0.95))[:2] == ["", "without_noise"]
