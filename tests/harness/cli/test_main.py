"""The program: its commands, its exit status, and what a user can mend said in one line."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from harness.cli import COMMANDS, _status, cli, main
from harness.errors import ExitCode, HarnessError, MissingDataError, ModelError, PluginError, StoreError, SuiteError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status([name, "--help"]) == 0
    assert f"Usage: harness {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_of_its_own(name: str) -> None:
    assert isinstance(importlib.import_module(f"harness.cli.{name}").command, click.Command)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["--help"]) == 0
    text = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert name in text
        assert summary.split(",")[0] in text
    assert "Exit status: 0 ok, 1 regression, 2 interrupted" in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from harness import __version__

    assert _status(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"harness, version {__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "harness: 'rum' is not a command; did you mean 'run'?"),
        (["zzz"], "harness: 'zzz' is not a command"),
        (["--nope"], "harness: No such option"),
        (["run"], "harness: Missing argument 'SUITE'"),
        (["schema", "extra"], "harness: Got unexpected extra argument (extra)"),
    ],
)
def test_wrong_usage_is_one_line_and_4(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], one_line: Any
) -> None:
    assert _status(arguments) == 4
    assert one_line(capsys.readouterr().err).startswith(message)


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (HarnessError("mend it"), 4, "harness: mend it"),
        (SuiteError("s.toml", ["a: wrong"]), 4, "harness: s.toml: 1 problem\n  a: wrong"),
        (PluginError("x"), 4, "harness: x"),
        (MissingDataError("x"), 4, "harness: x"),
        (ModelError("x"), 3, "harness: x"),
        (StoreError("x"), 3, "harness: x"),
        (click.UsageError("x"), 4, "harness: x"),
        (KeyboardInterrupt(), 2, "harness: interrupted"),
        (click.Abort(), 2, "harness: interrupted"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_what_is_raised_becomes_a_status(
    raised: BaseException, status: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise raised

    if isinstance(raised, BrokenPipeError):
        monkeypatch.setattr(sys, "stderr", open("/dev/null", "w"))  # noqa: SIM115 - closed by the program
    monkeypatch.setattr(cli, "main", fails)
    assert _status([]) == status
    error = capsys.readouterr().err
    assert error.startswith(text)
    assert "Traceback" not in error


@pytest.mark.parametrize("result", [0, 1, 6, ExitCode.INCONCLUSIVE, None, "text"])
def test_what_a_command_returns_is_the_status(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda *arguments, **options: result)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == (int(result) if isinstance(result, int) else 0)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.cli import _status\n_status(['--help'])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'pyarrow', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_script_is_the_program() -> None:
    script = Path(sys.executable).with_name("harness")
    if not script.is_file():
        pytest.skip("the harness is not installed beside this Python")
    done = subprocess.run([str(script), "rum"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)


def test_python_m_harness_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "harness", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("harness, version ")
