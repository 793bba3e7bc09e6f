"""Metrics: rows in, estimates out. A number without an interval is never reported."""

from harness.metrics.base import CellRows, Estimate, GroupMetric, Metric, PairedDifference, Rows, Summary, undefined

__all__ = ["CellRows", "Estimate", "GroupMetric", "Metric", "PairedDifference", "Rows", "Summary", "undefined"]
