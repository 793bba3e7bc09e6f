"""What the plugin registers: facts that resolve, and nothing heavy imported on the way."""

from __future__ import annotations

import inspect
import subprocess
import sys

import harness_datasets
import pytest

from harness.datasets import DatasetContext
from harness.info import DatasetInfo, resolve
from harness.options import Options


def registered() -> list[DatasetInfo]:
    out: list[DatasetInfo] = []
    harness_datasets.register_datasets(out.append)
    return out


def test_names() -> None:
    names = [info.name for info in registered()]
    assert names == ["digits", "npz", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagefolder"]


@pytest.mark.parametrize("info", registered(), ids=lambda info: info.name)
def test_facts_resolve(info: DatasetInfo) -> None:
    options = resolve(info.options, info.name)
    assert issubclass(options, Options)
    assert all(field.description for field in options.model_fields.values())
    factory = resolve(info.factory, info.name)
    assert list(inspect.signature(factory).parameters) == ["options", "context"]
    assert factory.__doc__.startswith(f"The factory of `{info.name}`")


def test_the_default_data_set_needs_only_its_name() -> None:
    info = next(info for info in registered() if info.name == "digits")
    data = resolve(info.factory, "digits")(resolve(info.options, "digits")(), DatasetContext())
    assert data.labels().size == 359


def test_importing_the_plugin_is_cheap() -> None:
    heavy = ("torch", "numpy", "pydantic", "PIL", "sklearn")
    code = f"import sys, harness_datasets; sys.exit(' '.join(n for n in {heavy} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "", "imported on the way"
