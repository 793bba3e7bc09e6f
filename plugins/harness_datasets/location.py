"""Where data lie: paths under the data root, and the one line that says what to do when they are not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.datasets import DatasetContext
from harness.errors import MissingDataError

_HOW = "give the folder that holds your data with --data-root or the environment variable HARNESS_DATA"


def resolve(name: str, path: str, context: DatasetContext) -> Path:
    """The existing file or folder that the option `path` names; a relative one lies under the data root.

    Raises:
        MissingDataError: nothing is there, or the path is relative and no data root was given.
    """
    wanted = Path(path).expanduser()
    if not wanted.is_absolute():
        wanted = data_root(name, context, path) / wanted
    if not wanted.exists():
        raise MissingDataError(f"dataset '{name}': {wanted} does not exist; {_HOW} (relative paths start there)")
    return wanted


def first_existing(name: str, candidates: Sequence[str], context: DatasetContext) -> Path:
    """The first of several places under the data root that exists.

    Raises:
        MissingDataError: none of them does; the text names all.
    """
    root = data_root(name, context, candidates[0])
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise MissingDataError(f"dataset '{name}': none of {', '.join(candidates)} is in {root}; {_HOW}")


def data_root(name: str, context: DatasetContext, wanted: str) -> Path:
    """The data root, absolute.

    Raises:
        MissingDataError: none was given.
    """
    if context.root is None:
        raise MissingDataError(f"dataset '{name}': looked for {wanted}, but there is no data root; {_HOW}")
    return context.root.expanduser().absolute()
