"""Run a suite inside pytest: ``pytest suites/quickstart.toml`` collects one test per cell.

With ``--harness-baseline RUN`` there is one more for each cell, which holds it to the suite's gate.

A suite is collected only where its file is named on the command line, so no stray TOML file becomes a test. The cells
that were selected (`-k`, node ids) run together when the first of them is due; the run folder is the one that
`harness run` uses, so finished shards are reused. pytest loads this module in every session: nothing heavy is
imported before a suite is collected.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.gating.judging import GateReport
    from harness.host import Host
    from harness.store import Run
    from harness.suite import Suite


class UnreliableWarning(UserWarning):
    """The audit of an attack says that its number should not be believed."""


class CellFailedError(Exception):
    """A cell that could not be evaluated, or a gate that did not pass; the text is all there is to say."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "robustness suites")
    group.addoption("--harness-baseline", metavar="RUN", help="compare the suite with this run: one gate per cell")
    group.addoption("--harness-out", metavar="DIR", help="run folder of the suite [runs/NAME]")
    group.addoption("--harness-data-root", metavar="DIR", help="folder of the data sets [$HARNESS_DATA]")
    group.addoption("--harness-limit", metavar="N", type=int, help="samples a cell at most; such a run cannot gate")
    group.addoption("--harness-workers", metavar="N", type=int, help="worker processes [one a core; one on a GPU]")
    group.addoption(
        "--harness-plugin", metavar="PLUGIN", action="append", default=[], help="module or file, as harness run -p"
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".toml" and parent.session.isinitpath(file_path):
        return SuiteFile.from_parent(parent, path=file_path)  # type: ignore[no-any-return]
    return None


class SuiteFile(pytest.File):
    """A suite file as pytest sees it; runs the suite once, when the first of its tests is due."""

    _run: Run | None = None
    _report: GateReport | None = None

    def collect(self) -> Iterator[pytest.Item]:
        from harness.errors import HarnessError
        from harness.host import load_host
        from harness.plan import expand
        from harness.suite import load_suite

        try:
            self.host: Host = load_host(tuple(self.config.getoption("--harness-plugin")))
            self.suite: Suite = load_suite(self.path, self.host)
            cells = expand(self.suite)
        except HarnessError as error:
            raise self.CollectError(str(error)) from error
        for cell in cells:
            yield CellItem.from_parent(self, name=cell.id, cell_id=cell.id, skip=cell.skip)
        if self.config.getoption("--harness-baseline"):
            for cell in cells:
                if not cell.skip:
                    yield GateItem.from_parent(self, name=f"gate {cell.id}", cell_id=cell.id)

    def finished_run(self) -> Run:
        """The run of the selected cells, or of all of them where a gate is to be judged."""
        if self._run is None:
            from harness.runner import RunOptions, run

            items = [item for item in self.session.items if item.parent is self]
            gated = any(isinstance(item, GateItem) for item in items)
            chosen = [item.cell_id for item in items if isinstance(item, CellItem) and not item.skip]
            every = gated or set(chosen) == set(self._cell_ids())
            options = RunOptions(
                out=self._path("--harness-out"),
                data_root=self._path("--harness-data-root"),
                limit=self.config.getoption("--harness-limit"),
                workers=self.config.getoption("--harness-workers"),
                plugins=tuple(self.config.getoption("--harness-plugin")),
                only=() if every else tuple(chosen),
            )
            self._run = run(self.suite, options, host=self.host)
        return self._run

    def gate_report(self) -> GateReport:
        """The verdicts against the baseline, judged once for all rules."""
        if self._report is None:
            from harness.gate_options import GateOptions
            from harness.gating.judging import gate
            from harness.store import load_run

            baseline = load_run(Path(self.config.getoption("--harness-baseline")))
            self._report = gate(self.finished_run(), baseline, self.suite.gate or GateOptions(), self.host)
        return self._report

    def _cell_ids(self) -> list[str]:
        from harness.plan import expand

        return [cell.id for cell in expand(self.suite) if not cell.skip]

    def _path(self, option: str) -> Path | None:
        value = self.config.getoption(option)
        return Path(value) if value else None


class _Item(pytest.Item):
    """A test whose failure is told in a line, without a traceback."""

    parent: SuiteFile

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from harness.errors import HarnessError

        if isinstance(excinfo.value, (CellFailedError, HarnessError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


class CellItem(_Item):
    """One cell: passes when it was evaluated, whatever its number; the number is a property of the test."""

    def __init__(self, *, cell_id: str, skip: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell_id = cell_id
        self.skip = skip

    def runtest(self) -> None:
        if self.skip:
            pytest.skip(self.skip)
        entry = next(cell for cell in self.parent.finished_run().cells() if cell["id"] == self.cell_id)
        if entry["status"] == "failed":
            raise CellFailedError(entry["error"])
        for name, estimate in entry["metrics"].items():
            shown = (
                "undefined" if estimate["value"] is None else "{value:.6g} [{low:.6g}, {high:.6g}]".format(**estimate)
            )
            self.user_properties.append((name, shown))
        if not entry["reliable"]:
            reasons = "; ".join(check["message"] for check in entry["audit"] if not check["ok"])
            warnings.warn(UnreliableWarning(f"{self.cell_id}: {reasons}"), stacklevel=1)


class GateItem(_Item):
    """What the gate's rules say of one cell: inconclusive is skipped, with the reason."""

    def __init__(self, *, cell_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell_id = cell_id

    def runtest(self) -> None:
        rows = [row for row in self.parent.gate_report().rows if row.cell == self.cell_id]
        told = [f"{row.metric}: {row.verdict}: {row.reason}" for row in rows if row.severity == "fail"]
        verdicts = {row.verdict for row in rows if row.severity == "fail"}
        if verdicts & {"regressed", "missing", "error", "unreliable"}:
            raise CellFailedError("\n".join(told))
        if not rows or "inconclusive" in verdicts:
            pytest.skip("; ".join(told) or "no gate rule selects this cell")
