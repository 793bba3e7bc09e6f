"""`harness schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("schema")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@click.option("-p", "plugins", multiple=True, metavar="PLUGIN", help="Load a module or file; no:NAME blocks one.")
def command(out: Path | None, plugins: tuple[str, ...]) -> None:
    """Print the JSON schema of suite files with the plugins at hand, so that an editor completes and checks them."""
    from harness.checkpoints import write_atomically
    from harness.errors import HarnessError
    from harness.host import load_host
    from harness.suite_schema import suite_schema

    text = json.dumps(suite_schema(load_host(plugins)), indent=1)
    if out is None:
        click.echo(text)
        return
    try:
        write_atomically(out, (text + "\n").encode())
    except OSError as error:
        raise HarnessError(f"cannot write {out}: {error.strerror or error}") from error
