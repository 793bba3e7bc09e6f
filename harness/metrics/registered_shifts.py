"""The metrics of shifts that the harness registers: detection, calibration, corruptions. Facts and paths only."""

from __future__ import annotations

from functools import partial

from harness.info import Direction, MetricInfo

_DETECTION = ("sample_id", "set", "score", "ood_score")
_CALIBRATION = (
    *("sample_id", "clean_correct", "confidence", "negative_log_likelihood"),
    *("class_confidence_count", "class_confidence_sum"),
)
_CORRUPTED = ("sample_id", "corruption", "severity")
_FPR_OOD = "share of out-of-distribution images accepted by a detector that accepts 95 % of in-distribution ones"


def _registered(
    name: str,
    summary: str,
    columns: tuple[str, ...],
    direction: Direction,
    unit: str = "",
    *,
    module: str,
    source: str,
    optional: tuple[str, ...] = (),
) -> MetricInfo:
    return MetricInfo(
        name=name,
        summary=summary,
        source=source,
        metric=f"harness.metrics.{module}:{name.upper()}",
        columns=columns,
        direction=direction,
        unit=unit,
        optional=optional,
    )


def _detection(name: str, summary: str, source: str, direction: Direction, *, more: tuple[str, ...] = ()) -> MetricInfo:
    columns = (*_DETECTION, *more)
    return _registered(
        name, summary, columns, direction, module="detection", source=source, optional=("image_id", "set_size")
    )


DETECTION: tuple[MetricInfo, ...] = (
    _detection(
        "auroc",
        "area under the ROC curve, out-of-distribution against in-distribution, per set and score, and their mean",
        "DeLong et al. 1988",
        "higher",
    ),
    _detection(
        "auroc_by_distance",
        "area under the ROC curve, mean over the sets that the threat calls near, and over those it calls far",
        "Yang et al. 2022 (OpenOOD)",
        "higher",
        more=("distance",),
    ),
    _detection(
        "aupr_out",
        "average precision with out-of-distribution as the positive class; a random score has `aupr_prevalence`",
        "Hendrycks & Gimpel 2017",
        "higher",
    ),
    _detection(
        "aupr_in",
        "average precision with in-distribution as the positive class; a random score has 1 - `aupr_prevalence`",
        "Hendrycks & Gimpel 2017",
        "higher",
    ),
    _detection(
        "aupr_prevalence",
        "share of out-of-distribution images among those an AUPR is of: what a random score reaches (no interval)",
        "Saito & Rehmsmeier 2015",
        "none",
    ),
    _detection("fpr_ood_at_95_tpr_id", _FPR_OOD, "Liang et al. 2018 (ODIN)", "lower"),
    _detection(
        "fpr_ood_at_95_tpr_id_by_distance",
        f"{_FPR_OOD}, mean over the near sets, and over the far ones",
        "Yang et al. 2022 (OpenOOD)",
        "lower",
        more=("distance",),
    ),
    _detection(
        "fpr_id_at_95_tpr_ood",
        "share of in-distribution images rejected by a detector that rejects 95 % of out-of-distribution ones",
        "Yang et al. 2022 (OpenOOD)",
        "lower",
    ),
    _detection(
        "detection_accuracy",
        "largest mean of the shares of in- and of out-of-distribution images decided rightly, over all thresholds",
        "Liang et al. 2018 (ODIN)",
        "higher",
    ),
    _detection(
        "tied_scores",
        "share of pairs of an in- and an out-of-distribution image with equal scores: what no threshold decides",
        "",
        "lower",
    ),
    MetricInfo(
        name="two_tailed_uniformity",
        summary="Kolmogorov-Smirnov distance from uniform of the two-tailed test's p-values of in-distribution images",
        source="Mackowiak et al. 2021, appendix A.1",
        metric="harness.metrics.held_out:TWO_TAILED_UNIFORMITY",
        columns=(*_DETECTION, "held_out_count"),
        direction="lower",
    ),
    MetricInfo(
        name="held_out_likelihood_gap",
        summary="mean log-likelihood of test images less that of reference images (train split, or `heldout`)",
        source="Nalisnick et al. 2019",
        metric="harness.metrics.held_out:HELD_OUT_LIKELIHOOD_GAP",
        columns=(*_DETECTION, "held_out_log_prob", "held_out_log_prob_error"),
        direction="none",
        unit="nats",
    ),
    MetricInfo(
        name="likelihood_ratio_auroc",
        summary="area under the ROC curve of the likelihood ratio against a background model of the suite, per set",
        source="Ren et al. 2019",
        metric="harness.metrics.likelihood_ratio:likelihood_ratio_auroc",
        columns=_DETECTION,
        direction="higher",
        scope="group",
        options="harness.metrics.options:BackgroundOptions",
    ),
)

CALIBRATION: tuple[MetricInfo, ...] = (
    *(
        MetricInfo(
            name=name,
            summary=summary,
            source="Mackowiak et al. 2021, appendix B.3; top label: Guo et al. 2017",
            metric=f"harness.metrics.calibration:{name.upper()}",
            columns=_CALIBRATION,
            direction="lower",
        )
        for name, summary in (
            (
                "expected_calibration_error",
                "mean distance of confidence and accuracy over predictions of one class against all, and of top labels",
            ),
            (
                "maximum_calibration_error",
                "largest distance of confidence and accuracy in a bin of over 20 predictions, and of top labels",
            ),
        )
    ),
    MetricInfo(
        name="overconfidence_error",
        summary="error rate of predictions made with confidence 0.997 or more, over the 0.003 that they may have",
        source="Mackowiak et al. 2021, equation 19",
        metric="harness.metrics.calibration:OVERCONFIDENCE_ERROR",
        columns=("sample_id", "clean_correct", "confidence"),
        direction="lower",
        unit="times the allowed error rate",
    ),
    MetricInfo(
        name="aurc",
        summary="area under the risk-coverage curve: mean error rate of the accepted as ood_score rejects ever more",
        source="Geifman et al. 2019",
        metric="harness.metrics.calibration:AURC",
        columns=("sample_id", "clean_correct", "ood_score"),
        direction="lower",
    ),
)

LIKELIHOOD: tuple[MetricInfo, ...] = (
    _registered(
        "bits_per_dim",
        "mean negative log-likelihood of the clean images in bits per dimension",
        ("sample_id", "clean_bits_per_dim"),
        "lower",
        "bits/dim",
        module="likelihood",
        source="Theis et al. 2016",
    ),
    _registered(
        "cross_entropy",
        "mean negative log-probability of the label of clean images",
        ("sample_id", "clean_correct", "negative_log_likelihood"),
        "lower",
        "nats",
        module="likelihood",
        source="",
    ),
)

CORRUPTION: tuple[MetricInfo, ...] = (
    MetricInfo(
        name="corruption_accuracy",
        summary="share of corrupted images classified correctly, by corruption and severity, and the means",
        source="Hendrycks & Dietterich 2019",
        metric="harness.metrics.corruption:CORRUPTION_ACCURACY",
        columns=(*_CORRUPTED, "correct"),
        optional=("table",),
        direction="higher",
    ),
    MetricInfo(
        name="entropy_rise",
        summary="mean rise of the predictive entropy from the clean to the corrupted image, by corruption and severity",
        source="Mackowiak et al. 2021, table 3",
        metric="harness.metrics.corruption:ENTROPY_RISE",
        columns=(*_CORRUPTED, "entropy"),
        optional=("table",),
        direction="none",
        unit="nats",
    ),
    MetricInfo(
        name="corruption_auroc",
        summary="area under the ROC curve of corrupted against clean images, by corruption and severity",
        source="Mackowiak et al. 2021, table 3; interval: Obuchowski 1997",
        metric="harness.metrics.corruption:CORRUPTION_AUROC",
        columns=(*_CORRUPTED, "ood_score"),
        optional=("table",),
        direction="none",
    ),
    MetricInfo(
        name="corruption_bits_per_dim",
        summary="mean bits per dimension of corrupted images, by corruption and severity",
        source="Zimmermann et al. 2021, figure 4",
        metric="harness.metrics.corruption:CORRUPTION_BITS_PER_DIM",
        columns=(*_CORRUPTED, "bits_per_dim"),
        optional=("table",),
        direction="none",
        unit="bits/dim",
    ),
    *(
        MetricInfo(
            name=f"{relative}mean_corruption_error",
            summary=summary,
            source=f"Hendrycks & Dietterich 2019, section 3.2{'; relative mCE' if relative else ''}",
            metric=f"harness.metrics.corruption_error:{relative}mean_corruption_error",
            columns=(*_CORRUPTED, "correct", "table"),
            direction="lower",
            scope="group",
            options="harness.metrics.options:ReferenceOptions",
        )
        for relative, summary in (
            ("", "mean over the 15 corruptions of the error rate relative to that of a reference (AlexNet: 100 %)"),
            ("relative_", "mean over the 15 corruptions of the error rate added, relative to what a reference adds"),
        )
    ),
)

_PI, _T = ("sample_id", "pi"), ("sample_id", "t", "log_prob")


_bit_flip = partial(_registered, module="bitflip", source="NCML (Noise Conditional Maximum Likelihood), section 3.1")
_between = partial(_registered, module="interpolation", source="Zimmermann et al. 2021, section 3.4")
BIT_FLIP: tuple[MetricInfo, ...] = (
    _bit_flip(
        "bitflip_bits_per_dim",
        "mean bits/dim at each probability of a flipped bit",
        (*_PI, "bits_per_dim"),
        "lower",
        "bits/dim",
    ),
    _bit_flip(
        "delta_bits_per_dim",
        "|mean NLL(p_data) - mean NLL(p_pi)|, eq. 9",
        (*_PI, "delta_bits_per_dim"),
        "none",
        "bits/dim",
    ),
    _bit_flip("signed_delta_bits_per_dim", "the same with its sign", (*_PI, "delta_bits_per_dim"), "none", "bits/dim"),
    _bit_flip("bitflip_accuracy", "accuracy at each probability of a flipped bit", (*_PI, "correct"), "higher"),
    _bit_flip("bitflip_accuracy_change", "the same less clean accuracy, paired", (*_PI, "correct"), "higher"),
    _bit_flip(
        "bitflip_logit_change",
        "mean largest change of log p(y | x) over the classes",
        (*_PI, "logit_change"),
        "none",
        "nats",
    ),
    _bit_flip(
        "bitflip_auroc", "area under the ROC curve of flipped against original images", (*_PI, "ood_score"), "none"
    ),
)
INTERPOLATION: tuple[MetricInfo, ...] = (
    _between("interpolation_log_prob_mean", "mean log p at each point between two images", _T, "none", "nats"),
    _between("interpolation_log_prob_sd", "standard deviation of log p over pairs at each point", _T, "none", "nats"),
    _between("interpolation_convex_share", "share of pairs along which log p is convex", _T, "higher"),
)
