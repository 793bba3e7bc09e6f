"""The attack of Mackowiak et al. on a density of which everything is known: three kappas by three detection weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from harness_attacks.cw import CW, _gradient
from harness_attacks.cw_options import CWOptions
from harness_attacks.smallest import Kept
from scipy.stats import multivariate_normal
from torch import Tensor

from harness.judge import Judge
from harness.loading import BuiltModel
from harness.metrics.attacked_detection import (
    DETECTION_AUROC_OF_ATTACKED,
    DETECTION_AUROC_OF_ATTACKED_TWO_TAILED,
    EVASION_RATE,
)
from harness.models import ModelView, Reference
from harness.randomness import draws_for
from harness.threats import Batch
from harness.typicality import Typicality

SHAPE, CLASSES, SD = (1, 5, 5), 4, 0.06
DETECTION = (0.0, 0.1, 0.5)  # weights in nats that this density calls for, as 0, 66 and 1000 are those of ImageNet


class Gaussians:
    """p(x | y) = N(mean_y, SD^2 I), exact; detects by -log p(x). A shift changes nothing but the float32 it is in."""

    num_classes = CLASSES
    density_tag = "exact"

    def __init__(self, shift: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.means = 0.5 + 0.12 * torch.randn(CLASSES, 25, generator=generator).clamp(-2, 2)
        self.shift = shift

    def class_log_prob(self, x: Tensor) -> Tensor:
        squared = (x.flatten(1)[:, None].double() - self.means.double()).square().sum(dim=2)
        return -squared / (2 * SD**2) - 25 * math.log(SD * math.sqrt(2 * math.pi)) - self.shift

    def ood_score(self, x: Tensor) -> Tensor:
        return -self.class_log_prob(x).logsumexp(dim=1)

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(CLASSES, (n,), generator=generator)
        noise = SD * torch.randn(n, 25, generator=generator)
        return (self.means[y] + noise).clamp(0, 1).reshape(n, *SHAPE), y


class Apart(Gaussians):
    """The same answers by two methods, which must be asked one after the other."""

    def logits(self, x: Tensor) -> Tensor:
        return self.class_log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.class_log_prob(x).logsumexp(dim=1) - math.log(CLASSES)


def reference(model: Gaussians) -> Reference:
    score = model.ood_score(model.draw(500, 9)[0])
    return Reference({"ood_score": score.numpy(), "log_prob": (-score - math.log(CLASSES)).numpy()})


def judged(model: Gaussians, x: Tensor, y: Tensor, **options: Any) -> dict[str, Tensor]:
    ids, held_out = torch.arange(len(x)), reference(model)
    threat = CW(CWOptions(**options))
    capabilities = frozenset({"ClassDensity", "Detector"})
    judge = Judge(BuiltModel(model, capabilities), x, y, ids, 0, held_out)
    clean, columns = judge.clean()
    view = ModelView(model, capabilities, ids, 0, "attack", held_out if threat.options.uses_held_out else None)
    batch = Batch(x, y, ids, draws_for(ids, 0, "threat", "cw"), clean.logits, clean.prediction)
    returned = threat.run(view, batch)
    return {
        **returned,
        **columns,
        "sample_id": ids,
        "label": y,
        **judge.attacked(returned["adversarial"], threat.budget, clean),
    }


@pytest.fixture(scope="module")
def grid() -> dict[tuple[float, float], dict[str, Tensor]]:
    """The paper's nine attacks, in nats, of 40 images; d is of this density's scale."""
    model = Gaussians()
    x, y = model.draw(40, 2)
    return {
        (kappa, d): judged(
            model, x, y, paper="ib-inn", kappa=kappa, detection=d, units="nats", steps=150, learning_rate=0.02
        )
        for kappa in (0.01, 1.0, math.inf)
        for d in DETECTION
    }


def off_median(rows: dict[str, Tensor]) -> float:
    median = float(np.median(reference(Gaussians())["log_prob"]))
    return float((rows["adversarial_log_prob"] - median).abs()[rows["found"]].median())


def test_the_density_is_exact() -> None:
    model = Gaussians()
    x, _ = model.draw(3, 0)
    expected = [multivariate_normal(m, SD**2 * np.eye(25)).logpdf(x.flatten(1).numpy()) for m in model.means.numpy()]
    np.testing.assert_allclose(model.class_log_prob(x).T, expected, rtol=1e-5)


def test_every_attack_of_the_grid_succeeds(grid: Any) -> None:
    for rows in grid.values():
        assert rows["found"].double().mean() >= 0.95
        assert (rows["adversarial_prediction"] == rows["target"])[rows["goal_reached"]].all()


@pytest.mark.parametrize("kappa", [0.01, 1.0, math.inf])
def test_detection_pulls_the_log_likelihood_to_the_median(grid: Any, kappa: float) -> None:
    far, near, nearer = (off_median(grid[kappa, d]) for d in DETECTION)
    assert near < far
    assert nearer < max(0.5 * far, 1.0)
    plain, fooling = grid[kappa, 0.0], grid[kappa, 0.5]
    assert fooling["adversarial_log_prob"].median() > plain["adversarial_log_prob"].median()


@pytest.mark.parametrize("d", [0.0, 0.5])
def test_kappa_makes_the_attack_larger_and_surer(grid: Any, d: float) -> None:
    size = [float(grid[kappa, d]["l2_per_pixel"].mean()) for kappa in (0.01, 1.0, math.inf)]
    assert size[0] < size[1] < size[2]
    doubt = [float((1 - grid[kappa, d]["confidence"]).mean()) for kappa in (0.01, 1.0, math.inf)]
    assert doubt[0] > doubt[1] > doubt[2]


def numpy_rows(rows: dict[str, Tensor]) -> dict[str, Any]:
    return {name: column.numpy() for name, column in rows.items()}


def test_detection_becomes_worse_than_chance_and_evasion_rises(grid: Any) -> None:
    plain, fooling = numpy_rows(grid[0.01, 0.0]), numpy_rows(grid[0.01, 0.5])
    two = DETECTION_AUROC_OF_ATTACKED_TWO_TAILED.estimate(plain, 0.95)[""]
    over = DETECTION_AUROC_OF_ATTACKED_TWO_TAILED.estimate(fooling, 0.95)[""]
    assert two.value is not None
    assert over.high is not None
    assert two.value > 0.8
    assert over.high < 0.5  # closer to the median than clean images are
    assert DETECTION_AUROC_OF_ATTACKED.estimate(plain, 0.95)[""].value > 0.8  # type: ignore[operator]
    caught, evading = (EVASION_RATE.estimate(rows, 0.95)["1%"].value for rows in (plain, fooling))
    assert caught is not None
    assert evading is not None
    assert caught < evading > 0.9


def test_a_weight_of_zero_is_plain_cw_exactly() -> None:
    model = Gaussians()
    x, y = model.draw(20, 3)
    plain = judged(model, x, y, steps=30, search_steps=3)
    zero = judged(model, x, y, steps=30, search_steps=3, detection=0.0, median_log_prob=-17.0)
    assert torch.equal(plain["adversarial"], zero["adversarial"])
    fooling = judged(model, x, y, steps=30, search_steps=3, detection=5.0, median_log_prob=-17.0)
    assert not torch.equal(plain["adversarial"], fooling["adversarial"])


@pytest.mark.parametrize("normalise", [True, False])
def test_log_likelihoods_shifted_by_thousands_give_identical_norms(normalise: bool) -> None:
    x, y = Gaussians().draw(20, 4)
    options = {"steps": 40, "search_steps": 3, "normalise": normalise, "c": 1.0 if normalise else 0.1}
    plain, shifted = (judged(Gaussians(shift), x, y, **options)["minimal_norm"] for shift in (0.0, 3000.0))
    torch.testing.assert_close(shifted, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capability", ["ClassDensity", "both apart"])
def test_the_gradient_is_that_of_the_whole_objective(capability: str) -> None:
    model = Gaussians() if capability == "ClassDensity" else Apart()
    x, y = model.draw(12, 5)
    threat = CW(CWOptions(paper="ib-inn", detection=2.0, median_log_prob=30.0, units="nats", target="any"))
    ids = torch.arange(12)
    own = {"ClassDensity"} if capability == "ClassDensity" else {"Classifier", "Density"}
    view = ModelView(model, own, ids, 0, "attack")
    batch = Batch(x, y, ids, draws_for(ids, 0, "threat", "cw"), model.class_log_prob(x))
    runs = threat._begin(view, batch, torch.full_like(y, -1), ids)
    asked = threat._asked(view, x, runs, 0)
    term, slope = threat._detection(asked, Typicality(30.0), 25)
    image = x.clone().requires_grad_()
    scores = model.class_log_prob(image)
    expected = 2.0 * (30.0 - scores.logsumexp(dim=1) + math.log(CLASSES)).square()
    torch.testing.assert_close(term, expected.detach(), rtol=1e-6, atol=1e-9)
    others = scores.scatter(1, y[:, None], -math.inf).amax(dim=1)
    whole = 3.0 * (scores.gather(1, y[:, None])[:, 0] - others) + expected
    (gradient,) = torch.autograd.grad(whole.sum(), image)
    found = _gradient(view, asked, Kept.before(x), runs, torch.full((12,), 3.0).double(), slope)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)
    assert view.forwards.tolist() == [1 if capability == "ClassDensity" else 2] * 12
    assert torch.equal(view.backwards, view.forwards)


def test_units_are_nats_per_dimension_unless_said() -> None:
    model = Gaussians()
    x, y = model.draw(10, 6)
    shared = {"paper": "ib-inn", "steps": 40, "target": "any"}
    per_dim = judged(model, x, y, kappa=0.04, c=10.0, detection=6.25, **shared)
    nats = judged(model, x, y, kappa=1.0, c=0.4, detection=0.01, units="nats", **shared)
    torch.testing.assert_close(per_dim["adversarial"], nats["adversarial"], atol=1e-4, rtol=0)


def test_the_preset_is_the_papers() -> None:
    options = CWOptions(paper="ib-inn")
    assert (options.c, options.learning_rate, options.patience, options.search_steps) == (10.0, 0.01, 20, 0)
    assert (options.distance, options.target, options.units, options.normalise) == (
        "l2",
        "random",
        "nats-per-dim",
        False,
    )
    assert CW(options).box.stretch == 1.0
    assert CWOptions(paper="ib-inn", kappa=math.inf, detection=1000).kappa == math.inf
    assert options.uses_held_out
    assert not CWOptions(detection=1.0, median_log_prob=0.0).uses_held_out
    assert not CWOptions().uses_held_out


def test_two_tailed_scores_grow_from_the_median_and_never_tie() -> None:
    held_out = np.random.default_rng(0).normal(size=401) * 10 - 300
    typicality = Typicality.of(held_out)
    assert typicality.median == np.median(held_out)
    points = torch.linspace(typicality.median, -200, 300, dtype=torch.float64)
    scores = typicality.two_tailed(points)
    assert (scores.diff() > 0).all()
    assert scores[0] == pytest.approx(-0.5, abs=1e-3)
    below = typicality.two_tailed(2 * typicality.median - points)
    assert (below.diff() > 0).all()
    share = (typicality.two_tailed(torch.from_numpy(held_out)) > -0.05).double().mean()
    assert share == pytest.approx(0.1, abs=0.01)  # a two-tailed test at 10 %
    assert Typicality(5.0).two_tailed(torch.tensor([2.0, 9.0])).tolist() == [3.0, 4.0]
    assert typicality.one_tailed(torch.tensor([-3.0])).tolist() == [3.0]
