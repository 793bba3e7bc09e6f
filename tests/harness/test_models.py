"""The model as a threat sees it: capabilities derived, draws handed on, every evaluation booked to its sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ModelError, ThreatError
from harness.models import ModelView, Reference, prepare, refuse_nan, split_top
from harness.randomness import Draws, draws_for

IDS = torch.tensor([10, 11, 12, 13])


def images(n: int = 4) -> Tensor:
    return draws_for(torch.arange(n), 0, "images").uniform("x", 0, (1, 2, 3))


class Linear:
    """logits = sum of each column of pixels."""

    num_classes = 3

    def logits(self, x: Tensor) -> Tensor:
        return x.sum(dim=(1, 2))


class Mixture:
    num_classes = 3
    density_tag = "exact"

    def class_log_prob(self, x: Tensor) -> Tensor:
        return -1000.0 * x.double().sum(dim=(1, 2))


class Noisy(Linear):
    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        return super().logits(x) + draws.normal("noise", 0, (3,))


def view(model: Any, *capabilities: str, purpose: Any = "attack", seed: int = 0) -> ModelView:
    return ModelView(model, capabilities or ("Classifier",), IDS, seed, purpose)


def test_a_classifier_is_a_detector_by_maximum_softmax() -> None:
    v = view(Linear())
    p = v.logits(images()).double().softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(v.ood_score(images()), ((1 - p) / p).log())
    assert v.ood_score_name == "max-softmax"
    assert v.capabilities == {"Classifier", "Detector"}


def test_the_maximum_softmax_score_does_not_saturate() -> None:
    class Sure(Linear):
        def logits(self, x: Tensor) -> Tensor:
            return 1000 * super().logits(x)

    score = view(Sure()).ood_score(torch.tensor([0.0, 0.5, 0.8, 1.0])[:, None, None, None] * images().sort().values)
    assert score.isfinite().all()
    assert (score[1:] < -100).all()
    assert score.unique().numel() == 4


def test_a_detector_has_its_own_score() -> None:
    class Own(Linear):
        def ood_score(self, x: Tensor) -> Tensor:
            return x.mean(dim=(1, 2, 3))

    v = view(Own(), "Classifier", "Detector")
    assert torch.equal(v.ood_score(images()), images().mean(dim=(1, 2, 3)))
    assert v.ood_score_name == "own"


def test_a_class_density_gives_classifier_and_marginal() -> None:
    v = view(Mixture(), "ClassDensity")
    scores = Mixture().class_log_prob(images())
    torch.testing.assert_close(v.logits(images()), scores.log_softmax(dim=1))
    torch.testing.assert_close(v.log_prob(images()), scores.logsumexp(dim=1) - math.log(3))
    assert v.density_tag == "exact"
    assert v.num_classes == 3


def test_a_class_density_with_a_prior() -> None:
    class Prior(Mixture):
        log_prior = torch.tensor([0.5, 0.25, 0.25]).log()

    v = view(Prior(), "ClassDensity")
    joint = Mixture().class_log_prob(images()) + Prior.log_prior
    torch.testing.assert_close(v.logits(images()), joint.log_softmax(dim=1))
    torch.testing.assert_close(v.log_prob(images()), joint.logsumexp(dim=1))


def test_a_uniform_prior_is_the_same_written_out() -> None:
    class Written(Mixture):
        log_prior = torch.full((3,), -math.log(3.0), dtype=torch.float64)

    for method in ("logits", "log_prob"):
        left, right = (getattr(view(m, "ClassDensity"), method)(images()) for m in (Mixture(), Written()))
        torch.testing.assert_close(left, right)


def test_own_methods_are_preferred_to_derived_ones() -> None:
    class Both(Mixture):
        def logits(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3)

        def log_prob(self, x: Tensor) -> Tensor:
            return torch.ones(len(x))

    v = view(Both(), "ClassDensity", "Classifier", "Density")
    assert (v.logits(images()) == 0).all()
    assert (v.log_prob(images()) == 1).all()


def test_evaluations_are_booked_to_their_samples() -> None:
    v = view(Linear())
    draws = draws_for(IDS, 0, "threat")
    x = images().requires_grad_()
    v.input_gradient(v.logits(x).sum(dim=1), x)
    half = draws[torch.tensor([True, False, False, True])]
    with torch.no_grad():
        v.logits(images(2), half)
    x = images(2)[1:].requires_grad_()
    v.input_gradient(v.logits(x, half[[1]]).sum(dim=1), x)
    with torch.no_grad():
        v.logits(images(2), draws[[2, 2]])
    assert v.forwards.tolist() == [2, 1, 3, 3]
    assert v.backwards.tolist() == [1, 1, 1, 2]


def test_a_random_model_draws_by_sample_seed_purpose_and_draw_number() -> None:
    x = images()
    first = view(Noisy()).logits(x)
    assert torch.equal(first, view(Noisy()).logits(x))
    for other in (view(Noisy(), purpose="eval"), view(Noisy(), seed=1)):
        assert not torch.isclose(first, other.logits(x)).any()
    draws = draws_for(IDS, 0, "threat", "pgd")
    assert torch.equal(first, view(Noisy()).logits(x, draws))
    assert torch.equal(first, view(Noisy()).logits(x, draws_for(IDS, 99, "threat", "other").stream("restart", 3)))
    assert not torch.isclose(first, view(Noisy()).logits(x, draws.numbered(1))).any()
    index = torch.tensor([2, 0])
    assert torch.equal(first[index], view(Noisy()).logits(x[index], draws[index]))


def test_images_without_their_draws_are_refused() -> None:
    with pytest.raises(ThreatError, match="given 2 of the batch's 4 images without their draws: pass draws"):
        view(Linear()).logits(images(2))
    with pytest.raises(ThreatError, match="given 2 images with the draws of 4 samples"):
        view(Linear()).logits(images(2), draws_for(IDS, 0, "threat"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.sum(dim=(1, 2))[:, :2], r"logits\(\) returned shape \(4, 2\) for 4 images, not \(4, 3\)"),
        (lambda x: x.sum(dim=(1, 2))[:1], r"logits\(\) returned shape \(1, 3\) for 4 images, not \(4, 3\)"),
        (lambda x: [1.0, 2.0, 3.0], r"logits\(\) returned a list, not a tensor of shape \(4, 3\)"),
        (lambda x: None, r"logits\(\) returned a NoneType, not a tensor of shape \(4, 3\)"),
    ],
)
def test_wrong_answers_are_refused(answer: Any, message: str) -> None:
    model = Linear()
    model.logits = answer  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=message):
        view(model).logits(images())


def test_a_missing_gradient_is_explained() -> None:
    v, x = view(Linear()), images().requires_grad_()
    with pytest.raises(ThreatError, match="the model gives no gradient: its output is detached"):
        v.input_gradient(v.logits(x.detach()).sum(dim=1), x)
    other = images().requires_grad_()
    with pytest.raises(ThreatError, match="the model's output does not depend on its input"):
        v.input_gradient(v.logits(other).sum(dim=1), x)


def test_input_gradient_is_that_of_the_sum() -> None:
    v, x = view(Linear()), images().requires_grad_()
    gradient = v.input_gradient((v.logits(x) * torch.tensor([1.0, 2.0, 3.0])).sum(dim=1), x)
    assert torch.equal(gradient, torch.tensor([1.0, 2.0, 3.0]).expand(4, 1, 2, 3))


def test_prepare_freezes_and_evaluates() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    net = prepare(Net(), "cpu")
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_prepare_moves_what_can_be_moved() -> None:
    class Movable:
        place = None

        def to(self, device: torch.device) -> Movable:
            self.place = device
            return self

    assert prepare(Movable(), "cpu").place == torch.device("cpu")
    plain = Linear()
    assert prepare(plain, "cpu") is plain


def test_split_top() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    top, others = split_top(logits)
    assert top.tolist() == [3.0, 5.0]
    assert others.logsumexp(dim=1).tolist() == pytest.approx(
        [math.log(math.exp(1) + math.exp(2)), math.log(math.exp(5) + 1)]
    )


def test_features_are_asked_of_a_model_that_has_them() -> None:
    class Featured(Linear):
        def features(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    v = view(Featured(), "Classifier", "Features")
    assert torch.equal(v.features(images()), images().flatten(1))
    assert v.forwards.tolist() == [1] * 4
    with pytest.raises(ThreatError, match="exposes no features; name the layer"):
        view(Featured()).features(images())

    class Flat(Featured):
        def features(self, x: Tensor) -> Tensor:
            return x.sum(dim=(1, 2, 3))

    with pytest.raises(ModelError, match=r"features\(\) returned shape \(4,\) for 4 images, not \(4, any\)"):
        view(Flat(), "Features").features(images())


def test_what_is_made_of_held_out_scores_is_made_once() -> None:
    reference = Reference({"log_prob": [1.0, 2.0]})
    made: list[str] = []

    def total(held_out: Reference) -> float:
        made.append("total")
        return float(sum(held_out["log_prob"]))

    assert [reference.once("total", total) for _ in range(3)] == [3.0] * 3
    assert made == ["total"]
    assert reference.once("other", lambda held_out: len(held_out["log_prob"])) == 2
    assert Reference({"log_prob": [5.0]}).once("total", total) == 5.0


def test_nan_in_any_entry_is_refused() -> None:
    scores = torch.zeros(4, 2, 3)
    refuse_nan(scores, IDS, "features", "images")
    scores[2, 1, 0] = float("nan")
    with pytest.raises(ModelError, match="features is NaN for 1 of 4 images, first sample 12"):
        refuse_nan(scores, IDS, "features", "images")
