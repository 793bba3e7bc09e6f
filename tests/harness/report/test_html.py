"""report.html: self-contained, safe whatever names hold, and made only when something changed."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.errors import HarnessError, StoreError
from harness.events import RunFinished
from harness.explanations import Picture, write_pictures
from harness.report import svg
from harness.report.explanations import made_of
from harness.report.html import HtmlReporter, write_report
from harness.report.plots import panels
from harness.report.tradeoff import scatters

VOID = {"meta", "img", "br", "link", "input", "hr"}
DRAWN = {"path", "rect", "circle", "use", "line", "polygon"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.styles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def data_of(runs: Any) -> Callable[[], Any]:
    """As a data set slice, with clean images and class names."""

    def load(ids: Any) -> Any:
        return SimpleNamespace(numpy=lambda: runs.clean_images(ids)), None

    return lambda: SimpleNamespace(load=load, facts=SimpleNamespace(class_names=("cat", "<b>dog</b>", "bird")))


def page_of(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def assert_self_contained(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base", "a", "audio", "video"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            assert name != "style", "a style attribute would be refused by the policy"
            if name in {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"}:
                assert value.startswith(("#", "data:image/png;base64,")), f"{tag} {name}={value[:60]}"
            assert "://" not in value or name == "content", f"{tag} {name}={value[:60]}"
    assert not re.search(r"@import|url\((?!#)", "".join(page.styles))


def test_the_page_is_self_contained_and_its_policy_allows_its_own_style_only(runs: Any) -> None:
    page = page_of(write_report(runs.release(), data_of(runs)))
    assert_self_contained(page)
    (policy,) = [m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy
    (style,) = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert rules["style-src"] == f"'sha256-{digest}'"
    first = next(i for i, (tag, _) in enumerate(page.tags) if tag == "style")
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.tags[:first]


def test_the_verdict_comes_first(runs: Any) -> None:
    text = page_of(write_report(runs.release())).text
    order = [
        "1 of 10 cells failed, 1 is unreliable",
        "logits are not finite for 3 of 24 images",
        "31 % of the samples have a zero gradient",
        "Results",
        "Over several cells",
        "Robust accuracy against eps",
        "Strongest examples",
        "How it was run",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("status", "reliable", "headline"),
    [
        ("ok", True, "All 1 cells finished, none is unreliable"),
        ("ok", False, "1 of 1 cells is unreliable"),
        ("failed", True, "1 of 1 cells failed"),
        ("skipped", True, "0 of 1 cells finished, the others were skipped"),
    ],
)
def test_headlines(runs: Any, status: str, reliable: bool, headline: str) -> None:
    run = runs.write([runs.cell("plain", "clean", status=status, reliable=reliable)])
    assert headline in page_of(write_report(run)).text


def test_every_cell_and_metric_stands_in_the_table(runs: Any) -> None:
    run = runs.release()
    page = page_of(write_report(run))
    for cell in run.cells():
        assert cell["threat"] in page.text
    assert page.text.count("robust accuracy") >= 4
    assert page.text.count("linf median") == 4
    assert "55.0\u2009%" in page.text
    assert "[53.0, 57.0]" in page.text
    assert "only one image is left" in page.text
    assert "mean corruption error" in page.text
    assert [a for a in page.of("span") if "badge bad" in a.get("class", "")]


def test_run_facts_are_there(runs: Any) -> None:
    run = runs.write([runs.cell("plain", "clean")], argv=["harness", "run", "my suite.toml"], limited=True)
    text = page_of(write_report(run)).text
    for fact in ("harness run 'my suite.toml'", "0123abcd, with uncommitted changes", "2023-11-14 22:13 UTC", "2.13.0"):
        assert fact in text
    assert "this run cannot gate" in text


def test_the_plot_takes_its_colours_from_the_page(runs: Any) -> None:
    page = page_of(write_report(runs.release()))
    (plot,) = [drawn for drawn in page.of("svg") if drawn.get("class") == "plot"]
    assert plot["aria-label"] == "Robust accuracy against eps for 2 models"
    (style,) = page.styles
    assert "var(--series-0)" in style
    assert "var(--series-1)" in style
    assert not re.search(r"#0[123]0[0-9a-f]{3}\b", style), "a stand-in colour was left"
    assert "8/255" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for _, a in page.tags if "href" in a}
    assert used <= set(ids)


def test_no_plot_without_two_eps(runs: Any) -> None:
    run = runs.write([runs.attack_cell("plain", "0.1", 0.5), runs.attack_cell("other", "0.2", 0.5)])
    page = page_of(write_report(run))
    assert "against eps" not in page.text
    assert not [drawn for drawn in page.of("svg") if drawn.get("class") == "plot"]


def likelihood_cell(runs: Any, model: str, bits: float, **more: Any) -> Any:
    metrics = {"clean_accuracy": runs.estimate(0.97), "bits_per_dim": {"value": bits, "low": bits - 0.1, "high": bits}}
    return runs.cell(model, "clean", metrics=metrics, **more)


def test_accuracy_is_drawn_against_likelihood_where_two_models_have_both(runs: Any) -> None:
    cells = [likelihood_cell(runs, f"beta{i}", 2.0 + i) for i in range(3)]
    page = page_of(write_report(runs.write(cells)))
    (plot,) = [drawn for drawn in page.of("svg") if drawn.get("class") == "plot"]
    assert plot["aria-label"] == "Accuracy against bits per dimension for 3 models"
    assert "var(--series-2)" in page.styles[0]
    (scatter,) = scatters(cells)
    bits, accuracy = scatter.points["beta1"]
    assert (bits.value, accuracy.value) == (3.0, 0.97)
    assert bits.bars == [[pytest.approx(0.1)], [0.0]]


def test_no_trade_off_of_one_model_or_of_two_data_sets(runs: Any) -> None:
    cells = [likelihood_cell(runs, "a", 2.0), likelihood_cell(runs, "b", 2.0, dataset="mnist"), runs.cell("c", "clean")]
    failed = likelihood_cell(runs, "d", 3.0, status="failed")
    assert scatters([*cells, failed]) == []
    assert "against likelihood" not in page_of(write_report(runs.write(cells))).text


def test_no_two_of_64_models_look_alike() -> None:
    assert len({svg.style_of(index) for index in range(64)}) == 64


def test_panels_keep_attacks_apart_and_order_eps_by_size(runs: Any) -> None:
    cells = [runs.attack_cell("plain", eps, 0.5) for eps in ("16/255", "0.01", "8/255")]
    other = [runs.attack_cell("plain", eps, 0.5) for eps in ("0.5", "1")]
    for cell in other:
        cell["params"]["norm"] = "l2"
    linf, l2 = panels([*cells, *other, runs.cell("plain", "clean")])
    assert [point.text for point in linf.curves[0].points] == ["0", "0.01", "8/255", "16/255"]
    assert linf.curves[0].points[0].value == 0.98
    assert (linf.params["norm"], l2.params["norm"]) == ("linf", "l2")


def test_the_gallery_shows_clean_attacked_and_difference(runs: Any) -> None:
    page = page_of(write_report(runs.release(), data_of(runs), examples=2))
    images = page.of("img")
    assert len(images) == 4 * 2 * 3
    for image in images:
        blob = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(blob)).size == (8, 8)
        assert image["alt"]
    assert "difference ×" in page.text
    assert "<b>dog</b>" in page.text


def test_missing_data_are_named(runs: Any) -> None:
    def missing() -> Any:
        raise HarnessError("dataset 'digits': no file <x>; set HARNESS_DATA")

    page = page_of(write_report(runs.release(), missing))
    assert "Clean images are missing: dataset 'digits': no file <x>; set HARNESS_DATA." in page.text
    assert {image["alt"].split()[0] for image in page.of("img")} == {"attacked"}


HOSTILE = ["<script>alert(1)</script>", "\u202eevil\u2066", '"><img src=x onerror=y>', "{{ 7*7 }}", "]]>&lt;", "$x^2$"]


def test_hostile_names_are_shown_as_text(runs: Any) -> None:
    name = "".join(HOSTILE) + "\x1b[31m\x00" + "y" * 4000
    cells = []
    for eps in ("0.1", "0.2"):
        cell = runs.attack_cell(name, eps, 0.5, plugin=name, dataset=name)
        cell["threat"] = f"{name}{eps}"
        cell["id"] = f"{name}/{eps}"
        cell["params"] |= {"norm": "linf", name: name}
        cell["metrics"][f"auroc[{name}]"] = runs.estimate(None, reason=name)
        cell["audit"] = [{"check": name, "ok": False, "message": name}]
        cells.append(cell | {"reliable": False})
    cells.append(runs.cell(name, name, status="failed", error=name))
    rows = {cells[0]["id"]: runs.attack_rows(0.1)}
    run = runs.write(cells, rows, argv=[name], device=name, packages={name: name}, plugins={name: name})
    run.results["suite"] = name
    page = page_of(write_report(run))
    assert_self_contained(page)
    for part in ("<script>alert(1)</script>", "\\u202eevil\\u2066", '"><img src=x onerror=y>', "{{ 7*7 }}", "]]>&lt;"):
        assert page.text.count(part) >= 10, part
    assert "y" * 4000 in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", page.text)
    assert [drawn for drawn in page.of("svg") if drawn.get("class") == "plot"]


def test_equal_input_gives_equal_pages(runs: Any) -> None:
    run = runs.release()
    first = write_report(run, data_of(runs)).read_bytes()
    assert write_report(run, data_of(runs), force=True).read_bytes() == first


def test_a_second_report_is_made_only_when_something_changed(runs: Any) -> None:
    run = runs.release()
    opened = []

    def open_data() -> Any:
        opened.append(1)
        return data_of(runs)()

    path = write_report(run, open_data)
    os.utime(path, ns=(1, 1))
    write_report(run, open_data)
    assert (path.stat().st_mtime_ns, len(opened)) == (1, 1)
    run.results["cells"][0]["metrics"]["clean_accuracy"]["value"] = 0.5
    write_report(run, open_data)
    assert path.stat().st_mtime_ns != 1
    assert len(opened) == 2


def test_the_observer_writes_the_report_even_where_the_data_are_gone(runs: Any) -> None:
    run = runs.release()
    HtmlReporter().run_finished(RunFinished(run.folder, run.results, []))
    assert "Clean images are missing" in page_of(run.folder / "report.html").text


def test_a_folder_that_cannot_be_written_is_one_line(runs: Any) -> None:
    run = runs.write([runs.cell("plain", "clean")])
    (run.folder / "report.html").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*report\.html"):
        write_report(run)


def test_pictures_beyond_the_pages_weight_stay_in_the_folder(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.report.html._PICTURE_BYTES", 700)
    run = runs.release()
    page = page_of(write_report(run, data_of(runs), examples=4))
    assert 0 < len(page.of("img")) < 12
    assert "more in the folder examples/" in page.text
    assert len(list((run.folder / "examples").iterdir())) == 4 * 4 * 3


def test_clean_pictures_are_the_datas_own(runs: Any) -> None:
    page = page_of(write_report(runs.release(), data_of(runs), examples=1))
    image = next(i for i in page.of("img") if i["alt"].startswith("clean"))
    sample = int(image["alt"].rsplit(" ", 1)[1])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))) / 255.0
    assert np.abs(shown - runs.clean_images(np.array([sample]))[0, 0]).max() < 0.003


def test_explanations_are_embedded_and_what_they_say_is_escaped(runs: Any) -> None:
    run = runs.release()
    image = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(image, format="PNG")
    shown = [Picture("heatmap", "<script>title", "</section><b>caption", image.getvalue())]
    write_pictures(run.folder / "explanations", "plain", 3, shown, made_of(run, "plain"))
    write_pictures(run.folder / "explanations", "plain", None, shown, made_of(run, "plain"))
    write_pictures(run.folder / "explanations", "adversarial", 3, shown, "of an earlier state")
    page = page_of(write_report(run))
    assert_self_contained(page)
    assert page.text.count("<script>title") == 2
    assert page.text.count("</section><b>caption") == 2
    assert "Left out: 1 of an earlier state of this run (explain again)." in " ".join(page.text.split())
    blob = "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
    assert [i["src"] for i in page.of("img")].count(blob) == 2


def test_a_run_that_is_not_explained_has_no_such_section(runs: Any) -> None:
    assert "Explanations" not in page_of(write_report(runs.release())).text
