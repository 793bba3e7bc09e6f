"""IB-INN: an invertible generative classifier trained with the information bottleneck."""

from __future__ import annotations

from collections.abc import Callable

from harness import ModelInfo, hookimpl


@hookimpl
def register_models(register: Callable[[ModelInfo], None]) -> None:
    register(
        ModelInfo(
            name="ib-inn",
            summary="invertible generative classifier, trained with the information bottleneck",
            source="Mackowiak et al. 2021, Generative Classifiers as a Basis for Trustworthy Image Classification",
            factory="harness_ib_inn.model:build",
            capabilities=frozenset(
                {"Classifier", "Density", "ClassDensity", "Detector", "Sampler", "Explainer", "Trainable"}
            ),
            options="harness_ib_inn.options:IBINNOptions",
            fit_options="harness_ib_inn.options:FitRecipe",
        )
    )
