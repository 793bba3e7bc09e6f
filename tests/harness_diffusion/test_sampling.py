"""Samplers: a known distribution comes back, steps are those of the papers and of diffusers, streams stay apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from harness_diffusion.options import SamplerOptions
from harness_diffusion.processes import DDPM, VE, VP, Process, SubVP
from harness_diffusion.sampling import clean_of, ddim_step, ddpm_step, euler_maruyama_step, langevin_step, sample
from torch import Tensor

from harness.randomness import Draws, draws_for

SHAPE = (1, 2, 2)
COUNT = 2000


def streams(count: int, seed: int = 0) -> Draws:
    return draws_for(torch.arange(count), seed, "test")


def noise_in(mixture: Any, process: Process) -> Any:
    """The noise expected in x(t): in closed form, for one time shared by all."""

    def noise_of(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = -process.std(t[0]) * mixture.at(process, float(t[0])).score(x.double().flatten(1))
        return out.reshape(x.shape).to(x.dtype)

    return noise_of


def distance(values: Tensor, mixture: Any, axis: int) -> float:
    """Kolmogorov-Smirnov distance between a coordinate of the samples and the mixture's."""
    points = values.double().sort().values
    heights = (points[:, None] - mixture.means[:, axis]) / mixture.stds[:, axis]
    cdf = (mixture.weights * torch.special.ndtr(heights)).sum(dim=1)
    rank = torch.arange(len(points)) / len(points)
    return float(torch.maximum((cdf - rank).abs(), (cdf - rank - 1 / len(points)).abs()).max())


@pytest.mark.parametrize(
    ("sampler", "process", "steps"),
    [
        ("ddpm", VP(), 150),
        ("ddpm", DDPM(schedule="cosine"), 150),
        ("ddim", VE(), 100),
        ("ddim", SubVP(), 100),
        ("euler-maruyama", VP(), 200),
        ("predictor-corrector", VE(), 80),
        ("predictor-corrector", SubVP(), 80),
    ],
    ids=str,
)
def test_a_mixture_comes_back(sampler: Any, process: Process, steps: int, mixture: Any) -> None:
    options = SamplerOptions(sampler=sampler, steps=steps)
    x = sample(noise_in(mixture, process), process, SHAPE, streams(COUNT), options, process.smallest_time).flatten(1)
    # 2,000 draws of the mixture itself come to 0.044 in one of a thousand.
    assert max(distance(x[:, axis], mixture, axis) for axis in range(4)) < 0.06
    correlation = np.corrcoef(x[:, 0].numpy(), x[:, 1].numpy())[0, 1]
    mean = (mixture.weights[:, None] * mixture.means).sum(dim=0)
    spread = (mixture.weights[:, None] * (mixture.means**2 + mixture.stds**2)).sum(dim=0) - mean**2
    joint = float((mixture.weights * mixture.means[:, 0] * mixture.means[:, 1]).sum() - mean[0] * mean[1])
    assert correlation == pytest.approx(joint / math.sqrt(float(spread[0] * spread[1])), abs=0.08)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(std_max=4.0), DDPM(steps=50)], ids=str)
def test_the_ancestral_step_is_exact_for_certain_data(process: Process) -> None:
    """x(s) = alpha_s x0 + A n1 + B n2 with A^2 + B^2 = sigma_s^2, when x(t) = alpha_t x0 + sigma_t n1."""
    x0, zero = torch.randn(2, *SHAPE, dtype=torch.float64), torch.zeros(2, *SHAPE, dtype=torch.float64)
    one = torch.ones_like(zero)
    t, s = torch.tensor([0.9, 0.5], dtype=torch.float64), torch.tensor([0.7, 0.1], dtype=torch.float64)

    def noise_of(x: Tensor, at: Tensor) -> Tensor:
        return (x - process.diffuse(x0, at, zero)) / process.std(at)[:, None, None, None]

    centre = ddpm_step(noise_of, process, process.diffuse(x0, t, zero), t, s, zero)
    torch.testing.assert_close(centre, process.diffuse(x0, s, zero))
    first = ddpm_step(noise_of, process, process.diffuse(x0, t, one), t, s, zero) - centre
    second = ddpm_step(noise_of, process, process.diffuse(x0, t, zero), t, s, one) - centre
    torch.testing.assert_close(first**2 + second**2, process.std(s).square()[:, None, None, None].expand_as(first))
    torch.testing.assert_close(
        ddim_step(noise_of, process, process.diffuse(x0, t, one), t, s), process.diffuse(x0, s, one)
    )


def test_steps_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    process = DDPM()
    x, out, noise = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    ancestral = diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_small")
    for k in (999, 500, 3):
        t, s = (torch.full((2,), (step + 1) / 1000, dtype=torch.float64) for step in (k, k - 1))
        ours = ddpm_step(lambda *_: out, process, x, t, s, noise)
        mean = ddpm_step(lambda *_: out, process, x, t, s, torch.zeros_like(noise))
        generator = torch.Generator().manual_seed(5)
        theirs = ancestral.step(out, k, x, generator=generator).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(mean + (ours - mean) / noise * drawn, theirs, rtol=1e-3, atol=1e-4)
    implicit = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    implicit.set_timesteps(20)
    t, s = (torch.full((2,), (step + 1) / 1000, dtype=torch.float64) for step in (700, 650))
    theirs = implicit.step(out, 700, x, eta=0.0).prev_sample
    torch.testing.assert_close(ddim_step(lambda *_: out, process, x, t, s), theirs, rtol=1e-4, atol=1e-5)


def test_euler_maruyama_is_the_reverse_equation() -> None:
    process, x = VP(), torch.randn(1, *SHAPE, dtype=torch.float64)
    t, s = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.5 - 1e-3], dtype=torch.float64)
    beta, sigma = 0.1 + 0.5 * 19.9, math.sqrt(1 - math.exp(-(0.05 + 0.125 * 19.9)))
    got = euler_maruyama_step(lambda x, t: 0.3 * x, process, x, t, s, torch.ones_like(x))
    score = -0.3 * x / sigma
    wanted = x - (-0.5 * beta * x - beta * score) * 1e-3 + math.sqrt(beta * 1e-3)
    torch.testing.assert_close(got, wanted)


def test_the_corrector_leaves_the_distribution_alone(mixture: Any) -> None:
    process, t = VP(), torch.full((COUNT,), 0.2, dtype=torch.float64)
    of = mixture.at(process, 0.2)
    generator = torch.Generator().manual_seed(0)
    kind = torch.multinomial(of.weights, COUNT, replacement=True, generator=generator)
    x = (of.means[kind] + of.stds[kind] * torch.randn(COUNT, 4, generator=generator)).reshape(COUNT, *SHAPE)
    start = x.clone()
    for turn in range(100):
        x = langevin_step(noise_in(mixture, process), process, x, t, streams(COUNT).normal("c", turn, SHAPE), 0.05)
    assert float((x - start).abs().mean()) > 0.2  # it did move
    assert max(distance(x.flatten(1)[:, axis], of, axis) for axis in range(4)) < 0.06


def test_clean_of_undoes_diffuse() -> None:
    x0, noise = torch.randn(2, 3, *SHAPE, dtype=torch.float64).unbind(0)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for process in (VP(), SubVP(), VE(), DDPM()):
        torch.testing.assert_close(clean_of(noise, process, process.diffuse(x0, t, noise), t), x0)


@pytest.mark.parametrize("sampler", ["euler-maruyama", "predictor-corrector", "ddpm", "ddim"])
def test_a_sample_depends_on_its_own_stream_alone(sampler: Any, mixture: Any) -> None:
    process, options = VP(), SamplerOptions(sampler=sampler, steps=10)
    draws = streams(6)
    together = sample(noise_in(mixture, process), process, SHAPE, draws, options, 1e-3)
    chosen = torch.tensor([4, 1])
    alone = sample(noise_in(mixture, process), process, SHAPE, draws[chosen], options, 1e-3)
    torch.testing.assert_close(alone, together[chosen], rtol=1e-5, atol=1e-6)
    other = sample(noise_in(mixture, process), process, SHAPE, streams(6, seed=1), options, 1e-3)
    assert not torch.isclose(together, other).any()
