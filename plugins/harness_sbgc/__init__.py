"""Score-based generative classifier: the class whose probability flow gives the image the highest likelihood."""

from __future__ import annotations

from collections.abc import Callable

from harness import ModelInfo, hookimpl


@hookimpl
def register_models(register: Callable[[ModelInfo], None]) -> None:
    register(
        ModelInfo(
            name="sbgc",
            summary="score-based generative classifier: exact class likelihoods by the probability-flow ODE",
            source="Zimmermann et al. 2021, Score-Based Generative Classifiers",
            factory="harness_sbgc.model:build",
            capabilities=frozenset({"Classifier", "ClassDensity", "Detector", "Sampler", "Trainable"}),
            options="harness_sbgc.options:SbgcOptions",
            fit_options="harness_diffusion.options:DenoisingRecipe",
        )
    )
