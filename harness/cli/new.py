"""`harness new`: the skeleton of a plugin as an installable package, with a test that calls the conformance kit."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import click

from harness.errors import HarnessError, StoreError

if TYPE_CHECKING:
    from harness.host import Host

_SKELETONS = Path(__file__).parent / "skeletons"
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_MODULES = {"model": "model.py", "threat": "threat.py"}


@click.command("new", short_help="Write the skeleton of a new plugin.")
@click.argument("kind", type=click.Choice(sorted(_MODULES)))
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to make the package's folder in; the working directory by default.",
)
def command(kind: str, name: str, out: Path) -> None:
    """Write a package that registers a model or a threat called NAME, works as it is, and tests itself."""
    from harness.host import load_host

    files = skeleton(kind, name, load_host())
    folder = out / _distribution(name)
    write(folder, files)
    for path in files:
        click.echo(f"wrote {folder / path}")
    click.echo(f'next: cd {folder} && pip install -e ".[dev]" && pytest')


def skeleton(kind: str, name: str, host: Host) -> dict[str, str]:
    """Path in the package's folder -> content.

    Raises:
        HarnessError: no valid name, or one that is taken.
    """
    _refuse(kind, name, host)
    words = {
        "name": name,
        "package": _package(name),
        "distribution": _distribution(name),
        "summary": f"the {kind} {name}",
    }
    module = _MODULES[kind]
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": f"{kind}/README.md",
        f"{_package(name)}/__init__.py": f"{kind}/__init__.py",
        f"{_package(name)}/{module}": f"{kind}/{module}",
        "tests/test_conformance.py": f"{kind}/test_conformance.py",
    }
    return {
        path: Template((_SKELETONS / f"{source}.txt").read_text(encoding="utf-8")).substitute(words)
        for path, source in sources.items()
    }


def write(folder: Path, files: dict[str, str]) -> None:
    """Write a new package's files.

    Raises:
        HarnessError: the folder is there already.
        StoreError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise HarnessError(f"{folder} is there already; nothing was written: choose another name or --out") from None
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}") from error


def _refuse(kind: str, name: str, host: Host) -> None:
    if not _NAME.fullmatch(name):
        raise HarnessError(
            f"'{name}' is no name for a plugin: small letters and digits, words joined by - or _, such as my-{kind}"
        )
    registry = host.models if kind == "model" else host.threats
    if name in registry.owners:
        owner = registry.owners[name].name
        raise HarnessError(f"'{name}' is a {kind} already, of plugin '{owner}'; choose another name")
    if importlib.util.find_spec(_package(name)) is not None:
        raise HarnessError(f"a package {_package(name)} is installed already; choose another name")


def _distribution(name: str) -> str:
    return f"harness-{name.replace('_', '-')}"


def _package(name: str) -> str:
    return f"harness_{name.replace('-', '_')}"
