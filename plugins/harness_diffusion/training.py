"""Training by denoising score matching: the loop behind `harness fit` of every diffusion plugin, resumable to the bit.

Vincent 2011, *A connection between score matching and denoising autoencoders*; Song et al. 2021, *Maximum Likelihood
Training of Score-Based Diffusion Models* (likelihood weighting and importance sampling).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from harness.datasets import DatasetSlice, Ints
from harness.errors import HarnessError, ModelError
from harness.training import above, below, optimizer_tensors, restore_optimizer, seed_of
from harness_diffusion.building import NOTE, Source, holder, note
from harness_diffusion.denoiser import Denoiser
from harness_diffusion.options import DenoisingRecipe
from harness_diffusion.processes import Process
from harness_diffusion.scaling import dequantise, to_scaled

if TYPE_CHECKING:
    from harness.training import FitSession

_SAVE_EVERY = 15.0  # seconds between states to resume from
_CACHED_BYTES = 2**30  # data sets up to this size are held in memory, on the device


def fit(source: Source, data: DatasetSlice, recipe: DenoisingRecipe, session: FitSession) -> Denoiser:
    """Train a new denoiser (from the weights of `source`, where there are some), and write the checkpoint of `session`.

    What is kept are the averaged weights. All randomness of an epoch comes from generators made from the seed and the
    epoch's number, so the state to resume from is weights, their average, the optimiser's moments and the epoch.

    Raises:
        HarnessError: no image; impossible times; the loss became NaN or infinite.
    """
    if not len(data):
        raise HarnessError("training needs images: there is none in the data set")
    denoiser = source.make(session.seed).to(session.device)
    smallest = denoiser.process.smallest_time if recipe.smallest_time is None else recipe.smallest_time
    training = _Training(denoiser, data, recipe, smallest, session.seed)
    first, loss = training.restore(session)
    saved = -math.inf
    for epoch in range(first, recipe.epochs):
        loss = training.epoch(epoch)
        if time.monotonic() - saved >= _SAVE_EVERY or epoch + 1 == recipe.epochs:
            session.save_state(training.tensors(), {"epochs": epoch + 1, "loss": loss})
            saved = time.monotonic()
        session.progress(epoch + 1, recipe.epochs, {"loss": loss})
    training.use_average()
    denoiser.smallest_time = smallest
    session.notes[NOTE] = note(source.blueprint.model_copy(update={"smallest_time": smallest}))
    session.finish(holder(denoiser).state_dict(), loss=loss)
    return denoiser.eval()


def denoising_error(denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, y: Tensor | None) -> Tensor:
    """(B,) squared error of the noise predicted in data `x` (B, C, H, W, on [-1, 1]) diffused to times `t` (B,), summed
    over the entries.

    The error is that of the noise whatever the network predicts, so that all parameterisations minimise the same thing.
    """
    predicted = denoiser.noise(denoiser.process.diffuse(x, t, noise), t, y)
    return (predicted - noise).square().flatten(1).sum(dim=1)


def draw_times(process: Process, objective: str, fraction: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Times (B,) in [smallest, 1] and their weights (B,) for an objective, made of `fraction` (B,) uniform on [0, 1).

    "uniform": uniform times, weight 1. "likelihood": uniform times, weight g^2 / sigma^2 divided by its mean.
    "importance": times drawn in proportion to g^2 / sigma^2, weight 1: the same objective with less variance.
    "mixture": even entries as "uniform", odd ones as "importance".
    """
    uniform = smallest + (1 - smallest) * fraction
    one = torch.ones_like(fraction)
    if objective == "uniform":
        return uniform, one
    normaliser = process.importance_normaliser(smallest)
    if objective == "likelihood":
        density = process.diffusion_squared(uniform) / process.std(uniform).square()
        return uniform, density * ((1 - smallest) / normaliser)
    drawn = process.importance_sample(fraction, smallest)
    if objective == "importance":
        return drawn, one
    odd = torch.arange(fraction.shape[0], device=fraction.device) % 2 == 1
    return torch.where(odd, drawn, uniform), one


def spread(size: int, generator: Generator, device: torch.device) -> Tensor:
    """(size,) numbers, each uniform on [0, 1), together spread evenly, and so is every other one of them.

    Kingma et al. 2021, *Variational Diffusion Models*, appendix I.1.
    """
    start = torch.rand((), generator=generator, device=device)
    return (start + torch.arange(size, device=device) / size) % 1


class _Training:
    """Weights, their average, optimiser and data of one training."""

    def __init__(
        self, denoiser: Denoiser, data: DatasetSlice, recipe: DenoisingRecipe, smallest: float, seed: int
    ) -> None:
        self.denoiser = denoiser
        self.recipe = recipe
        self.smallest = smallest
        self.seed = seed
        self.images = _Images(data, next(denoiser.parameters()).device)
        self.batches = math.ceil(len(data) / recipe.batch_size)
        self.steps = self.batches * recipe.epochs
        self.weights: list[Tensor] = [p for p in denoiser.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.Adam(self.weights, lr=recipe.lr, fused=True)

    def epoch(self, number: int) -> float:
        """One pass over the data: the mean loss."""
        device = self.images.device
        generator = Generator(device).manual_seed(seed_of(self.seed, "epoch", number))
        order = Generator().manual_seed(seed_of(self.seed, "order", number))
        shuffled = self.images.ids[torch.randperm(len(self.images.ids), generator=order).numpy()]
        self.denoiser.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.seed, "modules", number))
            for batch in range(self.batches):
                chosen = shuffled[batch * self.recipe.batch_size : (batch + 1) * self.recipe.batch_size]
                loss = self._step(*self.images.load(chosen), generator, number * self.batches + batch)
                total += loss * len(chosen)
        mean = float(total) / len(shuffled)
        if not math.isfinite(mean):
            raise ModelError(f"training: the loss became {mean} in epoch {number + 1}; lower lr")
        return mean

    def _step(self, x: Tensor, y: Tensor, generator: Generator, step: int) -> Tensor:
        recipe, denoiser = self.recipe, self.denoiser
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, self.steps)
        v = to_scaled(self._augmented(x, generator))
        fraction = spread(len(v), generator, v.device)
        t, weight = draw_times(denoiser.process, recipe.objective, fraction, self.smallest)
        noise = torch.randn(v.shape, generator=generator, device=v.device)
        if denoiser.null_class:
            dropped = torch.rand(len(v), generator=generator, device=v.device) < recipe.label_dropout
            y = torch.where(dropped, denoiser.num_classes, y)
        with torch.autocast(v.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            error = denoising_error(denoiser, v, t, noise, y)
        loss = (weight * error).mean() / v[0].numel()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights, recipe.clip)
        self.optimizer.step()
        # Early on the average forgets faster, or it would hold on to the initial weights.
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        return loss.detach()

    def _augmented(self, x: Tensor, generator: Generator) -> Tensor:
        if self.recipe.flip:
            mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        if self.recipe.dequantise:
            x = dequantise(x, self.images.levels, torch.rand(x.shape, generator=generator, device=x.device))
        return x

    def use_average(self) -> None:
        """Put the averaged weights in place of the last ones."""
        with torch.no_grad():
            for weight, average in zip(self.weights, self.average, strict=True):
                weight.copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the rest of the training depends on."""
        averages = {str(index): tensor for index, tensor in enumerate(self.average)}
        network = above(holder(self.denoiser).state_dict(), "network.")
        return network | above(averages, "average.") | optimizer_tensors(self.optimizer)

    def restore(self, session: FitSession) -> tuple[int, float]:
        """Go on from the state of an interrupted run, if there is one: epochs already done, and the last loss."""
        found = session.load_state()
        if found is None:
            return 0, math.nan
        tensors, state = found
        holder(self.denoiser).load_state_dict(below(tensors, "network."))
        for index, average in enumerate(self.average):
            average.copy_(tensors[f"average.{index}"])
        restore_optimizer(self.optimizer, tensors)
        return int(state["epochs"]), float(state["loss"])


class _Images:
    """The data on a device: all of them at once where they are small, else read batch by batch."""

    def __init__(self, data: DatasetSlice, device: torch.device) -> None:
        self.ids = data.ids
        self.levels = data.facts.levels
        self.device = device
        self._data = data
        self._cached: tuple[Tensor, Tensor] | None = None
        if 4 * len(data) * math.prod(data.facts.shape) <= _CACHED_BYTES:
            x, y = data.load(data.ids)
            self._cached = x.to(device), y.to(device)

    def load(self, ids: Ints) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and labels (B,)."""
        if self._cached is None:
            x, y = self._data.load(ids)
            return x.to(self.device), y.to(self.device)
        places = torch.from_numpy(np.searchsorted(self.ids, ids)).to(self.device)  # a slice's ids are in order
        return self._cached[0][places], self._cached[1][places]


def learning_rate(recipe: DenoisingRecipe, step: int, steps: int) -> float:
    """The learning rate of a step: it rises linearly over the first `warmup` steps and falls to zero on a cosine."""
    rise = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    return recipe.lr * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
