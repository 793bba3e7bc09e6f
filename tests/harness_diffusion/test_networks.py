"""Networks: sizes, what they depend on, and derivatives of first and second order against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness_diffusion.foreign import make_foreign
from harness_diffusion.networks import MLP, Condition, LayerNorm, UNet
from harness_diffusion.options import DiffusersOptions
from torch import Tensor, nn

SHAPE = (1, 8, 8)
UNET2D: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
DIT: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "norm_num_groups": 4}


def unet2d() -> nn.Module:
    pytest.importorskip("diffusers")
    return make_foreign(DiffusersOptions(config=UNET2D), SHAPE, 3, True, 1000)


def dit() -> nn.Module:
    pytest.importorskip("diffusers")
    return make_foreign(DiffusersOptions(architecture="DiTTransformer2DModel", config=DIT), SHAPE, 3, True, 1000)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(SHAPE, 4, width=32, blocks=2),
    "unet": lambda: UNet(SHAPE, 4, channels=(8, 16)),
    "unet2d": unet2d,
    "dit": dit,
}


@pytest.fixture(params=sorted(MAKERS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    """A network with random weights everywhere, in float64."""
    torch.manual_seed(0)
    made = MAKERS[request.param]()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.15)
    return made.double().eval()


def given(count: int = 3) -> tuple[Tensor, Condition, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.1, 0.9, count, dtype=torch.float64)
    return x, Condition(t, 5 - 8 * t), torch.arange(count) % 4


def test_shape_and_what_the_answer_depends_on(network: nn.Module) -> None:
    x, condition, y = given()
    out = network(x, condition, y)
    assert out.shape == x.shape
    for change in (
        (x + 0.1, condition, y),
        (x, Condition(condition.time + 0.05, condition.log_snr + 0.4), y),
        (x, condition, (y + 1) % 4),
    ):
        assert not torch.isclose(network(*change), out, rtol=1e-6, atol=1e-9).flatten(1).all(dim=1).any()
    alone = torch.cat(
        [network(x[i : i + 1], Condition(condition.time[i : i + 1], condition.log_snr[i : i + 1]), y[i : i + 1])
         for i in range(3)]
    )  # fmt: skip
    torch.testing.assert_close(alone, out)


def test_jvp_and_vjp_are_the_finite_difference(network: nn.Module) -> None:
    x, condition, y = given()
    e, w = torch.randn(2, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind(0)

    def f(z: Tensor) -> Tensor:
        out: Tensor = network(z, condition, y)
        return out

    out, tangent = torch.func.jvp(f, (x,), (e,))
    torch.testing.assert_close(out, f(x))
    torch.testing.assert_close(tangent, difference(f, x, e), rtol=1e-5, atol=1e-7)
    _, pull = torch.func.vjp(f, x)
    torch.testing.assert_close((pull(w)[0] * e).sum(), (w * tangent).sum())


def test_gradient_of_a_jvp_is_the_finite_difference(network: nn.Module) -> None:
    """What an attack on a likelihood needs: the gradient of the trace estimate, whichever way that is made."""
    x, condition, y = given()
    e, direction = torch.randn(2, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).unbind(0)

    def forwards(z: Tensor) -> Tensor:
        _, tangent = torch.func.jvp(lambda v: network(v, condition, y), (z,), (e,))
        return (tangent * e).sum()

    def backwards(z: Tensor) -> Tensor:
        _, pull = torch.func.vjp(lambda v: network(v, condition, y), z)
        return (pull(e)[0] * e).sum()

    wanted = difference(forwards, x, direction)
    for trace in (forwards, backwards):
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(trace(z), z)
        torch.testing.assert_close((gradient * direction).sum(), wanted, rtol=1e-4, atol=1e-6)


def test_many_tangents_at_once_on_transposed_memory(network: nn.Module) -> None:
    """One trajectory, several probes; and an input whose memory is not contiguous."""
    x, condition, y = given()
    x = x.transpose(2, 3)
    probes = torch.randn(4, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def along(e: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(lambda v: network(v, condition, y), (x,), (e,))[1]
        return out

    torch.testing.assert_close(torch.func.vmap(along)(probes), torch.stack([along(e) for e in probes]))


def test_layer_norm_is_torchs_own() -> None:
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    for shape, affine in ((6, True), ((5, 6), True), (6, False)):
        norm = LayerNorm(shape, elementwise_affine=affine)
        for weight in norm.parameters():
            nn.init.normal_(weight)
        torch.testing.assert_close(norm.eval()(x), norm.train()(x))


def test_sizes() -> None:
    def count(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    assert 800_000 < count(MLP(SHAPE, 11)) < 900_000
    assert 100_000 < count(UNet(SHAPE, 11)) < 150_000
    assert count(MLP(SHAPE, 0)) == count(MLP(SHAPE, 11)) - 11 * 128


@pytest.mark.parametrize("channels", [(8,), (8, 12), (8, 12, 16)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_unets_of_any_depth(channels: tuple[int, ...], blocks: int) -> None:
    x, condition, _ = given()
    network = UNet((2, 8, 4), 0, channels=channels, blocks=blocks).double()
    wide = torch.cat([x, x], dim=1)[:, :, :, :4]
    assert network(wide, condition).shape == (3, 2, 8, 4)


def test_before_training_the_answer_is_zero() -> None:
    x, condition, y = given()
    for network in (MLP(SHAPE, 4), UNet(SHAPE, 4)):
        assert not network.double()(x, condition, y).any()


def difference(f: Callable[[Tensor], Tensor], x: Tensor, e: Tensor, step: float = 1e-5) -> Tensor:
    """Derivative of f along e, by central differences."""
    with torch.no_grad():
        return (f(x + step * e) - f(x - step * e)) / (2 * step)
