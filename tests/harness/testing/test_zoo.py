"""The zoo: every model answers like the one inside it, hides its gradient, and gives the truth away when asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.models import ModelView, prepare
from harness.randomness import draws_for
from harness.testing import synthetic_data
from harness.testing.zoo import ZOO, Deception, activations, preprocessing

IDS = torch.arange(40)
NAMES = [deception.name for deception in ZOO]
ZERO = {"quantised-16", "quantised-256", "jpeg-75", "thermometer-16"}
RANDOM = {"input-noise", "activation-pruning"}


class Net(nn.Module):
    """A trained-looking classifier of the synthetic images: distances to class means after a random ReLU layer."""

    stochastic = False
    num_classes = 5

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU())
        means = torch.stack([self.features(x[y == k]).mean(dim=0) for k in range(5)])
        self.last = nn.Linear(256, 5)
        self.last.load_state_dict({"weight": 2 * means, "bias": -means.square().sum(dim=1)})

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.features(x))
        return out


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    data = synthetic_data((1, 8, 8), 5, samples=40)
    return data.load(data.ids)


@pytest.fixture(scope="module")
def net(images: tuple[Tensor, Tensor]) -> Net:
    return prepare(Net(*images), "cpu")


def wrapped(name: str, net: Net) -> object:
    return prepare(next(d for d in ZOO if d.name == name).wrap(net), "cpu")


def logits(model: object, x: Tensor) -> Tensor:
    return ModelView(model, {"Classifier"}, IDS, 0, "eval").logits(x, draws_for(IDS, 0, "x"))


def margin(model: object, x: Tensor, y: Tensor) -> Tensor:
    answers = logits(model, x)
    others = answers.scatter(1, y[:, None], float("-inf")).amax(dim=1)
    return answers.gather(1, y[:, None])[:, 0] - others


@pytest.mark.parametrize("deception", ZOO, ids=NAMES)
def test_the_answers_are_those_of_the_model_inside(deception: Deception, net: Net, images) -> None:
    x, y = images
    model = prepare(deception.wrap(net), "cpu")
    assert (net.logits(x).argmax(dim=1) == y).float().mean() > 0.95
    assert (logits(model, x).argmax(dim=1) == y).float().mean() > 0.8


@pytest.mark.parametrize("name", [n for n in NAMES if n not in RANDOM | {"steep-sigmoid"}])
def test_the_adaptive_form_answers_the_same(name: str, net: Net, images) -> None:
    x = images[0]
    model = wrapped(name, net)
    same = logits(model, x).argmax(dim=1) == logits(model.adaptive(), x).argmax(dim=1)
    assert same.float().mean() >= (0.7 if name == "shifted-logits" else 1)  # which has ties


@pytest.mark.parametrize("name", NAMES)
def test_the_adaptive_form_has_a_gradient_that_can_be_followed(name: str, net: Net, images) -> None:
    x, y = images
    model = wrapped(name, net).adaptive()
    moved = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(model, moved, y).sum(), moved)
    with torch.no_grad():
        lower = margin(model, (x - 0.1 * gradient.sign()).clamp(0, 1), y)
        assert (lower < margin(model, x, y)).float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(ZERO))
def test_rounding_has_no_gradient(name: str, net: Net, images) -> None:
    x = images[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wrapped(name, net).logits(x).sum(), x)
    assert gradient.count_nonzero() == 0


def test_tampered_gradients(net: Net, images) -> None:
    x = images[0].clone().requires_grad_()
    (true,) = torch.autograd.grad(net.logits(x)[:, 0].sum(), x)
    seen = {
        name: torch.autograd.grad(wrapped(f"{name}-gradient", net).logits(x)[:, 0].sum(), x)[0]
        for name in ("flipped", "scrambled", "narrowed")
    }
    assert torch.equal(seen["flipped"], -true)
    assert torch.equal(seen["scrambled"], true.flip((-2, -1)))
    assert torch.equal(seen["narrowed"][..., 0], true[..., 0])
    assert seen["narrowed"][..., 1:].count_nonzero() == 0
    assert not wrapped("detached", net).logits(x).requires_grad


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_models_draw_from_the_streams_they_are_handed(name: str, net: Net, images) -> None:
    x = images[0]
    model = wrapped(name, net)
    draws = draws_for(IDS, 0, "x")
    assert torch.equal(model.logits(x, draws=draws), model.logits(x, draws=draws))
    assert not torch.equal(model.logits(x, draws=draws), model.logits(x, draws=draws.numbered(1)))
    part = torch.tensor([3, 17])
    assert torch.allclose(model.logits(x[part], draws=draws[part]), model.logits(x, draws=draws)[part], rtol=1e-4)


def test_pruning_keeps_the_expected_activation() -> None:
    layer = activations.Pruned(0, 1.0)
    layer.draws = draws_for(torch.arange(20_000), 0, "x")
    x = torch.tensor([4.0, 1.0, 0.5, -1.0]).expand(20_000, 4)
    assert torch.allclose(layer(x).mean(dim=0), torch.tensor([4.0, 1.0, 0.5, 0.0]), atol=0.03)


def test_jpeg_is_a_projection_that_moves_little() -> None:
    x = torch.rand(3, 3, 13, 10, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    once = preprocessing.jpeg(90)(x)
    assert once.shape == x.shape
    assert 0 < (once - x).abs().mean() < 0.05
    flat = torch.full((1, 1, 8, 8), 0.5)
    assert torch.allclose(preprocessing.jpeg(75)(flat), flat, atol=0.01)


def test_models_without_relu_modules_are_refused() -> None:
    linear = nn.Linear(2, 2)
    linear.num_classes = 2  # type: ignore[assignment]
    with pytest.raises(HarnessError, match=r"no nn\.ReLU module"):
        activations.Reactivated(linear, lambda _: nn.Identity())


def test_half_of_the_zoo_is_kept_for_reporting() -> None:
    assert len(set(NAMES)) == len(ZOO)
    assert abs(sum(deception.tuned for deception in ZOO) - len(ZOO) / 2) <= 1
