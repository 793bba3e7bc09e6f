"""`report.html`: one file that opens without a network and says first what cannot be trusted."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.checkpoints import write_atomically
from harness.errors import HarnessError, StoreError
from harness.hookspecs import hookimpl
from harness.report import REPORT_FILE, explanations, plots, svg, tradeoff
from harness.report import examples as pictures
from harness.report.wording import (
    audit_state,
    costs_last,
    failing_checks,
    heading,
    headline_metrics,
    interval,
    is_percentage,
    scored_by,
    visible,
)

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.datasets import DatasetSlice
    from harness.events import RunFinished
    from harness.store import Run

_HERE = Path(__file__).parent
_DIGEST_MARK = b'<meta name="harness-digest" content="%s">'
# Pictures are a courtesy of the page; beyond this it would open slowly, and they lie in the folder anyway.
_PICTURE_BYTES = 8_000_000


class HtmlReporter:
    """Makes the report when a run is finished; an observer for `Host.observe`."""

    @hookimpl(tryfirst=True)  # so that the reporter in the terminal can name the file
    def run_finished(self, event: RunFinished) -> None:
        from harness.report.data import open_run_data
        from harness.store import load_run

        run = load_run(event.folder)
        write_report(run, lambda: open_run_data(run))


def write_report(
    run: Run, open_data: Callable[[], DatasetSlice] | None = None, *, examples: int = 8, force: bool = False
) -> Path:
    """Write `report.html` into the run's folder, unless the one there was made from the same results.

    Args:
        open_data: opens the samples the run was made on, for clean images and class names; called only when the report
            is made. Where it is None or raises a HarnessError, the report says that they are missing.
        examples: examples shown of each attack cell.
        force: make it again even if nothing changed.

    Raises:
        StoreError: the run's rows cannot be read, or the folder cannot be written.
    """
    path = run.folder / REPORT_FILE
    digest = _digest(run, examples)
    if not force and _is_current(path, digest):
        return path
    page = render(run, open_data, digest, examples)
    try:
        write_atomically(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _digest(run: Run, examples: int) -> str:
    """Hash of everything the page is made from: results, the cells' digests, the code and templates of this package."""
    state = hashlib.sha256(f"{__version__} {examples} ".encode())
    state.update(json.dumps(run.results, sort_keys=True).encode())
    state.update(json.dumps([cell.get("digest") for cell in run.info.get("cells") or []]).encode())
    state.update(explanations.state(run))
    for path in sorted(_HERE.iterdir()):
        if path.suffix in (".py", ".j2", ".css"):
            state.update(path.read_bytes())
    return state.hexdigest()


def _is_current(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return _DIGEST_MARK % digest.encode() in file.read(4096)
    except OSError:
        return False


def render(run: Run, open_data: Callable[[], DatasetSlice] | None, digest: str, examples: int = 8) -> str:
    """The page's text. Writes the pictures of examples into the run's folder on the way."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    data, no_data = _open(open_data)
    shown = pictures.collect_examples(run, _clean_images(data), examples)
    if data is not None and any(example.clean is None for example in shown):
        no_data = "the data set is no longer the one the run was made on"
    figures, plot_css = _figures(run.cells())
    explained, not_explained = explanations.gallery(run)
    css = (_HERE / "report.css").read_text(encoding="utf-8") + plot_css
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(visible=visible)
    return environment.get_template("report.html.j2").render(
        # The digest of the style sheet is what the policy allows: no other style, no script, nothing from outside.
        style=Markup(css),
        style_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        digest=digest,
        suite=str(run.results.get("suite", "")),
        verdict=_verdict(run.cells()),
        cells=[_cell_view(cell) for cell in run.cells()],
        several_datasets=len({cell.get("dataset") for cell in run.cells()}) > 1,
        summaries=[
            _metric_view(s["metric"], s) | {"subject": s["subject"], "reliable": s.get("reliable", True)}
            for s in run.results.get("summaries") or []
        ],
        figures=figures,
        gallery=_gallery(run.cells(), shown, data.facts.class_names if data is not None else ()),
        no_data=no_data,
        explained=explained,
        not_explained=not_explained,
        facts=_facts(run.info),
        packages=sorted((run.info.get("packages") or {}).items()),
        plugins=_plugins(run.info.get("plugins")),
    )


def _open(open_data: Callable[[], DatasetSlice] | None) -> tuple[DatasetSlice | None, str]:
    if open_data is None:
        return None, "the data set was not opened"
    try:
        return open_data(), ""
    except HarnessError as error:
        return None, str(error)


def _clean_images(data: DatasetSlice | None) -> pictures.CleanImages | None:
    return None if data is None else lambda ids: data.load(ids)[0].numpy()


def _verdict(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What must be read first: counts, failed and skipped cells, numbers that the audit does not believe."""
    by_status = {status: [c for c in cells if c.get("status") == status] for status in ("ok", "failed", "skipped")}
    return {
        "counts": {status: len(members) for status, members in by_status.items()},
        "total": len(cells),
        "failed": [(cell["id"], cell.get("error") or "no reason given") for cell in by_status["failed"]],
        "skipped": [(cell["id"], cell.get("error") or "no reason given") for cell in by_status["skipped"]],
        "left_out": [(cell["id"], cell["left_out"]) for cell in by_status["ok"] if cell.get("left_out")],
        "unreliable": [(cell["id"], failing_checks(cell)) for cell in by_status["ok"] if cell.get("reliable") is False],
    }


def _cell_view(cell: Mapping[str, Any]) -> dict[str, Any]:
    status = cell.get("status", "ok")
    metrics = cell.get("metrics") or {}
    first = headline_metrics(metrics)
    rest = costs_last(name for name in metrics if name not in first)
    return {
        "model": cell.get("model", ""),
        "threat": cell.get("threat", ""),
        "dataset": cell.get("dataset", ""),
        "n": cell.get("n"),
        "state": audit_state(cell) if status == "ok" else status,
        "checks": [
            (entry.get("check", ""), bool(entry["ok"]), entry.get("message", "")) for entry in cell.get("audit") or []
        ],
        "error": cell.get("error") or "",
        "metrics": [
            _metric_view(n, metrics[n]) | {"minor": n not in first, "name": heading(n, scored_by(n, cell))}
            for n in [*first, *rest]
        ],
    }


def _metric_view(name: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    bar = None
    bounds = [estimate.get(key) for key in ("low", "value", "high")]
    if is_percentage(name) and all(isinstance(b, (int, float)) and 0 <= b <= 1 for b in bounds):
        low, value, high = (round(100 * float(b or 0.0), 2) for b in bounds)
        bar = {"low": low, "width": round(max(high - low, 0.5), 2), "value": value}
    text, _, brackets = interval(name, estimate).partition(" ")
    return {
        "name": heading(name),
        "value": text + ("\u2009%" if is_percentage(name) and estimate.get("value") is not None else ""),
        "interval": brackets,
        "reason": estimate.get("reason") or "",
        "n": estimate.get("n"),
        "bar": bar,
    }


@dataclass(frozen=True)
class _Figure:
    title: str
    dataset: str
    params: list[tuple[str, Any]]
    legend: list[tuple[int, str, str]]  # number of the colour, marker, model
    svg: Markup


def _figures(cells: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[_Figure]], str]:
    """The drawings of each section and the CSS they need; imports matplotlib only where there is something to draw."""
    curves, tradeoffs, css = [], [], []
    for number, panel in enumerate(plots.panels(cells)):
        drawn = plots.draw(panel, f"plot{number}")
        params = [(name, value) for name, value in panel.params.items() if isinstance(value, (str, int, float))]
        curves.append(_figure(panel.plugin, panel.dataset, params, [curve.model for curve in panel.curves], drawn[0]))
        css.append(drawn[1])
    for number, scatter in enumerate(tradeoff.scatters(cells)):
        drawn = tradeoff.draw(scatter, f"tradeoff{number}")
        tradeoffs.append(_figure("models", scatter.dataset, [], list(scatter.points), drawn[0]))
        css.append(drawn[1])
    return {"curves": curves, "tradeoffs": tradeoffs}, "".join("\n" + rules for rules in css)


def _figure(title: str, dataset: str, params: list[tuple[str, Any]], models: Sequence[str], drawing: str) -> _Figure:
    from markupsafe import Markup

    legend = [(i % svg.COLOURS, svg.MARKERS[svg.marker_of(i)], model) for i, model in enumerate(models)]
    return _Figure(title, dataset, params, legend, Markup(drawing))


def _gallery(
    cells: Sequence[Mapping[str, Any]], shown: Sequence[pictures.Example], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The examples by cell, as data URIs while the page stays light."""

    def class_name(index: int) -> str:
        return class_names[index] if 0 <= index < len(class_names) else str(index)

    left = _PICTURE_BYTES
    groups: dict[str, dict[str, Any]] = {}
    by_id = {cell["id"]: cell for cell in cells}
    for example in shown:
        group = groups.setdefault(example.cell, {"cell": by_id[example.cell], "shots": [], "omitted": 0})
        paths = [("clean", example.clean), ("attacked", example.attacked), ("difference", example.difference)]
        blobs = [(part, path.read_bytes()) for part, path in paths if path is not None]
        left -= sum(len(blob) for _, blob in blobs)
        if left < 0:
            group["omitted"] += 1
            continue
        group["shots"].append(
            {
                "sample": example.sample_id,
                "images": [(part, "data:image/png;base64," + base64.b64encode(blob).decode()) for part, blob in blobs],
                "label": class_name(example.label),
                "before": class_name(example.clean_prediction),
                "after": class_name(example.adversarial_prediction),
                "success": example.success,
                "gain": None if example.gain is None else f"{example.gain:.3g}",
                "norms": [(norm, f"{value:.4g}") for norm, value in example.norms.items()],
            }
        )
    return list(groups.values())


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run was made with, for the last section."""
    argv = info.get("argv")
    command = shlex.join(map(str, argv)) if isinstance(argv, list) else str(argv or "")
    timings = info.get("timings") or {}
    limited = "yes: not every sample was used, so this run cannot gate" if info.get("limited") else ""
    facts = [
        ("started", _date(timings.get("started"))),
        ("took", f"{timings['seconds']:.0f} s" if timings.get("seconds") else ""),
        ("command", command),
        ("device", str(info.get("device") or "")),
        ("workers", str(info.get("workers") or "")),
        ("seed", str(info.get("seed", ""))),
        ("limited", limited),
        ("code revision", _revision(info.get("revision"))),
        ("harness", __version__),
    ]
    return [(name, value) for name, value in facts if value]


def _date(started: float | None) -> str:
    return "" if started is None else f"{datetime.fromtimestamp(started, tz=UTC):%Y-%m-%d %H:%M} UTC"


def _revision(revision: Any) -> str:
    found = revision if isinstance(revision, Mapping) else {}
    commit = str(found.get("commit", ""))
    return f"{commit}, with uncommitted changes" if commit and found.get("dirty") else commit


def _plugins(plugins: Mapping[str, str] | None) -> list[tuple[str, str]]:
    return sorted((plugins or {}).items())
