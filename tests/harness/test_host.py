"""The host: finding plugins, naming what is wrong with one, and going on with the others."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import hookimpl
from harness import host as host_module
from harness.errors import PluginError
from harness.host import Host, PluginRecord, load_host
from harness.info import Info, ModelInfo, ThreatInfo, resolve

MODEL = """
from harness import ModelInfo, hookimpl

@hookimpl
def register_models(register):
    register(ModelInfo(name="{name}", summary="a toy", factory="json:loads", capabilities=frozenset()))
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a one-module distribution: a module, and a dist-info folder with an entry point, on sys.path.

    The plugins of the checkout itself stay out of the way, so that these tests say nothing about them.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    installed: set[str] = set()
    before = set(sys.modules)

    def write(module: str, source: str, *, point: str | None = None, dist: str | None = None) -> Path:
        path = site / f"{module}.py"
        path.write_text(textwrap.dedent(source))
        if point is not None:
            name = dist or f"toy-{module.replace('_', '-')}"
            info = site / f"{name.replace('-', '_')}-1.2.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
            (info / "entry_points.txt").write_text(f"[harness]\n{point} = {module}\n")
            installed.add(name)
        return path

    def only_ours(*, group: str) -> list[importlib.metadata.EntryPoint]:
        points = importlib.metadata.entry_points(group=group)
        return [p for p in points if p.dist is not None and p.dist.name in installed]

    monkeypatch.setattr(host_module, "entry_points", only_ours)
    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def record(host: Host, name: str) -> PluginRecord:
    return next(p for p in host.plugins if p.name == name)


def one_line(text: str) -> str:
    assert "\n" not in text
    return text


def test_an_installed_plugin_is_found_and_its_origin_known(install: Install) -> None:
    install("toy_good", MODEL.format(name="toy"), point="good")
    host = load_host()
    assert host.models.get("toy").summary == "a toy"
    assert host.problems == [p for p in host.problems if "good" not in p]
    assert record(host, "good").origin == "toy_good of toy-toy-good 1.2"
    assert host.models.owners["toy"] is record(host, "good")


def test_installed_plugins_can_be_left_out(install: Install) -> None:
    install("toy_good", MODEL.format(name="toy"), point="good")
    host = load_host(entry_point_plugins=False)
    assert [p.name for p in host.plugins] == ["harness"]
    assert "toy" not in host.models


def test_two_plugins_claiming_one_model_name(install: Install) -> None:
    install("toy_one", MODEL.format(name="toy"), point="one")
    install("toy_two", MODEL.format(name="toy"), point="two")
    install("toy_three", MODEL.format(name="other"), point="three")
    host = load_host()
    with pytest.raises(PluginError) as caught:
        host.models.get("toy")
    text = one_line(str(caught.value))
    for part in ("model plugin 'toy'", "'one'", "toy_one of toy-toy-one 1.2", "'two'", "toy_two of", "-p no:"):
        assert part in text
    assert text in host.problems
    assert host.models.get("other").name == "other"
    assert "toy" not in host.models
    assert load_host(["no:two"]).models.get("toy").name == "toy"


def test_two_packages_claiming_one_entry_point_name(install: Install) -> None:
    install("toy_one", MODEL.format(name="first"), point="same", dist="toy-a")
    install("toy_two", MODEL.format(name="second"), point="same", dist="toy-b")
    install("toy_three", MODEL.format(name="other"), point="three")
    host = load_host()
    text = one_line(record(host, "same").error)
    assert "toy_one of toy-a 1.2" in text
    assert "toy_two of toy-b 1.2" in text
    assert "uninstall one" in text
    assert [m.name for m in host.models] == ["other"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_module_xyz", "ModuleNotFoundError: No module named 'no_such_module_xyz'"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from harness import NoSuchThing", "ImportError: cannot import name 'NoSuchThing'"),
    ],
)
def test_a_plugin_that_fails_to_import(install: Install, source: str, expected: str) -> None:
    install("toy_bad", source, point="bad")
    install("toy_good", MODEL.format(name="toy"), point="good")
    host = load_host()
    assert host.models.get("toy").name == "toy"
    (text,) = [one_line(p) for p in host.problems if "'bad'" in p]
    assert "plugin 'bad' (toy_bad of toy-toy-bad 1.2): cannot be imported: " in text
    assert expected in text


def test_a_missing_name_is_explained_by_the_plugin_that_did_not_load(install: Install) -> None:
    install("toy_bad", "import no_such_module_xyz", point="bad")
    with pytest.raises(PluginError) as caught:
        load_host().models.get("toy")
    text = one_line(str(caught.value))
    assert text.startswith("'toy' is not a model plugin")
    assert "plugin 'bad' (toy_bad of toy-toy-bad 1.2): cannot be imported: ModuleNotFoundError" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "@hookimpl\ndef register_model(register): ...",
            "'register_model' is not a hook; did you mean 'register_models'",
        ),
        ("def register_models(register): ...", "'register_models' has the name of a hook but lacks the decorator"),
        ("@hookimpl(wrapper=True)\ndef run_finished(event):\n    yield", "'run_finished' is a hook wrapper"),
        ("@hookimpl\ndef register_models(reg): ...", "Argument(s) {'reg'} are declared in the hookimpl but can not be"),
        ("", "implements no hook"),
        (
            "HARNESS_API = 2\n@hookimpl\ndef register_dreams(register): ...",
            "was written for hook version 2, this harness has version 1; upgrade the harness",
        ),
        ("@hookimpl\ndef register_models(register):\n    1 / 0", "register_models failed: ZeroDivisionError"),
        (
            "@hookimpl\ndef register_threats(register):\n"
            "    register(ModelInfo(name='m', summary='', factory='json:loads', capabilities=frozenset()))",
            "register_threats: expected a ThreatInfo, got ModelInfo(",
        ),
        (
            "@hookimpl\ndef register_models(register):\n"
            "    register(ModelInfo(name='a/b', summary='', factory='json:loads', capabilities=frozenset()))",
            "register_models: 'a/b' is not a name",
        ),
    ],
    ids=["mistyped", "undecorated", "wrapper", "argument", "empty", "newer", "raises", "wrong-kind", "bad-name"],
)
def test_a_plugin_with_a_fault_is_named_and_the_others_load(install: Install, source: str, expected: str) -> None:
    install("toy_bad", f"from harness import ModelInfo, hookimpl\n{source}\n", point="bad")
    install("toy_good", MODEL.format(name="toy"), point="good")
    host = load_host()
    assert host.models.get("toy").name == "toy"
    (text,) = [one_line(p) for p in host.problems if "'bad'" in p]
    assert "plugin 'bad' (toy_bad of toy-toy-bad 1.2): " in text
    assert expected in text


def test_a_plugin_is_taken_whole_or_not_at_all(install: Install) -> None:
    source = MODEL.format(name="half") + "\n@hookimpl\ndef register_threats(register):\n    raise OSError('no')\n"
    source += "\n@hookimpl\ndef run_started(event):\n    raise AssertionError('must not be called')\n"
    install("toy_bad", source, point="bad")
    host = load_host()
    assert "half" not in host.models
    assert "half" not in host.models.owners
    assert not [i for i in host._manager.get_plugins() if getattr(i, "__name__", "") == "toy_bad"]


def test_an_older_plugin_loads(install: Install) -> None:
    install("toy_old", "HARNESS_API = 1\n" + MODEL.format(name="toy"), point="old")
    assert load_host().models.get("toy").name == "toy"


def test_a_plugin_from_a_file(install: Install, tmp_path: Path) -> None:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL.format(name="mine"))
    host = load_host([str(path)])
    assert host.models.get("mine").name == "mine"
    assert record(host, "my_model").origin == str(path)


def test_a_plugin_from_a_module(install: Install) -> None:
    install("toy_module", MODEL.format(name="mine"))
    host = load_host(["toy_module"])
    assert record(host, "toy_module").origin == "toy_module"
    assert host.models.get("mine").name == "mine"


def test_an_installed_plugin_named_again_is_one_plugin(install: Install) -> None:
    install("toy_good", MODEL.format(name="toy"), point="good")
    host = load_host(["toy_good"])
    assert host.models.get("toy").name == "toy"
    assert not host.models.conflicts


def test_a_file_whose_name_an_installed_plugin_has(install: Install, tmp_path: Path) -> None:
    install("toy_good", MODEL.format(name="toy"), point="good")
    path = tmp_path / "good.py"
    path.write_text(MODEL.format(name="mine"))
    with pytest.raises(PluginError) as caught:
        load_host([str(path)])
    text = one_line(str(caught.value))
    assert str(path) in text
    assert "its name 'good' is taken by the plugin of toy_good of toy-toy-good 1.2" in text
    assert load_host(["no:good", str(path)]).models.get("mine").name == "mine"


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("missing.py", None, "no such file"),
        ("broken.py", "1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        (
            "typo.py",
            "from harness import hookimpl\n@hookimpl\ndef run_finish(event): ...",
            "did you mean 'run_finished'?",
        ),
        ("nothing.py", "x = 1", "implements no hook"),
    ],
)
def test_a_file_that_is_no_plugin_is_fatal(tmp_path: Path, name: str, source: str | None, expected: str) -> None:
    path = tmp_path / name
    if source is not None:
        path.write_text(source)
    with pytest.raises(PluginError) as caught:
        load_host([str(path)], entry_point_plugins=False)
    assert expected in one_line(str(caught.value))
    assert f"-p {path}" in str(caught.value)
    if expected.startswith("cannot be imported"):
        assert f"harness_file_{path.stem}" not in sys.modules


def test_a_module_that_is_not_there_is_fatal() -> None:
    with pytest.raises(PluginError) as caught:
        load_host(["no_such_module_xyz"], entry_point_plugins=False)
    assert one_line(str(caught.value)).startswith("-p no_such_module_xyz: cannot be imported: ModuleNotFoundError")


def test_blocking(install: Install) -> None:
    install("toy_one", MODEL.format(name="one"), point="first")
    install("toy_two", "import no_such_module_xyz", point="second")
    host = load_host(["no:second"])
    assert not [p for p in host.plugins if p.name == "second"]
    assert "toy_two" not in sys.modules
    with pytest.raises(PluginError) as caught:
        load_host(["no:secnd"])
    assert one_line(str(caught.value)) == ("-p no:secnd: no installed plugin has this name; did you mean 'second'?")


class Watcher:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @hookimpl
    def run_started(self, event: object) -> None:
        self.seen.append(event)


class Bare:
    """An observer that does not care about the event itself."""

    calls = 0

    @hookimpl
    def run_started(self) -> None:
        self.calls += 1


class Failing:
    @hookimpl
    def run_started(self, event: object) -> None:
        raise KeyError("a tracker that cannot be reached")


def test_observers_see_events_and_a_failing_one_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    host = load_host(entry_point_plugins=False)
    before, failing, after, bare = Watcher(), Failing(), Watcher(), Bare()
    for name, observer in (("before", before), ("failing", failing), ("after", after), ("bare", bare)):
        host.observe(observer, name)
    event = SimpleNamespace(suite="s")
    with caplog.at_level(logging.ERROR, logger="harness"):
        host.emit("run_started", event)
    assert before.seen == after.seen == [event]
    assert bare.calls == 1
    assert "plugin 'failing' failed in run_started" in caplog.text
    assert "a tracker that cannot be reached" in caplog.text


def test_an_observer_that_cannot_be_added_is_an_error() -> None:
    class Mistyped:
        @hookimpl
        def run_ended(self, event: object) -> None: ...

    host = load_host(entry_point_plugins=False)
    with pytest.raises(PluginError, match=r"observer 'mine' .*'run_ended' is not a hook"):
        host.observe(Mistyped(), "mine")
    host.observe(Watcher(), "one")
    with pytest.raises(PluginError, match=r"observer 'one' .*its name 'one' is taken"):
        host.observe(Watcher(), "one")


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    host = Host()
    host.threats.add(ThreatInfo(name="pgd", summary="", factory="json:loads"), PluginRecord("a", "b"))
    with pytest.raises(PluginError, match="'pdg' is not a threat; did you mean 'pgd'"):
        host.threats.get("pdg")


def test_registries_list_by_name() -> None:
    host = Host()
    for name in ("b", "a"):
        host.models.add(
            ModelInfo(name=name, summary="", factory="json:loads", capabilities=frozenset()), PluginRecord("p", "o")
        )
    assert [m.name for m in host.models] == ["a", "b"]
    assert [i.kind for i in host_module.infos(host.registries)] == ["model", "model"]


def test_resolve_names_owner_path_and_cause() -> None:
    assert resolve("json:loads", "x") is json.loads
    assert resolve(len, "x") is len
    for path, cause in (("no_such_module_xyz:f", "ModuleNotFoundError"), ("json:nothing", "AttributeError")):
        with pytest.raises(PluginError) as caught:
            resolve(path, "model 'm'")
        assert one_line(str(caught.value)).startswith(f"model 'm': cannot load '{path}': {cause}")


def test_the_kind_of_an_info_is_its_class_name() -> None:
    assert Info(name="x", summary="").kind == ""
    assert ThreatInfo(name="x", summary="", factory="a:b").kind == "threat"
