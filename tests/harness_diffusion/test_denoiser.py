"""The wrapper: one network answers for noise, data, v and score, whatever it predicts itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_diffusion.denoiser import Denoiser
from harness_diffusion.networks import MLP
from harness_diffusion.processes import DDPM, VE, VP, Process, SubVP
from torch import Tensor, nn

from harness.errors import ModelError

PROCESSES = [VP(), SubVP(), VE(std_max=5.0), DDPM(schedule="cosine")]
T = torch.tensor([0.01, 0.2, 0.6, 0.95], dtype=torch.float64)


def noisy(process: Process) -> Tensor:
    x0, noise = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    return process.diffuse(0.3 * x0, T, noise)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("parameterisation", ["eps", "x0", "v"])
def test_every_parameterisation_gives_the_analytic_score(
    process: Process, parameterisation: str, mixture: Any, knowing_denoiser: Any
) -> None:
    denoiser = knowing_denoiser(mixture, process, parameterisation)
    x = noisy(process)
    wanted = torch.cat([mixture.at(process, float(t)).score(x[i : i + 1].flatten(1)) for i, t in enumerate(T)])
    torch.testing.assert_close(denoiser.score(x, T).flatten(1), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("parameterisation", ["eps", "x0", "v"])
def test_predictions_are_consistent(process: Process, parameterisation: Any) -> None:
    """Put together, data and noise are the noisy data again, and v is what its definition says."""
    torch.manual_seed(0)
    network = Untrained().double()
    denoiser = Denoiser(network, process, parameterisation, 3, null_class=True)
    x, y = noisy(process), torch.tensor([0, 1, 2, 0])
    eps, clean, v = denoiser.noise(x, T, y), denoiser.clean(x, T, y), denoiser.velocity(x, T, y)
    alpha, sigma = process.mean_coefficient(T)[:, None, None, None], process.std(T)[:, None, None, None]
    torch.testing.assert_close(alpha * clean + sigma * eps, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close((alpha * eps - sigma * clean) / (alpha**2 + sigma**2).sqrt(), v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denoiser.score(x, T, y), -eps / sigma)
    assert torch.equal(denoiser(x, T, y), eps)
    own = {"eps": eps, "x0": clean, "v": v}[parameterisation]
    scale = (alpha**2 + sigma**2).sqrt()
    assert network.seen is not None
    torch.testing.assert_close(network.seen * scale, x)
    torch.testing.assert_close(own, network(network.seen, *network.told))


class Untrained(nn.Module):
    """An arbitrary function of all that a network is given, which remembers what it saw."""

    seen: Tensor | None = None
    told: tuple[Any, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = nn.Embedding(4, 4)

    def forward(self, x: Tensor, condition: Any, y: Tensor) -> Tensor:
        self.seen, self.told = x, (condition, y)
        h = self.linear(x.flatten(1)) + self.table(y) + condition.time[:, None] + 0.1 * condition.log_snr[:, None]
        return h.sin().reshape(x.shape)


def test_without_a_class_it_is_the_null_class() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(_filled(MLP((1, 2, 2), 4, width=16, blocks=1)), VP(), "eps", 3, null_class=True).eval()
    x = torch.randn(2, 1, 2, 2)
    null = torch.full((2,), 3)
    assert torch.equal(denoiser.noise(x, 0.5), denoiser.noise(x, 0.5, null))
    assert not torch.equal(denoiser.noise(x, 0.5), denoiser.noise(x, 0.5, null - 1))
    with pytest.raises(ModelError, match="no null class"):
        Denoiser(MLP((1, 2, 2), 3), VP(), "eps", 3, null_class=False).noise(x, 0.5)
    unconditional = Denoiser(_filled(MLP((1, 2, 2), 0)), VP(), "eps", 0, null_class=True).eval()
    assert torch.equal(unconditional.noise(x, 0.5), unconditional.noise(x, 0.5, null))


def test_a_scalar_time_is_that_time_for_everyone_and_states_may_be_finer_than_the_network() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(_filled(MLP((1, 2, 2), 3)), VP(), "v", 3, null_class=False).eval()
    x, y = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(denoiser.clean(x, 0.3, y), denoiser.clean(x, torch.full((4,), 0.3), y))
    fine = denoiser.clean(x.double(), torch.full((4,), 0.3, dtype=torch.float64), y)
    assert fine.dtype == torch.float64
    torch.testing.assert_close(fine.float(), denoiser.clean(x, 0.3, y), rtol=1e-5, atol=1e-5)
    alone = torch.cat([denoiser.clean(x[i : i + 1], 0.3, y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(denoiser.clean(x, 0.3, y), alone, rtol=1e-5, atol=1e-6)


def _filled(module: nn.Module) -> nn.Module:
    """Random weights where a network starts with zeros."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.2)
    return module
