"""ImageNet's shifted test sets, from folder to accuracy: fewer classes than the model, numbers, several labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import harness
from harness.errors import HarnessError
from harness.store import Run

NETS = """
import torch

class Grey(torch.nn.Module):
    '''Twelve classes: an image of grey level 20 k is class k.'''
    def forward(self, x):
        return -(x.mean(dim=(1, 2, 3))[:, None] * 255 - 20 * torch.arange(12.0)).abs()
"""


def images(folder: Path, levels: dict[str, list[int]]) -> None:
    """One image for each class that it shall look like, in subfolders."""
    for name, classes in levels.items():
        (folder / name).mkdir(parents=True)
        for number, k in enumerate(classes):
            Image.fromarray(np.full((8, 8), 20 * k + 4, np.uint8)).save(folder / name / f"{number}.png")


def run(folder: Path, table: str, threat: str = 'plugin = "clean"') -> Run:
    (folder / "nets.py").write_text(NETS)
    (folder / "suite.toml").write_text(
        f'[suite]\nname = "shifted"\ndataset = {{ name = "imagefolder", path = "set", {table} }}\n'
        f'[models.grey]\nplugin = "torch"\nfactory = "nets:Grey"\n[[threats]]\n{threat}\n'
    )
    return harness.run(folder / "suite.toml", out=folder / "run", data_root=folder, workers=1, device="cpu")


def told(found: Run, *columns: str) -> tuple[float, dict[str, list[int]]]:
    """Accuracy, and columns of the rows."""
    (cell,) = found.cells()
    assert cell["status"] == "ok", cell["error"]
    rows = found.rows(cell["id"], columns) if columns else {}
    return cell["metrics"]["clean_accuracy"]["value"], {name: list(rows[name]) for name in columns}


def test_restricted_to_the_classes_of_the_set(tmp_path: Path) -> None:
    """As ImageNet-A: an image of class 2 that looks like class 3 is right where 3 cannot be chosen."""
    images(tmp_path / "set", {"n1": [2, 3, 5], "n2": [5, 9, 4], "n3": [9, 10]})
    label_map = "label_map = { n1 = 2, n2 = 5, n3 = 9 }"
    free, rows = told(run(tmp_path, label_map), "clean_prediction")
    assert (free, rows["clean_prediction"]) == (3 / 8, [2, 3, 5, 5, 9, 4, 9, 10])
    found = run(tmp_path, f"{label_map}, restrict = true")
    restricted, rows = told(found, "clean_prediction", "predicted_among")
    assert restricted == 6 / 8
    assert rows == {"clean_prediction": [0, 0, 1, 1, 2, 1, 2, 2], "predicted_among": [3] * 8}


def test_folders_called_by_the_numbers_of_their_classes(tmp_path: Path) -> None:
    images(tmp_path / "set", {"0": [0], "2": [2, 2], "10": [10, 1]})
    assert told(run(tmp_path, 'folders = "indices"'))[0] == 4 / 5


def test_any_of_several_labels_is_right(tmp_path: Path) -> None:
    """As ObjectNet: a prediction in the set of its folder is right, any other wrong, also that of no folder."""
    images(tmp_path / "set", {"chair": [1, 2, 3], "mug": [7, 8], "spoon": [1]})
    (tmp_path / "map.json").write_text(json.dumps({"chair": [1, 2], "mug": 7, "spoon": [], "not here": 4}))
    value, rows = told(run(tmp_path, 'label_map = "map.json"'), "clean_prediction")
    assert (value, rows["clean_prediction"]) == (3 / 5, [0, 0, 2, 1, 2])
    attacked = run(tmp_path, 'label_map = "map.json"', 'plugin = "pgd"\neps = "3/255"\nsteps = 5').cells()[0]
    assert attacked["status"] == "ok"
    assert attacked["metrics"]["robust_accuracy"]["value"] == 3 / 5
    assert run(tmp_path, 'label_map = "map.json"', 'plugin = "ood"').cells()[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('{"chair": 1.5}', 'must be {"class": index'),
        ('["chair"]', 'must be {"class": index'),
        ('{"sofa": 1}', "names none of the classes (chair, ...)"),
        ("chair", "is no JSON"),
        (None, "cannot be read"),
    ],
)
def test_label_map_files_that_are_none(tmp_path: Path, written: str | None, text: str) -> None:
    images(tmp_path / "set", {"chair": [1]})
    if written is not None:
        (tmp_path / "map.json").write_text(written)
    with pytest.raises(HarnessError) as caught:
        run(tmp_path, 'label_map = "map.json"')
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_the_model_lacks(tmp_path: Path) -> None:
    images(tmp_path / "set", {"chair": [1]})
    (cell,) = run(tmp_path, "label_map = { chair = [1, 12] }").cells()
    assert "name class 12, but the model has 12 classes" in cell["error"]
