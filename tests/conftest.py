"""A tiny suite in a folder of its own, for the tests that run the engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.store import Run

# A shell ignores SIGINT for what it starts in the background, and tests of interrupts would interrupt nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOY_PLUGIN = Path(__file__).parent / "toy" / "toy_plugin.py"

NETS = """
import torch
from torch import nn


class Rows(nn.Module):
    def __init__(self, scale=10.0):
        super().__init__()
        self.linear = nn.Linear(9, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(3).repeat_interleave(3, dim=1) * scale)
            self.linear.bias.zero_()

    def forward(self, x):
        return self.linear(x.flatten(1))
"""

SUITE = """
[suite]
name = "tiny"
dataset = { name = "toy", samples = 30 }
shard_size = 8

[models.rows]
plugin = "torch"
factory = "tiny_nets:Rows"

[[threats]]
plugin = "clean"

[[threats]]
plugin = "toy-attack"
eps = [0.05, 0.2]
"""


@dataclass
class Workplace:
    """A folder with a suite and the module of its model."""

    folder: Path
    plugins: tuple[str, ...] = (str(TOY_PLUGIN),)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def suite(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, text: str, name: str = "tiny.toml") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def edit(self, old: str, new: str, name: str = "tiny.toml") -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(text.replace(old, new), name)

    def run(self, **options: Any) -> Run:
        """Run in this process, with one worker unless told otherwise."""
        from harness.runner import run

        return run(self.suite, **{"out": self.out, "workers": 1, "device": "cpu", "plugins": self.plugins, **options})

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from harness.cli import main; main()", *arguments]

    def run_command(self, *more: str) -> list[str]:
        plugins = [part for plugin in self.plugins for part in ("-p", plugin)]
        return self.command("run", str(self.suite), "--out", str(self.out), "--device", "cpu", *plugins, *more)

    def cli(self, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """The program as a user calls it, in this folder."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder, env={**os.environ, "COLUMNS": "300", **self.environment, **environment},
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "results.json").read_text())
        return found


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """The tiny suite: a linear model against `clean` and a two-budget attack, 30 images in shards of 8."""
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    place = Workplace(tmp_path)
    place.write(SUITE)
    place.write(NETS, "tiny_nets.py")
    before = list(sys.path)
    yield place
    sys.path[:] = before
    with contextlib.suppress(KeyError):
        del sys.modules["tiny_nets"]


@pytest.fixture
def one_line() -> Callable[[str], str]:
    """Asserts that a text is one line without a traceback, and returns it."""

    def check(text: str) -> str:
        lines = text.strip().splitlines()
        assert len(lines) == 1, text
        assert "Traceback" not in text
        return lines[0]

    return check
