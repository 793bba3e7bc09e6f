"""`harness report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Write report.html of the finished RUN again, and print its table."""
    from rich.console import Console

    from harness.report.data import open_run_data
    from harness.report.html import write_report
    from harness.report.tables import print_results
    from harness.report.terminal import shorter
    from harness.report.wording import visible
    from harness.store import load_run

    finished = load_run(run)
    path = write_report(finished, lambda: open_run_data(finished), force=True)
    print_results(Console(), finished.results)
    click.echo(f"\nwrote {visible(shorter(path))}")
