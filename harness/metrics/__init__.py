"""Metrics: rows in, estimates out. A number without an interval is never reported.

The names are loaded on first use: registering metrics, which every command does, must not import NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.metrics.base import CellRows, Estimate, GroupMetric, Metric, PairedDifference, Rows, Summary, undefined

__all__ = ["CellRows", "Estimate", "GroupMetric", "Metric", "PairedDifference", "Rows", "Summary", "undefined"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from harness.metrics import base

        return getattr(base, name)
    raise AttributeError(f"module 'harness.metrics' has no attribute '{name}'")
