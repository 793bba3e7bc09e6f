"""`harness run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from harness.errors import ExitCode


@click.command("run")
@click.argument("suite")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder [runs/NAME].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes [one a core; one on a GPU].")
@click.option("--executor", help="How shards are run [inline for one worker, else processes].")
@click.option("--limit", type=click.IntRange(min=1), help="Use only so many samples a cell; such a run cannot gate.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as threats.pgd.steps=10.")
@click.option("--only", multiple=True, metavar="GLOB", help="Run only the cells whose id matches, as 'cnn/pgd*'.")
@click.option(
    "--from", "replay", multiple=True, metavar="RUN", help="Show the models the adversarial images of RUN too."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and run nothing; names what is missing.")
@click.option("--fresh", is_flag=True, help="Forget what was computed before in the run folder.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data sets [$HARNESS_DATA].")
@click.option("-p", "plugins", multiple=True, metavar="PLUGIN", help="Load a module or file; no:NAME blocks one.")
def command(suite: str, overrides: tuple[str, ...], dry_run: bool, plugins: tuple[str, ...], **options: Any) -> int:
    """Run SUITE: a TOML file, or the name of a suite that ships with the harness.

    Running the same command again reuses every finished shard, so an interrupted run goes on where it stopped.
    """
    from rich.console import Console

    from harness.host import load_host
    from harness.plan import expand
    from harness.report.html import HtmlReporter
    from harness.report.terminal import TerminalReporter
    from harness.runner import RunOptions, run, with_replays
    from harness.suite import load_suite

    host = load_host(plugins)
    for problem in host.problems:
        click.echo(f"harness: warning: {problem}", err=True)
    loaded = load_suite(suite, host, overrides)
    chosen = RunOptions(plugins=plugins, **options)
    loaded = with_replays(loaded, chosen, host)
    console = Console(soft_wrap=False)
    if dry_run:
        from harness.report.plan import print_plan

        return print_plan(loaded, expand(loaded, chosen.only), host, chosen, console)
    if all(cell.skip for cell in expand(loaded, chosen.only)):
        for cell in expand(loaded, chosen.only):
            click.echo(f"harness: skipped {cell.id}: {cell.skip}", err=True)
        return ExitCode.NOTHING_TO_RUN
    host.observe(HtmlReporter(), "report")
    with TerminalReporter(console) as terminal:
        host.observe(terminal, "terminal")
        finished = run(loaded, replace(chosen, replay=()), host=host)  # `loaded` has the replays
    failed = any(cell["status"] == "failed" for cell in finished.cells())
    return ExitCode.FAILED if failed else ExitCode.OK
