"""`harness gate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("gate")
@click.argument("candidate", metavar="CANDIDATE_RUN", type=_FOLDER)
@click.option(
    "--baseline", required=True, metavar="RUN", type=_FOLDER, help="Baseline: a run, or an accepted baseline."
)
@click.option("--mode", type=click.Choice(["detect", "noninferior"]), help="detect: fail on a shown regression;"
              " noninferior: pass on a shown non-loss [as in the suite, else detect].")  # fmt: skip
@click.option("--max-drop", type=float, help="Largest loss that may go unnoticed; a rule's own stands [0.01].")
@click.option("--alpha", type=float, help="Chance of a wrong verdict that is accepted [0.05].")
@click.option("--junit", type=_FILE, help="Write JUnit XML.")
@click.option("--markdown", type=_FILE, help="Write Markdown; $GITHUB_STEP_SUMMARY is appended to by itself.")
@click.option("--json", "json_file", type=_FILE, help="Write the verdicts as JSON (gate.json is written anyhow).")
@click.option("-p", "plugins", multiple=True, metavar="PLUGIN", help="Load a module or file; no:NAME blocks one.")
def command(
    candidate: Path,
    baseline: Path,
    junit: Path | None,
    markdown: Path | None,
    json_file: Path | None,
    plugins: tuple[str, ...],
    **overrides: Any,
) -> int:
    """Judge CANDIDATE_RUN against a baseline of the same suite, by paired tests over the same samples.

    The rules are those of the candidate's [gate] table. Exit status: 0 ok, 1 regressed, 3 a cell failed, 6
    inconclusive or unreliable.
    """
    from harness.gating.judging import gate, rules_of
    from harness.host import load_host
    from harness.report.gate_table import gate_view
    from harness.report.junit import junit_xml
    from harness.report.markdown import append_step_summary, gate_markdown
    from harness.store import RunFolder, load_run

    host = load_host(plugins)
    ours, theirs = load_run(candidate), load_run(baseline)
    report = gate(ours, theirs, rules_of(ours, overrides), host)
    document = report.to_json()
    wide_console().print(gate_view(document))
    written = [RunFolder(candidate).write_json("gate.json", document)]
    if json_file is not None:
        written.append(write_file(json_file, f"{json.dumps(document, indent=1, ensure_ascii=False)}\n".encode()))
    if junit is not None:
        written.append(write_file(junit, junit_xml(document)))
    if markdown is not None:
        written.append(write_file(markdown, gate_markdown(document).encode()))
    summary = append_step_summary(document)
    for path in [*written, *([summary] if summary else [])]:
        click.echo(f"wrote {path}")
    return int(report.exit_code)


def write_file(path: Path, data: bytes) -> Path:
    """Write a file that the user named, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    from harness.checkpoints import write_atomically
    from harness.errors import StoreError

    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def wide_console() -> Console:
    """A console that folds at the terminal's width, and nowhere in a file or a log."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 10_000
    return console
