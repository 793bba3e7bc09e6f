"""Training: reproducible, resumable to the bit, and doing what the recipe says."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_torch.adversary import perturb
from harness_torch.model import TorchClassifier, build
from harness_torch.options import Adversarial, FitRecipe, TorchOptions
from harness_torch.training import flipped, learning_rate, shifted
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from harness import checkpoints
from harness.datasets import DatasetSlice
from harness.errors import HarnessError, ModelError
from harness.models import ModelContext, prepare
from harness.training import FitSession


class Bars:
    """Images with a bright row (class 0), column (1) or nothing (2), and noise: learnt in a few epochs."""

    class_names = ("row", "column", "nothing")
    shape = (1, 4, 4)
    levels = 256

    def __init__(self, n: int = 120) -> None:
        rng = np.random.default_rng(0)
        self._labels = (np.arange(n) % 3).astype(np.int64)
        x = rng.random((n, 1, 4, 4), dtype=np.float32) * 0.3
        for i, label in enumerate(self._labels):
            place = rng.integers(4)
            if label == 0:
                x[i, 0, place, :] += 0.6
            if label == 1:
                x[i, 0, :, place] += 0.6
        self._x = x

    def labels(self) -> NDArray[np.int64]:
        return self._labels

    def images(self, index: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._x[index])

    def digest(self) -> str:
        return "bars"


NETS = """
from torch import nn

def net(width=16, num_classes=3):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Dropout(0.2), nn.Linear(128, width), nn.ReLU(), nn.Linear(width, num_classes))

def nothing_to_train():
    return nn.Sequential(nn.Flatten(), nn.AvgPool1d(5))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets_to_train.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


DATA = DatasetSlice("bars", Bars())
RECIPE: dict[str, Any] = {"epochs": 6, "batch_size": 32, "lr": 1e-2, "shift": 1, "flip": True}


def make(folder: Path, **options: Any) -> TorchClassifier:
    table = {"factory": "nets_to_train:net", **options}
    model = build(TorchOptions.model_validate(table), ModelContext("mine", DATA.facts, "cpu", folder))
    return prepare(model, "cpu")  # type: ignore[no-any-return]


class StopError(Exception):
    pass


def fit(
    folder: Path, name: str, recipe: Mapping[str, Any], *, seed: int = 0, stop_after: int | None = None, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train; the weights and the header of the checkpoint. With `stop_after` it is interrupted after that epoch."""

    def progress(done: int, total: int, values: Mapping[str, float]) -> None:
        if done == stop_after:
            raise StopError

    chosen = FitRecipe.model_validate({**RECIPE, **recipe})
    header = {"plugin": "torch", "recipe": chosen.model_dump(mode="json"), "options": {"factory": "nets_to_train:net"}}
    make(folder, **options).fit(DATA, chosen, FitSession(folder / name, header, seed, progress))
    return checkpoints.load(folder / name)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adamw", "weight_decay": 0.01},
        {"optimizer": "adam", "schedule": "one-cycle", "adversarial": {"eps": 0.05, "steps": 2}},
        {"optimizer": "sgd", "lr": 0.05, "label_smoothing": 0.1, "validation": 0.25, "schedule": "constant"},
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits(folder: Path, recipe: dict[str, Any]) -> None:
    whole, header = fit(folder, "whole.safetensors", recipe)
    for epoch in (1, 4, 6):
        with pytest.raises(StopError):
            fit(folder, f"cut{epoch}.safetensors", recipe, stop_after=epoch)
        torch.rand(epoch)  # the state of the global generator must not matter
        again, header_again = fit(folder, f"cut{epoch}.safetensors", recipe)
        assert same(whole, again)
        assert header == header_again
    assert not list(folder.glob("*.resume"))


def test_seed_decides_and_the_global_generator_neither_matters_nor_moves(folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, _ = fit(folder, "a.safetensors", {})
    assert torch.equal(torch.rand(1), expected)
    assert same(first, fit(folder, "b.safetensors", {})[0])
    assert not same(first, fit(folder, "c.safetensors", {}, seed=1)[0])


def test_it_learns_and_says_how_well(folder: Path) -> None:
    reports: list[tuple[int, int]] = []
    recipe = FitRecipe.model_validate({**RECIPE, "epochs": 25, "validation": 0.2, "shift": 0})
    model = make(folder)
    out = folder / "w.safetensors"
    header = {"options": {"factory": "nets_to_train:net"}}
    model.fit(DATA, recipe, FitSession(out, header, 0, lambda done, total, values: reports.append((done, total))))
    results = checkpoints.read_header(out)["results"]
    assert results["train_accuracy"] > 0.95
    assert results["validation_accuracy"] > 0.8
    assert reports == [(i, 25) for i in range(1, 26)]
    assert not any(module.training for module in model.modules())
    x, y = DATA.load(DATA.ids)
    loaded = build(TorchOptions(checkpoint=str(out)), ModelContext("again", DATA.facts, "cpu", folder))
    assert torch.equal(loaded.logits(x), model.logits(x))
    assert (loaded.logits(x).argmax(dim=1) == y).float().mean() > 0.9


def test_training_starts_from_a_checkpoint_where_one_is_named(folder: Path) -> None:
    first, _ = fit(folder, "first.safetensors", {})
    still = {"epochs": 1, "lr": 1e-12, "optimizer": "sgd"}
    tuned, _ = fit(folder, "tuned.safetensors", still, checkpoint="first.safetensors", seed=5)
    torch.testing.assert_close(tuned["0.weight"], first["0.weight"])


def test_the_header_fills_in_factory_arguments_and_normalisation(folder: Path) -> None:
    out = folder / "w.safetensors"
    options = {"factory": "nets_to_train:net", "factory_args": {"width": 5}, "normalize": {"mean": [0.3], "std": [0.2]}}
    model = make(folder, **options)
    session = FitSession(out, {"options": options}, 0, lambda done, total, values: None)
    model.fit(DATA, FitRecipe(epochs=1), session)
    loaded = build(TorchOptions(checkpoint="w.safetensors"), ModelContext("again", DATA.facts, "cpu", folder))
    x, _ = DATA.load(DATA.ids[:5])
    assert torch.equal(loaded.logits(x), model.logits(x))
    assert loaded.source_modules == ("nets_to_train",)


def test_what_cannot_be_trained(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no weights to train"):
        fit(folder, "w.safetensors", {}, factory="nets_to_train:nothing_to_train")
    with pytest.raises(ModelError, match="gives 2 logits, dataset 'bars' has 3 classes"):
        fit(folder, "w.safetensors", {}, factory_args={"num_classes": 2})
    with pytest.raises(ModelError, match=r"the loss became .* lower lr"):
        fit(folder, "w.safetensors", {"optimizer": "sgd", "lr": 1e30})
    with pytest.raises(HarnessError, match="training needs images"):
        fit(folder, "w.safetensors", {"validation": 0.999})
    torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.zeros(2, 1, 4, 4)).save(str(folder / "m.ts"))
    with pytest.raises(ModelError, match="cannot be trained"):
        fit(folder, "w.safetensors", {}, factory=None, file="m.ts")


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r}); sys.path.insert(0, {folder!r})
import test_training as t
folder = Path({folder!r})
t.fit(folder, "killed.safetensors", t.LONG)
"""
LONG = {"epochs": 40, "adversarial": {"eps": 0.05, "steps": 3}}


def test_kill_9_costs_at_most_an_epoch(folder: Path) -> None:
    whole, _ = fit(folder, "whole.safetensors", LONG)
    state = folder / "killed.safetensors.resume"
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert state.exists(), errors.decode()
    assert not (folder / "killed.safetensors").exists()
    epochs = checkpoints.read_header(state)["state"]["epochs"]
    assert 1 <= epochs < LONG["epochs"]  # type: ignore[operator]
    again, _ = fit(folder, "killed.safetensors", LONG)
    assert same(whole, again)


@given(st.integers(1, 3), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_shifted_moves_each_image_by_a_whole_number_of_pixels(reach: int, seed: int) -> None:
    x = torch.rand(6, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    out = shifted(x, reach, torch.Generator().manual_seed(seed))
    padded = nn.functional.pad(x, (reach,) * 4)
    windows = [padded[:, :, a : a + 5, b : b + 5] for a in range(2 * reach + 1) for b in range(2 * reach + 1)]
    assert all(any(torch.equal(w[i], out[i]) for w in windows) for i in range(6))


def test_shifts_are_spread_evenly_and_flips_are_half() -> None:
    x = torch.zeros(9000, 1, 3, 3)
    x[:, :, 1, 1] = 1
    where = shifted(x, 1, torch.Generator().manual_seed(0)).mean(dim=0)
    torch.testing.assert_close(where, torch.full((1, 3, 3), 1 / 9), atol=0.015, rtol=0)
    y = torch.arange(3.0).expand(4000, 1, 3, 3)
    mirrored = flipped(y, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 2
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)


@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(1e-3, 2.0),
    steps=st.integers(1, 4),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=40)
def test_training_images_stay_in_the_ball_and_in_range(norm: Any, eps: float, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(5, 1, 4, 4, generator=generator), torch.arange(5) % 3
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    out = perturb(model, x, y, Adversarial(norm=norm, eps=eps, steps=steps), generator)
    assert out.min() >= 0
    assert out.max() <= 1
    delta = (out - x).flatten(1)
    size = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert bool((size <= eps * (1 + 1e-5) + 1e-6).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_inner_attack_solves_a_linear_model(norm: Any) -> None:
    """For two classes and logits w x the worst image in the ball is known: x - eps sign(w), or x - eps w / |w|."""
    w = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    linear = nn.Linear(4, 2, bias=False)
    linear.weight.data = torch.cat([w, -w])
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    attack = Adversarial(norm=norm, eps=0.1, steps=80, step_size=0.02)
    out = perturb(nn.Sequential(nn.Flatten(), linear), x, y, attack, torch.Generator().manual_seed(0))
    worst = x.flatten(1) - 0.1 * (w.sign() if norm == "linf" else w / w.norm())
    torch.testing.assert_close(out.flatten(1), worst, atol=1e-4, rtol=0)


def test_learning_rates() -> None:
    at = {name: FitRecipe(lr=1.0, schedule=name) for name in ("constant", "cosine", "one-cycle")}  # type: ignore[arg-type]
    assert [learning_rate(at["constant"], d) for d in (0, 0.99)] == [1, 1]
    assert [learning_rate(at["cosine"], d) for d in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [learning_rate(at["one-cycle"], d) for d in (0, 0.15, 0.3, 0.65, 1)] == pytest.approx(
        [0.04, 0.52, 1, 0.5, 0]
    )
