"""Options of backends: budgets, fractions, names with their nearest, libraries that are not there."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from harness.backends.options import (
    BackendOptions,
    check_arguments,
    library,
    named,
    parameters,
    release,
    scaled_step,
)
from harness.errors import HarnessError
from harness.standard_probes import probes_of_ball
from harness.threats import Budget


class Toy:
    def __init__(self, model: Any, steps: int, eps: float = 0.3, step: float = 0.1, **more: Any) -> None: ...


def options(**table: Any) -> BackendOptions:
    return BackendOptions.model_validate({"attack": "Toy", "norm": "l2", **table})


@pytest.mark.parametrize("table", [{}, {"eps": math.inf}, {"eps": "inf"}])
def test_without_a_budget_the_smallest_norm_is_looked_for(table: dict[str, Any]) -> None:
    assert options(**table).eps is None
    assert options(**table).budget == Budget("l2", math.inf)


def test_numbers_may_be_fractions_and_are_shown_as_written() -> None:
    given = options(eps="8/255", arguments={"step": "2/255", "loss": "a/b", "n": 3})
    assert given.budget == Budget("l2", 8 / 255)
    assert given.numbers == {"step": 2 / 255, "loss": "a/b", "n": 3}
    assert given.model_dump(mode="json")["arguments"] == {"step": "2/255", "loss": "a/b", "n": 3}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"eps": -1}, "-1 is negative"),
        ({"eps": 8, "norm": "linf"}, 'did you mean "8/255"'),
        ({"eps": "much"}, "'much' is not a number"),
        ({"norm": "l3"}, "Input should be"),
        ({"epsilon": 1}, "Extra inputs"),
    ],
)
def test_bad_options(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(**table)


def test_norm_must_be_said() -> None:
    with pytest.raises(ValidationError, match="norm"):
        BackendOptions.model_validate({"attack": "Toy"})


def test_names_with_their_nearest() -> None:
    assert named("Toy", {"Toy": Toy}, "Toys") is Toy
    with pytest.raises(HarnessError, match=r"^attack: Toys has no attack 'Toi'; did you mean 'Toy'\?$"):
        named("Toi", {"Toy": Toy}, "Toys")
    known = parameters(Toy, ("model",))
    assert list(known) == ["steps", "eps", "step"]
    check_arguments("Toy", {"steps": 1}, known, {"eps": "no"})
    with pytest.raises(HarnessError, match=r"^arguments.stops: Toy has no such argument; did you mean 'steps'\?$"):
        check_arguments("Toy", {"stops": 1}, known, {})
    with pytest.raises(HarnessError, match=r"^arguments.eps: say it elsewhere$"):
        check_arguments("Toy", {"steps": 1, "eps": 1}, known, {"eps": "say it elsewhere"})
    with pytest.raises(HarnessError, match=r"^arguments: Toy needs 'steps'$"):
        check_arguments("Toy", {}, known, {})


def test_a_step_keeps_its_proportion_to_the_budget() -> None:
    known = parameters(Toy, ("model",))
    assert scaled_step(known, "step", "eps", 0.03) == pytest.approx({"step": 0.01})
    assert scaled_step(known, "steps", "eps", 0.03) == {}
    assert scaled_step(known, "pace", "eps", 0.03) == {}


def test_a_library_that_is_not_there_is_one_line_with_the_command() -> None:
    with pytest.raises(HarnessError, match=r"^Toys is not installed: pip install toys$"):
        library("no_such_toys.attacks", "Toys", "pip install toys")


def test_a_library_that_does_not_load_says_why(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_toys.py").write_text("import no_such_part_of_toys")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HarnessError, match=r"^Toys does not load: No module named 'no_such_part_of_toys'$"):
        library("broken_toys", "Toys", "pip install toys")


def test_the_release_is_part_of_what_results_are_known_by() -> None:
    (file,) = release("pytest")
    assert "\nVersion: " in file.read_text(encoding="utf-8")


def test_an_attack_with_a_budget_is_probed_in_its_own_ball() -> None:
    probes = probes_of_ball(options(eps="8/255"))
    assert {p.plugin for p in probes} == {"noise", "square", "pgd"}
    assert all((p.table["norm"], p.table["eps"]) == ("l2", "8/255") for p in probes)


@pytest.mark.parametrize("table", [{}, {"eps": 0}, {"eps": 0.1, "arguments": {"targeted": True}}])
def test_without_a_ball_or_with_a_target_nothing_is_probed(table: dict[str, Any]) -> None:
    assert probes_of_ball(options(**table)) == ()
