"""How well a score tells out-of-distribution from in-distribution images.

Rows hold `ood_score` (higher is more out-of-distribution) and `set`: "in", or the name of an out-of-distribution set.
Estimates are keyed by the set's name, and by "" for the mean over the sets (as table 2 of the NCML paper averages),
which all share the images "in". Where a column `score` names several scores, each is judged by itself: the keys of the
first are those above, those of another are ``SET,SCORE`` and, for its mean over the sets, ``mean,SCORE``. A NaN score
makes the numbers of its set undefined; infinite scores are fine. Images are the units: rows of one ``sample_id`` are
one image, also across sets (attacked against clean images); those of another data set (`set_size` above 0) are images
of their own. n counts the rows of "in" and of the sets together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import Estimate, PairedDifference, Rows, finite_or_undefined, part_of, undefined
from harness.metrics.detection_statistics import (
    atom_limits,
    aupr_in,
    aupr_in_limits,
    aupr_out,
    aupr_out_limits,
    detection_accuracy,
    false_positive_rate,
    fpr_id_limits,
    fpr_ood_limits,
    id_rejected,
    tied_pairs,
)
from harness.metrics.paired import compared, incomparable
from harness.statistics import (
    Difference,
    Floats,
    Interval,
    Statistic,
    Units,
    auroc_components,
    auroc_difference,
    auroc_interval,
    bootstrap,
    bootstrap_difference,
    normal_difference,
    once,
    sampling_units,
)

IN = "in"


class Groups(NamedTuple):
    """The row numbers of the images "in" and of one or more out-of-distribution sets."""

    inside: NDArray[np.int64]
    outside: dict[str, NDArray[np.int64]]

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.concatenate([self.inside, *self.outside.values()])

    def alone(self, name: str) -> Groups:
        return Groups(self.inside, {name: self.outside[name]})

    @property
    def each(self) -> list[Groups]:
        """All sets together, then each by itself."""
        return [self, *(self.alone(name) for name in self.outside)]


def groups_of(rows: Rows) -> Groups:
    names = np.asarray(rows["set"]).astype(str)
    outside = {str(name): np.flatnonzero(names == name) for name in np.unique(names) if name != IN}
    return Groups(np.flatnonzero(names == IN), outside)


def problem(rows: Rows, groups: Groups) -> str:
    """Why nothing can be said of these rows, or an empty string."""
    if not groups.outside:
        return "there is no out-of-distribution set"
    ids = np.asarray(rows["sample_id"])
    if any(np.unique(ids[g]).size < 2 for g in (groups.inside, *groups.outside.values())):
        return 'a set (or "in") has fewer than two images'
    broken = int(np.isnan(np.asarray(rows["ood_score"], dtype=float)[groups.rows]).sum())
    return f"{broken} of {groups.rows.size} ood_score values are NaN" if broken else ""


def images_of(rows: Rows) -> NDArray[Any]:
    """Which image each row is of, int64: what is resampled. Rows of one number are not independent."""
    ids = np.asarray(rows["sample_id"])
    if "set_size" not in rows or "image_id" not in rows:
        return ids
    foreign = np.flatnonzero(np.asarray(rows["set_size"]) > 0)
    _, name = np.unique(np.asarray(rows["set"]).astype(str)[foreign], return_inverse=True)
    _, code = np.unique(np.stack([name, np.asarray(rows["image_id"])[foreign]]), axis=1, return_inverse=True)
    found = ids.copy()
    found[foreign] = ids.max(initial=-1) + 1 + code.reshape(-1)
    return found


def by_score(rows: Rows) -> dict[str, NDArray[np.int64]]:
    """The row numbers of each score, in the order in which the rows name them; all of them where no column does."""
    if "score" not in rows:
        return {"": np.arange(len(rows["ood_score"]))}
    names = np.asarray(rows["score"]).astype(str)
    distinct, first, code = np.unique(names, return_index=True, return_inverse=True)
    return {str(distinct[k]): np.flatnonzero(code == k) for k in np.argsort(first)}


def keyed(variant: str, score: str, number: int) -> str:
    """The key of a variant of the score of this number (0: the first)."""
    return variant if number == 0 else f"{variant or 'mean'},{score}"


class Detection(ABC):
    """A metric of sets and scores."""

    @abstractmethod
    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]:
        """Of one score and sets without a problem: the number for their mean, then one for each set."""

    @abstractmethod
    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]:
        """The differences of the numbers that `of_sets` gives."""

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {
            keyed(variant, score, number): estimate
            for number, (score, which) in enumerate(by_score(rows).items())
            for variant, estimate in self._estimates(part_of(rows, which), level).items()
        }

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return {
            keyed(variant, score, number): change
            for number, (score, which) in enumerate(by_score(baseline).items())
            for variant, change in self._differences(part_of(baseline, which), part_of(candidate, which), alpha).items()
        }

    def _estimates(self, rows: Rows, level: float) -> dict[str, Estimate]:
        """Of one score."""
        everything = groups_of(rows)
        sound = {k: v for k, v in everything.outside.items() if not problem(rows, everything.alone(k))}
        reason = problem(rows, everything)
        out = {"": undefined(everything.rows.size, reason)}
        for name in everything.outside:
            alone = everything.alone(name)
            out[name] = undefined(alone.rows.size, problem(rows, alone))
        if sound:
            total, *each = self.of_sets(rows, Groups(everything.inside, sound), level)
            out |= dict(zip(sound, each, strict=True))
            if not reason:
                out[""] = total
        return out

    def _differences(self, baseline: Rows, candidate: Rows, alpha: float) -> dict[str, PairedDifference]:
        """Of one score."""
        before, after = self._estimates(baseline, 1 - alpha), self._estimates(candidate, 1 - alpha)
        keys = [key for key in before if before[key].value is not None and after[key].value is not None]
        out = {key: incomparable(before[key].n, before[key], after[key]) for key in before}
        everything = groups_of(baseline)
        sound = {k: v for k, v in everything.outside.items() if k in keys}
        if sound:
            groups = Groups(everything.inside, sound)
            changes = self.changes(baseline, candidate, groups, alpha)
            for key, group, change in zip(("", *sound), groups.each, changes, strict=True):
                if key in keys:
                    out[key] = compared(change, group.rows.size, before[key], after[key], alpha)
        return out


def _scores(rows: Rows, groups: Groups) -> tuple[Floats, list[Floats]]:
    scores = np.asarray(rows["ood_score"], dtype=float)
    return scores[groups.inside], [scores[g] for g in groups.outside.values()]


@dataclass(frozen=True)
class Auroc(Detection):
    """Probability that an out-of-distribution image scores above one "in", ties counting half (DeLong intervals)."""

    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]:
        out, ids = [], images_of(rows)
        for group in groups.each:
            components = auroc_components(*_scores(rows, group))
            low, high = auroc_interval(components, level, ids[group.rows])
            out.append(Estimate(components.value, low, high, group.rows.size))
        return out

    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]:
        ids = images_of(baseline)
        return [
            auroc_difference(
                auroc_components(*_scores(baseline, group)),
                auroc_components(*_scores(candidate, group)),
                alpha,
                ids[group.rows],
            )
            for group in groups.each
        ]


@dataclass(frozen=True)
class Bootstrapped(Detection):
    """The mean over the sets of a statistic of the scores, bootstrapped over images within "in" and within each set.

    A set that shares images with "in" is resampled together with it. `statistic` takes the scores "in" and those of a
    set; `limits(value, n, m, level)` is the interval where the resamples gave one value, as with perfect
    separation, and the bootstrap would claim certainty.
    """

    statistic: Callable[[Floats, Floats], Statistic]
    limits: Callable[[float, int, int, float], Interval]

    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]:
        inside, sets = _scores(rows, groups)
        statistics = self._statistics(inside, sets)
        values = statistics(once(groups.rows.size))[:, 0].tolist()
        result = bootstrap(statistics, _units(rows, groups), level)
        saturated = [self.limits(v, inside.size, s.size, level) for v, s in zip(values[1:], sets, strict=True)]
        mean = Interval(*(float(np.mean(side)) for side in zip(*saturated, strict=True)))
        out = []
        for number, (value, limits, group) in enumerate(zip(values, [mean, *saturated], groups.each, strict=True)):
            low, high = float(result.low[number]), float(result.high[number])
            if high - low < 1e-13:  # nearly all resamples gave one value
                low, high = limits
            low, high = min(low, value), max(high, value)  # a largest value is larger still in resamples
            n = group.rows.size
            out.append(finite_or_undefined(value, low, high, n, "a resample has no value: too few images"))
        return out

    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]:
        old, new = (self._statistics(*_scores(rows, groups)) for rows in (baseline, candidate))
        changes = bootstrap_difference(old, new, _units(baseline, groups), alpha)
        for number, (change, group) in enumerate(zip(changes, groups.each, strict=True)):
            if change.high - change.low < 1e-13:  # no image changed anything: still not certain
                sizes = [group.inside.size, *(rows.size for rows in group.outside.values())]
                changes[number] = normal_difference(change.value, 0.0, sizes, alpha)
        return changes

    def _statistics(self, inside: Floats, sets: list[Floats]) -> Statistic:
        """The mean over the sets and the value of each set: (B, rows) -> (1 + K, B)."""
        statistics = [self.statistic(inside, s) for s in sets]
        n = inside.size
        starts = np.cumsum([n, *(s.size for s in sets)])

        def evaluate(weights: NDArray[Any]) -> Floats:
            parts = (np.concatenate([weights[:, :n], weights[:, a:b]], axis=-1) for a, b in pairwise(starts))
            each = np.stack([s(part) for s, part in zip(statistics, parts, strict=True)])
            return np.concatenate([each.mean(axis=0, keepdims=True), each])

        return evaluate


def _units(rows: Rows, groups: Groups) -> Units:
    ids = images_of(rows)
    strata = [np.zeros(groups.inside.size, dtype=np.int64)]
    for number, outside in enumerate(groups.outside.values(), start=1):
        shared = np.isin(ids[outside], ids[groups.inside]).any()
        strata.append(np.full(outside.size, 0 if shared else number))
    return sampling_units(ids[groups.rows], np.concatenate(strata))


@dataclass(frozen=True)
class ByDistance:
    """The mean of a detection metric over the sets of each distance, "near" and "far" (as OpenOOD groups them).

    Keys: the distance, for another than the first score ``DISTANCE,SCORE``. Column `distance` is empty for "in" and for
    sets that are neither.
    """

    metric: Detection

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {
            distance + variant.removeprefix("mean"): estimate
            for distance, which in _distances(rows).items()
            for variant, estimate in self.metric.estimate(part_of(rows, which), level).items()
            if _is_mean(variant)
        }

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return {
            distance + variant.removeprefix("mean"): change
            for distance, which in _distances(baseline).items()
            for variant, change in self.metric.difference(
                part_of(baseline, which), part_of(candidate, which), alpha
            ).items()
            if _is_mean(variant)
        }


def _is_mean(variant: str) -> bool:
    return variant == "" or variant.startswith("mean,")


def _distances(rows: Rows) -> dict[str, NDArray[np.int64]]:
    """The rows of "in" together with those of the sets of each distance."""
    distance, inside = np.asarray(rows["distance"]).astype(str), np.asarray(rows["set"]).astype(str) == IN
    named = np.unique(distance[~inside & (distance != "")])
    return {str(name): np.flatnonzero(inside | (distance == name)) for name in named}


@dataclass(frozen=True)
class Prevalence(Detection):
    """The share of out-of-distribution images among those that a set's numbers come from: the AUPR of a random score.

    A fact of the test set, with no interval; the same for every score, so said of the first alone.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        _, which = next(iter(by_score(rows).items()))
        return self._estimates(part_of(rows, which), level)

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        _, which = next(iter(by_score(baseline).items()))
        return self._differences(part_of(baseline, which), part_of(candidate, which), alpha)

    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]:  # noqa: ARG002
        shares = [rows.size / (rows.size + groups.inside.size) for rows in groups.outside.values()]
        numbers = [float(np.mean(shares)), *shares]
        return [Estimate(v, v, v, group.rows.size) for v, group in zip(numbers, groups.each, strict=True)]

    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]:
        pairs = zip(self.of_sets(baseline, groups, 1 - alpha), self.of_sets(candidate, groups, 1 - alpha), strict=True)
        changes = ((after.value or 0.0) - (before.value or 0.0) for before, after in pairs)
        return [Difference(change, change, change, 1.0, 1.0) for change in changes]


AUROC = Auroc()
AUROC_BY_DISTANCE = ByDistance(AUROC)
FPR_OOD_AT_95_TPR_ID = Bootstrapped(false_positive_rate, fpr_ood_limits)
FPR_OOD_AT_95_TPR_ID_BY_DISTANCE = ByDistance(FPR_OOD_AT_95_TPR_ID)
FPR_ID_AT_95_TPR_OOD = Bootstrapped(id_rejected, fpr_id_limits)
AUPR_OUT = Bootstrapped(aupr_out, aupr_out_limits)
AUPR_IN = Bootstrapped(aupr_in, aupr_in_limits)
AUPR_PREVALENCE = Prevalence()
DETECTION_ACCURACY = Bootstrapped(detection_accuracy, atom_limits)
TIED_SCORES = Bootstrapped(tied_pairs, atom_limits)
