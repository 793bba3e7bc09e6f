"""The conformance kit on models: good ones pass everything, and each check catches the fault it is for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import Draws, ModelInfo, Options, option
from harness.host import load_host
from harness.testing import ToyClassifier, ToyDensity, check_model, model_checks, parametrize_with_checks
from harness.testing.checks import Check
from harness.testing.checks_of_models import CHECKS
from harness.testing.toys import RandomToyClassifier
from harness.training import FitSession

SHAPE, K = (1, 8, 8), 10


def info(build: Callable[..., Any], *capabilities: str, **facts: Any) -> ModelInfo:
    return ModelInfo(
        name="toy",
        summary="a toy",
        factory=build if facts.pop("with_options", False) else lambda options, context: build(),
        capabilities=frozenset(capabilities or ("Classifier",)),
        **facts,
    )


def failures(model: ModelInfo, **settings: Any) -> dict[str, str]:
    """Name -> message of the checks that fail."""
    found = {}
    for check in model_checks(model, **settings):
        try:
            check()
        except AssertionError as error:
            found[check.name] = str(error)
    return found


class Base(ToyClassifier):
    """A good model to spoil, evaluated batchwise and quickly."""

    def __init__(self) -> None:
        super().__init__(SHAPE, K)

    def logits(self, x: Tensor) -> Tensor:
        features = torch.tanh((x.flatten(1) - 0.5) @ self.weight.T)
        return -(features[:, None] - self.centres).square().sum(dim=2)


class Density(ToyDensity):
    def __init__(self) -> None:
        super().__init__(SHAPE, K)


@pytest.mark.parametrize(
    "model",
    [
        info(Base),
        info(lambda: ToyClassifier(SHAPE, K)),
        info(lambda: RandomToyClassifier(SHAPE, K)),
        info(Density, "ClassDensity", "Detector", "Sampler", "Explainer"),
    ],
    ids=["batchwise", "toy", "random", "density"],
)
def test_good_models_pass(model: ModelInfo) -> None:
    assert failures(model) == {}
    check_model(model)


class Missing(Base):
    ood_score = None


class ExtraMethod(Base):
    def log_prob(self, x: Tensor) -> Tensor:
        return self.logits(x)[:, 0]


class WrongShape(Base):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x)[:, :, None]


class WholeNumbers(Base):
    def logits(self, x: Tensor) -> Tensor:
        return (super().logits(x) * 10).long()


class FewClasses(Base):
    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 4

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x)[:, :4]


class NotANumber(Base):
    """NaN for an all-black image only, as after dividing by its norm."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x / x.flatten(1).norm(dim=1)[:, None, None, None])


class TrainMode(Base):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)

    def logits(self, x: Tensor) -> Tensor:
        self.train()
        return super().logits(x)


class Counting(Base):
    """Keeps a statistic of what it has seen."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().logits(x)


class GlobalNoise(Base):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x + 0.1 * torch.randn_like(x))


class NumpyNoise(Base):
    """Touches a generator without any effect on the answer."""

    def logits(self, x: Tensor) -> Tensor:
        np.random.rand()  # noqa: NPY002
        random.random()
        return super().logits(x)


class FalselyRandom(Base):
    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        return super().logits(x)


class BatchStatistics(Base):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x - x.mean(dim=0, keepdim=True))


class SharedNoise(Base):
    """Draws for the first sample and gives the same noise to all: an answer depends on who is first."""

    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        return super().logits(x + 0.1 * draws[:1].normal("noise", 0, x.shape[1:]))


class InPlace(Base):
    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.sub_(0.5)
        return super().logits(x)


class FreshWeights(nn.Module):
    num_classes = K

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, K)

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1))
        return out


class Detached(Base):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x.detach()).detach()


class StraightThrough(Base):
    """Rounds its input and pretends, backwards, that it did not."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x + ((x * 4).round() / 4 - x).detach())


class HalfGradient(Base):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits((x + x.detach()) / 2)


class SinglePrecisionHalfGradient(Base):
    def logits(self, x: Tensor) -> Tensor:
        x = x.float()
        features = torch.tanh(((x + x.detach()) / 2 - 0.5).flatten(1) @ self.weight.float().T)
        return -(features[:, None] - self.centres.float()).square().sum(dim=2)


class InfiniteGradient(Base):
    """Finite answers whose slope is infinite at black pixels."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x.sqrt())


class OtherScores(Density):
    def logits(self, x: Tensor) -> Tensor:
        return 2 * self.class_log_prob(x)


class OtherMarginal(Density):
    def log_prob(self, x: Tensor) -> Tensor:
        return self.class_log_prob(x).logsumexp(dim=1)


class ImproperPrior(Density):
    def __init__(self) -> None:
        super().__init__()
        self.log_prior = torch.zeros(K)


class Coarse(Density):
    def class_log_prob(self, x: Tensor) -> Tensor:
        return (super().class_log_prob(x) - 4e5).float()


class LoudSampler(Density):
    def sample(self, y: Tensor, *, draws: Draws) -> Tensor:
        return 2 * super().sample(y, draws=draws)


class GlobalSampler(Density):
    def sample(self, y: Tensor, *, draws: Draws) -> Tensor:
        return torch.rand(len(y), *SHAPE)


class FlatHeatmap(Density):
    def heatmap(self, x: Tensor, y: Tensor) -> Tensor:
        return super().heatmap(x, y).mean(dim=(1, 2))


DENSITY = ("ClassDensity", "Detector", "Sampler", "Explainer")
FAULTS: list[tuple[Callable[[], Any], tuple[str, ...], str, str]] = [
    (Missing, ("Classifier", "Detector"), "capabilities", "declares Detector but lacks"),
    (ExtraMethod, ("Classifier",), "capabilities", r"has a method log_prob\(\) but does not declare Density"),
    (WrongShape, ("Classifier",), "outputs", r"returned shape \(5, 10, 1\) for 5 images, not \(5, 10\)"),
    (WholeNumbers, ("Classifier",), "outputs", r"logits\(\) returns torch.int64"),
    (FewClasses, ("Classifier",), "outputs", "num_classes is 4, the data have 10 classes"),
    (LoudSampler, DENSITY, "outputs", r"sample\(\) returned values in \[.*; images lie in \[0, 1\]"),
    (FlatHeatmap, DENSITY, "outputs", r"heatmap\(\) returned \(5,\); return one map an image"),
    (NotANumber, ("Classifier",), "finite", "NaN or infinite for 1 of 5 images .an all-black or all-white image"),
    (TrainMode, ("Classifier",), "eval_mode", "is in training mode after it was asked"),
    (Counting, ("Classifier",), "state_untouched", "changes its 'Counting.seen'"),
    (GlobalNoise, ("Classifier",), "determinism", "answers differently when asked twice: remove the randomness"),
    (GlobalSampler, DENSITY, "determinism", r"sample\(\) answers differently when asked twice"),
    (FalselyRandom, ("Classifier",), "stochastic", "answers alike under every stream"),
    (BatchStatistics, ("Classifier",), "batch_invariance", r"logits\(\) of an image alone differs by"),
    (SharedNoise, ("Classifier",), "batch_invariance", "noise not taken from the sample's own"),
    (NumpyNoise, ("Classifier",), "global_rng", "uses the global generator of NumPy and random"),
    (GlobalNoise, ("Classifier",), "global_rng", "uses the global generator of torch"),
    (InPlace, ("Classifier",), "input_untouched", "modifies the images it is given in place"),
    (FreshWeights, ("Classifier",), "reproducible_build", "building the model twice gives two models"),
    (Detached, ("Classifier",), "gradients", "gives no gradient"),
    (StraightThrough, ("Classifier",), "gradients", r"differs from finite differences by .* of the slope"),
    (
        HalfGradient,
        ("Classifier",),
        "gradients",
        r"by 0.[45].* of the slope .tolerance 0.001 in float64",
    ),
    (SinglePrecisionHalfGradient, ("Classifier",), "gradients", r"tolerance 0.05 in float32"),
    (InfiniteGradient, ("Classifier",), "gradients", r"NaN or infinite for 1 images .an all-black or all-white"),
    (OtherScores, ("Classifier", *DENSITY), "class_density", r"differences of logits\(\) and of log_prior"),
    (OtherMarginal, ("Density", *DENSITY), "class_density", r"log_prob\(\) is not the class densities' sum"),
    (ImproperPrior, DENSITY, "class_density", r"exp\(log_prior\) sums to 10, not to 1"),
    (Coarse, DENSITY, "likelihood_precision", r"nats in torch.float32, rounded to .*: return float64"),
]


@pytest.mark.parametrize(
    ("build", "capabilities", "check", "message"), FAULTS, ids=[f"{f[0].__name__}-{f[2]}" for f in FAULTS]
)
def test_each_check_catches_its_fault(
    build: Callable[[], Any], capabilities: tuple[str, ...], check: str, message: str
) -> None:
    (found,) = [c for c in model_checks(info(build, *capabilities)) if c.name == check]
    with pytest.raises(AssertionError, match=f"^toy-{check}: .*{message}"):
        found()


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Counting, {"state_untouched"}),
        (BatchStatistics, {"batch_invariance", "gradients"}),
        (NumpyNoise, {"global_rng"}),
        (FreshWeights, {"reproducible_build"}),
        (StraightThrough, {"gradients"}),
        (HalfGradient, {"gradients"}),
        (FalselyRandom, {"stochastic"}),
        (FewClasses, {"outputs"}),
        (TrainMode, {"eval_mode"}),
    ],
)
def test_a_fault_is_reported_by_its_own_check_only(build: Callable[[], Any], expected: set[str]) -> None:
    assert set(failures(info(build))) == expected


def test_every_check_is_tested_for_its_fault() -> None:
    names = {function.__name__.removeprefix("check_") for function in CHECKS} | {"gradients"}
    assert names == {fault[2] for fault in FAULTS}


def test_single_precision_models_pass() -> None:
    class SinglePrecision(Base):
        def logits(self, x: Tensor) -> Tensor:
            features = torch.tanh((x.float().flatten(1) - 0.5) @ self.weight.float().T)
            return -(features[:, None] - self.centres.float()).square().sum(dim=2)

    assert failures(info(SinglePrecision)) == {}


def test_relu_and_pooling_networks_pass() -> None:
    def build() -> nn.Module:
        class Net(nn.Module):
            num_classes = K

            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(
                    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
                )
                self.head = nn.Linear(128, K)

            def logits(self, x: Tensor) -> Tensor:
                out: Tensor = self.head(self.layers(x))
                return out

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Net()

    assert failures(info(build)) == {}


def test_a_model_that_is_no_module_passes_unless_it_holds_one_in_training_mode() -> None:
    class Plain:
        num_classes = K

        def __init__(self) -> None:
            self.inner = Base()

        def logits(self, x: Tensor) -> Tensor:
            return self.inner.logits(x)

    assert "'inner' is in training mode as built" in failures(info(Plain))["eval_mode"]

    def evaluated() -> Plain:
        plain = Plain()
        plain.inner.eval()
        return plain

    assert failures(info(evaluated)) == {}


class Recipe(Options):
    steps: int = option(3, help="steps")
    forget: bool = option(False, help="leave a buffer out of the checkpoint")
    write: bool = option(True, help="write a checkpoint at all")
    resumable: bool = option(False, help="leave the state to resume from behind")
    draw: bool = option(False, help="draw from the global generator")


class ToyOptions(Options):
    checkpoint: str | None = option(None, help="weights")


class Trained(Base):
    scale: Tensor

    def __init__(self, checkpoint: str | None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        if checkpoint is not None:
            from pathlib import Path

            from harness import checkpoints

            self.load_state_dict(checkpoints.load(Path(checkpoint))[0], strict=False)

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * super().logits(x)

    def fit(self, data: Any, recipe: Recipe, session: FitSession) -> None:
        with torch.no_grad():
            self.weight.mul_(1.0 + recipe.steps / 10)
            self.scale.mul_(2.0)
        tensors = dict(self.state_dict())
        if recipe.forget:
            del tensors["scale"]
        if recipe.draw:
            torch.rand(())
        if recipe.resumable:
            session.finish(tensors)
            session.save_state(tensors, {"step": 3})
        elif recipe.write:
            session.finish(tensors)


TRAINABLE = info(
    lambda options, context: Trained(options.checkpoint),
    "Classifier",
    "Trainable",
    with_options=True,
    options=ToyOptions,
    fit_options=Recipe,
)


def test_a_trainable_model_passes_and_training_is_checked_only_with_a_recipe() -> None:
    assert failures(TRAINABLE, quick_recipe={"steps": 1}) == {}
    names = [c.name for c in model_checks(TRAINABLE, quick_recipe={})]
    assert names[-1] == "checkpoint_round_trip"
    assert "checkpoint_round_trip" not in [c.name for c in model_checks(TRAINABLE)]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"forget": True}, "save every parameter and buffer"),
        ({"write": False}, "fit() wrote no checkpoint"),
        ({"resumable": True}, "fit() left checkpoint.safetensors.resume beside the checkpoint"),
        ({"draw": True}, "leaves the global generator of torch changed"),
        ({"stepz": 1}, "stepz"),
    ],
)
def test_the_round_trip_catches_its_faults(recipe: dict[str, Any], message: str) -> None:
    found = failures(TRAINABLE, quick_recipe=recipe)
    assert set(found) == {"checkpoint_round_trip"}
    assert message in found["checkpoint_round_trip"]


def test_check_model_lists_every_failure() -> None:
    with pytest.raises(AssertionError) as caught:
        check_model(info(GlobalNoise))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("conformance checks failed:")
    assert {"toy-determinism", "toy-global_rng"} <= {line.partition(":")[0] for line in lines[1:]}


def test_expected_failures() -> None:
    check_model(info(HalfGradient), expected_failures={"gradients": "the gradient is halved on purpose"})
    check_model(info(HalfGradient), expected_failures={"toy-gradients": "the gradient is halved on purpose"})
    with pytest.raises(AssertionError, match="toy-gradients: passes, but was expected to fail"):
        check_model(info(Base), expected_failures={"gradients": "no reason"})
    with pytest.raises(ValueError, match="'gradient' is no check here; did you mean 'gradients'"):
        check_model(info(Base), expected_failures={"gradient": "a typing error"})


def test_wrong_options_are_said_in_one_sentence() -> None:
    found = failures(TRAINABLE, options={"chekpoint": "x"})
    assert all("chekpoint" in message for message in found.values())


def test_a_model_that_cannot_be_built_is_said_once() -> None:
    def build() -> None:
        raise OSError("no weights here")

    with pytest.raises(AssertionError) as caught:
        check_model(info(build))
    assert str(caught.value).splitlines() == [
        "12 of 12 conformance checks failed:",
        "toy-capabilities (and 11 more): raised OSError: no weights here",
    ]


def test_a_model_is_found_by_name() -> None:
    host = load_host(entry_point_plugins=False)
    from harness.host import PluginRecord

    host.models.add(info(Base), PluginRecord("test", "here"))
    check_model("toy", host=host)


@parametrize_with_checks(model_checks(info(HalfGradient)), expected_failures={"gradients": "halved on purpose"})
def test_parametrize_with_checks(check: Check) -> None:
    check()


def test_ids_are_readable() -> None:
    mark = parametrize_with_checks(model_checks(info(HalfGradient)), expected_failures={"gradients": "halved"})
    params = mark.args[1]
    assert "toy-batch_invariance" in [p.id for p in params]
    (expected,) = [p for p in params if p.id == "toy-gradients"]
    assert expected.marks[0].name == "xfail"
    assert expected.marks[0].kwargs["reason"] == "halved"
    with pytest.raises(ValueError, match="did you mean 'gradients'"):
        parametrize_with_checks(model_checks(info(Base)), expected_failures={"gradint": "x"})
