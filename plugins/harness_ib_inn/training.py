"""Training: the information-bottleneck loss, and the loop behind `harness fit ib-inn`, resumable to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from harness.datasets import DatasetSlice
from harness.errors import ModelError
from harness.models import bits_per_dim
from harness.training import above, below, in_batches, optimizer_tensors, restore_optimizer, seed_of
from harness_ib_inn.augmentation import augmented
from harness_ib_inn.detection import TrainingScores
from harness_ib_inn.flattening import into_plane, keep_classes
from harness_ib_inn.model import IBINN, check_shape, state_of
from harness_ib_inn.options import FitRecipe

if TYPE_CHECKING:
    from harness.training import FitSession

_EVALUATION_BATCH = 256
_WARM_UP = 0.3  # share of a one-cycle schedule in which the rate rises, from 1/25 of its peak
_COOLING = (0.6, 0.85)


@dataclass(frozen=True)
class Losses:
    """The two parts of the loss, means over a batch.

    Attributes:
        l_x: -log p(v) / D - 1/2 log 2 pi, nats per dimension.
        l_y: cross-entropy of the class posterior with smoothed labels, nats per image.
        right: number of images whose class is most likely.
    """

    l_x: Tensor
    l_y: Tensor
    right: int

    def weighted(self, beta: float) -> Tensor:
        """(L_X + beta L_Y) / (1 + beta); L_Y alone for an infinite beta."""
        return self.l_y if math.isinf(beta) else (self.l_x + beta * self.l_y) / (1 + beta)


def losses(model: IBINN, v: Tensor, y: Tensor, label_smoothing: float) -> Losses:
    """The two losses of dequantised images, equations 6 and 7 with their signs corrected.

    With d_y = |f(v) - mu_y|^2 and w_y = log p(y)

        L_X = (-log|det J| - logsumexp_y(w_y - d_y / 2)) / D
        L_Y = -sum_y target_y log softmax_y(w_y - d_y / 2).

    Printed are +1/2 logsumexp(d_y - 2 w_y), and onehot(y) log softmax(d_y / 2 - w_y) without a leading minus: both
    would be least for latent vectors far from all means. L_X is per dimension and L_Y is not, as in the authors' code;
    beta means what it does in the paper only with this normalisation.

    Args:
        v: (B, C, H, W) in [0, 1].
        y: int64 (B,).
    """
    z, log_det = model.flow(v)
    joint = model.joint(z)
    log_p = joint.logsumexp(dim=1) + log_det - z.double().square().sum(dim=1) / 2
    l_y = F.cross_entropy(joint, y, label_smoothing=label_smoothing)
    return Losses(-log_p.mean() / model.dimensions, l_y, int((joint.argmax(dim=1) == y).sum()))


def train(model: IBINN, data: DatasetSlice, recipe: FitRecipe, session: FitSession) -> None:
    """Train `model` in place and write the checkpoint of `session`.

    All randomness of an epoch comes from a generator made from the seed and the epoch's number, so the state to resume
    from is weights, optimiser and epoch.

    Raises:
        ModelError: the loss became NaN or infinite; the data have other classes than the checkpoint to start from.
    """
    check_shape(tuple(data.facts.shape), model.layout, model.crops, model.name)
    _start(model, data, recipe, session)
    optimizer = _optimizer(model, recipe)
    first, last = _restore(model, optimizer, session)
    for epoch in range(first, recipe.epochs):
        last = _epoch(model, data, recipe, optimizer, session.seed, epoch)
        session.save_state(_state_tensors(model, optimizer), {"epochs": epoch + 1, "last": last})
        session.progress(epoch + 1, recipe.epochs, last)
    model.eval().requires_grad_(False)
    results = _finish(model, data)
    session.finish(state_of(model), **{**last, **results})


def dequantise(x: Tensor, levels: int, generator: Generator) -> Tensor:
    """((levels - 1) x + u) / levels with u uniform on [0, 1): a grey level fills its bin of [0, 1] evenly.

    The authors' code adds u / 255 and clamps to 1, which leaves white pixels undequantised and shifts bits/dim.
    """
    noise = torch.rand(x.shape, generator=generator).to(x.device)
    return (x * (levels - 1) + noise) / levels


def learning_rate(recipe: FitRecipe, done: float) -> float:
    """The learning rate once a share `done` in [0, 1) of all steps is over.

    "cosine": Loshchilov & Hutter 2017 without restarts. "one-cycle": Smith & Topin 2018, rising linearly over the
    first 30 % from lr / 25. "steps": two divisions by ten, as in the paper, at fixed places instead of on plateaus.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
    if recipe.schedule == "steps":
        return recipe.lr * 0.1 ** sum(done >= place for place in _COOLING)
    if done < _WARM_UP:
        return recipe.lr * (1 + 24 * done / _WARM_UP) / 25
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _start(model: IBINN, data: DatasetSlice, recipe: FitRecipe, session: FitSession) -> None:
    """Initial weights from the session's seed, the data's grey levels and class frequencies."""
    if recipe.plane:
        keep_classes(model, data.facts.class_names)
    model.restart(session.seed)
    model.to(session.device)
    if data.facts.num_classes != model.num_classes:
        raise ModelError(
            f"model '{model.name}': its checkpoint has {model.num_classes} classes, dataset '{data.name}' has"
            f" {data.facts.num_classes}"
        )
    counts = torch.bincount(torch.from_numpy(data.labels()), minlength=model.num_classes).double().clamp_min(1)
    model.log_prior.copy_((counts / counts.sum()).log())
    model.levels.fill_(data.facts.levels)


def _epoch(
    model: IBINN, data: DatasetSlice, recipe: FitRecipe, optimizer: torch.optim.Optimizer, seed: int, epoch: int
) -> dict[str, float]:
    """One pass over the data: the means of the losses and of the accuracy, on the images as they came."""
    generator = Generator().manual_seed(seed_of(seed, "epoch", epoch))
    order = data.ids[torch.randperm(data.ids.size, generator=generator).numpy()]
    batches = math.ceil(order.size / recipe.batch_size)
    total = {"loss": 0.0, "l_x": 0.0, "l_y": 0.0, "accuracy": 0.0}
    model.train()
    for number, chosen in enumerate(in_batches(order, recipe.batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, (epoch + number / batches) / recipe.epochs)
        x, y = data.load(chosen)
        x = augmented(x, model.layout.shape[1:], recipe, generator)
        v = dequantise(x, data.facts.levels, generator).to(model.noise.device)
        found = losses(model, v, y.to(v.device), recipe.label_smoothing)
        loss = found.weighted(recipe.beta)
        if not bool(loss.isfinite()):
            raise ModelError(f"training: the loss became {loss.item()} in epoch {epoch + 1}; lower lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if recipe.plane:
            into_plane(model.class_means)
        for name, value in (("loss", loss), ("l_x", found.l_x), ("l_y", found.l_y)):
            total[name] += value.item() * len(chosen) / order.size
        total["accuracy"] += found.right / order.size
    return total


def _finish(model: IBINN, data: DatasetSlice) -> dict[str, Any]:
    """Score the training images with the finished model, for its detectors; what to write down about it."""
    log_prob, right = [], 0
    with torch.no_grad():
        for chosen in in_batches(data.ids, _EVALUATION_BATCH):
            x, y = data.load(chosen)
            x = x.to(model.noise.device)
            scores = model.class_log_prob(x) + model.log_prior
            log_prob.append(scores.logsumexp(dim=1).cpu())
            right += int((scores.argmax(dim=1).cpu() == y).sum())
    all_scores = torch.cat(log_prob)
    model.training_scores = TrainingScores.of(all_scores)
    bits = bits_per_dim(all_scores, model.layout.shape, data.facts.levels)
    return {
        "train_accuracy": right / data.ids.size,
        "train_bits_per_dim": float(bits.mean()),
        "layout": model.layout.name,
        "mixing": model.mixing,
    }


def _optimizer(model: IBINN, recipe: FitRecipe) -> torch.optim.Optimizer:
    """Weight decay is for the subnetworks' matrices: scales and class means have no business at zero."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and ".subnetwork." in name]
    chosen = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in chosen], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def _state_tensors(model: IBINN, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return above(model.state_dict(), "model.") | optimizer_tensors(optimizer)


def _restore(model: IBINN, optimizer: torch.optim.Optimizer, session: FitSession) -> tuple[int, dict[str, float]]:
    """Go on from the state of an interrupted run, if there is one: the epochs done, and what the last one gave."""
    found = session.load_state()
    if found is None:
        return 0, {}
    tensors, state = found
    model.load_state_dict(below(tensors, "model."))
    restore_optimizer(optimizer, tensors)
    return int(state["epochs"]), dict(state["last"])
