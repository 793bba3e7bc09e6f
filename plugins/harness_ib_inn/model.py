"""The model `ib-inn`: an invertible network whose latent space is a mixture of one Gaussian a class.

Mackowiak et al. 2021, *Generative Classifiers as a Basis for Trustworthy Image Classification*. One evaluation of the
network gives the log-density and the logits of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor, nn

from harness.capabilities import DensityTag
from harness.errors import ModelError
from harness.models import ModelContext
from harness.randomness import Draws, draws_for
from harness_ib_inn.blocks import DctPooling
from harness_ib_inn.crops import centre_crop, ten_crops
from harness_ib_inn.detection import TrainingScores, score
from harness_ib_inn.layouts import Layout, Mixing
from harness_ib_inn.means import ClassMeans
from harness_ib_inn.options import FitRecipe, IBINNOptions
from harness_ib_inn.posterior_maps import class_maps, posterior_maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.datasets import DatasetSlice
    from harness.explanations import ExplainedSample, Picture
    from harness.training import FitSession

Detection = Literal["one-tailed", "typicality", "two-tailed"]
Crops = Literal["centre", "ten"]
SCORES = "training_scores"
"""Name of the training scores among a checkpoint's tensors."""


class IBINN(nn.Module):
    """An invertible generative classifier of images x in [0, 1], x one of `levels` equally spaced grey levels.

    It is a density of dequantised images v = ((levels - 1) x + u) / levels in [0, 1], u uniform on [0, 1): each grey
    level owns a bin of width 1/levels, so bits/dim = -log p / (D ln 2) + log2(levels), without correction for how the
    network normalises its input. Training draws u anew; an image to be judged is evaluated at one fixed point of its
    bin, see `dequantised`.

    Attributes:
        num_classes: K.
        class_names: K names, as its checkpoint has them; none without one.
        latent_shape: (C', H', W') of the feature maps before the DCT; D = C' H' W' = C H W.
        log_prior: log p(y), (K,).
        training_scores: log-likelihoods of the training images, once it has been trained.
    """

    stochastic = False
    heatmap_unit = "nats of log-posterior"
    density_tag: DensityTag = "exact"
    log_prior: Tensor
    levels: Tensor
    noise: Tensor

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        levels: int,
        mixing: Mixing = "orthogonal",
        seed: int = 0,
        detector: Detection = "two-tailed",
        crops: Crops | None = None,
        name: str = "ib-inn",
    ) -> None:
        super().__init__()
        self.layout, self.num_classes, self.mixing = layout, num_classes, mixing
        self.detector, self.crops, self.name = detector, crops, name
        self.files: tuple[Path, ...] = ()
        self.class_names: tuple[str, ...] = ()
        self.training_scores: TrainingScores | None = None
        if crops is not None:
            self.density_tag = "surrogate"
        generator = Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            blocks, self.latent_shape = layout.blocks(mixing, generator)
        self.blocks = nn.ModuleList(blocks)
        self.pooling = DctPooling(self.latent_shape)
        self.dimensions = math.prod(layout.shape)
        channels = self.latent_shape[0]
        self.class_means = ClassMeans(num_classes, channels, self.dimensions - channels, layout.rank, generator)
        self.register_buffer("log_prior", torch.full((num_classes,), -math.log(num_classes), dtype=torch.float64))
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int64))
        self.register_buffer("noise", _fixed_noise(layout.shape), persistent=False)

    # --- the network

    def flow(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Dequantised images (B, C, H, W) in [0, 1] to z (B, D) and log|det dz/dv|, float64 (B,)."""
        out = (v - 0.5) * _STRETCH
        log_det = torch.full((v.shape[0],), self.dimensions * math.log(_STRETCH), dtype=torch.float64, device=v.device)
        for block in self.blocks:
            out, change = block(out)
            log_det = log_det + change
        return self.pooling(out)[0], log_det

    def dequantised(self, x: Tensor) -> Tensor:
        """Where in their bins the images x (B, C, H, W) in [0, 1] are evaluated: v = ((levels - 1) x + u) / levels.

        u = 1/2 +- 1/sqrt(12), the signs a fixed random pattern. At the bins' centres, u = 1/2, the density is
        above its mean over the bin and bits/dim too good; here u has the first two moments of the noise of training,
        so that the mean of log p over images agrees with the mean over that noise up to third order. The answer is
        deterministic, and differentiable in x.
        """
        levels = self.levels.to(x.dtype)
        return (x * (levels - 1) + self.noise.to(x.dtype)) / levels

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] to their latent vectors z (B, D) and log|det dz/dx|, float64 (B,)."""
        z, log_det = self.flow(self.dequantised(x))
        return z, log_det + self._log_scale()

    def decode(self, z: Tensor) -> Tensor:
        """Latent vectors (B, D) to the images (B, C, H, W) that `encode` maps there; not clamped to [0, 1]."""
        out = self.pooling.inverse(z)
        for block in reversed(list(self.blocks)):
            out = block.inverse(out)  # type: ignore[operator]
        levels = self.levels.to(out.dtype)
        return ((out / _STRETCH + 0.5) * levels - self.noise.to(out.dtype)) / (levels - 1)

    def to_spatial(self, z: Tensor) -> Tensor:
        """Latent vectors (B, D) as feature maps (B, C', H', W'), the DCT undone: an isometry (equation 8)."""
        return self.pooling.inverse(z)

    @property
    def means(self) -> Tensor:
        """mu_y, (K, D)."""
        return torch.cat(self.means_parts, dim=1)

    @property
    def means_parts(self) -> tuple[Tensor, Tensor]:
        """The parts of mu_y for the mean-pooled features, (K, C'), and for the rest, (K, D - C') (equation 15)."""
        return self.class_means.pooled, self.class_means.rest()

    # --- what it can do

    def logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(y) - |z - mu_y|^2 / 2 without the part that classes share, float64; log-posteriors of ten crops.

        Raises:
            ModelError: images of another size.
        """
        if self.crops != "ten":
            return self.joint(self._encode(x)[0])
        crops = ten_crops(self._checked(x), self.layout.shape[1:])
        scores = self.joint(self.encode(crops.flatten(0, 1))[0])
        posteriors = scores.log_softmax(dim=1).reshape(10, x.shape[0], self.num_classes)
        return posteriors.logsumexp(dim=0) - math.log(10)

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) log p(x) in nats, float64: of the dequantised image, see `IBINN`. Raises as `logits` does."""
        z, log_det = self._encode(x)
        return self.joint(z).logsumexp(dim=1) + self._shared(z, log_det)

    def class_log_prob(self, x: Tensor) -> Tensor:
        """(B, K) log p(x | y) in nats, float64 (equation 4). Raises as `logits` does."""
        z, log_det = self._encode(x)
        return self.class_means.scores(z.double()) + self._shared(z, log_det)[:, None]

    def ood_score(self, x: Tensor) -> Tensor:
        """(B,), float64, higher is more out-of-distribution: the test that option `detector` names (appendix A.1).

        Raises:
            ModelError: the test needs training scores, and there are none; images of another size.
        """
        return score(self.log_prob(x), self.detector, self.training_scores, self.name)

    def sample(self, y: Tensor, *, draws: Draws) -> Tensor:
        """(B, C, H, W) in [0, 1]: z ~ N(mu_y, 1), inverted, and put on the grey level in whose bin it falls."""
        z = self.means.to(y.device)[y] + draws.normal("latent", 0, (self.dimensions,)).to(self.means.dtype)
        with torch.no_grad():
            x = self.decode(z)
            steps = self.levels.to(x.dtype) - 1
            # In units of bins a decoded image is (levels - 1) x + u, which its bin's number is the floor of.
            return ((x * steps + self.noise.to(x.dtype)).floor() / steps).nan_to_num(0.0).clamp(0, 1)

    def heatmap(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, H', W'), float64: the log-posterior of class y by place, which its entries sum to (equation 31)."""
        by_class = class_maps(self._encode(x)[0], self.means, self.to_spatial)
        return posterior_maps(by_class, self.log_prior)[torch.arange(len(y), device=y.device), y]

    def explain_sample(self, sample: ExplainedSample) -> Iterator[Picture]:
        """Pictures of why an image is classified as it is, see `harness.explanations`."""
        from harness_ib_inn.sample_pictures import pictures_of_sample

        return pictures_of_sample(self, sample)

    def explain_model(self, data: DatasetSlice) -> Iterator[Picture]:
        """Pictures of the model itself, some of them made with these images."""
        from harness_ib_inn.model_pictures import pictures_of_model

        return pictures_of_model(self, data)

    def fit(self, data: DatasetSlice, recipe: FitRecipe, session: FitSession) -> None:
        """Train anew (from the checkpoint, where the options name one) and write `session.out`."""
        from harness_ib_inn.training import train

        train(self, data, recipe, session)

    def restart(self, seed: int) -> None:
        """Make the weights trainable; new ones from `seed`, unless the model came from a checkpoint."""
        if not self.files:
            fresh = IBINN(self.layout, self.num_classes, int(self.levels), self.mixing, seed)
            self.load_state_dict(fresh.state_dict())
        self.requires_grad_(True)

    # --- parts

    def joint(self, z: Tensor) -> Tensor:
        """log p(y) - |z - mu_y|^2 / 2 + |z|^2 / 2, float64 (B, K)."""
        return self.class_means.scores(z.double()) + self.log_prior

    def log_prob_of_latent(self, z: Tensor, log_det: Tensor) -> Tensor:
        """log p(v), float64 (B,), of z and log|det dz/dv|: what `flow` returns."""
        return self.joint(z).logsumexp(dim=1) + self._rest(z, log_det)

    def _rest(self, z: Tensor, log_det: Tensor) -> Tensor:
        """What all classes share: log|det| - |z|^2 / 2 - D/2 log 2 pi, float64 (B,)."""
        return log_det - z.double().square().sum(dim=1) / 2 - self.dimensions / 2 * math.log(2 * math.pi)

    def _shared(self, z: Tensor, log_det: Tensor) -> Tensor:
        """The same from log|det dz/dx|: densities are those of v, not of x."""
        return self._rest(z, log_det) - self._log_scale()

    def _log_scale(self) -> Tensor:
        """log|det dv/dx|."""
        levels = self.levels.double()
        return self.dimensions * ((levels - 1) / levels).log()

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(centre_crop(self._checked(x), self.layout.shape[1:]))

    def _checked(self, x: Tensor) -> Tensor:
        check_shape(tuple(x.shape[1:]), self.layout, self.crops, self.name)
        return x


_STRETCH = 4.0
"""Inputs in [0, 1] are centred and scaled to [-2, 2], near unit variance, before the first block."""


def check_shape(shape: tuple[int, ...], layout: Layout, crops: Crops | None, name: str) -> None:
    """Refuse images that a layout cannot take.

    Raises:
        ModelError: other channels, or another size (a smaller one, where they are cropped).
    """
    wanted = layout.shape
    fits = shape == wanted or (
        crops is not None
        and len(shape) == 3
        and shape[0] == wanted[0]
        and shape[1] >= wanted[1] <= shape[2] >= wanted[2]
    )
    if fits:
        return
    larger = len(shape) == 3 and shape[0] == wanted[0] and shape[1] >= wanted[1] and shape[2] >= wanted[2]
    advice = "choose another layout" + (
        ', or judge a part of each: crops = "centre" or "ten"' if larger else ", or images of that size"
    )
    raise ModelError(
        f"model '{name}': layout {layout.name} takes images of {_size(wanted)}, these are {_size(shape)}; {advice}"
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _fixed_noise(shape: tuple[int, int, int]) -> Tensor:
    """u of `IBINN.dequantised`, float64 (C, H, W): 1/2 +- 1/sqrt(12), the same on every machine."""
    signs = draws_for(torch.zeros(1, dtype=torch.int64), 0, "ib-inn").rademacher("noise", 0, shape, torch.float64)
    return 0.5 + signs[0] / math.sqrt(12)


def build(options: IBINNOptions, context: ModelContext) -> IBINN:
    """The model plugin's factory.

    Raises:
        HarnessError: one line: a checkpoint is missing, unreadable or of another network; the layout cannot take the
            images.
    """
    from harness_ib_inn.loading import build_from

    return build_from(options, context)


def state_of(model: IBINN) -> Mapping[str, Tensor]:
    """What a checkpoint holds: weights, and the training scores if there are some."""
    scores = model.training_scores
    return {**model.state_dict(), **({} if scores is None else {SCORES: scores.tensor()})}
