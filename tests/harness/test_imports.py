"""Who may import whom: data flows one way, the host knows no plugin, and listing plugins loads nothing heavy."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").is_file())
SHARED = "harness_diffusion"  # the one plugin that others build upon

LAYERS: tuple[tuple[str, ...], ...] = (
    # words, numbers and files that know nothing of the rest
    ("_version", "arithmetic", "drawing", "errors", "events", "options", "randomness", "statistics", "typicality"),
    ("readout",),
    ("label_map",),
    (
        "info",
        "bpda",
        "checkpoints",
        "datasets",
        "gate_options",
        "option_problems",
        "standard_probes",
        "suite_datasets",
        "suite_overrides",
    ),
    ("hookspecs", "standard_probes", "training", "explanations"),
    # who can do what
    ("host", "capabilities"),
    ("models",),
    ("metrics",),
    ("threats", "builtin"),
    ("backends",),
    # suite -> plan -> shards -> rows
    ("suite",),
    ("suite_schema", "loading", "store"),
    ("judge", "auxiliary"),
    ("evaluate", "plan"),
    ("executors", "iterates"),
    # rows -> estimates -> run
    ("audit",),
    ("estimates",),
    ("runner",),
    ("retrace",),
    # two runs -> verdicts
    ("gating",),
    # what people and other programs see
    ("report",),
    ("testing",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "harness").rglob("*.py"))


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file, ROOT): file for file in FILES}


def imported(file: Path, package: str, *, for_types: bool = True) -> Iterator[str]:
    """Names that a file imports, wherever in it: "a.b" for both `import a.b` and `from a import b`.

    With `for_types` also those that only annotations use.
    """
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports of {package} in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_behind(name: str) -> str | None:
    """The module of the harness that an imported name comes from."""
    if name.partition(".")[0] != "harness":
        return None
    parts = name.split(".")
    while ".".join(parts) not in MODULES:
        parts.pop()
    found = ".".join(parts)
    if found == "harness" and name != "harness":  # a public name, such as `from harness import hookimpl`
        attribute = name.removeprefix("harness.")
        value = None if attribute in harness._LAZY else getattr(harness, attribute)
        return harness._LAZY.get(attribute) or str(getattr(value, "__module__", "harness._version"))
    return found


def test_modules_depend_only_on_those_further_left_in_the_data_flow() -> None:
    wrong = []
    for module, file in MODULES.items():
        own = module.split(".")[1] if "." in module else None
        if own is None:
            continue  # the package itself offers names of many modules, lazily
        assert own in LEVEL, f"harness.{own} is new: give it a place in LAYERS"
        for name in imported(file, "harness"):
            target = modules_behind(name)
            if target is None or "." not in target:
                continue
            other = target.split(".")[1]
            if other != own and LEVEL[other] >= LEVEL[own]:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_layers_name_only_what_is_there() -> None:
    there = {module.split(".")[1] for module in MODULES if "." in module}
    assert set(LEVEL) <= there


def test_there_is_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        targets = {modules_behind(name) for name in imported(file, "harness", for_types=False)}
        if module != "harness":
            graph[module] = {target for target in targets if target not in (None, module)}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("harness.errors") < order.index("harness.runner")


@pytest.mark.parametrize("file", FILES, ids=lambda f: module_name(f, ROOT))
def test_the_host_knows_no_plugin(file: Path) -> None:
    known = [name for name in imported(file, "harness") if name.partition(".")[0].startswith("harness_")]
    texts = [
        node.value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    paths = [text for text in texts if text.replace(":", ".").partition(".")[0] in PLUGINS]
    assert not known + paths


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_do_not_import_each_other(plugin: str) -> None:
    folder = ROOT / "plugins" / plugin
    wrong = [
        f"{module_name(file, ROOT / 'plugins')} imports {name}"
        for file in sorted(folder.rglob("*.py"))
        for name in imported(file, plugin)
        if name.partition(".")[0].startswith("harness_") and name.partition(".")[0] not in (plugin, SHARED)
    ]
    assert not wrong


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_registers_without_importing_its_own_modules(plugin: str) -> None:
    names = set(imported(ROOT / "plugins" / plugin / "__init__.py", plugin))
    allowed = {"__future__", "collections", "harness", "typing", "pathlib"}
    assert {name.partition(".")[0] for name in names} <= allowed


def test_public_names_are_there() -> None:
    for name in harness.__all__:
        assert getattr(harness, name) is not None
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'nothing'"):
        _ = harness.nothing
    testing = importlib.import_module("harness.testing")
    for name in testing.__all__:
        assert callable(getattr(testing, name))


HEAVY = ("torch", "pydantic", "pyarrow", "scipy", "sklearn", "rich", "matplotlib", "numpy", "PIL", "jinja2")


@pytest.mark.parametrize(
    "code",
    [
        "import harness",
        "from harness.host import load_host, infos\nassert list(infos(load_host().registries))",
        "import harness.testing",
        "import harness.testing.pytest_plugin",
        "import harness.cli",
    ],
    ids=["package", "listing", "testing", "pytest-plugin", "cli"],
)
def test_light_imports(code: str) -> None:
    check = f"import sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
