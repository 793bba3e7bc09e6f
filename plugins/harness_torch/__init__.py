"""Any PyTorch classifier as a model of the harness: by factory, by exported file, or by checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from harness import ModelInfo, hookimpl


@hookimpl
def register_models(register: Callable[[ModelInfo], None]) -> None:
    register(
        ModelInfo(
            name="torch",
            summary="any PyTorch classifier: a factory, a TorchScript or exported file, or a checkpoint",
            factory="harness_torch.model:build",
            capabilities=frozenset({"Classifier", "Features", "Trainable"}),
            options="harness_torch.options:TorchOptions",
            fit_options="harness_torch.options:FitRecipe",
        )
    )
