"""Sampling: the process run backwards from noise to data, on the scale [-1, 1].

The reverse of dx = a x dt + g dW is dx = (a x - g^2 score) dt + g dW, time running down (Anderson 1982; Song et al.
2021, equation 6). What predicts the noise is any function, so that guidance is a function around a denoiser's. Each
sample's randomness is its own stream, and no step depends on the other samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.randomness import Draws
from harness_diffusion.processes import Process, per_sample

if TYPE_CHECKING:
    from harness_diffusion.options import SamplerOptions

NoiseOf = Callable[[Tensor, Tensor], Tensor]
"""The noise in x (B, C, H, W) at time t (B,), as expected given x."""


def sample(
    noise_of: NoiseOf,
    process: Process,
    shape: Sequence[int],
    draws: Draws,
    options: SamplerOptions,
    smallest: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One image (C, H, W) = `shape` for each stream of `draws`, not clamped: (B, C, H, W).

    Times run down from 1 to `smallest` in equal steps; returned are the data expected behind the last state.
    """
    times = torch.linspace(1.0, smallest, options.steps + 1, dtype=torch.float64, device=draws.ids.device)
    x = process.prior_sample(draws.normal("prior", 0, shape, dtype))
    everyone = times.new_ones(len(draws))
    for number in range(options.steps):
        t, s = times[number] * everyone, times[number + 1] * everyone
        noise = draws.normal("step", number, shape, dtype)
        if options.sampler == "ddim":
            x = ddim_step(noise_of, process, x, t, s)
        elif options.sampler == "ddpm":
            x = ddpm_step(noise_of, process, x, t, s, noise)
        else:
            x = euler_maruyama_step(noise_of, process, x, t, s, noise)
        if options.sampler == "predictor-corrector":
            for turn in range(options.corrector_steps):
                fresh = draws.normal("corrector", number * options.corrector_steps + turn, shape, dtype)
                x = langevin_step(noise_of, process, x, s, fresh, options.corrector_snr)
    return clean_of(noise_of(x, s), process, x, s)


def clean_of(noise: Tensor, process: Process, x: Tensor, t: Tensor) -> Tensor:
    """The data expected behind `x` at `t`, from the noise expected in it."""
    return (x - per_sample(process.std(t), x) * noise) / per_sample(process.mean_coefficient(t), x)


def euler_maruyama_step(noise_of: NoiseOf, process: Process, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """From time t down to s, both (B,), by one Euler-Maruyama step of the reverse equation."""
    g2, step = process.diffusion_squared(t), t - s
    score = -noise_of(x, t) / per_sample(process.std(t), x)
    drift = process.drift(x, t) - per_sample(g2, x) * score
    return x - per_sample(step, x) * drift + per_sample((g2 * step).sqrt(), x) * noise


def langevin_step(noise_of: NoiseOf, process: Process, x: Tensor, t: Tensor, noise: Tensor, snr: float) -> Tensor:
    """One step of Langevin dynamics at time t (B,): the corrector (Song et al. 2021, algorithms 4 and 5).

    Its length is 2 (snr sigma)^2. In the paper sigma is |noise| / |score|, norms averaged over the batch, which would
    make a sample depend on its neighbours; taken of each sample for itself, its steps would depend on where it is, and
    the distribution would not stay what it is.
    """
    sigma = process.std(t)
    step = 2 * (snr * sigma).square()
    return x - per_sample(step / sigma, x) * noise_of(x, t) + per_sample((2 * step).sqrt(), x) * noise


def ddpm_step(noise_of: NoiseOf, process: Process, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """From time t down to s, both (B,), by ancestral sampling (Ho et al. 2020, equations 6 and 7, for any process).

    A draw of x(s) given x(t) and the data expected behind it, which is exact where these data are certain.
    """
    alpha_s, sigma_s, sigma_t = process.mean_coefficient(s), process.std(s), process.std(t)
    ratio = process.mean_coefficient(t) / alpha_s
    fresh = sigma_t.square() - (ratio * sigma_s).square()  # variance of x(t) given x(s)
    clean = clean_of(noise_of(x, t), process, x, t)
    mean = (
        per_sample(ratio * (sigma_s / sigma_t).square(), x) * x
        + per_sample(alpha_s * fresh / sigma_t.square(), x) * clean
    )
    return mean + per_sample(fresh.clamp_min(0).sqrt() * sigma_s / sigma_t, x) * noise


def ddim_step(noise_of: NoiseOf, process: Process, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """From time t down to s, both (B,), without noise (Song et al. 2021, *Denoising Diffusion Implicit Models*, with
    sigma = 0): the data and the noise expected at t, put together as they would be at s."""
    noise = noise_of(x, t)
    return process.diffuse(clean_of(noise, process, x, t), s, noise)
