"""Training a classifier: the loop behind `harness fit`, resumable to the bit at the end of every epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from harness.datasets import DatasetSlice, Ints
from harness.errors import HarnessError, ModelError
from harness.training import above, below, in_batches, optimizer_tensors, restore_optimizer, seed_of
from harness_torch.adversary import perturb
from harness_torch.options import FitRecipe

if TYPE_CHECKING:
    from harness.training import FitSession
    from harness_torch.model import TorchClassifier

_WARM_UP = 0.3  # share of a one-cycle schedule in which the rate rises, from 1/25 of its peak
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Split:
    """Sample ids to train on, and those held out."""

    train: Ints
    held_out: Ints


def train(model: TorchClassifier, data: DatasetSlice, recipe: FitRecipe, session: FitSession) -> None:
    """Train `model.module` in place and write the checkpoint of `session`.

    All randomness of an epoch comes from a generator made from the seed and the epoch's number, so the state to resume
    from is weights, optimiser and epoch. Modules that draw from the global generator (dropout) find it seeded alike,
    and it is put back afterwards.

    Raises:
        ModelError: the loss became NaN or infinite; the output is not (B, K) with K enough for the labels.
    """
    device = torch.device(session.device)
    model.to(device)
    split = _split(data.ids, recipe.validation, session.seed)
    model.num_classes = _check_outputs(model, data, split.train)
    optimizer = _optimizer(model.module, recipe)
    first = _restore(model.module, optimizer, session)
    for epoch in range(first, recipe.epochs):
        loss, accuracy = _epoch(model, data, split.train, recipe, optimizer, session.seed, epoch)
        session.save_state(_state_tensors(model.module, optimizer), {"epochs": epoch + 1, "loss": loss})
        session.progress(epoch + 1, recipe.epochs, {"loss": loss, "accuracy": accuracy})
        last_loss = loss
    if first == recipe.epochs:
        found = session.load_state()
        last_loss = float(found[1]["loss"]) if found else math.nan
    model.eval()
    results: dict[str, Any] = {"loss": last_loss, "train_accuracy": accuracy_on(model, data, split.train)}
    if split.held_out.size:
        results["validation_accuracy"] = accuracy_on(model, data, split.held_out)
    session.finish(model.module.state_dict(), **results)


def accuracy_on(model: TorchClassifier, data: DatasetSlice, ids: Ints) -> float:
    """Clean accuracy on the given samples, in eval mode."""
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    right = 0
    with torch.no_grad():
        for start in range(0, ids.size, _EVALUATION_BATCH):
            x, y = data.load(ids[start : start + _EVALUATION_BATCH])
            right += int((model(x.to(device)).argmax(dim=1).cpu() == y).sum())
    return right / ids.size


def shifted(x: Tensor, reach: int, generator: Generator) -> Tensor:
    """Each image moved by its own whole number of pixels, at most `reach` along each axis; zeros come in.

    Takes and gives (B, C, H, W).
    """
    batch, channels, height, width = x.shape
    offset = torch.randint(0, 2 * reach + 1, (2, batch), generator=generator).to(x.device)
    padded = F.pad(x, (reach, reach, reach, reach))
    rows = offset[0][:, None] + torch.arange(height, device=x.device)
    columns = offset[1][:, None] + torch.arange(width, device=x.device)
    samples = torch.arange(batch, device=x.device)[:, None, None, None]
    planes = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]


def flipped(x: Tensor, generator: Generator) -> Tensor:
    """Half of the images, chosen at random, mirrored left to right. Takes and gives (B, C, H, W)."""
    chosen = (torch.rand(x.shape[0], generator=generator) < 0.5).to(x.device)
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)


def learning_rate(recipe: FitRecipe, done: float) -> float:
    """The learning rate once a share `done` in [0, 1) of all steps is over.

    "cosine": Loshchilov & Hutter 2017 without restarts. "one-cycle": Smith & Topin 2018, rising linearly over the
    first 30 % from lr / 25 and falling to zero on a cosine.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
    if done < _WARM_UP:
        return recipe.lr * (1 + 24 * done / _WARM_UP) / 25
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _epoch(
    model: TorchClassifier,
    data: DatasetSlice,
    ids: Ints,
    recipe: FitRecipe,
    optimizer: torch.optim.Optimizer,
    seed: int,
    epoch: int,
) -> tuple[float, float]:
    """One pass over the data: mean loss, and accuracy on the images trained on (augmented, attacked) as they came."""
    device = torch.device(next(model.parameters()).device)
    generator = Generator().manual_seed(seed_of(seed, "epoch", epoch))
    order = ids[torch.randperm(ids.size, generator=generator).numpy()]
    batches = math.ceil(ids.size / recipe.batch_size)
    total, right = 0.0, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(seed, "modules", epoch))
        for number, chosen in enumerate(in_batches(order, recipe.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, (epoch + number / batches) / recipe.epochs)
            x, y = data.load(chosen)
            x, y = _augmented(x, recipe, generator).to(device), y.to(device)
            if recipe.adversarial is not None:
                x = perturb(model, x, y, recipe.adversarial, generator)
            model.train()
            logits = model(x)
            loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
            if not bool(loss.isfinite()):
                raise ModelError(f"training: the loss became {loss.item()} in epoch {epoch + 1}; lower lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(chosen)
            right += int((logits.argmax(dim=1) == y).sum())
    return total / ids.size, right / ids.size


def _augmented(x: Tensor, recipe: FitRecipe, generator: Generator) -> Tensor:
    if recipe.shift:
        x = shifted(x, recipe.shift, generator)
    return flipped(x, generator) if recipe.flip else x


def _split(ids: Ints, share: float, seed: int) -> Split:
    held_out = round(ids.size * share)
    if ids.size - held_out < 1:
        raise HarnessError(f"training needs images: {ids.size} in the data set, {held_out} of them held out")
    if not held_out:
        return Split(ids, ids[:0])
    generator = Generator().manual_seed(seed_of(seed, "validation", 0))
    order = torch.randperm(ids.size, generator=generator).numpy()
    return Split(np.sort(ids[order[held_out:]]), np.sort(ids[order[:held_out]]))


def _check_outputs(model: TorchClassifier, data: DatasetSlice, ids: Ints) -> int:
    """K, once the outputs on two images have shown that there are logits for every class of the data."""
    model.eval()
    x, _ = data.load(ids[:2])
    device = next((p.device for p in model.parameters() if p.requires_grad), None)
    if device is None:
        raise ModelError(f"model '{model.name}' has no weights to train")
    with torch.no_grad():
        classes = int(model.checked(x.to(device)).shape[1])
    if classes < data.facts.num_classes:
        raise ModelError(
            f"model '{model.name}' gives {classes} logits, dataset '{data.name}' has {data.facts.num_classes} classes"
        )
    return classes


def _optimizer(module: nn.Module, recipe: FitRecipe) -> torch.optim.Optimizer:
    weights = [p for p in module.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return above(module.state_dict(), "module.") | optimizer_tensors(optimizer)


def _restore(module: nn.Module, optimizer: torch.optim.Optimizer, session: FitSession) -> int:
    """Go on from the state of an interrupted run, if there is one: the number of epochs already done."""
    found = session.load_state()
    if found is None:
        return 0
    tensors, state = found
    module.load_state_dict(below(tensors, "module."))
    restore_optimizer(optimizer, tensors)
    return int(state["epochs"])
