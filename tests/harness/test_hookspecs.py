"""Every hook is documented with its exact signature, has a test, and is called when its docstring says."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import DatasetInfo, ExecutorInfo, MetricInfo, ModelInfo, ThreatInfo, events, hookimpl, hookspecs
from harness.host import Host, PluginRecord

ROOT = Path(__file__).parents[2]
HOOKS: dict[str, Callable[..., Any]] = {
    name: value for name, value in vars(hookspecs).items() if hasattr(value, "harness_spec")
}


def signature(hook: Callable[..., Any]) -> str:
    """As it stands in the source, on one line."""
    return f"def {hook.__name__}{inspect.signature(hook)}".replace("'", "")


def functions_in_the_tests() -> set[str]:
    names = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature(name: str) -> None:
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
    assert signature(HOOKS[name]) in " ".join(page.split()), f"docs/writing-a-plugin.md lacks: {signature(HOOKS[name])}"


def test_every_documented_hook_exists() -> None:
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
    reference = page[page.index("## Hooks") :].partition("\n## ")[0]
    assert set(re.findall(r"^def (\w+)\(", reference, flags=re.MULTILINE)) == set(HOOKS)


def test_every_hook_has_a_test() -> None:
    missing = {f"test_hook_{name}" for name in HOOKS} - functions_in_the_tests()
    assert not missing


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_when_it_is_called(name: str) -> None:
    assert (HOOKS[name].__doc__ or "").startswith("Called ")


def loaded(hook: str, function: Callable[..., None]) -> Host:
    """A host with one plugin that implements one hook."""
    plugin = type("Plugin", (), {hook: staticmethod(hookimpl(function))})()
    host = Host()
    host.add(plugin, PluginRecord("toy", "a test"))
    assert host.problems == []
    return host


def test_hook_register_models() -> None:
    info = ModelInfo(name="m", summary="s", factory="a:b", capabilities=frozenset({"Classifier"}))
    host = loaded("register_models", lambda register: register(info))
    assert host.models.get("m") is info
    assert host.models.owners["m"].name == "toy"


def test_hook_register_threats() -> None:
    info = ThreatInfo(name="t", summary="s", factory="a:b")
    assert loaded("register_threats", lambda register: register(info)).threats.get("t") is info


def test_hook_register_datasets() -> None:
    info = DatasetInfo(name="d", summary="s", factory="a:b")
    assert loaded("register_datasets", lambda register: register(info)).datasets.get("d") is info


def test_hook_register_metrics() -> None:
    info = MetricInfo(name="q", summary="s", metric="a:b", columns=("success",), direction="lower")
    assert loaded("register_metrics", lambda register: register(info)).metrics.get("q") is info


def test_hook_register_executors() -> None:
    info = ExecutorInfo(name="e", summary="s", factory="a:b")
    assert loaded("register_executors", lambda register: register(info)).executors.get("e") is info


def told(hook: str, event: object) -> list[object]:
    """What an observer of `hook` is told when the host emits `event`; no other observer is told anything."""
    seen: list[object] = []
    host = loaded(hook, lambda event: seen.append(event))
    for other in set(HOOKS) - {hook}:
        if not other.startswith("register_"):
            host.emit(other, "something else")
    host.emit(hook, event)
    return seen


def test_hook_run_started(tmp_path: Path) -> None:
    cell = events.CellPlanned("m/clean/d", samples=10, shards=2, shards_done=1)
    event = events.RunStarted("s", tmp_path, (cell,), {"m/x/d": "not a detector"}, workers=1, device="cpu")
    assert told("run_started", event) == [event]


def test_hook_shard_finished() -> None:
    event = events.ShardFinished("m/clean/d", samples=5, seconds=0.5, reused=False)
    assert told("shard_finished", event) == [event]


def test_hook_cell_finished() -> None:
    event = events.CellFinished("m/clean/d", "failed", {"id": "m/clean/d"}, error="it broke")
    assert told("cell_finished", event) == [event]


def test_hook_run_finished(tmp_path: Path) -> None:
    event = events.RunFinished(tmp_path, {"schema": 1})
    assert told("run_finished", event) == [event]


EVENTS = [e for e in vars(events).values() if is_dataclass(e) and e.__module__ == events.__name__]


@pytest.mark.parametrize("event", EVENTS)
def test_events_are_frozen(event: Any) -> None:
    assert event.__dataclass_params__.frozen
