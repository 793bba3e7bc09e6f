"""ART's view of a model; imported only where ART is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray


class Estimator(PyTorchClassifier):  # type: ignore[misc]
    """A classifier for images in [0, 1] whose scores are logits; loss and class gradients are ART's own.

    ART's `predict` sends images through a data loader, which costs more than a small network and draws from torch's
    global generator; this one calls the model.
    """

    def __init__(self, model: torch.nn.Module, shape: tuple[int, ...], num_classes: int, device: torch.device) -> None:
        super().__init__(
            model,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=shape,
            nb_classes=num_classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )
        self._device = device  # ART takes the current one of several GPUs
        self._model.to(device)

    def predict(
        self, x: NDArray[Any], batch_size: int = 128, training_mode: bool = False, **kwargs: Any
    ) -> NDArray[np.float32]:
        """float32 (n, K)."""
        del training_mode, kwargs
        images = torch.from_numpy(np.asarray(x, dtype=np.float32))
        with torch.no_grad():
            parts = [self._model(part.to(self._device))[-1].cpu() for part in torch.split(images, batch_size)]
        return np.concatenate([part.numpy() for part in parts]).astype(np.float32, copy=False)
