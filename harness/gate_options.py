"""The `[gate]` table of a suite: what a candidate must not lose against its baseline."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from harness.options import Options, option

GateMode = Literal["detect", "noninferior"]


def matches_glob(text: str, pattern: str) -> bool:
    """Whether `text` as a whole fits `pattern`, in which only ``*`` and ``?`` are wildcards.

    Brackets stand for themselves, as they do in cell ids: ``pgd[eps=2/255]``.
    """
    expression = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern))
    return re.fullmatch(expression, text, flags=re.DOTALL) is not None


class GateSelect(Options):
    """Which cells a rule is about; patterns with ``*`` and ``?``."""

    threat: str = option("*", help="threat with its parameters (pgd[eps=2/255]), or the threat plugin's name")
    model: str = option("*", help="model name in the suite")
    dataset: str = option("*", help="data set")

    def matches(self, *, threat: str, plugin: str, model: str, dataset: str) -> bool:
        """Whether a cell of this threat label, threat plugin, model and data set is selected."""
        return (
            (matches_glob(threat, self.threat) or matches_glob(plugin, self.threat))
            and matches_glob(model, self.model)
            and matches_glob(dataset, self.dataset)
        )


class GateRule(Options):
    """One metric over some cells. Limits not given here are those of the `[gate]` table."""

    metric: str = option(help="metric, such as robust_accuracy; auroc means every variant, auroc[uniform] one of them")
    select: GateSelect = option(GateSelect(), help="cells the rule is about; every cell with the metric by default")
    max_drop: float | None = option(None, help="largest loss that may go unnoticed", unit="of the metric", gt=0)
    tolerance: float | None = option(None, help="detect: losses up to this never fail", unit="of the metric", ge=0)
    floor: float | None = option(
        None,
        help="worst value allowed: the interval must lie above it (below it where lower is better)",
        unit="of the metric",
    )
    severity: Literal["fail", "warn"] = option("fail", help="warn: reported, but the gate passes")


class GateOptions(Options):
    """How a candidate is judged against its baseline.

    `detect` fails on a regression that is significant over the whole suite and larger than `tolerance`, and is
    inconclusive where even two runs without any difference would be too small to exclude a loss of `max_drop`.
    `noninferior` passes when every cell shows that it lost less than `max_drop`. Without rules, clean and robust
    accuracy of every model are judged.
    """

    mode: GateMode = option("detect", help="detect: fail on a shown regression; noninferior: pass on a shown non-loss")
    alpha: float = option(0.05, help="chance of a wrong verdict that is accepted", gt=0, lt=0.5)
    max_drop: float = option(0.01, help="largest loss that may go unnoticed", unit="of the metric", gt=0)
    tolerance: float = option(0.01, help="detect: losses up to this never fail", unit="of the metric", ge=0)
    correction: Literal["holm", "none"] = option("holm", help="detect: correction for many comparisons over the suite")
    rules: tuple[GateRule, ...] = Field(default=(), description="what is judged")
