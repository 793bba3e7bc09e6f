"""Harness: pytest for model robustness.

The names below are the public interface. They are loaded on first use, so that ``import harness`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness._version import __version__
from harness.errors import HarnessError
from harness.hookspecs import hookimpl
from harness.info import DatasetInfo, ExecutorInfo, MetricInfo, ModelInfo, ThreatInfo

if TYPE_CHECKING:
    from harness.capabilities import ClassDensity, Classifier, Density, Detector, Explainer, Sampler, Trainable
    from harness.datasets import Dataset, DatasetContext, DatasetFacts, DatasetSlice
    from harness.gate_options import GateOptions
    from harness.gating.judging import GateReport, gate
    from harness.metrics import Estimate, Metric
    from harness.models import ModelContext, ModelView
    from harness.options import Amount, Options, option
    from harness.randomness import Draws
    from harness.runner import RunOptions, run
    from harness.store import Run, load_run
    from harness.threats import Batch, Budget, Threat, ThreatContext

_LAZY = {
    **dict.fromkeys(
        ("ClassDensity", "Classifier", "Density", "Detector", "Explainer", "Sampler", "Trainable"),
        "harness.capabilities",
    ),
    **dict.fromkeys(("Dataset", "DatasetContext", "DatasetFacts", "DatasetSlice"), "harness.datasets"),
    **dict.fromkeys(("Estimate", "Metric"), "harness.metrics"),
    **dict.fromkeys(("ModelContext", "ModelView"), "harness.models"),
    **dict.fromkeys(("Amount", "Options", "option"), "harness.options"),
    **dict.fromkeys(("Batch", "Budget", "Threat", "ThreatContext"), "harness.threats"),
    "Draws": "harness.randomness",
    **dict.fromkeys(("RunOptions", "run"), "harness.runner"),
    **dict.fromkeys(("Run", "load_run"), "harness.store"),
    **dict.fromkeys(("GateReport", "gate"), "harness.gating.judging"),
    "GateOptions": "harness.gate_options",
}

__all__ = [
    "Amount",
    "Batch",
    "Budget",
    "ClassDensity",
    "Classifier",
    "Dataset",
    "DatasetContext",
    "DatasetFacts",
    "DatasetInfo",
    "DatasetSlice",
    "Density",
    "Detector",
    "Draws",
    "Estimate",
    "ExecutorInfo",
    "Explainer",
    "GateOptions",
    "GateReport",
    "HarnessError",
    "Metric",
    "MetricInfo",
    "ModelContext",
    "ModelInfo",
    "ModelView",
    "Options",
    "Run",
    "RunOptions",
    "Sampler",
    "Threat",
    "ThreatContext",
    "ThreatInfo",
    "Trainable",
    "__version__",
    "gate",
    "hookimpl",
    "load_run",
    "option",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")
