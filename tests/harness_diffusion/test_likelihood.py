"""The likelihood of the probability flow against closed forms; its trace estimator; its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from harness_diffusion.likelihood import Flow, Likelihood, denoising_bound, log_prob, sample_flow
from harness_diffusion.processes import VE, VP, Process, SubVP
from scipy.integrate import solve_ivp
from torch import Tensor

from harness.randomness import Draws, draws_for

SHAPE = (1, 1, 2)
D = 2
PROCESSES: list[Process] = [VP(), SubVP(), VE()]


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal distributions for each class, noised by a process: density and score in closed form.

    `means`, `stds` (K, M, D); `weights` (K, M).
    """

    process: Process
    means: Tensor
    stds: Tensor
    weights: Tensor

    def log_density(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self._parts(x, t, y)[0].logsumexp(dim=1)

    def score(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        joint, pulls = self._parts(x, t, y)
        return (joint.softmax(dim=1)[:, :, None] * pulls).sum(dim=1).reshape(x.shape)

    def _parts(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.process.mean_coefficient(t)[:, None, None], self.process.std(t)[:, None, None]
        variance = (alpha * self.stds[y]) ** 2 + sigma**2
        away = alpha * self.means[y] - x.flatten(1)[:, None]
        log_normal = -0.5 * (away.square() / variance + (2 * math.pi * variance).log()).sum(dim=2)
        return log_normal + self.weights[y].log(), away / variance


def mixture(process: Process, components: int, scale: float = 0.4, centred: bool = False) -> Mixture:
    generator = torch.Generator().manual_seed(components)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(2, components, *shape, generator=generator, dtype=torch.float64)

    means, stds, weights = uniform(D) - 0.5, scale * (0.6 + 0.8 * uniform(D)), uniform() + 0.2
    weights = weights / weights.sum(dim=1, keepdim=True)
    if centred:
        means = means - (weights[:, :, None] * means).sum(dim=1, keepdim=True)
    return Mixture(process, means, stds, weights)


@dataclass
class FromDraws:
    """Noise as a model would take it from the host's streams."""

    draws: Draws
    count: int = 1
    kind: str = "rademacher"

    def probes(self, number: int) -> Tensor:
        shape = (self.count, *SHAPE)
        name = self.draws.rademacher if self.kind == "rademacher" else self.draws.normal
        return name("probe", number, shape, torch.float64)

    def diffusion(self, number: int) -> tuple[Tensor, Tensor]:
        u = self.draws.uniform("time", number, (), torch.float64)
        return u, self.draws.normal("noise", number, SHAPE, torch.float64)


def noise(samples: int, count: int = 1, seed: int = 0, kind: str = "rademacher") -> FromDraws:
    return FromDraws(draws_for(torch.arange(samples), seed, "test"), count, kind)


def flow(model: Mixture, **options: Any) -> Flow:
    return replace(Flow(model.process, model.score, dtype=torch.float64, trace="exact"), **options)


def images(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 1.6 - 0.8
    return x, torch.arange(count) % 2, torch.arange(count)


def found(f: Flow, n: FromDraws | None = None) -> Likelihood:
    x, y, sample = images()
    return log_prob(f, x, y, sample, n or noise(len(x)))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
@pytest.mark.parametrize(("method", "components"), [("rk45", 1), ("rk45", 3), ("rk4", 3), ("heun", 1)])
def test_closed_form_likelihoods(process: Process, components: int, method: Any) -> None:
    """Data of mean zero: the prior, which has it too, is then as good as the distribution at time 1."""
    model = mixture(process, components, centred=True)
    x, y, _ = images()
    steps = {"heun": 200, "rk4": 40, "rk45": 1}[method]
    result = found(flow(model, method=method, steps=steps))
    smallest = torch.full((len(x),), 1e-5, dtype=torch.float64)
    wanted = model.log_density(x, smallest, y)
    assert float((result.log_prob - wanted).abs().max()) / D < 1e-3
    assert not result.failed.any()
    data = model.log_density(x, torch.zeros_like(smallest), y)
    assert float((wanted - data).abs().max()) / D < 1e-3  # stopping short of t = 0 is within it too


def test_the_prior_is_part_of_the_model() -> None:
    """The number is the density of what the flow makes of the prior, which the data's is not quite."""
    model = mixture(VP(), 3)
    x, y, _ = images()
    f = flow(model, method="rk45", rtol=1e-7, atol=1e-7)
    ends = [torch.full((len(x),), t, dtype=torch.float64) for t in (1e-5, 1.0)]
    for row in range(2):

        def field(t: float, at: Any, row: int = row) -> Any:
            time, state = torch.tensor([t]).double(), torch.from_numpy(at).reshape(1, *SHAPE)
            score = model.score(state, time, y[row : row + 1])
            return (VP().drift(state, time) - 0.5 * VP().diffusion_squared(time) * score).flatten().numpy()

        end = solve_ivp(field, (1e-5, 1.0), x[row].flatten().numpy(), rtol=1e-6, atol=1e-6).y[:, -1]
        noised = torch.from_numpy(end).reshape(1, *SHAPE)
        one = slice(row, row + 1)
        wanted = model.log_density(x[one], ends[0][one], y[one]) - model.log_density(noised, ends[1][one], y[one])
        wanted = wanted + VP().prior_log_prob(noised)
        got = log_prob(f, x[one], y[one], torch.tensor([0]), noise(1)).log_prob
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_a_tighter_tolerance_is_nearer() -> None:
    model = mixture(VE(), 2)
    wanted = found(flow(model, method="rk45", rtol=1e-8, atol=1e-8)).log_prob
    gaps = [
        float((found(flow(model, method="rk45", rtol=tol, atol=tol)).log_prob - wanted).abs().max())
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2]


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_trace_is_unbiased(kind: Any) -> None:
    """2,000 probes of one image, as 2,000 rows: the mean estimate within 3 standard errors of the exact likelihood."""
    model = mixture(VP(), 2, scale=0.5)
    x, y, _ = images()
    exact = found(flow(model)).log_prob[1]
    count = 2000
    estimate = log_prob(
        flow(model, trace=kind),
        x[1:2].expand(count, -1, -1, -1),
        y[1:2].expand(count),
        torch.arange(count),
        noise(count, kind=kind),
    ).log_prob
    error = float(estimate.std()) / math.sqrt(count)
    assert 1e-4 < error < 0.1
    assert abs(float(estimate.mean() - exact)) < 3 * error


def test_more_probes_less_noise() -> None:
    model = mixture(VP(), 2, scale=0.5)
    x, y, _ = images()
    exact = found(flow(model)).log_prob[1]

    def spread(probes: int) -> float:
        count = 400
        rows = x[1:2].expand(count, -1, -1, -1), y[1:2].expand(count), torch.arange(count)
        return float((log_prob(flow(model, trace="rademacher"), *rows, noise(count, probes)).log_prob - exact).std())

    assert spread(1) / spread(4) == pytest.approx(2.0, rel=0.2)


def test_adaptive_probes_stay_and_grid_probes_change() -> None:
    model = mixture(VP(), 2)

    class Watched(FromDraws):
        asked: ClassVar[list[int]] = []

        def probes(self, number: int) -> Tensor:
            self.asked.append(number)
            return super().probes(number)

    for method, wanted in (("rk45", [0]), ("heun", list(range(10))), ("rk4", list(range(20)))):
        Watched.asked = []
        found(flow(model, method=method, steps=5, trace="rademacher"), Watched(noise(6).draws))
        assert Watched.asked == wanted


def test_rows_of_a_sample_share_its_probes() -> None:
    model = mixture(VP(), 2)
    same = Mixture(
        model.process,
        model.means[:1].expand(2, -1, -1),
        model.stds[:1].expand(2, -1, -1),
        model.weights[:1].expand(2, -1),
    )
    x, _, _ = images(2)
    rows = x.repeat_interleave(2, dim=0)
    sample = torch.tensor([0, 0, 1, 1])
    result = log_prob(flow(same, trace="rademacher"), rows, torch.tensor([0, 1, 0, 1]), sample, noise(2)).log_prob
    torch.testing.assert_close(result[[0, 2]], result[[1, 3]])
    apart = log_prob(flow(same, trace="rademacher"), rows, torch.tensor([0, 1, 0, 1]), torch.arange(4), noise(4))
    assert float((apart.log_prob[0] - apart.log_prob[1]).abs()) > 1e-3


@pytest.mark.parametrize("method", ["rk45", "heun"])
def test_alone_or_among_others(method: Any) -> None:
    model = mixture(VP(), 3)
    x = torch.rand(65, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    y, sample = torch.arange(65) % 2, torch.arange(65)
    f = flow(model, method=method, trace="rademacher")
    full = log_prob(f, x, y, sample, noise(65)).log_prob
    for row in (0, 17, 64):
        one = torch.tensor([row])
        draws = noise(65).draws[one]
        alone = log_prob(f, x[one], y[one], torch.tensor([0]), FromDraws(draws)).log_prob
        assert float((alone - full[one]).abs()) < 1e-5


def test_a_failed_row_is_nan_and_said_so() -> None:
    model = mixture(VP(), 3)
    whole = found(flow(model, method="rk45"))
    tries = (whole.evaluations - 2) // 6
    part = found(flow(model, method="rk45", max_steps=int(tries.max()) - 1))
    assert torch.equal(part.failed, tries == tries.max())
    assert torch.equal(part.log_prob.isnan(), part.failed)
    assert torch.equal(part.log_prob[~part.failed], whole.log_prob[~part.failed])


def slope(f: Flow, n: FromDraws, direction: Tensor, step: float) -> Tensor:
    x, y, sample = images()
    ends = [log_prob(f, x + sign * step * direction, y, sample, n).log_prob for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def gradient(f: Flow, n: FromDraws) -> Tensor:
    x, y, sample = images()
    x.requires_grad_()
    (out,) = torch.autograd.grad(log_prob(f, x, y, sample, n).log_prob.sum(), x)
    return out


@pytest.mark.parametrize(("method", "steps"), [("heun", 6), ("rk4", 3)])
@pytest.mark.parametrize("trace", ["rademacher", "exact"])
def test_exact_gradient_of_a_grid(method: Any, steps: int, trace: Any) -> None:
    """So coarse a grid that the number is far from the likelihood: the gradient is that of the number."""
    f = flow(mixture(VP(), 2), method=method, steps=steps, trace=trace)
    n = noise(6)
    direction = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = slope(f, n, direction, 1e-6)
    torch.testing.assert_close((gradient(f, n) * direction).flatten(1).sum(dim=1), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["exact", "adjoint"])
def test_gradients_of_the_adaptive_solver(way: Any) -> None:
    f = flow(mixture(VP(), 2), method="rk45", rtol=1e-6, atol=1e-6, gradient=way, trace="rademacher")
    n = noise(6)
    direction = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = slope(f, n, direction, 1e-3)
    torch.testing.assert_close((gradient(f, n) * direction).flatten(1).sum(dim=1), wanted, rtol=1e-3, atol=2e-3)


def test_adjoint_of_a_fine_grid() -> None:
    f = flow(mixture(VP(), 2), method="rk4", steps=20, gradient="adjoint")
    n = noise(6)
    torch.testing.assert_close(gradient(f, n), gradient(replace(f, gradient="exact"), n), rtol=0.02, atol=0.02)


def test_surrogate_gradient_is_that_of_the_bound() -> None:
    f = flow(mixture(VP(), 2), gradient="surrogate", draws=8)
    n = noise(6)
    x, y, sample = images()
    x.requires_grad_()
    bound = torch.stack([denoising_bound(f, x, y, sample, n, k) for k in range(8)]).mean(dim=0)
    (wanted,) = torch.autograd.grad(bound.sum(), x)
    torch.testing.assert_close(gradient(f, n), wanted)
    many = gradient(replace(f, draws=200), n)  # with many draws it points where the likelihood does
    true = gradient(replace(f, gradient="exact", steps=40), n)
    assert float(torch.cosine_similarity(many.flatten(1), true.flatten(1)).min()) > 0.9


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_samples_have_the_moments_of_the_data(process: Process) -> None:
    model = mixture(process, 2)
    count = 2000
    draws = draws_for(torch.arange(count), 0, "test")
    prior = process.prior_sample(draws.normal("prior", 0, SHAPE, torch.float64))
    out = sample_flow(flow(model, steps=15), prior, torch.zeros(count, dtype=torch.int64)).flatten(1)
    weights, means = model.weights[0], model.means[0]
    mean = (weights[:, None] * means).sum(dim=0)
    second = model.stds[0].square().diag_embed() + means[:, :, None] * means[:, None, :]
    covariance = (weights[:, None, None] * second).sum(dim=0) - mean[:, None] * mean[None, :]
    torch.testing.assert_close(
        out.mean(dim=0), mean, rtol=0, atol=4 * float(covariance.diagonal().max() / count) ** 0.5
    )
    torch.testing.assert_close(
        out.T.cov(), covariance, rtol=0, atol=4 * float(covariance.abs().max()) * (2 / count) ** 0.5
    )


def test_samples_run_the_flow_backwards() -> None:
    model = mixture(VP(), 2)
    f = flow(model, method="rk45", rtol=1e-7, atol=1e-7)
    x = sample_flow(
        f,
        torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.tensor([0, 1, 0]),
    )
    again = sample_flow(
        replace(f, method="rk4", steps=60),
        torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.tensor([0, 1, 0]),
    )
    torch.testing.assert_close(x, again, rtol=1e-3, atol=1e-3)
