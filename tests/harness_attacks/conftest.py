"""What the attack tests share: classifiers, the digits, and a way to attack without the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD, build
from harness_datasets.digits import Digits, DigitsOptions
from harness_torch.model import build as build_torch
from harness_torch.options import TorchOptions
from torch import Tensor, nn

from harness.datasets import DatasetFacts
from harness.host import load_host
from harness.loading import open_dataset
from harness.models import ModelContext, ModelView, prepare
from harness.randomness import draws_for
from harness.suite import dataset_entry
from harness.threats import Batch, Columns, ThreatContext


class Scores:
    """A deterministic classifier from a function of images."""

    def __init__(self, function: Callable[[Tensor], Tensor], num_classes: int) -> None:
        self.logits = function
        self.num_classes = num_classes


class Attack:
    """Runs PGD as the host would, on a batch of its own; options by keyword."""

    seed = 0

    def __call__(self, model: Any, x: Tensor, y: Tensor, ids: Tensor | None = None, **options: Any) -> Columns:
        return self.counted(model, x, y, ids, **options)[0]

    def counted(
        self, model: Any, x: Tensor, y: Tensor, ids: Tensor | None = None, **options: Any
    ) -> tuple[Columns, ModelView]:
        """The columns, and the model's view with its counts of evaluations."""
        ids = torch.arange(len(x)) if ids is None else ids
        judge = ModelView(model, {"Classifier"}, ids, self.seed, "eval")
        with torch.no_grad():
            clean = judge.logits(x)
        view = ModelView(model, {"Classifier"}, ids, self.seed, "attack")
        batch = Batch(x, y, ids, draws_for(ids, self.seed, "threat", "pgd"), clean)
        return self.build(x, int(clean.shape[1]), **options).run(view, batch), view

    def build(self, x: Tensor, classes: int = 10, **options: Any) -> PGD:
        facts = DatasetFacts("test", tuple(x.shape[1:]), 256, tuple(map(str, range(classes))))  # type: ignore[arg-type]
        return build(PGDOptions(**options), ThreatContext(facts, _no_dataset, Path()))


def _no_dataset(table: Mapping[str, Any]) -> Any:
    raise AssertionError(f"pgd opened a data set: {table}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def attack() -> Attack:
    return Attack()


@pytest.fixture(scope="session")
def scores() -> type[Scores]:
    return Scores


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The whole test split: float32 (359, 1, 8, 8) and int64 (359,)."""
    data = Digits(DigitsOptions())
    return data.images(np.arange(len(data.labels()))), torch.from_numpy(data.labels())


def builtin(name: str) -> Any:
    facts = DatasetFacts("digits", (1, 8, 8), 17, tuple("0123456789"))
    return prepare(
        build_torch(TorchOptions(checkpoint=f"builtin:{name}"), ModelContext(name, facts, "cpu", Path())), "cpu"
    )


@pytest.fixture(scope="session", params=["digits-cnn", "digits-cnn-pgd"])
def digits_cnn(request: pytest.FixtureRequest) -> Any:
    """Each of the embedded classifiers of digits."""
    return builtin(request.param)


@pytest.fixture(scope="session")
def plain_cnn() -> Any:
    """The normally trained embedded classifier of digits."""
    return builtin("digits-cnn")


@pytest.fixture(scope="session")
def smooth_net() -> Any:
    """A small fixed network whose answers to one image do not depend on the batch, bit for bit (no matrix kernels)."""

    class Net(nn.Module):
        num_classes = 4

        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(3)
            self.w = nn.Parameter(torch.randn(4, 1, 4, 4, generator=generator))
            self.v = nn.Parameter(torch.randn(4, 1, 4, 4, generator=generator))

        def logits(self, x: Tensor) -> Tensor:
            rows = [((x - 0.5) * self.w[k]).sum(dim=(1, 2, 3)) for k in range(4)]
            waves = [(torch.sin(7 * x) * self.v[k]).sum(dim=(1, 2, 3)) for k in range(4)]
            return torch.stack(rows, dim=1) + torch.stack(waves, dim=1)

    return Net().eval()


@pytest.fixture(scope="session")
def cifar_resnet20() -> tuple[Any, Tensor, Tensor]:
    """A third party's ResNet-20 with 200 lossless CIFAR-10 test images."""
    root = os.environ.get("HARNESS_DATA")
    if not root or not (Path(root) / "models" / "cifar10_resnet20.th").is_file():
        pytest.skip("HARNESS_DATA names no folder with models/cifar10_resnet20.th")
    options = TorchOptions.model_validate(
        {
            "factory": "harness_torch.networks:cifar_resnet20",
            "checkpoint": f"{root}/models/cifar10_resnet20.th",
            "key": "state_dict",
            "prefix": "module.",
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        }
    )
    facts = DatasetFacts("cifar10", (3, 32, 32), 256, tuple("0123456789"))
    model = prepare(build_torch(options, ModelContext("resnet20", facts, "cpu", Path())), "cpu")
    with np.load(Path(root) / "cifar10" / "cifar10_test1000_lossless.npz") as file:
        x, y = file["x"][:200], file["y"][:200]
    return model, torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255).contiguous(), torch.from_numpy(y)


@pytest.fixture(scope="session")
def mnist_cnn() -> tuple[Any, Tensor, Tensor]:
    """The adversarially trained CNN for MNIST with 300 test images."""
    root = os.environ.get("HARNESS_DATA")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("HARNESS_DATA names no folder with mnist/")
    host = load_host()
    data = open_dataset(
        dataset_entry({"name": "mnist", "split": "test", "limit": 300}, host, "mnist"), host, Path(root)
    )
    options = TorchOptions(checkpoint="builtin:mnist-cnn-pgd")
    model = prepare(build_torch(options, ModelContext("mnist-cnn-pgd", data.facts, "cpu", Path())), "cpu")
    x, y = data.load(data.ids)
    return model, x, y
