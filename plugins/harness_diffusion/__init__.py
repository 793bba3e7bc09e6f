"""Diffusion: the substrate of the plugins that classify, detect or sample with a diffusion model, and a plain sampler.

Processes, networks, denoisers, training and sampling live in modules of their own and are imported from there.
"""

from __future__ import annotations

from collections.abc import Callable

from harness import ModelInfo, hookimpl


@hookimpl
def register_models(register: Callable[[ModelInfo], None]) -> None:
    register(
        ModelInfo(
            name="diffusion",
            summary="a class-conditional diffusion model: draws images",
            source="Song et al. 2021, Score-Based Generative Modeling through Stochastic Differential Equations",
            factory="harness_diffusion.model:build",
            capabilities=frozenset({"Sampler", "Trainable"}),
            options="harness_diffusion.options:DiffusionOptions",
            fit_options="harness_diffusion.options:DenoisingRecipe",
        )
    )
