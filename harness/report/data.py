"""The images a run was made on, opened again from what run.json says of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.datasets import DatasetSlice
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.store import Run


def open_run_data(run: Run) -> DatasetSlice:
    """The slice of the data set that the run's cells used (a cell may have used fewer samples of it).

    Raises:
        HarnessError: run.json does not say which, or its plugin or its files are not there.
    """
    from harness.host import load_host
    from harness.loading import open_dataset
    from harness.suite import dataset_entry

    try:
        table = run.info["suite"]["suite"]["dataset"]
        setting = run.info["setting"]
        plugins, root = tuple(setting["plugins"]), setting["data_root"]
    except (KeyError, TypeError) as error:
        raise HarnessError(f"{run.folder / 'run.json'} does not say which data the run used ({error})") from error
    host = load_host(plugins)
    entry = dataset_entry({"name": table} if isinstance(table, str) else table, host, "dataset")
    return open_dataset(entry, host, Path(root) if root else None)
