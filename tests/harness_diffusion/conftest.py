"""What these tests share: data whose noisy versions have a score in closed form, the network that knows it, images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from harness_diffusion.denoiser import Denoiser
from harness_diffusion.networks import Condition
from harness_diffusion.processes import Process
from torch import Tensor, nn

from harness.datasets import DatasetSlice, Ints
from harness.host import load_host
from harness.loading import open_dataset
from harness.suite import dataset_entry


@dataclass(frozen=True)
class Mixture:
    """Normal distributions with diagonal covariance: weights (M,), means and deviations (M, D), float64."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def at(self, process: Process, t: float) -> Mixture:
        """The distribution of x(t)."""
        alpha, sigma = process.mean_coefficient(t), process.std(t)
        return Mixture(self.weights, alpha * self.means, (alpha.square() * self.stds.square() + sigma.square()).sqrt())

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) of x (B, D)."""
        return self._parts(x).logsumexp(dim=1)

    def score(self, x: Tensor) -> Tensor:
        """(B, D) gradient of `log_prob`."""
        shares = self._parts(x).softmax(dim=1)
        return (shares[:, :, None] * (self.means - x[:, None]) / self.stds.square()).sum(dim=1)

    def _parts(self, x: Tensor) -> Tensor:
        heights = (x[:, None] - self.means) / self.stds
        constant = self.stds.log().sum(dim=1) + 0.5 * x.shape[1] * math.log(2 * math.pi)
        return self.weights.log() - 0.5 * heights.square().sum(dim=2) - constant


class Knowing(nn.Module):
    """A network that predicts just what is expected; class k of a conditional one is component k of the mixture."""

    def __init__(self, mixture: Mixture, process: Process, parameterisation: str, conditional: bool = False) -> None:
        super().__init__()
        self.mixture, self.process = mixture, process
        self.parameterisation, self.conditional = parameterisation, conditional

    def forward(self, x: Tensor, condition: Condition, y: Tensor | None = None) -> Tensor:
        out = []
        for i, t in enumerate(condition.time.double()):
            alpha, sigma = self.process.mean_coefficient(t), self.process.std(t)
            scale = (alpha.square() + sigma.square()).sqrt()
            noisy = x[i : i + 1].double().flatten(1) * scale
            of = self.mixture
            if y is not None and int(y[i]) < len(of.means):
                k = slice(int(y[i]), int(y[i]) + 1)
                of = Mixture(torch.ones(1, dtype=torch.float64), of.means[k], of.stds[k])
            eps = -sigma * of.at(self.process, float(t)).score(noisy)
            clean = (noisy - sigma * eps) / alpha
            out.append({"eps": eps, "x0": clean, "v": (alpha * eps - sigma * clean) / scale}[self.parameterisation])
        return torch.cat(out).reshape(x.shape).to(x.dtype)


@pytest.fixture
def mixture() -> Mixture:
    """Two normal distributions of four dimensions."""
    return Mixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[0.5, -0.2, 0.1, 0.4], [-0.6, 0.3, 0.0, -0.1]], dtype=torch.float64),
        torch.tensor([[0.2, 0.1, 0.3, 0.2], [0.1, 0.4, 0.2, 0.3]], dtype=torch.float64),
    )


@pytest.fixture
def knowing_denoiser() -> Callable[..., Denoiser]:
    """Makes the denoiser of a mixture: (mixture, process, parameterisation, conditional=False)."""

    def make(mixture: Mixture, process: Process, parameterisation: str, conditional: bool = False) -> Denoiser:
        network = Knowing(mixture, process, parameterisation, conditional)
        classes = len(mixture.means) if conditional else 0
        return Denoiser(network, process, parameterisation, classes, null_class=conditional)  # type: ignore[arg-type]

    return make


class _Bars:
    """Images of 4x4 with 17 grey levels: one bright column, which is the class, on a dark noisy ground."""

    class_names = ("first", "second", "third")
    shape = (1, 4, 4)
    levels = 17

    def labels(self) -> Ints:
        return np.arange(60, dtype=np.int64) % 3

    def images(self, index: Ints) -> Tensor:
        numbers = (np.arange(16)[None, :] * 7 + np.asarray(index)[:, None] * 11) % 5
        x = torch.from_numpy(numbers.astype(np.float32)).reshape(-1, 1, 4, 4)
        for image, label in zip(x, np.asarray(index) % 3, strict=True):
            image[0, :, label] += 11
        return x / 16

    def digest(self) -> str:
        return "bars"


@pytest.fixture(scope="session")
def bars() -> DatasetSlice:
    return DatasetSlice("bars", _Bars())


@pytest.fixture(scope="session")
def digits() -> Callable[[str], DatasetSlice]:
    """The digits by split."""

    def open_split(split: str) -> DatasetSlice:
        host = load_host()
        return open_dataset(dataset_entry({"name": "digits", "split": split}, host, "digits"), host, None)

    return open_split
