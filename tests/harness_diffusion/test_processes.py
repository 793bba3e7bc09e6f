"""Processes: their moments against the differential equation, their importance against quadrature, exact near t = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from harness_diffusion.processes import DDPM, VE, VP, Process, SubVP, from_header, step_betas, to_header
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from harness.errors import ModelError

CONTINUOUS = [VP(), SubVP(), VE(), VP(beta_min=1.0, beta_max=1.0), VE(std_min=0.2, std_max=3.0)]
STEPPED = [
    DDPM(),
    DDPM(schedule="cosine", steps=200),
    DDPM(schedule="scaled-linear", beta_start=0.00085, beta_end=0.012),
    DDPM(steps=4, beta_start=0.1, beta_end=0.4),
]
EVERY: list[Process] = [*CONTINUOUS, *STEPPED]
each = pytest.mark.parametrize("process", EVERY, ids=str)


def at(*times: float) -> torch.Tensor:
    return torch.tensor(times, dtype=torch.float64)


def integrate(f: Callable[[torch.Tensor], torch.Tensor], start: float, end: float, process: Process) -> float:
    """Gauss-Legendre quadrature with 20 nodes an interval, cut where a stepped process has jumps."""
    inner = np.arange(1, process.steps) / process.steps if isinstance(process, DDPM) else np.linspace(start, end, 40)
    edges = np.array([start, *inner[(inner > start) & (inner < end)], end])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = np.diff(edges)[:, None] / 2
    places = edges[:-1, None] + half * (1 + nodes)
    return float((f(torch.from_numpy(places.ravel())).numpy().reshape(places.shape) * weights * half).sum())


@pytest.mark.parametrize("process", [*CONTINUOUS, STEPPED[3]], ids=str)
def test_the_marginals_solve_the_equations_of_the_moments(process: Process) -> None:
    """d mean / dt = a mean, d variance / dt = 2 a variance + g^2 (Särkkä & Solin 2019, equation 5.50)."""

    def moments(t: float, state: Any) -> list[float]:
        a, g2 = float(process.rate(t)), float(process.diffusion_squared(t))
        return [a * state[0], 2 * a * state[1] + g2]

    times = [0.0, 0.25, 0.5, 0.75, 1.0]
    state = np.array([1.0, 0.0])
    for start, end in pairwise(times):
        inside = end - 1e-12  # a step's own side of its jump
        state = solve_ivp(moments, (start, inside), state, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
        assert float(process.mean_coefficient(end)) == pytest.approx(state[0], rel=1e-7, abs=1e-9)
        assert float(process.std(end)) ** 2 == pytest.approx(state[1], rel=1e-7)


@each
def test_importance_is_the_integral_of_g2_over_variance(process: Process) -> None:
    def density(t: torch.Tensor) -> torch.Tensor:
        return process.diffusion_squared(t) / process.std(t).square()

    wanted = integrate(density, 0.05, 1.0, process)
    assert process.importance_normaliser(0.05) == pytest.approx(wanted, rel=1e-6)
    middle = integrate(density, 0.3, 0.6, process)
    assert float(process.importance(0.6) - process.importance(0.3)) == pytest.approx(middle, rel=1e-6)


@each
def test_importance_samples_have_the_density_of_g2_over_variance(process: Process) -> None:
    """The share of times below t is (U(t) - U(eps)) / Z, to the spacing of the fractions they were made of."""
    smallest = process.smallest_time
    fraction = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    times = process.importance_sample(fraction, smallest)
    assert times.min() >= smallest
    assert times.max() <= 1
    for t in (smallest + (1 - smallest) * part for part in (1e-4, 0.1, 0.5, 0.9)):
        share = float(process.importance(t) - process.importance(smallest)) / process.importance_normaliser(smallest)
        assert float((times < t).double().mean()) == pytest.approx(share, abs=1.01 / 2000)


@given(process=st.sampled_from(EVERY), exponent=st.floats(-9, 0))
@settings(max_examples=150, deadline=None)
def test_the_inverse_is_exact_down_to_the_smallest_times(process: Process, exponent: float) -> None:
    t = at(10.0**exponent)
    torch.testing.assert_close(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-9, atol=0)
    torch.testing.assert_close(process.time_of_importance(process.importance(t)), t, rtol=1e-9, atol=0)


@given(process=st.sampled_from(EVERY), exponent=st.floats(-12, 0))
@settings(max_examples=150, deadline=None)
def test_log_snr_agrees_with_mean_and_deviation(process: Process, exponent: float) -> None:
    t = at(10.0**exponent)
    wanted = 2 * (process.log_mean_coefficient(t) - process.std(t).log())
    torch.testing.assert_close(process.log_snr(t), wanted, rtol=1e-9, atol=1e-9)


def test_near_zero_no_digit_is_lost() -> None:
    """First order: sigma = sqrt(beta_0 t) for VP, beta_0 t for sub-VP; 1 - exp(-B) would lose half of the digits."""
    t = 1e-13
    assert float(VP().std(t)) == pytest.approx(math.sqrt(0.1 * t), rel=1e-11)
    assert float(SubVP().std(t)) == pytest.approx(0.1 * t, rel=1e-11)
    growth = 2 * math.log(5000)
    assert float(VE().std(t)) == pytest.approx(0.01 * math.sqrt(growth * t), rel=1e-11)
    single = VP().std(torch.tensor(1e-5))
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(VP().std(1e-5)), rel=1e-6)


def test_known_normalisers() -> None:
    """The closed forms at the reference's times, from another derivation: log(e^B - 1) and 2 log(e^B - 1) - B."""
    big = 10.05
    for smallest, process, factor, offset in ((1e-5, VP(), 1, 0.0), (1e-2, SubVP(), 2, 1.0)):
        small = 0.1 * smallest + 0.5 * 19.9 * smallest**2
        u = [factor * math.log(math.exp(b) - 1) - offset * b for b in (small, big)]
        assert process.importance_normaliser() == pytest.approx(u[1] - u[0], rel=1e-9)
    assert VP().importance_normaliser() == pytest.approx(23.86, abs=0.005)
    assert SubVP().importance_normaliser() == pytest.approx(22.48, abs=0.005)


@pytest.mark.parametrize("process", STEPPED, ids=str)
def test_steps_meet_the_product_of_the_schedule(process: DDPM) -> None:
    step = torch.arange(process.steps)
    t = process.time_of_step(step.double())
    product = torch.cumprod(1 - step_betas(process), dim=0)
    torch.testing.assert_close(process.mean_coefficient(t).square(), product, rtol=1e-10, atol=0)
    torch.testing.assert_close(process.std(t).square(), 1 - product, rtol=1e-8, atol=0)
    torch.testing.assert_close(process.step_of_time(t), step.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("linear", DDPM()),
        ("scaled_linear", DDPM(schedule="scaled-linear", beta_start=0.00085, beta_end=0.012)),
        ("squaredcos_cap_v2", DDPM(schedule="cosine")),
    ],
)
def test_schedules_are_those_of_diffusers(name: str, process: DDPM) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_schedule=name, beta_start=process.beta_start, beta_end=process.beta_end
    )
    torch.testing.assert_close(step_betas(process).float(), theirs.betas, rtol=1e-4, atol=1e-7)


def test_a_long_schedule_is_nearly_the_continuous_process() -> None:
    """beta of 0.1 / T to 20 / T over T steps tends to VP(0.1, 20) (Song et al. 2021, appendix B)."""
    stepped, smooth = DDPM(steps=20000, beta_start=0.1 / 20000, beta_end=20 / 20000), VP()
    t = at(0.01, 0.1, 0.5, 1.0)
    torch.testing.assert_close(stepped.std(t), smooth.std(t), rtol=2e-3, atol=0)
    torch.testing.assert_close(stepped.beta(t), smooth.beta(t), rtol=2e-3, atol=0)


@each
def test_prior_is_the_normal_density_and_its_sample(process: Process) -> None:
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = process.prior_sample(noise)
    wanted = torch.distributions.Normal(0.0, process.prior_std).log_prob(x.double()).flatten(1).sum(dim=1)
    torch.testing.assert_close(process.prior_log_prob(x), wanted)
    assert process.prior_log_prob(x).dtype == torch.float64
    if not isinstance(process, DDPM) and process in (VP(), SubVP(), VE()):
        assert float(process.std(1.0)) == pytest.approx(process.prior_std, rel=1e-4)


@each
def test_a_batch_of_times_is_each_time_for_itself(process: Process) -> None:
    t = torch.tensor([1e-3, 0.2, 0.5, 1.0])
    x, noise = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(1)).unbind(0)
    for out in (process.drift(x, t), process.diffuse(x, t, noise)):
        assert out.shape == x.shape
        assert out.dtype == torch.float32
    for i in range(4):
        torch.testing.assert_close(process.drift(x, t)[i], process.drift(x[i : i + 1], t[i])[0])
        torch.testing.assert_close(process.diffuse(x, t, noise)[i], process.diffuse(x[i], t[i], noise[i]))
    for f in (process.std, process.log_snr, process.rate, process.diffusion_squared, process.mean_coefficient):
        assert f(t).shape == t.shape
        assert f(t).dtype == torch.float32
        assert f(0.5).dtype == torch.float64
        assert f(0.5).shape == ()


@each
def test_headers_bring_the_same_process_back(process: Process) -> None:
    assert from_header(to_header(process)) == process


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"kind": "pv"}, "no process 'pv'; did you mean 'vp'"),
        ({"kind": "vp", "beta_mim": 1}, "process vp has no constant 'beta_mim'; did you mean 'beta_min'"),
        ({"kind": "vp", "beta_min": 0.0}, "process vp: 0 < beta_min <= beta_max, but they are 0 and 20"),
        ({"kind": "sub-vp", "beta_max": 0.01}, "process sub-vp: 0 < beta_min <= beta_max"),
        ({"kind": "ve", "std_max": 0.001}, "process ve: 0 < std_min < std_max"),
        ({"kind": "ddpm", "schedule": "cosin"}, "no schedule 'cosin'; did you mean 'cosine'"),
        ({"kind": "ddpm", "steps": 1}, "steps = 1, but a schedule has 2 or more"),
        ({"kind": "ddpm", "beta_end": 1.5}, "0 < beta_start <= beta_end < 1"),
    ],
)
def test_what_is_no_process_is_one_line(header: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        from_header(header)
    assert "\n" not in str(caught.value)
