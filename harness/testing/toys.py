"""Small known images and models that the conformance kit works with, usable in a plugin's own tests too."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.capabilities import DensityTag, with_derived
from harness.datasets import DatasetFacts, DatasetSlice, Ints
from harness.errors import HarnessError
from harness.loading import BuiltModel
from harness.models import prepare
from harness.randomness import Draws, draws_for

_SEED = 20250101


class SyntheticImages:
    """Images of K classes: a smooth prototype of each class plus noise, at `levels` grey levels. The same everywhere.

    Meets `harness.datasets.Dataset`.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, samples: int, levels: int) -> None:
        self.shape = shape
        self.levels = levels
        self.class_names = tuple(f"class {k}" for k in range(num_classes))
        self._labels = np.arange(samples, dtype=np.int64) % num_classes

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        ids = torch.from_numpy(np.asarray(index, dtype=np.int64))
        noise = draws_for(ids, _SEED, "synthetic").normal("noise", 0, self.shape)
        clean = prototypes(self.shape, len(self.class_names))[torch.from_numpy(self._labels[index])]
        steps = self.levels - 1
        return ((clean + 0.08 * noise).clamp(0, 1) * steps).round() / steps

    def digest(self) -> str:
        text = repr((self.shape, len(self.class_names), self._labels.size, self.levels, _SEED))
        return hashlib.sha256(text.encode()).hexdigest()


def prototypes(shape: tuple[int, int, int], num_classes: int) -> Tensor:
    """float32 (K, C, H, W) in [0.2, 0.8]: a smooth random pattern for each class."""
    channels, height, width = shape
    coarse = draws_for(torch.arange(num_classes), _SEED, "prototypes").uniform("pattern", 0, (channels, 4, 4))
    return 0.2 + 0.6 * F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)


def synthetic_data(
    shape: tuple[int, int, int] = (1, 8, 8), num_classes: int = 10, samples: int = 40, levels: int = 256
) -> DatasetSlice:
    """A small data set for tests: float32 images (C, H, W) in [0, 1] of `num_classes` classes that can be learnt."""
    return DatasetSlice("synthetic", SyntheticImages(shape, num_classes, samples, levels))


class ToyClassifier(nn.Module):
    """A smooth nonlinear classifier of `synthetic_data`: distance to the prototypes after a random tanh layer.

    Every image is evaluated alone, so that an answer is bit-identical whatever batch it is in.
    """

    stochastic = False

    def __init__(self, shape: tuple[int, int, int], num_classes: int, features: int = 32) -> None:
        super().__init__()
        self.num_classes = num_classes
        size = math.prod(shape)
        weights = draws_for(torch.arange(features), _SEED, "toy").normal("weights", 0, (size,)) * (2.0 / size**0.5)
        self.weight = nn.Parameter(weights)
        centres = torch.tanh((prototypes(shape, num_classes).flatten(1) - 0.5) @ weights.T)
        self.centres = nn.Parameter(centres)

    def logits(self, x: Tensor) -> Tensor:
        """(B, K)."""
        if not len(x):
            return x.new_zeros(0, self.num_classes)
        return torch.stack([self._one(image.flatten()) for image in x])

    def _one(self, image: Tensor) -> Tensor:
        features = torch.tanh(self.weight @ (image - 0.5))
        return -(features - self.centres).square().sum(dim=1)


class RandomToyClassifier(ToyClassifier):
    """The same with Gaussian noise on its input, drawn from the streams it is handed."""

    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        """(B, K), a draw."""
        return super().logits(x + 0.1 * draws.normal("input", 0, x.shape[1:]).to(x))


class ToyDensity(nn.Module):
    """A mixture of Gaussians around the prototypes: density, class density, detector, sampler and explainer.

    log p(x | y) = -|x - mu_y|^2 / (2 s^2) - D/2 log(2 pi s^2), in nats of the density with respect to x.
    """

    stochastic = False
    density_tag: DensityTag = "exact"
    scale = 0.15
    means: Tensor

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("means", prototypes(shape, num_classes).double())

    def class_log_prob(self, x: Tensor) -> Tensor:
        """(B, K), float64."""
        distance = (x.double()[:, None] - self.means).flatten(2).square().sum(dim=2)
        variance = self.scale**2
        return -distance / (2 * variance) - 0.5 * x[0].numel() * math.log(2 * math.pi * variance)

    def ood_score(self, x: Tensor) -> Tensor:
        """(B,), the negative log of the largest class density."""
        return -self.class_log_prob(x).amax(dim=1)

    def sample(self, y: Tensor, *, draws: Draws) -> Tensor:
        """(B, C, H, W)."""
        noise = draws.normal("sample", 0, self.means.shape[1:])
        return (self.means[y].float() + self.scale * noise).clamp(0, 1)

    def heatmap(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, H, W): squared distance to the class's prototype, mean over channels."""
        return (x - self.means[y].to(x)).square().mean(dim=1)


_CLASSIFIER = frozenset({"Classifier"})
_DENSITY = frozenset({"ClassDensity", "Detector", "Sampler", "Explainer"})


def toy_model(
    requires: Iterable[str], data: DatasetFacts, device: str = "cpu", *, stochastic: bool = False
) -> BuiltModel:
    """A toy with the capabilities in `requires`: a classifier where that is enough, else a density.

    Raises:
        HarnessError: no toy has them.
    """
    wanted = frozenset(requires)
    built: BuiltModel
    if wanted <= with_derived(_CLASSIFIER):
        kind = RandomToyClassifier if stochastic else ToyClassifier
        built = BuiltModel(prepare(kind(data.shape, data.num_classes), device), _CLASSIFIER)
    elif wanted <= with_derived(_DENSITY):
        built = BuiltModel(prepare(ToyDensity(data.shape, data.num_classes), device), _DENSITY)
    else:
        lacking = ", ".join(sorted(wanted - with_derived(_DENSITY)))
        raise HarnessError(f"no toy model of the kit has {lacking}; give one: threat_checks(..., model=...)")
    return built
