"""Random noise: on the surface of the ball, in the box, the same whatever the batch."""

from __future__ import annotations

import pytest
import torch
from harness_attacks.noise import NoiseOptions, build, surface_points
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.errors import HarnessError
from harness.models import ModelView
from harness.randomness import draws_for
from harness.threats import Batch, ThreatContext

IDS = torch.arange(50)
NORMS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


def context(shape: tuple[int, int, int] = (1, 8, 8)) -> ThreatContext:
    return ThreatContext(DatasetFacts("test", shape, 256, tuple("0123456789")), None, None)  # type: ignore[arg-type]


def run(model, x: Tensor, y: Tensor, ids: Tensor | None = None, **options) -> tuple[Tensor, ModelView]:
    ids = torch.arange(len(x)) if ids is None else ids
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    with torch.no_grad():
        clean = model.logits(x)
    batch = Batch(x, y, ids, draws_for(ids, 0, "threat", "noise"), clean)
    return build(NoiseOptions(**options), context(tuple(x.shape[1:]))).run(view, batch)["adversarial"], view


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("grey", [0.5, None])
def test_points_are_on_the_surface_and_in_the_box(norm: str, grey: float | None) -> None:
    x = torch.rand(50, 3, 5, 4, generator=torch.Generator().manual_seed(0)) if grey is None else None
    x = torch.full((50, 3, 5, 4), grey) if x is None else x.round(decimals=0)
    eps = {"linf": 0.1, "l2": 0.4, "l1": 3.3}[norm]
    points = surface_points(x, norm, eps, draws_for(IDS, 0, "x"), 0)
    size = torch.linalg.vector_norm((points - x).double().flatten(1), ord=NORMS[norm], dim=1)
    assert points.min() >= 0
    assert points.max() <= 1
    assert (size <= eps * (1 + 1e-6) + 1e-6).all()
    if grey is not None:
        assert (size >= eps * (1 - 1e-5)).all()
    if norm == "l1":
        assert ((points != x).flatten(1).sum(dim=1) < 12).all()  # few entries, moved far
    assert not torch.equal(points, surface_points(x, norm, eps, draws_for(IDS, 0, "x"), 1))


def test_a_sample_leaves_when_it_is_misclassified_and_its_image_fools(plain_cnn, digits) -> None:
    x, y = digits[0][:100], digits[1][:100]
    images, view = run(plain_cnn, x, y, eps=0.4, images=15)
    with torch.no_grad():
        right = plain_cnn.logits(x).argmax(dim=1) == y
        fooled = right & (plain_cnn.logits(images).argmax(dim=1) != y)
    assert 0.3 < fooled.float().mean() < 1
    assert (view.forwards[fooled] <= 15).all()
    assert view.forwards[fooled].float().mean() < 10
    assert (view.forwards[right & ~fooled] == 15).all()
    assert (view.forwards[~right] == 0).all()
    assert torch.equal(images[~right], x[~right])


def test_more_images_never_find_less_and_neighbours_do_not_matter(smooth_net) -> None:
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = smooth_net.logits(x).argmax(dim=1)
    few, _ = run(smooth_net, x, y, eps=0.1, images=3)
    many, _ = run(smooth_net, x, y, eps=0.1, images=12)

    def fooled(images: Tensor) -> Tensor:
        with torch.no_grad():
            return smooth_net.logits(images).argmax(dim=1) != y

    assert (fooled(many) >= fooled(few)).all()
    assert fooled(many).sum() > fooled(few).sum()
    alone, _ = run(smooth_net, x[20:30], y[20:30], torch.arange(20, 30), eps=0.1, images=12)
    assert torch.equal(alone, many[20:30])


def test_no_budget_no_noise(smooth_net) -> None:
    x = torch.rand(5, 1, 4, 4)
    images, view = run(smooth_net, x, torch.zeros(5, dtype=torch.int64), eps=0)
    assert torch.equal(images, x)
    assert view.forwards.sum() == 0


def test_a_budget_beyond_the_image_space_is_refused() -> None:
    with pytest.raises(HarnessError, match="noise: eps 100 is more than the l2 diameter 8"):
        build(NoiseOptions(norm="l2", eps=100), context())
