"""`harness report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.report import command
from harness.errors import HarnessError


def finished_run(folder: Path) -> Path:
    folder.mkdir()
    cell = {
        "id": "mine/clean/digits", "model": "mine", "threat": "clean", "plugin": "clean", "dataset": "digits",
        "params": {}, "status": "ok", "error": "", "n": 797, "audit": [], "reliable": True,
        "metrics": {"clean_accuracy": {"value": 0.972, "low": 0.949, "high": 0.987, "n": 797}},
    }  # fmt: skip
    results = {"schema": 1, "suite": "release", "cells": [cell], "summaries": []}
    (folder / "results.json").write_text(json.dumps(results))
    about = {name: cell[name] for name in ("id", "model", "threat", "plugin", "dataset", "params")}
    manifest = {"digest": "0" * 64, "variants": [], "samples": 0, "shards": [], "family": "", "budget": None}
    (folder / "run.json").write_text(json.dumps({"schema": 1, "cells": [about | manifest]}))
    return folder


def test_the_table_is_printed_and_the_report_written(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "release")
    outcome = CliRunner().invoke(command, [str(folder)], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "97.2 [94.9, 98.7]" in outcome.output
    assert f"wrote {folder / 'report.html'}" in outcome.output
    assert "97.2" in (folder / "report.html").read_text()


def test_the_report_is_made_again_even_if_nothing_changed(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "release")
    CliRunner().invoke(command, [str(folder)], catch_exceptions=False)
    text = (folder / "report.html").read_text()
    (folder / "report.html").write_text(text + "<!-- touched -->")
    CliRunner().invoke(command, [str(folder)], catch_exceptions=False)
    assert (folder / "report.html").read_text() == text


def test_a_folder_without_a_finished_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"the run did not finish") as caught:
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert "\n" not in str(caught.value)
