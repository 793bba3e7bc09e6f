"""`harness compare`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every metric as JSON, too."
)
@click.option("-p", "plugins", multiple=True, metavar="PLUGIN", help="Load a module or file; no:NAME blocks one.")
def command(runs: tuple[Path, ...], json_file: Path | None, plugins: tuple[str, ...]) -> None:
    """Print runs side by side, with the paired differences to the first and their intervals."""
    from harness.cli.gate import wide_console, write_file
    from harness.errors import HarnessError
    from harness.gating.comparison import compare
    from harness.host import load_host
    from harness.report.compare_table import compare_view
    from harness.report.wording import headline_metrics
    from harness.store import load_run

    if len(runs) < 2:
        raise HarnessError("compare needs two runs or more: harness compare RUN RUN...")
    host = load_host(plugins)
    loaded = [load_run(run) for run in runs]
    document = compare(loaded, host, list if json_file else headline_metrics).to_json()
    wide_console().print(compare_view(document))
    if json_file is not None:
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        click.echo(f"wrote {write_file(json_file, text.encode())}")
