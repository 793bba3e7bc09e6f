"""Options: defaults by mode, and one line for each thing that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from harness_sbgc.options import SbgcOptions

from harness.suite import validate_options


def test_defaults_by_mode() -> None:
    fast, paper = SbgcOptions(), SbgcOptions(mode="paper")
    assert (fast.chosen_solver, fast.chosen_steps, fast.chosen_probes) == ("rk4", 12, 1)
    assert (paper.chosen_solver, paper.chosen_probes, paper.rtol, paper.atol) == ("rk45", 30, 1e-5, 1e-5)
    assert SbgcOptions(mode="paper", probes=10, solver="heun").chosen_probes == 10
    assert SbgcOptions(solver="heun").chosen_steps == 24


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"solver": "rk45", "rtol": 0.0}, ["rtol", "greater than 0"]),
        ({"solver": "rk45", "atol": -1e-5}, ["atol", "greater than 0"]),
        ({"probes": 0}, ["probes", "greater than or equal to 1"]),
        ({"smallest_time": 1.0}, ["smallest_time", "less than 1"]),
        ({"smallest_time": 0.0}, ["smallest_time", "greater than 0"]),
        ({"steps": 0}, ["steps", "greater than or equal to 1"]),
        ({"max_steps": 0, "solver": "rk45"}, ["max_steps"]),
        ({"rtol": 1e-3}, ["`rtol` belongs to solver rk45, not to rk4"]),
        ({"mode": "paper", "steps": 10}, ["`steps` belongs to a fixed grid"]),
        ({"trace": "exact", "probes": 3}, ["an exact trace has no `probes`"]),
        ({"temperature": 0.0}, ["`temperature` is 0; it is above 0"]),
        ({"temperature": "nats"}, ["temperature"]),
        ({"solvr": "rk4"}, ["solvr", "solver"]),
    ],
)
def test_what_cannot_be(table: dict[str, Any], words: list[str]) -> None:
    found, problems = validate_options(SbgcOptions, table, "models.sbgc")
    assert found is None
    said = " ".join(problems)
    assert "\n" not in said
    assert all(word in said for word in words), said
