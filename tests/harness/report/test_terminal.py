"""What a run says in the terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.events import CellFinished, CellPlanned, RunFinished, RunStarted, ShardFinished
from harness.hookspecs import hookimpl
from harness.host import Host
from harness.report.html import HtmlReporter
from harness.report.tables import print_results
from harness.report.terminal import CellProgress, TerminalReporter, clock_time

FOLDER = Path("runs/release")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def estimate(value: float | None, low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 797, **more}


def cell(name: str = "mine/pgd[eps=8/255]/digits", **more: Any) -> dict[str, Any]:
    model, threat, dataset = name.split("/", 1)[0], name.split("/", 1)[1].rpartition("/")[0], name.rpartition("/")[2]
    base = {"id": name, "model": model, "threat": threat, "plugin": "pgd", "dataset": dataset, "params": {}}
    metrics = {"clean_accuracy": estimate(0.99, 0.98, 1.0), "robust_accuracy": estimate(0.972, 0.949, 0.987)}
    return {
        **base, "status": "ok", "error": "", "n": 797, "metrics": metrics, "audit": [], "reliable": True, **more
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def reporter(terminal: bool = False, width: int = 100) -> tuple[TerminalReporter, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(
        file=out, width=width, height=30, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    return TerminalReporter(console, clock), out, clock


def started(*names: str, **more: Any) -> RunStarted:
    cells = [CellPlanned(name, 797, 4, 1) for name in names]
    return RunStarted("release", FOLDER, cells, **{"skipped": {}, "workers": 2, "device": "cpu", **more})


def test_the_plan_says_what_runs_what_is_reused_and_what_is_skipped() -> None:
    observer, out, _ = reporter()
    skipped = {"a/ood/digits": "needs Density", "b/ood/digits": "needs Density", "c/x/digits": "no labels"}
    observer.run_started(started("mine/clean/digits", "mine/pgd/digits", skipped=skipped))
    text = out.getvalue()
    assert "release: 2 cells, 1,594 samples in 8 shards, on cpu with 2 workers" in text
    assert "2 of 8 shards reused from an earlier run" in text
    assert "skipped 2 cells (a/ood/digits, b/ood/digits): needs Density" in text
    assert "skipped c/x/digits: no labels" in text


def test_without_a_terminal_there_is_at_most_one_line_every_ten_seconds() -> None:
    observer, out, clock = reporter()
    observer.run_started(started("mine/pgd/digits"))
    before = len(out.getvalue().splitlines())
    for _ in range(30):
        clock.now += 1.0
        observer.shard_finished(ShardFinished("mine/pgd/digits", 10, 1.0, reused=False))
    lines = out.getvalue().splitlines()[before:]
    assert len(lines) == 3
    assert lines[0] == "mine/pgd/digits: 100 of 797 images, 10 images/s, 1:10 left"


@pytest.mark.parametrize("name", ["CI", "NO_COLOR"])
def test_the_environment_can_ask_for_plain_lines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    observer, out, _ = reporter(terminal=True)
    assert not observer.uses_bars
    observer.run_started(started("mine/pgd/digits"))
    observer.cell_finished(CellFinished("mine/pgd/digits", "ok", cell()))
    assert "mine/pgd/digits: robust accuracy 97.2 [94.9, 98.7]" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_every_cell_has_a_bar_and_the_cursor_comes_back() -> None:
    observer, out, clock = reporter(terminal=True)
    with observer:
        observer.run_started(started("mine/clean/digits", "mine/pgd/digits"))
        clock.now += 2.0
        observer.shard_finished(ShardFinished("mine/pgd/digits", 200, 2.0, reused=False))
    text = out.getvalue()
    assert "200/797  100 images/s, 0:06 left" in text
    assert "mine/clean/digits" in text
    assert text.rstrip().endswith("\x1b[?25h")


def test_more_cells_than_lines_keep_those_at_work_in_sight() -> None:
    observer, out, clock = reporter(terminal=True)
    names = [f"mine/pgd{i:03}/digits" for i in range(60)]
    with observer:
        observer.run_started(started(*names))
        for name in names[:40]:
            clock.now += 1.0
            observer.shard_finished(ShardFinished(name, 797, 1.0, reused=False))
            observer.cell_finished(CellFinished(name, "ok", cell(name)))
        observer.shard_finished(ShardFinished(names[40], 100, 1.0, reused=False))
    last = out.getvalue().split("\x1b[2K")[-1]
    assert names[40] in last
    assert names[0] not in last
    assert last.count("mine/pgd") <= 26


def test_the_rate_leaves_out_what_was_reused() -> None:
    clock = Clock()
    progress = CellProgress("c", 1000, clock)
    progress.advance(500, 0.0, reused=True)
    assert progress.rate is None
    clock.now += 10.0
    progress.advance(100, 10.0, reused=False)
    assert progress.rate == pytest.approx(10.0)
    assert progress.seconds_left == pytest.approx(40.0)
    assert progress.pace == "10 images/s, 0:40 left"


def test_two_workers_count_together() -> None:
    clock = Clock()
    progress = CellProgress("c", 400, clock)
    clock.now += 10.0
    progress.advance(100, 10.0, reused=False)
    progress.advance(100, 10.0, reused=False)
    assert progress.rate == pytest.approx(20.0)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (75, "1:15"), (3661, "1:01:01")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def finish(*cells: dict[str, Any], summaries: Any = (), width: int = 100) -> str:
    observer, out, _ = reporter(width=width)
    results = {"schema": 1, "suite": "release", "cells": list(cells), "summaries": list(summaries)}
    observer.run_finished(RunFinished(FOLDER, results, [FOLDER / "results.json"]))
    return out.getvalue()


def test_the_table_fits_100_columns() -> None:
    cells = [
        cell(f"{model}/pgd[norm=linf,eps={eps},steps=40]/digits")
        for model in ("standard", "adversarially-trained")
        for eps in ("2/255", "8/255")
    ]
    text = finish(*cells)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert text.count("97.2 [94.9, 98.7]") == 4
    assert text.count("adversarially") == 1
    assert "wrote runs/release/results.json" in text


def test_clean_accuracy_stands_in_the_table_only_where_no_robust_accuracy_does() -> None:
    clean = cell(
        "mine/clean/digits",
        metrics={"bits_per_dim": estimate(3.5, 3.4, 3.6), "clean_accuracy": estimate(0.5, 0.4, 0.6)},
    )
    text = finish(clean)
    assert "50.0 [40.0, 60.0]" in text
    assert "3.5 [3.4, 3.6]" in text
    assert "99.0" not in finish(cell())


def test_an_unreliable_number_is_named_with_the_sentence_of_the_failing_check() -> None:
    audit = [
        {"check": "noise", "ok": True, "message": "fine"},
        {"check": "gradients", "ok": False, "message": "31 % of the samples have a zero gradient"},
    ]
    text = finish(cell(audit=audit, reliable=False), cell("other/pgd/digits", audit=audit[:1]))
    assert "UNRELIABLE" in text
    assert "mine/pgd[eps=8/255]/digits: 31 % of the samples have a zero gradient" in text
    assert "fine" not in text
    assert "reliable" in text.replace("UNRELIABLE", "").replace("unreliable", "")


def test_a_model_that_cannot_be_built_is_told_once_and_its_cells_are_not_called_unreliable() -> None:
    broken = [{**cell(f"m/t{i}/d"), "status": "failed", "error": "no weights", "reliable": False} for i in range(3)]
    text = finish(*broken)
    assert text.count("no weights") == 1
    assert "m/t0/d and 2 more: no weights" in text
    assert "unreliable" not in text


def test_a_summary_of_unreliable_numbers_says_so() -> None:
    summary = {"metric": "worst_case_robust_accuracy", "subject": "m", "cells": ["m/t/d"]}
    number = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    assert "UNRELIABLE" in finish(summaries=[{**summary, **number, "reliable": False}])
    assert "UNRELIABLE" not in finish(summaries=[{**summary, **number, "reliable": True}])


def test_failed_cells_undefined_numbers_and_summaries_are_listed_below() -> None:
    failed = cell(
        "a/pgd/digits", status="failed", error="model returned NaN for 3 samples", metrics={}, n=None, reliable=None
    )
    undefined = cell("b/ood/digits", metrics={"auroc[uniform]": estimate(None, reason="only one set")})
    summary = {"metric": "mean_corruption_error", "subject": "mine", "cells": ["a", "b"], **estimate(0.5, 0.4, 0.6)}
    text = finish(failed, undefined, summaries=[summary])
    assert "a/pgd/digits: model returned NaN for 3 samples" in text
    assert "AUROC uniform of b/ood/digits: only one set" in text
    assert "mean corruption error  50.0 [40.0, 60.0]" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_names_are_shown_as_they_are(terminal: bool) -> None:
    name = "m/[red]x[/red] :bomb: \x1b[31m\u202e" + "y" * 4000 + "/digits"
    observer, out, _ = reporter(terminal=terminal)
    with observer:
        observer.run_started(started(name, skipped={"[bold]s[/bold]/x/y": "[link=x]no[/link]"}))
        observer.shard_finished(ShardFinished(name, 10, 1.0, reused=False))
        hostile = cell(name, status="failed", error="[bold]no\x1b[2J[/bold]", metrics={})
        observer.cell_finished(CellFinished(name, "failed", hostile, "[bold]no\x1b[2J[/bold]"))
        observer.run_finished(RunFinished(FOLDER, {"cells": [hostile], "summaries": []}, []))
    text = out.getvalue()
    assert "[red]x[/red] :bomb: \\x1b[31m" in text
    assert "[bold]s[/bold]/x/y: [link=x]no[/link]" in text
    assert "[bold]no\\x1b[2J[/bold]" in text.replace("\n", "")
    assert "\u202e" not in text
    assert "\x1b[31m" not in text
    assert "\x1b[2J" not in text


def test_the_host_accepts_it_as_an_observer() -> None:
    observer, out, _ = reporter()
    host = Host()
    host.observe(observer, "terminal")
    assert host.problems == []
    host.emit("run_started", started("mine/clean/digits"))
    host.emit("shard_finished", ShardFinished("mine/clean/digits", 797, 1.0, reused=True))
    host.emit("cell_finished", CellFinished("mine/clean/digits", "ok", cell("mine/clean/digits")))
    host.emit("run_finished", RunFinished(FOLDER, {"cells": [], "summaries": []}, []))
    assert "mine/clean/digits: robust accuracy" in out.getvalue()


@pytest.mark.parametrize(("columns", "widest"), [(None, 100), ("60", 60)])
def test_a_log_gets_a_hundred_columns_unless_someone_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, columns: str | None, widest: int
) -> None:
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    out = io.StringIO()
    console = Console(file=out)
    name = "adversarially-trained/pgd[norm=linf,eps=8/255,steps=400,restarts=20,targeted]/digits"
    print_results(console, {"cells": [cell(name)], "summaries": []})
    lines = [len(line) for line in out.getvalue().splitlines()]
    assert 0.8 * widest < max(lines) <= widest
    assert console.width == (60 if columns else 80)


def test_the_report_is_among_the_paths_written(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    observer, out, _ = reporter()
    observer.run_finished(RunFinished(tmp_path, {"cells": [], "summaries": []}, [tmp_path / "results.json"]))
    assert out.getvalue().rstrip().endswith(f"wrote {tmp_path / 'report.html'}")


def test_the_report_is_written_before_its_path_is_printed(tmp_path: Path) -> None:
    class Writes:
        @hookimpl(tryfirst=True)
        def run_finished(self, event: RunFinished) -> None:
            (event.folder / "report.html").write_text("")

    assert HtmlReporter.run_finished.harness_impl["tryfirst"]
    for order in (1, -1):
        (tmp_path / "report.html").unlink(missing_ok=True)
        observer, out, _ = reporter()
        host = Host()
        for name, plugin in [("html", Writes()), ("terminal", observer)][::order]:
            host.observe(plugin, name)
        host.emit("run_finished", RunFinished(tmp_path, {"cells": [], "summaries": []}, []))
        assert "report.html" in out.getvalue()


def test_an_interrupted_run_gives_the_cursor_back() -> None:
    code = """
import sys
from pathlib import Path
from rich.console import Console
from harness.events import CellPlanned, RunStarted
from harness.report.terminal import TerminalReporter
console = Console(force_terminal=True, width=80, height=20, legacy_windows=False)
TerminalReporter(console).run_started(RunStarted("s", Path("r"), [CellPlanned("a/b/c", 9, 1, 0)], {}, 1, "cpu"))
sys.exit(2)
"""
    environment = {**os.environ, "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stdout.count("\x1b[?25l") == 1
    assert done.stdout.rstrip().endswith("\x1b[?25h")


def test_why_a_summary_is_undefined_is_told_once() -> None:
    undefined = {"metric": "mean_corruption_error", "cells": ["a"], **estimate(None, reason="frost was left out")}
    text = finish(cell("a/c/d"), summaries=[{**undefined, "subject": "a"}, {**undefined, "subject": "b"}])
    assert text.count("mean corruption error: frost was left out") == 1


def test_what_a_summary_leaves_out_is_told() -> None:
    partly = {"metric": "mean_corruption_error", "subject": "a", "cells": ["a"], **estimate(0.5, 0.4, 0.6)}
    text = finish(cell("a/c/d"), summaries=[{**partly, "reason": "in 0.9 % of the resamples"}])
    assert "50.0 [40.0, 60.0]" in text
    assert "mean corruption error: in 0.9 % of the resamples" in text
    assert "mean corruption error:" not in finish(cell("a/c/d"), summaries=[partly])


def printed(*cells: dict[str, Any]) -> str:
    out = io.StringIO()
    print_results(Console(file=out, width=160, color_system=None), {"cells": list(cells), "summaries": []})
    return out.getvalue()


def test_a_reader_knows_which_score_a_detection_number_is_of() -> None:
    metrics = {name: estimate(0.9, 0.8, 0.95) for name in ("auroc", "auroc[uniform]", "auroc[mean,energy]")}
    text = printed(cell("mine/ood/digits", metrics=metrics, score="max-softmax"))
    assert "AUROC (max-softmax)" in text
    assert "Detection numbers that name no score are of max-softmax." in text
    assert "name no score" not in printed(cell())


def test_numbers_left_out_of_the_table_are_counted() -> None:
    metrics = {f"auroc[{k}]": estimate(0.9, 0.8, 0.95) for k in range(9)}
    (line,) = [line for line in printed(cell("mine/ood/digits", metrics=metrics)).splitlines() if "and 3 more" in line]
    assert "in the report" in line


def test_what_a_threat_left_out_and_why() -> None:
    why = "frost needs the textures of imagecorruptions: pip install it"
    note = "a mean over 14 of the 15"
    both = {n: estimate(0.9, 0.8, 0.95, reason=note) for n in ("corruption_accuracy", "corruption_accuracy[mean,1]")}
    cells = [cell(f"{model}/corruptions/digits", metrics=both, left_out=why) for model in ("a", "b")]
    text = printed(*cells)
    assert f"a/corruptions/digits and 1 more: {why}" in text
    assert text.count(note) == 1
