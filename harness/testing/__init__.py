"""The conformance kit for plugin authors: does a model or a threat keep the contract of the harness?

In a plugin's own tests::

    from harness.testing import model_checks, parametrize_with_checks

    @parametrize_with_checks(model_checks(INFO, {"hidden": 16}), expected_failures={"gradients": "quantised input"})
    def test_conformance(check):
        check()

or, in one go, ``check_model(INFO, {"hidden": 16})`` and ``check_threat("pgd", {"eps": "8/255"})``.

The names below are loaded on first use: pytest imports this package in every session.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.testing.checks import Check, parametrize_with_checks
    from harness.testing.conformance import check_model, check_threat, model_checks, threat_checks
    from harness.testing.toys import ToyClassifier, ToyDensity, synthetic_data, toy_model

_LAZY = {
    **dict.fromkeys(("Check", "parametrize_with_checks"), "harness.testing.checks"),
    **dict.fromkeys(("check_model", "check_threat", "model_checks", "threat_checks"), "harness.testing.conformance"),
    **dict.fromkeys(("ToyClassifier", "ToyDensity", "synthetic_data", "toy_model"), "harness.testing.toys"),
}

__all__ = [
    "Check",
    "ToyClassifier",
    "ToyDensity",
    "check_model",
    "check_threat",
    "model_checks",
    "parametrize_with_checks",
    "synthetic_data",
    "threat_checks",
    "toy_model",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'harness.testing' has no attribute '{name}'")
