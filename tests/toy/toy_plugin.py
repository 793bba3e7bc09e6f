"""A data set, models and threats for the tests of the engine: tiny, exact, and able to break their contracts on demand.

Loaded as a user's file is: ``-p toy_plugin.py``.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import (
    Amount,
    Batch,
    Budget,
    DatasetContext,
    DatasetInfo,
    Draws,
    MetricInfo,
    ModelContext,
    ModelInfo,
    ModelView,
    Options,
    ThreatContext,
    ThreatInfo,
    hookimpl,
    option,
)
from harness.metrics import CellRows, Estimate, Summary
from harness.randomness import draws_for

CLASSES = 3


class ToyData(Options):
    samples: int = option(30, help="number of images", ge=1)
    label_offset: int = option(0, help="added to every label, with as many more classes", ge=0)


class Toy:
    """Images 1x3x3 of classes 0 to 2, in turns: the row of the label is brighter than the others."""

    shape = (1, 3, 3)
    levels = 256

    def __init__(self, options: ToyData, context: DatasetContext) -> None:
        self.options = options
        self.class_names = tuple("abcdefgh"[: CLASSES + options.label_offset])

    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(self.options.samples, dtype=np.int64) % CLASSES + self.options.label_offset

    def images(self, index: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        x = draws_for(torch.from_numpy(index), 7, "toy").uniform("image", 0, self.shape) * 0.5 + 0.1
        x[torch.arange(len(index)), 0, torch.from_numpy(index % CLASSES)] += 0.3
        return x

    def digest(self) -> str:
        return hashlib.sha256(repr(self.options.model_dump()).encode()).hexdigest()


class ToyModelOptions(Options):
    kind: str = option("good", help="how it misbehaves")
    scale: float = option(10.0, help="sharpness")


class RowSums(nn.Module):
    """Logits are the sums of the image's rows."""

    num_classes = CLASSES
    stochastic = False

    def __init__(self, options: ToyModelOptions) -> None:
        super().__init__()
        self.kind, self.scale = options.kind, options.scale
        if self.kind == "two classes":
            self.num_classes = 2

    def logits(self, x: Tensor) -> Tensor:
        out = self.scale * x.sum(dim=(1, 3))
        if self.kind == "nan":
            return out / out.new_zeros(()) * 0
        if self.kind == "nan under attack":  # the brightest row of a toy image has no pixel below 0.4
            return torch.where((x.amin(dim=(1, 3)).amax(dim=1) < 0.4)[:, None], torch.nan, out)
        if self.kind == "wrong shape":
            return out[:, :2]
        if self.kind == "two classes":
            return out[:, :2]
        if self.kind == "raises" and len(x) > 2:  # not yet on the two probe images of the plan
            raise RuntimeError("a fault\nof the model")
        if self.kind == "exits" and len(x) > 2:
            sys.exit(0)
        if self.kind == "in place":
            with torch.no_grad():
                x.mul_(0.5)
        return out


class RandomRowSums(nn.Module):
    """Row sums plus noise from the stream it is given."""

    num_classes = CLASSES
    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        return 10 * x.sum(dim=(1, 3)) + draws.normal("noise", 0, (CLASSES,)) * 3


class ToyDensity(nn.Module):
    density_tag = "exact"

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.square().sum(dim=(1, 2, 3))


def build_model(options: ToyModelOptions, context: ModelContext) -> nn.Module:
    if options.kind == "factory raises":
        raise RuntimeError("no weights\nhere")
    if options.kind == "factory exits":
        sys.exit(0)
    if options.kind == "no method":
        return nn.Identity()
    return RowSums(options)


class ToyAttackOptions(Options):
    eps: Amount = option(help="l-inf radius", unit="[0, 1]")
    kind: str = option("honest", help="how it misbehaves")
    steps: int = option(2, help="gradient steps, the fallen leaving", ge=1)
    wait: float = option(0.0, help="seconds a batch takes", ge=0)
    at: int = option(10, help="sample at which the kinds that die do so")
    marker: str = option("", help="file that the kinds that die once leave")
    sets: tuple[str, ...] = option((), help="a list by type")


class ToyAttack:
    """Signed gradient steps on the margin; samples that fall leave the batch."""

    def __init__(self, options: ToyAttackOptions) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.budget: Budget | None = Budget("linf", float("nan") if options.kind == "budget nan" else self.eps)
        if options.kind in ("no budget", "foreign", "claims success", "claims clean"):
            self.budget = None

    def run(self, model: ModelView, batch: Batch) -> Any:
        time.sleep(self.options.wait)
        self._die(batch)
        columns: dict[str, Any] = {"adversarial": self._attack(model, batch)}
        return self._spoil(columns, batch)

    def _attack(self, model: ModelView, batch: Batch) -> Tensor:
        best = batch.x.clone()
        standing = batch.clean_correct.nonzero()[:, 0]
        for _ in range(self.options.steps):
            if not len(standing):
                break
            x = best[standing].requires_grad_()
            logits = model.logits(x, batch.draws[standing])
            label = logits.gather(1, batch.y[standing][:, None])[:, 0]
            others = logits.scatter(1, batch.y[standing][:, None], -torch.inf).amax(dim=1)
            step = model.input_gradient(others - label, x).sign() * self.eps / self.options.steps
            moved = (x.detach() + step - batch.x[standing]).clamp(-self.eps, self.eps) + batch.x[standing]
            best[standing] = moved.clamp(0, 1)
            standing = standing[(label > others).detach()]
        return best

    def _die(self, batch: Batch) -> None:
        if self.options.at not in batch.ids.tolist():
            return
        if self.options.kind == "exits":
            os._exit(9)
        if self.options.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.kind == "killed once" and not Path(self.options.marker).exists():
            Path(self.options.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.kind == "interrupts":
            raise KeyboardInterrupt
        if self.options.kind == "raises":
            raise RuntimeError("a fault\nof the threat")

    def _spoil(self, columns: dict[str, Any], batch: Batch) -> Any:
        n, images, kind = len(batch.ids), columns["adversarial"], self.options.kind
        if kind == "outside" or (kind == "outside at small" and self.eps < 0.1):
            images[-1, 0, 0, 0] = batch.x[-1, 0, 0, 0] + (
                1.01 * self.eps if batch.x[-1, 0, 0, 0] < 0.5 else -1.01 * self.eps
            )
        elif kind == "negative":
            images[0, 0, 0, 0] = -1e-3
        elif kind == "nan image":
            images[0, 0, 0, 0] = torch.nan
        elif kind == "shape":
            columns["adversarial"] = images[:, :, :2]
        elif kind == "float64":
            columns["adversarial"] = images.double()
        elif kind == "short":
            columns["extra"] = torch.zeros(n - 1)
        elif kind == "object":
            columns["extra"] = [object() for _ in range(n)]
        elif kind == "scalar":
            columns["extra"] = 3.0
        elif kind == "foreign":
            return {"sample_id": batch.ids + 1000, "score": torch.zeros(n)}
        elif kind == "shuffled":
            columns["sample_id"] = batch.ids.flip(0)
        elif kind == "lies":
            columns |= {"success": torch.ones(n, dtype=torch.bool), "clean_correct": torch.ones(n, dtype=torch.bool)}
            columns |= {"label": torch.zeros(n, dtype=torch.int64), "linf": torch.zeros(n), "adversarial": batch.x}
            columns |= {"forwards": torch.zeros(n)}
        elif kind == "claims success":
            return {"success": torch.ones(n, dtype=torch.bool)}
        elif kind == "no images":
            return {"score": torch.zeros(n)}
        elif kind == "nothing":
            return None
        elif kind == "uneven" and int(batch.ids[0]) > 0:
            columns["late"] = torch.zeros(n)
        elif kind == "spoils clean":
            batch.x.zero_()
        elif kind == "spoils labels":
            batch.y.copy_(batch.y.roll(1))
        elif kind == "spoils logits" and batch.clean_logits is not None:
            batch.clean_logits.scatter_(1, batch.y[:, None], 9.0)
        elif kind == "grows its budget":
            self.budget = Budget("linf", 99.0)
            columns["adversarial"] = 1 - batch.x
        elif kind == "claims clean":
            return {"sample_id": batch.ids, "clean_correct": torch.ones(n, dtype=torch.bool)}
        elif kind == "worse when stronger" and self.eps > 0.15:
            columns["adversarial"] = batch.x.clone()
        elif kind == "noise":
            columns |= {"noise": batch.draws.normal("noise", 0, (4,)), "who": [f"s{i}" for i in batch.ids.tolist()]}
            columns["logit"] = batch.clean_logits
        return columns


def build_attack(options: ToyAttackOptions, context: ThreatContext) -> ToyAttack:
    return ToyAttack(options)


class ToyCountOptions(Options):
    above: int = option(0, help="what counts", ge=0)


class ToyCount:
    """How many rows of each cell have a `shade` above a bound."""

    def __init__(self, options: ToyCountOptions) -> None:
        self.above = options.above

    def summarise(self, cells: Sequence[CellRows], level: float) -> list[Summary]:
        counts = [(cell, float((cell.rows["shade"] > self.above).sum())) for cell in cells]
        return [Summary(cell.model, (cell.id,), Estimate(n, n, n, len(cell.rows["shade"]))) for cell, n in counts]


@hookimpl
def register_metrics(register: Callable[[MetricInfo], None]) -> None:
    register(
        MetricInfo(
            name="toy_count",
            summary="rows above a bound",
            metric=ToyCount,
            columns=("shade",),
            direction="none",
            scope="group",
            options=ToyCountOptions,
        )
    )


@hookimpl
def register_datasets(register: Callable[[DatasetInfo], None]) -> None:
    register(DatasetInfo(name="toy", summary="tiny images", factory=Toy, options=ToyData))


@hookimpl
def register_models(register: Callable[[ModelInfo], None]) -> None:
    classifier = frozenset({"Classifier"})
    register(
        ModelInfo(
            name="toy-model", summary="row sums", factory=build_model, options=ToyModelOptions, capabilities=classifier
        )
    )
    register(
        ModelInfo(
            name="toy-random",
            summary="noisy",
            factory=lambda options, context: RandomRowSums(),
            capabilities=classifier,
        )
    )
    register(
        ModelInfo(
            name="toy-density",
            summary="a density",
            factory=lambda options, context: ToyDensity(),
            capabilities=frozenset({"Density"}),
        )
    )


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="toy-attack",
            summary="signed gradient steps",
            factory=build_attack,
            options=ToyAttackOptions,
            requires=frozenset({"Classifier"}),
            budget_option="eps",
        )
    )
