"""What holds for every part of AutoAttack, and for the whole: APGD, FAB, Square."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.errors import HarnessError, ThreatError
from harness.models import ModelView
from harness.randomness import draws_for
from harness.threats import Batch, Columns, ThreatContext

Run = Callable[..., tuple[Columns, ModelView]]
OPTIONS = {"apgd": "APGDOptions", "fab": "FABOptions", "square": "SquareOptions", "autoattack": "AutoAttackOptions"}
NORMS = ["linf", "l2", "l1"]
# Short forms of each attack, for what does not depend on its length.
SHORT: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 12},
    "fab": {"steps": 8, "targets": 2},
    "square": {"queries": 60},
}
PARTS = list(SHORT)


@pytest.fixture
def run(attack: Any) -> Run:
    """Runs an attack by name as the host would: its columns and the model's view."""

    def run(name: str, *arguments: Any, **options: Any) -> tuple[Columns, ModelView]:
        attack.build = lambda x, classes=10, **options: built(name, tuple(x.shape[1:]), classes, **options)
        columns: tuple[Columns, ModelView] = attack.counted(*arguments, **options)
        return columns

    return run


def built(name: str, shape: tuple[int, ...], classes: int, **options: Any) -> Any:
    module = importlib.import_module(f"harness_attacks.{name}")
    facts = DatasetFacts("test", shape, 256, tuple(map(str, range(classes))))  # type: ignore[arg-type]
    parsed = getattr(module, OPTIONS[name]).model_validate(options)
    return module.build(parsed, ThreatContext(facts, None, Path()))  # type: ignore[arg-type]


def linear(scores: Any, classes: int, shift: float = 0.0, scale: float = 1.0) -> tuple[Any, Tensor]:
    """A linear classifier of 1x6x6 images and its weights (K, 36); `shift` is a function of the image times that."""
    generator = torch.Generator().manual_seed(classes)
    w, b = torch.randn(classes, 36, generator=generator), torch.randn(classes, generator=generator)

    def logits(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return scale * (flat @ w.T + b) + shift * (1 + 0.1 * flat.square().sum(dim=1, keepdim=True))

    return scores(logits, classes), w


def images_for(n: int, shape: tuple[int, ...] = (1, 6, 6)) -> Tensor:
    """Images around grey: a ball of radius 0.3 stays in the box."""
    return 0.5 + 0.4 * (torch.rand(n, *shape, generator=torch.Generator().manual_seed(n)) - 0.5)


def needed_norms(model: Any, w: Tensor, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Closed form of a linear classifier: the smallest margin over dual norm, (n,)."""
    logits = model.logits(x)
    difference = w[y][:, None] - w[None]
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    dual = torch.linalg.vector_norm(difference, ord=order, dim=2)
    distance = (logits.gather(1, y[:, None]) - logits) / dual.clamp_min(1e-12)
    return distance.scatter(1, y[:, None], np.inf).amin(dim=1)


def fooled(model: Any, columns: Columns, y: Tensor) -> Tensor:
    with torch.no_grad():
        wrong: Tensor = model.logits(columns["adversarial"]).argmax(dim=1) != y
    return wrong


def eps_for(norm: str, image: int = 36) -> float:
    """A budget of middling strength for images of so many pixels."""
    return {"linf": 0.03, "l2": 0.12, "l1": 0.5}[norm] * (image / 36) ** 0.5


# Closed forms


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("apgd", {"loss": "margin"}),
        ("apgd", {"loss": "dlr"}),
        ("apgd", {"loss": "dlr", "targets": 4, "steps": 50}),
        ("apgd", {"loss": "cross-entropy", "targets": 4, "steps": 50}),
        ("fab", {"steps": 20}),
        ("fab", {"targeted": False, "steps": 20}),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_attacks_reach_the_closed_form(
    run: Run, scores: Any, norm: str, name: str, options: dict[str, Any]
) -> None:
    model, w = linear(scores, 5)
    x = images_for(60)
    y = model.logits(x).argmax(dim=1)
    needed = needed_norms(model, w, x, y, norm)
    eps = float(needed.quantile(0.4))  # small enough for the box to be out of the way, in l1 too
    columns, _ = run(name, model, x, y, norm=norm, eps=eps, **options)
    found = fooled(model, columns, y)
    assert not found[needed > 1.001 * eps].any()
    # Sparse steps are no shorter than eps / 10, and move several entries: APGD's last 20 % in l1 take restarts.
    sure = 0.8 if (name, norm) == ("apgd", "l1") else 0.98
    assert found[needed < sure * eps].all()


@pytest.mark.parametrize("norm", NORMS)
def test_square_comes_near_the_closed_form(run: Run, scores: Any, norm: str) -> None:
    """In l-inf squares of one pixel reach it; the bumps of l2 and l1, which are three wide, need more room."""
    model, w = linear(scores, 3)
    x = images_for(30)
    y = model.logits(x).argmax(dim=1)
    needed = needed_norms(model, w, x, y, norm)
    eps = float(needed.median())
    columns, _ = run("square", model, x, y, norm=norm, eps=eps, queries=900)
    found = fooled(model, columns, y)
    assert not found[needed > 1.001 * eps].any()
    assert found[needed < {"linf": 0.95, "l2": 0.5, "l1": 0.2}[norm] * eps].all()


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_fab_finds_the_smallest_norm(run: Run, scores: Any, norm: str, targeted: bool) -> None:
    model, w = linear(scores, 4)
    x = images_for(100)
    y = model.logits(x).argmax(dim=1)
    needed = needed_norms(model, w, x, y, norm)
    small = needed < needed.quantile(0.6)  # where the box is out of the way, in l1 too
    x, y, needed = x[small], y[small], needed[small]
    columns, _ = run("fab", model, x, y, norm=norm, targeted=targeted, steps=40)
    assert fooled(model, columns, y).all()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    found = torch.linalg.vector_norm((columns["adversarial"] - x).flatten(1), ord=order, dim=1)
    assert (found >= needed * (1 - 1e-3)).all()
    assert (found <= needed * 1.02).all()


# Per-sample results


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PARTS)
def test_a_sample_alone_and_in_a_batch_are_the_same(run: Run, smooth_net: Any, name: str, norm: str) -> None:
    x = images_for(12, (1, 4, 4))
    y = smooth_net.logits(x).argmax(dim=1)
    ids = torch.arange(12) + 40
    options = {"norm": norm, "eps": eps_for(norm, 16), **SHORT[name]}
    together, _ = run(name, smooth_net, x, y, ids, **options)
    assert 0 < (together["success_step"] >= 0).sum() < 12  # some leave, and the rest does not notice
    for row in range(12):
        alone, _ = run(name, smooth_net, x[row : row + 1], y[row : row + 1], ids[row : row + 1], **options)
        for column, values in alone.items():
            assert torch.equal(values, together[column][row : row + 1]), column


@pytest.mark.parametrize("name", PARTS)
def test_restarts_are_a_union(run: Run, plain_cnn: Any, digits: Any, name: str) -> None:
    x, y = digits[0][:120], digits[1][:120]
    options = {**SHORT[name], "eps": {"apgd": 0.06, "fab": 0.07, "square": 0.12}[name]}
    if name == "apgd":
        options["steps"] = 3
    one, _ = run(name, plain_cnn, x, y, **options)
    three, _ = run(name, plain_cnn, x, y, restarts=3, **options)
    before, after = fooled(plain_cnn, one, y), fooled(plain_cnn, three, y)
    assert not (before & ~after).any()
    later = three["restart"] >= 1
    assert later.any()
    assert torch.equal(after[later], torch.ones_like(after[later]))
    first = three["restart"] == 0
    assert torch.equal(three["adversarial"][first], one["adversarial"][first])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PARTS)
def test_budget_and_box_hold_and_saturated_images_fall(run: Run, scores: Any, name: str, norm: str) -> None:
    model, _ = linear(scores, 4)
    x = (torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    y = model.logits(x).argmax(dim=1)
    eps = {"linf": 0.6, "l2": 3.5, "l1": 16.0}[norm]
    columns, _ = run(name, model, x, y, norm=norm, eps=eps, **SHORT[name])
    images = columns["adversarial"]
    assert images.min() >= 0
    assert images.max() <= 1
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    size = torch.linalg.vector_norm((images - x).flatten(1).double(), ord=order, dim=1)
    assert size.max() <= eps * (1 + 1e-6)
    assert fooled(model, columns, y).double().mean() > 0.9


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PARTS)
def test_what_stands_is_inside_the_budget_too(run: Run, plain_cnn: Any, digits: Any, name: str, norm: str) -> None:
    x, y = digits[0][:60], digits[1][:60]
    eps = {"linf": 0.05, "l2": 0.2, "l1": 0.6}[norm]
    columns, _ = run(name, plain_cnn, x, y, norm=norm, eps=eps, **SHORT[name])
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    size = torch.linalg.vector_norm((columns["adversarial"] - x).flatten(1).double(), ord=order, dim=1)
    assert size.max() <= eps * (1 + 1e-6)
    assert torch.equal(
        columns["success_step"] >= 0, fooled(plain_cnn, columns, y) & (plain_cnn.logits(x).argmax(1) == y)
    )


# Invariance of the logits


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("apgd", {"steps": 40}),
        ("apgd", {"steps": 40, "loss": "dlr"}),
        ("apgd", {"steps": 20, "loss": "dlr", "targets": 3}),
        ("fab", {"steps": 20, "targets": 3}),
        ("square", {"queries": 200}),
    ],
)
@pytest.mark.parametrize(("shift", "scale"), [(-3000.0, 1.0), (0.0, 1e-4), (0.0, 1e4)])
def test_shifted_and_scaled_logits_are_as_robust(
    run: Run, scores: Any, name: str, options: dict[str, Any], shift: float, scale: float
) -> None:
    plain, w = linear(scores, 5)
    other, _ = linear(scores, 5, shift, scale)
    x = images_for(200)
    y = plain.logits(x).argmax(dim=1)
    eps = float(needed_norms(plain, w, x, y, "linf").median())
    before = fooled(plain, run(name, plain, x, y, eps=eps, **options)[0], y)
    columns, _ = run(name, other, x, y, eps=eps, **options)
    after = fooled(plain, columns, y)
    assert 0.1 < before.double().mean() < 0.9
    assert columns.get("zero_gradient_steps", torch.zeros(1)).sum() == 0
    assert abs(float(after.double().mean() - before.double().mean())) <= 0.05


# Costs and columns


@pytest.mark.parametrize("name", PARTS)
def test_samples_that_the_model_gets_wrong_are_left_alone(run: Run, plain_cnn: Any, digits: Any, name: str) -> None:
    x, y = digits[0][:40], digits[1][:40].clone()
    y[::3] = (y[::3] + 1) % 10
    right = plain_cnn.logits(x).argmax(dim=1) == y
    columns, view = run(name, plain_cnn, x, y, eps=0.1, **SHORT[name])
    assert 0 < right.sum() < 40
    assert torch.equal(columns["adversarial"][~right], x[~right])
    assert view.forwards[~right].sum() == view.backwards[~right].sum() == 0
    assert (view.forwards[right] > 0).all()
    assert (columns["success_step"][~right] == -1).all()


@pytest.mark.parametrize("name", [*PARTS, "autoattack"])
def test_a_budget_of_zero_asks_the_model_nothing(run: Run, plain_cnn: Any, digits: Any, name: str) -> None:
    columns, view = run(name, plain_cnn, *digits, eps=0)
    assert torch.equal(columns["adversarial"], digits[0])
    assert view.forwards.sum() == 0


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_columns_count_what_the_host_counts(run: Run, plain_cnn: Any, digits: Any, norm: str) -> None:
    x, y = digits[0][:50], digits[1][:50]
    eps = {"linf": 0.07, "l1": 1.0}[norm]
    large = norm == "l1"
    columns, view = run("apgd", plain_cnn, x, y, norm=norm, eps=eps, steps=20, restarts=2, large_radii=large)
    wasted = view.backwards - columns["gradient_steps"]  # at an image that fell, in the company of some that did not
    assert (wasted[columns["success_step"] < 0] == 0).all()
    assert wasted.min() == 0
    assert wasted.max() <= 1
    columns, view = run("square", plain_cnn, x, y, norm=norm, eps=eps, queries=40, restarts=2)
    assert torch.equal(columns["queries"], view.forwards)
    assert view.forwards.max() == 80
    columns, view = run("fab", plain_cnn, x, y, norm=norm, eps=eps, steps=5, targets=2)
    assert torch.equal(columns["gradient_steps"], view.backwards)
    assert torch.equal(2 * columns["gradient_steps"], view.forwards)


def test_the_loss_rises_and_fallen_samples_leave(run: Run, plain_cnn: Any, digits: Any) -> None:
    columns, view = run("apgd", plain_cnn, *digits, eps=0.07)
    attacked = columns["gradient_steps"] > 0
    assert (columns["loss_last"] > columns["loss_first"])[attacked].double().mean() > 0.95
    fell = (columns["success_step"] >= 0) & attacked
    assert torch.equal(view.forwards[fell], columns["success_step"][fell] + 1)
    stood = attacked & ~fell
    assert (view.forwards[stood] == 101).all()
    assert (view.backwards[stood] == 100).all()


@pytest.mark.parametrize("name", PARTS)
def test_no_global_generator_is_touched(run: Run, smooth_net: Any, name: str) -> None:
    x = images_for(4, (1, 4, 4))
    y = smooth_net.logits(x).argmax(dim=1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr] # noqa: NPY002
    run(name, smooth_net, x, y, eps=0.05, **{**SHORT[name], "restarts": 2})
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


def test_a_large_step_in_colour_stays_inside(run: Run, scores: Any) -> None:
    """Thousands of entries, where the rounding of each adds up; and windows of an image that is not square."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 3 * 32 * 24, generator=generator)
    model = scores(lambda x: x.flatten(1) @ w.T, 3)
    x = torch.rand(6, 3, 32, 24, generator=generator)
    y = model.logits(x).argmax(dim=1)
    for norm, eps in (("linf", 0.002), ("l2", 0.1), ("l1", 2.0)):
        for name in PARTS:
            columns, _ = run(name, model, x, y, norm=norm, eps=eps, **SHORT[name])
            order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
            change = (columns["adversarial"] - x).flatten(1).double()
            assert torch.linalg.vector_norm(change, ord=order, dim=1).max() <= eps * (1 + 1e-6) + 1e-6


# Models with randomness


class Noisy:
    """A linear classifier whose logits are noisy."""

    stochastic = True
    num_classes = 5

    def __init__(self, model: Any, noise: float) -> None:
        self.model, self.noise = model, noise

    def logits(self, x: Tensor, draws: Any) -> Tensor:
        noisy: Tensor = self.model.logits(x) + self.noise * draws.normal("noise", 0, (5,))
        return noisy


def judged(model: Noisy, columns: Columns, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Who is wrong by most of many draws that no attack saw, clean and attacked."""
    view = ModelView(model, {"Classifier"}, torch.arange(len(x)), 0, "eval")
    draws = draws_for(torch.arange(len(x)), 0, "judge")
    votes = [
        torch.stack([view.logits(images, draws.numbered(k)).argmax(dim=1) != y for k in range(31)]).double().mean(dim=0)
        for images in (x, columns["adversarial"])
    ]
    return votes[0] > 0.5, votes[1] > 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [("apgd", {"steps": 20, "eot": 6}), ("square", {"queries": 200}), ("autoattack", {"version": "rand"})],
)
def test_noise_alone_breaks_nothing_and_the_attack_does(
    run: Run, scores: Any, name: str, options: dict[str, Any]
) -> None:
    plain, w = linear(scores, 5)
    model = Noisy(plain, 2.0)
    x = images_for(40)
    y = plain.logits(x).argmax(dim=1)
    needed = needed_norms(plain, w, x, y, "linf")
    tiny = 0.001 * float(needed.median())
    clean, attacked = judged(model, run_random(name, model, x, y, eps=tiny, **options), x, y)
    assert (attacked & ~clean).sum() <= 2  # nothing is within reach but a tie
    clean, attacked = judged(model, run_random(name, model, x, y, eps=1.5 * float(needed.median()), **options), x, y)
    assert attacked.double().mean() > (0.5 if name != "square" else 0.3)


def run_random(name: str, model: Noisy, x: Tensor, y: Tensor, **options: Any) -> Columns:
    ids = torch.arange(len(x))
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    batch = Batch(x, y, ids, draws_for(ids, 0, "threat", name), model.model.logits(x))
    attack = built(name, tuple(x.shape[1:]), 5, **options)
    if name == "autoattack":  # shorter
        attack.parts = {
            part: type(apgd)(apgd.options.model_copy(update={"steps": 15, "eot": 6}))
            for part, apgd in attack.parts.items()
        }
    columns: Columns = attack.run(view, batch)
    return columns


def test_only_version_rand_takes_a_random_model(scores: Any) -> None:
    model = Noisy(linear(scores, 5)[0], 1.0)
    x = images_for(4)
    y = model.model.logits(x).argmax(dim=1)
    with pytest.raises(ThreatError, match='set version = "rand"'):
        run_random("autoattack", model, x, y, eps=0.1)


def test_eot_costs_its_draws_and_nothing_on_other_models(run: Run, scores: Any) -> None:
    plain, _ = linear(scores, 5)
    x = images_for(10)
    y = plain.logits(x).argmax(dim=1)
    one, view = run("apgd", plain, x, y, eps=1e-4, steps=5)
    many, other = run("apgd", plain, x, y, eps=1e-4, steps=5, eot=7)
    assert torch.equal(one["adversarial"], many["adversarial"])
    assert torch.equal(view.forwards, other.forwards)
    random = ModelView(Noisy(plain, 0.1), {"Classifier"}, torch.arange(10), 0, "attack")
    batch = Batch(x, y, torch.arange(10), draws_for(torch.arange(10), 0, "threat"), plain.logits(x))
    built("apgd", (1, 6, 6), 5, eps=1e-4, steps=5, eot=7).run(random, batch)
    assert (random.forwards == 42).all()
    assert (random.backwards == 35).all()


# Bad input


@pytest.mark.parametrize("name", [*PARTS, "autoattack"])
def test_a_budget_in_another_unit_is_one_clear_line(name: str) -> None:
    with pytest.raises(ValueError, match='did you mean "8/255"'):
        built(name, (1, 6, 6), 5, eps=8)
    with pytest.raises(ValueError, match="negative"):
        built(name, (1, 6, 6), 5, eps=-0.1)
    with pytest.raises(HarnessError, match=f"{name}: eps 40 is more than the l1 diameter 36"):
        built(name, (1, 6, 6), 5, norm="l1", eps=40)


def test_what_a_loss_or_norm_cannot_do_is_refused() -> None:
    with pytest.raises(HarnessError, match="needs 3 classes"):
        built("apgd", (1, 6, 6), 2, eps=0.1, loss="dlr")
    with pytest.raises(HarnessError, match="needs 4 classes"):
        built("apgd", (1, 6, 6), 3, eps=0.1, loss="dlr", targets=2)
    with pytest.raises(ValueError, match="large_radii is for"):
        built("apgd", (1, 6, 6), 3, eps=0.1, large_radii=True)
    with pytest.raises(ValueError, match="version"):
        built("autoattack", (1, 6, 6), 3, eps=0.1, version="best")
