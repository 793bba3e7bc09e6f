"""The folder of explanations: pictures written, replaced, read back; what is damaged is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.drawing import as_png, new_figure, style
from harness.errors import HarnessError, StoreError
from harness.explanations import INDEX, Picture, class_name, collected, read_pictures, write_pictures

PNG = b"\x89PNG\r\n\x1a\n"


def picture(name: str, text: str = "", **numbers: Any) -> Picture:
    return Picture(name, name.title(), f"What {name} shows.", PNG + text.encode(), numbers)


def test_pictures_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "e", "mine", 3, [picture("heatmap", "a", sums=[1.5, None])], "digest")
    (found,) = read_pictures(tmp_path / "e")
    assert (found.model, found.sample_id, found.made_of) == ("mine", 3, "digest")
    assert (found.title, found.caption) == ("Heatmap", "What heatmap shows.")
    assert found.numbers == {"sums": [1.5, None]}
    assert paths == [found.path]
    assert found.path.read_bytes() == PNG + b"a"
    assert found.path.name == "mine-3-heatmap.png"


def test_explaining_again_replaces_what_is_of_the_same_model_and_sample(tmp_path: Path) -> None:
    write_pictures(tmp_path, "mine", 3, [picture("heatmap", "old"), picture("plane")], "x")
    write_pictures(tmp_path, "mine", None, [picture("similarity")], "x")
    write_pictures(tmp_path, "other", 3, [picture("heatmap", "other")], "x")
    write_pictures(tmp_path, "mine", 3, [picture("heatmap", "new")], "y")
    found = {(e.model, e.sample_id, e.title): e.path.read_bytes() for e in read_pictures(tmp_path)}
    assert found == {
        ("mine", None, "Similarity"): PNG,
        ("other", 3, "Heatmap"): PNG + b"other",
        ("mine", 3, "Heatmap"): PNG + b"new",
    }
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [("pgd[eps=8/255]", "pgd[eps=8-255]"), ("a" * 80 + "1", "a" * 80 + "2"), ("Way", "way"), ("日本", "中国")],
)
def test_names_that_look_alike_make_files_of_their_own(tmp_path: Path, one: str, other: str) -> None:
    paths = write_pictures(tmp_path, "../m", 0, [picture(one, "1"), picture(other, "2")], "x")
    assert [path.read_bytes()[8:] for path in paths] == [b"1", b"2"]
    assert all(path.parent == tmp_path and path.name.isascii() for path in paths)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="model 'mine' gives two explanations the name 'heatmap'"):
        write_pictures(tmp_path, "mine", 0, [picture("heatmap"), picture("heatmap")], "x")


@pytest.mark.parametrize("given", ["a picture", Picture("a", "A", "", b"<svg>")])
def test_what_is_no_picture_is_refused(given: Any) -> None:
    with pytest.raises(HarnessError, match=r"model 'mine' gave .* for an explanation, not a PNG Picture"):
        collected([given], "mine")


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        json.dumps({"schema": 1}),
        json.dumps({"schema": 99, "explanations": []}),
        json.dumps({"schema": 1, "explanations": [{"file": "a.png"}]}),
    ],
)
def test_a_damaged_index_is_one_line(tmp_path: Path, document: str) -> None:
    (tmp_path / INDEX).write_text(document)
    with pytest.raises(HarnessError, match="delete it and explain again") as caught:
        read_pictures(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["../../secret.png", "/etc/passwd", "notes.txt"])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, file: str) -> None:
    write_pictures(tmp_path, "mine", 0, [picture("heatmap")], "x")
    document = json.loads((tmp_path / INDEX).read_text())
    document["explanations"][0]["file"] = file
    (tmp_path / INDEX).write_text(json.dumps(document))
    with pytest.raises(HarnessError, match="not an index of explanations"):
        read_pictures(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreError, HarnessError)) as caught:
        write_pictures(tmp_path / "file", "mine", 0, [picture("heatmap")], "x")
    assert "\n" not in str(caught.value)


def test_no_folder_holds_nothing(tmp_path: Path) -> None:
    assert read_pictures(tmp_path / "none") == []


def test_classes_without_a_name_have_their_number() -> None:
    assert [class_name(("cat", "dog"), k) for k in (1, 2, -1)] == ["dog", "2", "-1"]


def test_drawing_leaves_the_settings_of_the_process_alone_and_is_the_same_each_time() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)

    @style()
    def draw() -> bytes:
        figure = new_figure(2, 1)
        figure.subplots().plot([0, 1], [1, 0])
        return as_png(figure)

    assert draw() == draw()
    assert dict(mpl.rcParams) == before
