"""`harness gate`, `harness baseline accept` and `harness compare` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.cli import main

PGD = "cnn/pgd[eps=8/255]/digits"


@pytest.fixture(autouse=True)
def _no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def harness(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(str(caught.value.code))


@pytest.fixture
def good(write_run: Any, attacked: Any) -> Path:
    folder: Path = write_run("good", {PGD: attacked(400, 4, 40)}).folder
    return folder


@pytest.fixture
def bad(write_run: Any, attacked: Any) -> Path:
    folder: Path = write_run("bad", {PGD: attacked(400, 4, 140)}).folder
    return folder


def test_exit_codes(good: Path, bad: Path, write_run: Any, attacked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("gate", good, "--baseline", good) == 0
    assert harness("gate", bad, "--baseline", good) == 1
    assert harness("gate", good, "--baseline", bad) == 0
    assert harness("gate", good, "--baseline", good, "--mode", "noninferior", "--max-drop", "0.001") == 6
    failed = write_run("failed", {}, failed={PGD: "died"}).folder
    assert harness("gate", failed, "--baseline", good) == 3
    capsys.readouterr()
    for arguments in (
        ("gate", good),
        ("gate", good, "--baseline", good, "--max-drop", "-1"),
        ("gate", good, "--baseline", good, "--alpha", "0.9"),
        ("gate", good, "--baseline", good.parent / "nowhere"),
        ("gate", write_run("limited", {PGD: attacked(400)}, limited=True).folder, "--baseline", good),
        ("gate", write_run("seed", {PGD: attacked(400)}, identity={"seed": "5"}).folder, "--baseline", good),
    ):
        assert harness(*arguments) == 4
        errors = capsys.readouterr().err
        assert errors.startswith("harness: ")
        assert errors.count("\n") == 1
    torn = write_run("torn", {PGD: attacked(400)}, without_shards=[PGD]).folder
    assert harness("gate", torn, "--baseline", good) == 6
    assert capsys.readouterr().err.count("\n") == 1


def test_every_output(
    good: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    out = tmp_path / "out"
    files = ("--junit", out / "gate.xml", "--markdown", out / "gate.md", "--json", out / "copy.json")
    assert harness("gate", bad, "--baseline", good, *files) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "gate: regressed: 1 regressed, 1 ok (detect, alpha 0.05, Holm over 2 comparisons)" in printed
    document = json.loads((bad / "gate.json").read_text())
    assert json.loads((out / "copy.json").read_text()) == document
    assert (document["schema"], document["verdict"], document["exit_code"]) == (1, "regressed", 1)
    root = ElementTree.parse(out / "gate.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert (out / "gate.md").read_text() == summary.read_text()
    for path in (bad / "gate.json", out / "gate.xml", out / "gate.md", out / "copy.json", summary):
        assert f"wrote {path}" in printed
    assert not (good / "gate.json").exists()


def test_the_rules_are_those_of_the_candidates_suite(write_run: Any, attacked: Any, good: Path) -> None:
    table = {"mode": "noninferior", "max_drop": 0.05, "rules": [{"metric": "robust_accuracy", "floor": 0.95}]}
    candidate = write_run("c", {PGD: attacked(400, 4, 40)}, gate=table).folder
    assert harness("gate", candidate, "--baseline", good) == 1
    document = json.loads((candidate / "gate.json").read_text())
    assert (document["mode"], document["rows"][0]["max_drop"], document["rows"][0]["floor"]) == (
        "noninferior",
        0.05,
        0.95,
    )
    harness("gate", candidate, "--baseline", good, "--mode", "detect", "--max-drop", "0.2", "--alpha", "0.1")
    document = json.loads((candidate / "gate.json").read_text())
    assert (document["mode"], document["rows"][0]["max_drop"], document["alpha"]) == ("detect", 0.2, 0.1)


def test_a_file_that_cannot_be_written_is_one_line(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert harness("gate", good, "--baseline", good, "--junit", tmp_path / "file" / "gate.xml") == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_baseline_is_accepted_and_gates(
    good: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert harness("baseline", "accept", good) == 4
    assert harness("baseline", "accept", good, "--reason", "first release") == 0
    assert harness("gate", good, "--baseline", "baselines/release") == 0
    assert harness("gate", bad, "--baseline", "baselines/release") == 1
    assert harness("baseline", "accept", bad, "--reason", "again") == 4
    assert "--replace" in capsys.readouterr().err
    assert harness("baseline", "accept", bad, "--reason", "on purpose", "--replace") == 0
    assert harness("gate", bad, "--baseline", "baselines/release") == 0
    assert harness("baseline", "accept", bad, "--reason", "elsewhere", "--to", "kept/here") == 0
    assert (tmp_path / "kept/here/baseline.json").is_file()


def test_compare(good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("compare", good) == 4
    assert harness("compare", good, bad) == 0
    printed = capsys.readouterr().out
    assert "robust accuracy" in printed
    assert "-25.00 [" in printed
    assert harness("compare", good, bad, bad, "--json", tmp_path / "c.json") == 0
    document = json.loads((tmp_path / "c.json").read_text())
    assert len(document["rows"][0]["runs"]) == 3
    assert {"attack_success_rate", "linf_median"} <= {row["metric"] for row in document["rows"]}
