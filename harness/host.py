"""Finds plugins, keeps who registered what, and passes events on.

A plugin that cannot be loaded becomes a record with an error, and the others still load; the error is fatal only when a
suite asks for something that is not there.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from harness import hookspecs
from harness.errors import HarnessError, PluginError, did_you_mean, one_line
from harness.info import DatasetInfo, ExecutorInfo, Info, MetricInfo, ModelInfo, ThreatInfo

ENTRY_POINT_GROUP = "harness"
_BUILTIN = "harness.builtin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_log = logging.getLogger("harness")

InfoT = TypeVar("InfoT", bound=Info)


@dataclass
class PluginRecord:
    """One plugin: where it comes from, and what is wrong with it, if anything is."""

    name: str
    origin: str
    error: str = ""


@dataclass
class Registry(Generic[InfoT]):
    """What plugins registered of one kind, by name."""

    kind: str
    items: dict[str, InfoT] = field(default_factory=dict)
    owners: dict[str, PluginRecord] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    plugins: Sequence[PluginRecord] = ()  # all plugins of the host: a broken one may be why a name is missing

    def add(self, info: InfoT, owner: PluginRecord) -> None:
        """Keep `info`, or record that two plugins claim its name, which makes the name unusable."""
        if info.name in self.owners:
            first = self.owners[info.name]
            self.conflicts[info.name] = (
                f"{self.kind} '{info.name}' is claimed by plugin '{first.name}' ({first.origin}) and by plugin"
                f" '{owner.name}' ({owner.origin}); block one with -p no:NAME"
            )
            self.items.pop(info.name, None)
            return
        self.owners[info.name] = owner
        self.items[info.name] = info

    def get(self, name: str) -> InfoT:
        """The registered thing.

        Raises:
            PluginError: unknown (with the nearest known name), or claimed by two plugins.
        """
        if name in self.conflicts:
            raise PluginError(self.conflicts[name])
        if name not in self.items:
            broken = [f"plugin '{p.name}' ({p.origin}): {p.error}" for p in self.plugins if p.error]
            cause = f"; not loaded: {'; '.join(broken)}" if broken else ""
            raise PluginError(
                f"'{name}' is not {_article(self.kind)} {self.kind}{did_you_mean(name, self.items)}"
                f" (see `harness plugins`){cause}"
            )
        return self.items[name]

    def __iter__(self) -> Iterator[InfoT]:
        return iter(sorted(self.items.values(), key=lambda info: info.name))

    def __contains__(self, name: object) -> bool:
        return name in self.items


class Host:
    """The plugins of one process. Use `load_host`."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("harness")
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[PluginRecord] = []
        self.models: Registry[ModelInfo] = Registry("model plugin")
        self.threats: Registry[ThreatInfo] = Registry("threat")
        self.datasets: Registry[DatasetInfo] = Registry("dataset")
        self.metrics: Registry[MetricInfo] = Registry("metric")
        self.executors: Registry[ExecutorInfo] = Registry("executor")
        for registry in self.registries:
            registry.plugins = self.plugins

    @property
    def registries(self) -> tuple[Registry[Any], ...]:
        return (self.models, self.threats, self.datasets, self.metrics, self.executors)

    @property
    def problems(self) -> list[str]:
        """One line for each plugin that could not be used and each name claimed twice."""
        broken = [f"plugin '{p.name}' ({p.origin}): {p.error}" for p in self.plugins if p.error]
        return broken + [text for registry in self.registries for text in registry.conflicts.values()]

    def add(self, plugin: object, record: PluginRecord) -> None:
        """Register a loaded plugin, whole or not at all; what is wrong with it goes into its record."""
        taken = [p for p in self.plugins if p.name == record.name and not p.error]
        self.plugins.append(record)
        if taken:
            record.error = (
                f"its name '{record.name}' is taken by the plugin of {taken[0].origin}; rename it or block one"
            )
            return
        record.error = _version_problem(plugin) or _hook_problem(plugin)
        if record.error:
            return
        try:
            self._manager.register(plugin, name=record.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            record.error = one_line(error)
        else:
            self._collect(plugin, record)
        if record.error and self._manager.is_registered(plugin):
            self._manager.unregister(plugin)

    def loaded(self, plugin: object) -> bool:
        """Whether this very module or object is one of the plugins."""
        return self._manager.is_registered(plugin)

    def emit(self, hook: str, event: object) -> None:
        """Tell every observer; what one raises is logged and goes no further."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(event for _ in implementation.argnames))
            except Exception:
                _log.exception("plugin '%s' failed in %s", implementation.plugin_name, hook)

    def observe(self, observer: object, name: str) -> None:
        """Add an object of this process, such as a reporter, that implements observing hooks.

        Raises:
            PluginError: it cannot be added: a mistyped hook, or a name that another plugin has.
        """
        record = PluginRecord(name, type(observer).__module__)
        self.add(observer, record)
        if record.error:
            raise PluginError(f"observer '{name}' ({record.origin}): {record.error}")

    def _collect(self, plugin: object, record: PluginRecord) -> None:
        """Ask a plugin for what it registers; nothing of it is kept when a part is wrong."""
        found: list[tuple[Registry[Any], Info]] = []
        for hook, registry, kind in (
            ("register_models", self.models, ModelInfo),
            ("register_threats", self.threats, ThreatInfo),
            ("register_datasets", self.datasets, DatasetInfo),
            ("register_metrics", self.metrics, MetricInfo),
            ("register_executors", self.executors, ExecutorInfo),
        ):
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                given: list[Info] = []
                try:
                    implementation.function(given.append)
                except Exception as error:
                    record.error = f"{hook} failed: {one_line(error)}"
                    return
                for info in given:
                    record.error = _info_problem(info, kind)
                    if record.error:
                        record.error = f"{hook}: {record.error}"
                        return
                    found.append((registry, info))
        for owner, info in found:
            owner.add(info, record)


def load_host(plugins: Sequence[str] = (), *, entry_point_plugins: bool = True) -> Host:
    """The host with the built-in plugin, every installed one, and those asked for.

    Args:
        plugins: as after `-p`: a module name, a path of a Python file, or ``no:NAME`` to block an installed plugin.
        entry_point_plugins: load the installed plugins (group "harness").

    Raises:
        PluginError: a plugin named in `plugins` cannot be loaded, or ``no:NAME`` names nothing.
    """
    host = Host()
    builtin = importlib.import_module(_BUILTIN)
    host.add(builtin, PluginRecord("harness", "built in"))
    blocked = {spec.removeprefix("no:") for spec in plugins if spec.startswith("no:")}
    found = _installed() if entry_point_plugins else {}
    unknown = sorted(blocked - found.keys())
    if unknown and entry_point_plugins:
        raise PluginError(f"-p no:{unknown[0]}: no installed plugin has this name{did_you_mean(unknown[0], found)}")
    for name, points in sorted(found.items()):
        if name not in blocked:
            _add_installed(host, name, points)
    for spec in plugins:
        if not spec.startswith("no:"):
            _add_named(host, spec)
    return host


def _installed() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point not in found.setdefault(point.name, []):
            found[point.name].append(point)
    return found


def _add_installed(host: Host, name: str, points: list[EntryPoint]) -> None:
    origins = [f"{p.value} of {p.dist.name} {p.dist.version}" if p.dist else p.value for p in points]
    record = PluginRecord(name, origins[0])
    if len({(p.value, p.dist.name if p.dist else "") for p in points}) > 1:
        record.error = f"two installed packages claim this plugin name: {' and '.join(origins)}; uninstall one"
        host.plugins.append(record)
        return
    try:
        module = points[0].load()
    except (Exception, SystemExit) as error:
        record.error = f"cannot be imported: {one_line(error)}"
        host.plugins.append(record)
        return
    host.add(module, record)


def _add_named(host: Host, spec: str) -> None:
    is_file = spec.endswith(".py") or "/" in spec
    try:
        module = _module_from_file(Path(spec)) if is_file else importlib.import_module(spec)
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"-p {spec}: cannot be imported: {one_line(error)}") from error
    if host.loaded(module):
        return
    record = PluginRecord(Path(spec).stem if is_file else spec, str(Path(spec).resolve()) if is_file else spec)
    host.add(module, record)
    if record.error:
        raise PluginError(f"-p {spec}: {record.error}")


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"-p {path}: no such file")
    name = f"harness_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"-p {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _version_problem(plugin: object) -> str:
    wanted = getattr(plugin, "HARNESS_API", hookspecs.API_VERSION)
    if isinstance(wanted, int) and wanted <= hookspecs.API_VERSION:
        return ""
    return (
        f"was written for hook version {wanted}, this harness has version {hookspecs.API_VERSION}; upgrade the harness"
    )


def _hook_problem(plugin: object) -> str:
    """A mistyped hook (an implementation of a name that is no hook), or a hook without its mark."""
    known = {name for name, value in vars(hookspecs).items() if hasattr(value, "harness_spec")}
    implemented = 0
    for name, value in inspect.getmembers(plugin, callable):
        marks = getattr(value, "harness_impl", None)
        if isinstance(marks, dict):
            implemented += 1
            hook = marks.get("specname") or name
            if hook not in known and not marks.get("optionalhook"):
                return f"'{hook}' is not a hook{did_you_mean(hook, known)}"
            if marks.get("hookwrapper") or marks.get("wrapper"):
                return f"'{name}' is a hook wrapper; the harness calls plain hooks only"
        elif name in known and inspect.isroutine(value):
            return f"'{name}' has the name of a hook but lacks the decorator: put @harness.hookimpl above it"
    return "" if implemented else "implements no hook; see docs/writing-a-plugin.md"


def _info_problem(info: object, kind: type[Info]) -> str:
    """Why what a plugin registered cannot be used."""
    if not isinstance(info, kind):
        return f"expected a {kind.__name__}, got {info!r:.80}"
    if not _NAME.fullmatch(info.name):
        return f"'{info.name}' is not a name: letters, digits and - _ . only, since it becomes part of cell ids"
    if isinstance(info, MetricInfo) and info.options is not None and info.scope == "cell":
        return f"metric '{info.name}' has options, which only metrics over several cells can have (scope='group')"
    return ""


def infos(registries: Iterable[Registry[Any]]) -> Iterator[Info]:
    """Everything registered, in the order kinds are listed."""
    for registry in registries:
        yield from registry


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
