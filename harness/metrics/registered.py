"""The metrics that come with the program: facts and paths, nothing heavy."""

from __future__ import annotations

from harness.info import MetricInfo
from harness.metrics.registered_shifts import (
    BIT_FLIP,
    CALIBRATION,
    CORRUPTION,
    DETECTION,
    INTERPOLATION,
    LIKELIHOOD,
)

_ATTACK = ("sample_id", "clean_correct", "success")
_ATTACKED = ("sample_id", "label", "clean_correct", "adversarial_prediction")

METRICS: tuple[MetricInfo, ...] = (
    MetricInfo(
        name="clean_accuracy",
        summary="share of samples classified correctly",
        source="Clopper & Pearson 1934",
        metric="harness.metrics.accuracy:CLEAN_ACCURACY",
        columns=("sample_id", "clean_correct"),
        direction="higher",
    ),
    MetricInfo(
        name="robust_accuracy",
        summary="share of all samples still classified correctly under attack (clean errors count as failures)",
        source="Carlini et al. 2019",
        metric="harness.metrics.accuracy:ROBUST_ACCURACY",
        columns=_ATTACK,
        direction="higher",
    ),
    MetricInfo(
        name="attack_success_rate",
        summary="share of the initially correct samples that the attack turns",
        source="Carlini et al. 2019",
        metric="harness.metrics.accuracy:ATTACK_SUCCESS_RATE",
        columns=_ATTACK,
        direction="lower",
    ),
    MetricInfo(
        name="robust_accuracy_at_detector_fpr",
        summary="robust accuracy where the model's detector may reject, by its false-positive rate on held-out images",
        source="Tramer 2022",
        metric="harness.metrics.accuracy:ROBUST_ACCURACY_AT_DETECTOR_FPR",
        columns=("sample_id", "robust_at_detector_fpr"),
        direction="higher",
    ),
    MetricInfo(
        name="clean_accuracy_by_mean",
        summary="clean accuracy of a random model by its mean log-likelihood over ten draws, not by majority",
        metric="harness.metrics.accuracy:CLEAN_ACCURACY_BY_MEAN",
        columns=("sample_id", "clean_correct_mean"),
        direction="higher",
    ),
    MetricInfo(
        name="robust_accuracy_by_mean",
        summary="robust accuracy of a random model by its mean log-likelihood over ten draws, not by majority",
        metric="harness.metrics.accuracy:ROBUST_ACCURACY_BY_MEAN",
        columns=("sample_id", "clean_correct_mean", "success_mean"),
        direction="higher",
    ),
    *(
        MetricInfo(
            name=f"{norm}_median",
            summary=f"median {norm} norm of the perturbation over initially correct samples, failed attacks infinite",
            metric=f"harness.metrics.norms:{norm.upper()}_MEDIAN",
            columns=(*_ATTACK, norm),
            direction="higher",
            unit=f"{norm}, pixels in [0, 1]",
        )
        for norm in ("linf", "l2")
    ),
    *(
        MetricInfo(
            name=f"{norm}_mean_of_successes",
            summary=f"mean {norm} norm of the perturbation over successful attacks only",
            metric=f"harness.metrics.norms:{norm.upper()}_MEAN_OF_SUCCESSES",
            columns=(*_ATTACK, norm),
            direction="none",
            unit=f"{norm}, pixels in [0, 1]",
        )
        for norm in ("linf", "l2")
    ),
    *DETECTION,
    *(
        MetricInfo(
            name=f"{column}_mean",
            summary=f"mean number of {column[:-1]} evaluations of the model per image",
            metric=f"harness.metrics.cost:{column.upper()}_MEAN",
            columns=("sample_id", column),
            direction="none",
            unit="evaluations/image",
        )
        for column in ("forwards", "backwards")
    ),
    MetricInfo(
        name="minimal_norm_median",
        summary="median of the smallest norms that fool, over initially correct samples, failed attacks infinite",
        source="Pintor et al. 2021 (FMN)",
        metric="harness.metrics.minimal_norm:MINIMAL_NORM_MEDIAN",
        columns=("sample_id", "clean_correct", "minimal_norm"),
        direction="higher",
        unit="the attack's norm, pixels in [0, 1]",
    ),
    MetricInfo(
        name="robust_accuracy_at",
        summary="security curve: robust accuracy at each budget, from the smallest norms of one run",
        source="Pintor et al. 2021 (FMN)",
        metric="harness.metrics.minimal_norm:ROBUST_ACCURACY_AT",
        columns=("sample_id", "minimal_norm", "curve"),
        direction="higher",
    ),
    *(
        MetricInfo(
            name=f"detection_auroc_of_attacked{suffix}",
            summary=f"area under the ROC curve of {which}, attacked against clean images; below 0.5: over-fooled",
            source="Mackowiak et al. 2021; interval: Obuchowski 1997",
            metric=f"harness.metrics.attacked_detection:DETECTION_AUROC_OF_ATTACKED{suffix.upper()}",
            columns=(*_ATTACKED, f"clean_{score}", f"adversarial_{score}"),
            direction="higher",
        )
        for suffix, score, which in (
            ("", "ood_score", "the model's own detector"),
            ("_one_tailed", "one_tailed_score", "-log p"),
            ("_two_tailed", "two_tailed_score", "the two-tailed quantile test of log p"),
        )
    ),
    MetricInfo(
        name="evasion_rate",
        summary="share of the initially correct samples whose attacked image is misclassified and accepted,"
        " by the detector's false-positive rate on held-out images",
        source="Bryniarski et al. 2021",
        metric="harness.metrics.attacked_detection:EVASION_RATE",
        columns=("sample_id", "clean_correct", "evades_at_detector_fpr"),
        direction="lower",
    ),
    MetricInfo(
        name="worst_case_robust_accuracy",
        summary="share of samples that withstand every attack on the model",
        source="Carlini et al. 2019",
        metric="harness.metrics.accuracy:WORST_CASE_ROBUST_ACCURACY",
        columns=_ATTACK,
        direction="higher",
        scope="group",
    ),
    *LIKELIHOOD,
    *CALIBRATION,
    *CORRUPTION,
    *BIT_FLIP,
    *INTERPOLATION,
)
