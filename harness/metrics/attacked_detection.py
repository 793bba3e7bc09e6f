"""Detection of attacked images: a detector's scores of them against those of the same images before the attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.accuracy import Mask, Proportion, clean_correct
from harness.metrics.base import Estimate, PairedDifference, Rows, undefined
from harness.metrics.detection import AUROC, IN
from harness.metrics.paired import incomparable
from harness.models import DETECTOR_FPRS

_ATTACKED = "attacked"
_TOO_FEW = "the attack succeeded on fewer than two samples"


def fooled(rows: Rows) -> Mask:
    """Classified rightly before the attack and wrongly after it, whether the attack had a budget or not."""
    wrong: Mask = np.asarray(rows["adversarial_prediction"]) != np.asarray(rows["label"])
    return clean_correct(rows) & wrong


@dataclass(frozen=True)
class DetectionOfAttacked:
    """AUROC of attacked against clean images, over the samples that the attack fools.

    Below 0.5 the attack over-fools: its images look more typical than clean ones, and a detector that rejects typical
    images too would find them. Both sides are the same images, so DeLong's variance is taken over images (Obuchowski
    1997), not over scores. The difference is over the samples fooled in both runs.

    Attributes:
        score: name of the score, "ood_score"; columns `clean_<score>` and `adversarial_<score>`, higher is more
            out-of-distribution.
    """

    score: str

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(rows, fooled(rows), level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        both = fooled(baseline) & fooled(candidate)
        before, after = (self._estimate(rows, both, 1 - alpha) for rows in (baseline, candidate))
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        old, new = (self._as_sets(rows, both) for rows in (baseline, candidate))
        return {"": AUROC.difference(old, new, alpha)[_ATTACKED]}

    def _estimate(self, rows: Rows, among: Mask, level: float) -> Estimate:
        n = int(np.unique(np.asarray(rows["sample_id"])[among]).size)
        if n < 2:
            return undefined(n, _TOO_FEW)
        found = AUROC.estimate(self._as_sets(rows, among), level)[_ATTACKED]
        return Estimate(found.value, found.low, found.high, n, found.reason)

    def _as_sets(self, rows: Rows, among: Mask) -> dict[str, NDArray[Any]]:
        """Rows as the detection metrics take them: each sample twice, clean and attacked."""
        ids = np.asarray(rows["sample_id"])[among]
        scores = [np.asarray(rows[f"{side}_{self.score}"], dtype=float)[among] for side in ("clean", "adversarial")]
        sets = np.repeat([IN, _ATTACKED], len(ids))
        return {"sample_id": np.concatenate([ids, ids]), "set": sets, "ood_score": np.concatenate(scores)}


@dataclass(frozen=True)
class EvasionRate:
    """Share of the initially correct samples whose attacked image is misclassified and accepted by the detector.

    One variant for each false-positive rate that the detector's threshold was fixed at, on held-out images: `1%`.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {rate: share.estimate(rows, level)[""] for rate, share in _AT_RATES.items()}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return {rate: share.difference(baseline, candidate, alpha)[""] for rate, share in _AT_RATES.items()}


def _evades(index: int) -> Callable[[Rows], Mask]:
    return lambda rows: np.asarray(rows["evades_at_detector_fpr"], dtype=bool)[:, index]


_NONE = "no sample is classified correctly before the attack"
_AT_RATES = {f"{fpr:.0%}": Proportion(_evades(index), clean_correct, _NONE) for index, fpr in enumerate(DETECTOR_FPRS)}
DETECTION_AUROC_OF_ATTACKED = DetectionOfAttacked("ood_score")
DETECTION_AUROC_OF_ATTACKED_ONE_TAILED = DetectionOfAttacked("one_tailed_score")
DETECTION_AUROC_OF_ATTACKED_TWO_TAILED = DetectionOfAttacked("two_tailed_score")
EVASION_RATE = EvasionRate()
