"""`harness schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import _status
from harness.host import load_host
from harness.suite_schema import suite_schema

TOY = str(Path(__file__).parents[2] / "toy" / "toy_plugin.py")


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == suite_schema(load_host())


def test_the_schema_knows_the_plugins_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["schema", "-p", TOY]) == 0
    with_toys = capsys.readouterr().out
    assert '"toy-attack"' in with_toys
    assert _status(["schema"]) == 0
    assert '"toy-attack"' not in capsys.readouterr().out


def test_the_schema_is_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["schema", "-o", str(tmp_path / "suite.json")]) == 0
    assert json.loads((tmp_path / "suite.json").read_text())["title"] == "Harness suite"
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], one_line: object) -> None:
    assert _status(["schema", "-o", "/proc/absent/suite.json"]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("harness: cannot write /proc/absent/suite.json: ")
