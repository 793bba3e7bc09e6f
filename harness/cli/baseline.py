"""`harness baseline`."""

from __future__ import annotations

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group("baseline")
def command() -> None:
    """Keep the run that candidates are judged against."""


@command.command("accept")
@click.argument("run", type=_FOLDER)
@click.option("--reason", required=True, help="Why this run becomes the baseline; kept beside it.")
@click.option("--to", type=_FOLDER, metavar="DIR", help="Where it is kept [baselines/SUITE].")
@click.option("--replace", is_flag=True, help="Take the place of the baseline that is there.")
@click.option("--no-images", is_flag=True, help="Leave out the attacked images: smaller, but nothing to replay.")
def accept_command(run: Path, reason: str, to: Path | None, replace: bool, no_images: bool) -> None:
    """Accept RUN as a baseline: copy its results and rows."""
    from harness.gating.baseline import accept
    from harness.runner import safe_name
    from harness.store import load_run

    loaded = load_run(run)
    to = to or Path("baselines") / safe_name(str(loaded.results["suite"]))
    folder = accept(loaded, reason, to, replace=replace, images=not no_images)
    unreliable = [cell["id"] for cell in loaded.cells() if cell.get("reliable") is False]
    for cell in unreliable:
        click.echo(f"harness: warning: {cell} is unreliable; the gate cannot pass it", err=True)
    click.echo(f"wrote {folder}")
    click.echo(f"judge a run against it: harness gate RUN --baseline {folder}")
