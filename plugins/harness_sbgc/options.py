"""Options of the model `sbgc`. No torch in here: listing options stays quick."""

from __future__ import annotations

from typing import Literal, Self

from harness_diffusion.options import DenoiserOptions, SamplerOptions
from pydantic import model_validator

from harness.options import option, problem

Solver = Literal["rk4", "heun", "rk45"]


class SbgcOptions(DenoiserOptions):
    """Where the denoiser comes from, and how its likelihoods are integrated."""

    mode: Literal["fast", "paper"] = option(
        "fast",
        help="defaults of `solver` and `probes`: fast is rk4 with 1 probe, drawn afresh at each evaluation; paper is"
        " rk45 with 30 that stay (the paper takes 10 for shifts and attacks)",
    )
    solver: Solver | None = option(
        None, help="rk4, heun: a fixed grid, uniform in log-SNR; rk45: adaptive, each image's own steps"
    )
    steps: int | None = option(None, help="steps of the fixed grid; 12 by default, or 24 for heun", ge=1)
    rtol: float = option(1e-5, help="relative tolerance of rk45", gt=0)
    atol: float = option(1e-5, help="absolute tolerance of rk45, [-1, 1] pixel units and nats", gt=0)
    max_steps: int = option(1000, help="steps of rk45 that an image may take before it counts as failed", ge=1)
    smallest_time: float | None = option(
        None, help="time at which the data lie; by default where the times trained on begin", gt=0, lt=1
    )
    trace: Literal["rademacher", "gaussian", "exact"] = option(
        "rademacher", help="probes of the divergence; exact sums over all entries, for small images"
    )
    probes: int | None = option(None, help="probes of the divergence, shared by the classes; by `mode`", ge=1)
    noise: Literal["fixed", "fresh"] = option(
        "fixed",
        help="dequantisation noise and probes: fixed ones, the same for every image, which make the model"
        " deterministic, or fresh ones from each image's own stream, over which attacks take expectations",
    )
    noise_seed: int = option(0, help="seed of the fixed noise", ge=0)
    gradient: Literal["exact", "adjoint", "surrogate"] = option(
        "exact",
        help="what attacks differentiate: the very steps of the solver; the adjoint equation (the paper's way);"
        " or the likelihood-weighted denoising loss, cheap and approximate",
    )
    surrogate_draws: int = option(16, help="draws of time and noise in the surrogate, shared by the classes", ge=1)
    temperature: float | Literal["bits-per-dim"] = option(
        1.0,
        help="logits are log p(y | x) divided by this; bits-per-dim: by D ln 2, which keeps the softmax of attacks on"
        " cross-entropy from saturating",
    )
    sample_by: Literal["flow", "diffusion"] = option(
        "flow", help="images are drawn by the probability-flow ODE and its solver, or as `sampling` says"
    )
    sampling: SamplerOptions = option(
        default_factory=SamplerOptions, help="how the reverse diffusion draws images, with sample_by = diffusion"
    )
    rows: int = option(1024, help="images times classes that are solved at a time", ge=1)

    @model_validator(mode="after")
    def _check_solver(self) -> Self:
        given = self.model_fields_set
        adaptive = self.chosen_solver == "rk45"
        for name in ("rtol", "atol", "max_steps"):
            if name in given and not adaptive:
                raise problem(f"`{name}` belongs to solver rk45, not to {self.chosen_solver}")
        if self.steps is not None and adaptive:
            raise problem("`steps` belongs to a fixed grid (heun, rk4); rk45 chooses its own by `rtol` and `atol`")
        if self.probes is not None and self.trace == "exact":
            raise problem("an exact trace has no `probes`")
        if not isinstance(self.temperature, str) and not 0 < self.temperature < float("inf"):
            raise problem(f"`temperature` is {self.temperature:g}; it is above 0")
        return self

    @property
    def chosen_solver(self) -> Solver:
        return self.solver or ("rk45" if self.mode == "paper" else "rk4")

    @property
    def chosen_steps(self) -> int:
        return self.steps or (24 if self.chosen_solver == "heun" else 12)

    @property
    def chosen_probes(self) -> int:
        return self.probes or (30 if self.mode == "paper" else 1)
