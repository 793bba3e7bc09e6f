"""Replay: what an earlier run stored, shown to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import HarnessError

ATTACKS = """
[[threats]]
plugin = "pgd"
eps = [0.05, 0.15]
steps = 5
"""


@pytest.fixture
def place(workplace: Any) -> Any:
    """Row sums as the model: attacked with PGD, then as the source of replays."""
    workplace.edit('[[threats]]\nplugin = "toy-attack"\neps = [0.05, 0.2]\n', ATTACKS)
    workplace.edit('plugin = "torch"\nfactory = "tiny_nets:Rows"', 'plugin = "toy-model"')
    return workplace


def cells(run: Any, plugin: str) -> list[dict[str, Any]]:
    return [c for c in run.cells() if c["plugin"] == plugin]


def test_every_image_that_fooled_a_model_fools_it_again(place: Any) -> None:
    place.run(out=place.folder / "first")
    run = place.run(replay=(place.folder / "first",))
    attacks, replays = cells(run, "pgd"), cells(run, "replay")
    labels = [f"replay[run=first,norm=linf,eps={eps}]" for eps in (0.05, 0.15)]
    assert [c["id"].split("/")[1] for c in replays] == labels
    for attack, replay in zip(attacks, replays, strict=True):
        names = ("success", "source", "replayed", "linf", "forwards")
        mine, again = run.rows(attack["id"], ("success",)), run.rows(replay["id"], names)
        assert not (mine["success"] & ~again["success"]).any()
        assert mine["success"].any()
        assert (again["linf"] <= float(replay["params"]["eps"]) + 1e-6).all()
        assert (again["forwards"] == again["replayed"]).all(), "a sample is charged for what it was shown"
        assert ((again["source"] == "") == (again["replayed"] == 0)).all()
    assert replays[0]["metrics"]["robust_accuracy"]["value"] >= replays[1]["metrics"]["robust_accuracy"]["value"]


def test_the_union_counts_what_transfers(place: Any) -> None:
    """A model whose gradient points the wrong way withstands its own attack, and not the images made for its twin."""
    place.run(out=place.folder / "honest")
    place.write(
        "import torch\nfrom torch import nn\n\n\nclass Flip(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return -g\n\n\n"
        "class Masked(nn.Module):\n    def forward(self, x):\n        return 10 * Flip.apply(x).sum(dim=(1, 3))\n",
        "masked_nets.py",
    )
    place.edit('plugin = "toy-model"', 'plugin = "torch"\nfactory = "masked_nets:Masked"')
    run = place.run(replay=(place.folder / "honest",))
    sys.modules.pop("masked_nets", None)
    own = cells(run, "pgd")[1]["metrics"]["robust_accuracy"]["value"]
    shown = cells(run, "replay")[1]["metrics"]["robust_accuracy"]["value"]
    (union,) = (s for s in run.results["summaries"] if s["metric"] == "worst_case_robust_accuracy")
    assert own == 1
    assert shown < 0.5
    assert union["value"] <= shown
    # The gate knows the attack's number alone: the audit withdraws it.
    attack = cells(run, "pgd")[1]
    (check,) = (check for check in attack["audit"] if check["check"] == "probe_transfer")
    assert not check["ok"]
    assert "another model" in check["message"]
    assert not attack["reliable"]


def test_what_transfers_no_better_than_the_attack_leaves_it_reliable(place: Any) -> None:
    place.run(out=place.folder / "first")
    run = place.run(replay=(place.folder / "first",))
    for attack in cells(run, "pgd"):
        (check,) = (check for check in attack["audit"] if check["check"] == "probe_transfer")
        assert check["ok"]


def test_a_replay_is_no_part_of_what_a_baseline_must_share(place: Any) -> None:
    first = place.run(out=place.folder / "first")
    assert place.run(replay=(place.folder / "first",)).info["identity"] == first.info["identity"]


def test_rows_do_not_depend_on_shards(place: Any) -> None:
    place.run(out=place.folder / "first")
    one = place.run(out=place.folder / "a", replay=(place.folder / "first",), overrides=["suite.shard_size=30"])
    two = place.run(out=place.folder / "b", replay=(place.folder / "first",), overrides=["suite.shard_size=7"])
    for left, right in zip(cells(one, "replay"), cells(two, "replay"), strict=True):
        a, b = (r.rows(c["id"], ("sample_id", "success", "source", "l2")) for r, c in ((one, left), (two, right)))
        assert all(np.array_equal(a[name], b[name]) for name in a)


def replay_table(place: Any, **options: Any) -> str:
    lines = "".join(f'{key} = "{value}"\n' for key, value in options.items())
    place.write(place.suite.read_text() + f'\n[[threats]]\nplugin = "replay"\nrun = "first"\n{lines}')
    found = cells(place.run(), "replay")[0]
    return found["error"] if found["status"] == "failed" else found["status"]


def test_a_suite_may_name_the_run_and_its_cells(place: Any) -> None:
    place.run(out=place.folder / "first")
    assert replay_table(place, eps="0.15", cells="*eps=0.05*") == "ok"
    run = place.run()
    found = run.rows(cells(run, "replay")[0]["id"], ("source",))["source"]
    assert set(found) <= {"", "rows/pgd[eps=0.05,steps=5]/toy"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cells": "*/pdg*"}, "no cell of it fits '*/pdg*'"),
        ({"cells": "*/clean/*"}, "stored adversarial images"),
    ],
)
def test_what_cannot_be_replayed_is_said(options: dict[str, str], text: str, place: Any, one_line: Any) -> None:
    place.run(out=place.folder / "first")
    assert text in one_line(replay_table(place, eps="0.15", **options))


def test_images_of_other_samples_are_refused(place: Any, one_line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run(out=place.folder / "first")
    place.edit('name = "toy"', 'name = "other-toy"')
    plugin = place.write(
        "from harness import DatasetInfo, hookimpl\nfrom toy_plugin import Toy, ToyData\n\n\n"
        "class Other(Toy):\n    def images(self, index):\n        return 1 - super().images(index)\n\n\n"
        "@hookimpl\ndef register_datasets(register):\n"
        '    register(DatasetInfo(name="other-toy", summary="inverted", factory=Other, options=ToyData))\n',
        "other_toy.py",
    )
    monkeypatch.syspath_prepend(str(Path(place.plugins[0]).parent))
    place.plugins = (*place.plugins, str(plugin))
    assert "was made on other images" in one_line(replay_table(place, eps="0.15"))


@pytest.mark.parametrize(("eps", "text"), [("8", 'did you mean "8/255"'), ("-1", "negative")])
def test_a_budget_in_the_wrong_unit(eps: str, text: str, place: Any) -> None:
    place.run(out=place.folder / "first")
    with pytest.raises(HarnessError, match=text):
        replay_table(place, eps=eps)


def test_a_folder_that_is_no_run(place: Any, one_line: Any) -> None:
    assert "no such folder" in one_line(replay_table(place, eps="0.15"))
