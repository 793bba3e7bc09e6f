"""How names and numbers are written in reports: no control characters, one form for a value with its interval."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_FPR_OOD = "FPR (OoD) at 95 % TPR (ID)"  # whose images are positive differs between papers
_HEADINGS = {
    "bits_per_dim": "bits/dim",
    "bitflip_bits_per_dim": "bits/dim at pi =",
    "fpr_ood_at_95_tpr_id": _FPR_OOD,
    "fpr_ood_at_95_tpr_id_by_distance": f"{_FPR_OOD} by distance",
    "fpr_id_at_95_tpr_ood": "FPR (ID) at 95 % TPR (OoD)",
}
_ACRONYMS = {"auroc": "AUROC", "aupr": "AUPR", "aurc": "AURC", "fid": "FID", "fpr": "FPR"}
_PERCENT = re.compile(r"(^|_)(accuracy|rate|auroc|aupr|fpr|tpr|calibration_error|corruption_error)(_|$)")
# Of a detector's score, of which a cell may have several: those of the first name none.
_OF_A_SCORE = re.compile(r"(auroc|fpr_\w+)(_by_distance)?|aupr_(in|out)|detection_accuracy|tied_scores")
# Said by another number of the same cell: kept for the page, left out of a table that must fit a terminal.
_SECONDARY = re.compile(
    r"attack_success_rate|robust_accuracy_at|evasion_rate|detection_auroc_of_attacked\w*|(linf|l0|l1|l2|forwards|backwards)_\w+"
    r"|fpr_\w+|aupr\w*|detection_accuracy|tied_scores|\w+_by_distance|two_tailed_uniformity|held_out_\w+"
    r"|aurc|cross_entropy|\w*calibration_error|overconfidence_error|corruption_(auroc|bits_per_dim)|entropy_rise"
    r"|bitflip_(auroc|accuracy_change|logit_change)|signed_\w+|interpolation_log_prob_\w+"
)
# What a number costs tells nothing about the model: after all others.
_COST = re.compile(r"(forwards|backwards)_mean")
# Of these only the variants named: a cell has a hundred others.
_HEADLINE_VARIANTS = {"corruption_accuracy": ("", "without_noise", "all", "none")}
_SAYS_MORE_THAN_CLEAN = ("robust_accuracy", "auroc")
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: object, limit: int = 0) -> str:
    """`text` on one line with control, format and bidirectional characters spelled out (``\\x1b``, ``\\u202e``).

    With a `limit`, what is longer ends in an ellipsis.
    """
    raw = str(text)
    if limit and len(raw) > limit:
        raw = raw[: limit - 1] + "…"
    if raw.isascii() and raw.isprintable():
        return raw
    return "".join(_spelled(c) if unicodedata.category(c) in _INVISIBLE else c for c in raw)


def _spelled(character: str) -> str:
    return " " if character in "\n\t" else ascii(character)[1:-1]


def split_metric(name: str) -> tuple[str, str]:
    """A metric's name and its variant: ``auroc[uniform]`` is ``("auroc", "uniform")``."""
    base, bracket, rest = name.partition("[")
    return (base, rest.removesuffix("]")) if bracket else (name, "")


def heading(name: str, score: str = "") -> str:
    """A metric as the field writes it: ``robust_accuracy`` is "robust accuracy", ``auroc[uniform]`` "AUROC uniform".

    `score`: what it is a number of, in brackets behind it.
    """
    base, variant = split_metric(name)
    words = _HEADINGS.get(base) or " ".join(_ACRONYMS.get(word, word) for word in base.split("_"))
    return visible(" ".join(filter(None, [words, variant, f"({score})" if score else ""])))


def scored_by(name: str, cell: Mapping[str, Any]) -> str:
    """The score that a detection metric of a cell is of, where its own name does not say; else an empty string."""
    base, variant = split_metric(name)
    return str(cell.get("score") or "") if "," not in variant and _OF_A_SCORE.fullmatch(base) else ""


def is_percentage(name: str) -> bool:
    """Whether a metric is a share, which reports show in per cent."""
    return bool(_PERCENT.search(split_metric(name)[0]))


def interval(name: str, estimate: Mapping[str, Any]) -> str:
    """An estimate as ``97.2 [94.9, 98.7]`` (per cent for shares), or "undefined"."""
    if estimate.get("value") is None:
        return "undefined"
    value, low, high = (_number(name, estimate.get(key)) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "?"
    return f"{100 * value:.1f}" if is_percentage(name) else f"{value:.4g}"


def _is_secondary(base: str, variant: str) -> bool:
    shown = _HEADLINE_VARIANTS.get(base)
    of_one_set_and_score = "," in variant and not variant.startswith("mean,")
    return (
        bool(_SECONDARY.fullmatch(base))
        or (shown is not None and variant not in shown)
        or (base == "auroc" and of_one_set_and_score)
    )


def headline_metrics(names: Iterable[str]) -> list[str]:
    """The metrics of a cell that a terminal table shows: those that no other one of the cell already tells.

    What they cost only where there is nothing else.
    """
    names = list(names)
    attacked = any(split_metric(name)[0] in _SAYS_MORE_THAN_CLEAN for name in names)
    primary = [
        name for name in names if not _is_secondary(*split_metric(name)) and not (attacked and name == "clean_accuracy")
    ]
    shown = primary or [name for name in names if not _is_cost(name)] or names
    # Then the means over sets, of each score, before the sets one by one.
    return sorted(shown, key=lambda name: (name != "clean_accuracy", bool(re.search(r"\[(?!mean,)", name))))


def _is_cost(name: str) -> bool:
    return bool(_COST.fullmatch(split_metric(name)[0]))


def costs_last(names: Iterable[str]) -> list[str]:
    """Metrics in their order, but for what they cost, which comes last."""
    return sorted(names, key=_is_cost)


def failing_checks(cell: Mapping[str, Any]) -> list[str]:
    """What the audit holds against a cell's number, one sentence a check."""
    return [
        visible(entry.get("message") or entry.get("check", "")) for entry in cell.get("audit") or [] if not entry["ok"]
    ]


def audit_state(cell: Mapping[str, Any]) -> str:
    """ "reliable", "UNRELIABLE", or empty for a cell that has no audit."""
    if cell.get("reliable") is False:
        return "UNRELIABLE"
    return "reliable" if cell.get("audit") else ""
