"""`harness plugins` and `harness plugins show`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.cli.plugins import command
from harness.errors import HarnessError

PLUGIN = """
from typing import Literal

from harness import Amount, DatasetInfo, MetricInfo, ModelInfo, Options, ThreatInfo, hookimpl, option


class MyOptions(Options):
    norm: Literal["linf", "l2"] = option("linf", help="norm of the budget")
    eps: Amount = option(help="radius", unit="pixel values in [0, 1]")
    rel: Amount = option(Amount("1/4"), help="relative step size")
    steps: int = option(40, help="gradient steps", ge=1)
    sets: tuple[str, ...] = option(("uniform",), help="sets of images")
    key: str | None = option(None, help="key of the weights")


@hookimpl
def register_models(register):
    register(ModelInfo(name="zz-twin", summary="a model", factory="absent_module:build",
                       capabilities=frozenset({"ClassDensity"}), source="Someone 2020"))


@hookimpl
def register_threats(register):
    register(ThreatInfo(name="zz-attack", summary="an attack", factory=print, options=MyOptions, source="Madry 2018",
                        requires=frozenset({"Classifier"}), budget_option="eps"))
    register(ThreatInfo(name="zz-twin", summary="a threat", factory=print, options="absent_module:Options"))


@hookimpl
def register_metrics(register):
    register(MetricInfo(name="zz_rate", summary="a rate", metric=print, columns=("success",), direction="lower"))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def test_everything_is_listed_with_one_line_each(plugin: str) -> None:
    lines = invoke("-p", plugin).output.splitlines()
    for kind in ("models", "threats", "datasets", "metrics", "executors"):
        assert kind in lines
    (line,) = [line for line in lines if "zz-attack" in line]
    assert line.split() == ["zz-attack", "mine", "an", "attack"]
    assert lines.index("models") < lines.index("threats") < lines.index(line) < lines.index("metrics")


def test_problems_come_at_the_end(plugin: str, tmp_path: Path) -> None:
    rival = tmp_path / "rival.py"
    rival.write_text(PLUGIN)
    output = invoke("-p", plugin, "-p", str(rival)).output
    listed, _, problems = output.partition("\nproblems\n")
    assert "zz-attack" not in listed
    assert "threat 'zz-attack' is claimed by plugin 'mine'" in problems


def test_json_holds_the_same(plugin: str) -> None:
    data = json.loads(invoke("--json", "-p", plugin).output)
    (attack,) = [threat for threat in data["threats"] if threat["name"] == "zz-attack"]
    assert attack == {
        "name": "zz-attack", "summary": "an attack", "source": "Madry 2018", "plugin": "mine", "origin": plugin
    }  # fmt: skip
    assert data["schema"] == 1
    assert isinstance(data["problems"], list)


def test_show_prints_every_option_with_type_default_unit_and_description(plugin: str) -> None:
    lines = [line.split("  ") for line in invoke("show", "zz-attack", "-p", plugin).output.splitlines()]
    rows = {tuple(part.strip() for part in line if part.strip()) for line in lines}
    assert ("norm", "linf | l2", '"linf"', "norm of the budget") in rows
    assert ("eps", "number or fraction", "required", "radius (pixel values in [0, 1])") in rows
    assert ("rel", "number or fraction", '"1/4"', "relative step size") in rows
    assert ("steps", "integer >= 1", "40", "gradient steps") in rows
    assert ("sets", "list of text", '["uniform"]', "sets of images") in rows
    assert ("key", "text or none", "none", "key of the weights") in rows
    assert ("needs", "Classifier") in rows
    assert ("budget", "eps") in rows
    assert ("source", "Madry 2018") in rows


def test_show_prints_a_models_capabilities_with_those_derived(plugin: str) -> None:
    output = invoke("-p", plugin, "show", "model/zz-twin").output
    assert "capabilities  ClassDensity\n" in output
    assert "derived       Classifier, Density, Detector\n" in output
    assert "source        Someone 2020" in output


def test_show_a_metric(plugin: str) -> None:
    output = invoke("-p", plugin, "show", "zz_rate").output
    assert "columns       success" in output
    assert "lower is better" in output


def test_every_registered_thing_can_be_shown() -> None:
    data = json.loads(invoke("--json").output)
    assert data["models"], "the project registers at least one model"
    for kind in ("models", "threats", "datasets", "metrics", "executors"):
        for entry in data[kind]:
            output = invoke("show", f"{kind[:-1]}/{entry['name']}").output
            assert entry["summary"] in output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zz-twin", "'zz-twin' is of 2 kinds; say which: 'model/zz-twin' or 'threat/zz-twin'"),
        ("zz-atack", "no plugin registers 'zz-atack'; did you mean 'zz-attack'?"),
        ("threat/zz-atack", "'zz-atack' is not a threat; did you mean 'zz-attack'?"),
        ("threat/zz-twin", "threat 'zz-twin': cannot load 'absent_module:Options'"),
    ],
)
def test_a_name_that_cannot_be_shown_gets_one_line(plugin: str, name: str, message: str) -> None:
    with pytest.raises(HarnessError) as caught:
        invoke("-p", plugin, "show", name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.cli.plugins import command\ncommand([], standalone_mode=False)\n"
        "heavy = {'torch', 'pydantic', 'pyarrow', 'scipy', 'sklearn', 'matplotlib', 'rich', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
