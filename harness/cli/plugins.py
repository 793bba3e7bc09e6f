"""`harness plugins`: what is installed, and what each thing can be told."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.host import Host, Registry
    from harness.info import Info

_PLUGIN_HELP = "Load a plugin (a module name or a Python file), or block an installed one (no:NAME)."


@click.group(invoke_without_command=True, short_help="List plugins, or show one with its options.")
@click.option("-p", "plugins", multiple=True, metavar="MODULE_OR_FILE", help=_PLUGIN_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, plugins: tuple[str, ...], as_json: bool) -> None:
    """List models, threats, datasets, metrics and executors, with what is wrong with any plugin at the end."""
    context.obj = plugins
    if context.invoked_subcommand is not None:
        return
    from harness.host import load_host

    host = load_host(plugins)
    click.echo(json.dumps(_listing(host), indent=2) if as_json else "\n".join(_list_lines(host)))


@command.command("show")
@click.argument("name")
@click.option("-p", "plugins", multiple=True, metavar="MODULE_OR_FILE", help=_PLUGIN_HELP)
@click.pass_obj
def show(outer: tuple[str, ...], name: str, plugins: tuple[str, ...]) -> None:
    """Show the options, capabilities and source of NAME (or KIND/NAME where two kinds share it)."""
    from harness.host import load_host

    host = load_host((*outer, *plugins))
    registry, info = _find(host, name)
    click.echo("\n".join(_show_lines(registry, info)))


def _kind(registry: Registry[Any]) -> str:
    """The word for a kind in KIND/NAME: model, threat, dataset, metric, executor."""
    return registry.kind.split()[0]


def _listing(host: Host) -> dict[str, Any]:
    kinds = {
        f"{_kind(registry)}s": [
            {
                "name": info.name,
                "summary": info.summary,
                "source": info.source,
                "plugin": registry.owners[info.name].name,
                "origin": registry.owners[info.name].origin,
            }
            for info in registry
        ]
        for registry in host.registries
    }
    loaded = [{"name": p.name, "origin": p.origin, "error": p.error} for p in host.plugins]
    return {"schema": 1, **kinds, "plugins": loaded, "problems": host.problems}


def _list_lines(host: Host) -> list[str]:
    everything = [(registry, info) for registry in host.registries for info in registry]
    name_width = max((len(info.name) for _, info in everything), default=0)
    owner_width = max((len(registry.owners[info.name].name) for registry, info in everything), default=0)
    lines: list[str] = []
    for registry in host.registries:
        lines.append(f"{_kind(registry)}s")
        rows = [
            f"  {info.name:{name_width}}  {registry.owners[info.name].name:{owner_width}}  {info.summary}"
            for info in registry
        ]
        lines += [_one_line(row) for row in rows] or ["  none"]
        lines.append("")
    lines.append("`harness plugins show NAME` prints options, capabilities and source.")
    if host.problems:
        lines += ["", "problems", *(f"  {problem}" for problem in host.problems)]
    return lines


def _one_line(text: str) -> str:
    """`text` without line breaks and control characters, cut to the terminal where there is one."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    width = shutil.get_terminal_size().columns
    return clean[: width - 1] + "…" if sys.stdout.isatty() and len(clean) > width else clean


def _find(host: Host, wanted: str) -> tuple[Registry[Any], Info]:
    """The one thing called `wanted` ("NAME" or "KIND/NAME").

    Raises:
        PluginError: unknown, of several kinds, or claimed by two plugins.
    """
    from harness.errors import PluginError, did_you_mean

    kinds = {_kind(registry): registry for registry in host.registries}
    kind, slash, name = wanted.partition("/")
    if slash and kind in kinds:
        return kinds[kind], kinds[kind].get(name)
    matching = [r for r in host.registries if wanted in r or wanted in r.conflicts]
    if len(matching) == 1:
        return matching[0], matching[0].get(wanted)
    if matching:
        choices = " or ".join(f"'{_kind(r)}/{wanted}'" for r in matching)
        raise PluginError(f"'{wanted}' is of {len(matching)} kinds; say which: {choices}")
    for record in host.plugins:
        if record.name == wanted and record.error:
            raise PluginError(f"plugin '{record.name}' ({record.origin}) could not be used: {record.error}")
    known = {info.name for registry in host.registries for info in registry}
    raise PluginError(f"no plugin registers '{wanted}'{did_you_mean(wanted, known)} (see `harness plugins`)")


def _show_lines(registry: Registry[Any], info: Info) -> list[str]:
    owner = registry.owners[info.name]
    lines = [f"{_kind(registry)} {info.name}: {info.summary}", "", f"plugin        {owner.name} ({owner.origin})"]
    lines += [f"{label:13} {value}" for label, value in _facts(info) if value]
    for attribute, title in (("options", "options"), ("fit_options", "fit options")):
        options = getattr(info, attribute, None)
        if options is not None:
            lines += ["", title, *_option_lines(options, f"{_kind(registry)} '{info.name}'")]
    return lines


def _facts(info: Info) -> list[tuple[str, str]]:
    from harness.capabilities import with_derived
    from harness.info import MetricInfo, ModelInfo, ThreatInfo

    facts: list[tuple[str, str]] = []
    if isinstance(info, ModelInfo):
        derived = with_derived(info.capabilities) - info.capabilities
        facts.append(("capabilities", ", ".join(sorted(info.capabilities))))
        facts.append(("derived", ", ".join(sorted(derived))))
    if isinstance(info, ThreatInfo):
        facts.append(("needs", ", ".join(sorted(info.requires)) or "any model"))
        facts.append(("budget", info.budget_option or ""))
        facts.append(("rows differ by", ", ".join(info.variants)))
    if isinstance(info, MetricInfo):
        better = {"higher": "higher is better", "lower": "lower is better", "none": "neither is better"}
        facts.append(("columns", ", ".join(info.columns)))
        facts.append(("direction", better[info.direction]))
        facts.append(("unit", info.unit))
        facts.append(("of", "one cell" if info.scope == "cell" else "a group of cells"))
    return [*facts, ("source", info.source)]


def _option_lines(options: str | type, owner: str) -> list[str]:
    from harness.cli.option_help import describe_options
    from harness.info import resolve

    described = describe_options(resolve(options, owner))
    if not described:
        return ["  none"]
    widths = [max(len(getattr(o, column)) for o in described) for column in ("name", "type", "default")]
    return [
        f"  {o.name:{widths[0]}}  {o.type:{widths[1]}}  {o.default:{widths[2]}}  {o.description}".rstrip()
        for o in described
    ]
