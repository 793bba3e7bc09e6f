"""Scores: closed forms on models of which everything is known, what each needs, and what a held-out image tells."""

from __future__ import annotations

import io
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from harness_ood.feature_detectors import NEIGHBOUR, Mahalanobis, NearestNeighbours, ViM, ledoit_wolf
from harness_ood.scores import (
    SCORES,
    Asked,
    ScoreName,
    held_out_likelihood,
    lacking,
    needs_reference,
    png_bits,
    score_all,
)
from PIL import Image
from scipy import stats
from sklearn import covariance, neighbors
from torch import Tensor

from harness.errors import ThreatError
from harness.models import ModelView, Reference, max_softmax
from harness.randomness import Draws, draws_for

SHAPE, ENTRIES, SD = (1, 4, 4), 16, 0.2
CLASSIFIER = {"Classifier", "Features"}


class Gauss:
    """A normal density about mid-grey."""

    density_tag = "exact"

    def log_prob(self, x: Tensor) -> Tensor:
        off = (x.double() - 0.5).flatten(1)
        return -off.square().sum(dim=1) / (2 * SD**2) - ENTRIES * math.log(SD * math.sqrt(2 * math.pi))


class Linear:
    """Four classes, linear in eight features of an image."""

    num_classes = 4

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(3)
        self.into = torch.randn(ENTRIES, 8, generator=made, dtype=torch.float64)
        self.weight = torch.randn(8, 4, generator=made, dtype=torch.float64)
        self.bias = torch.randn(4, generator=made, dtype=torch.float64)

    def features(self, x: Tensor) -> Tensor:
        return torch.nn.functional.softplus(x.double().flatten(1) @ self.into)

    def logits(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.weight + self.bias


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def held_out(model: Any, n: int = 60) -> Reference:
    x = images(n, 9)
    columns: dict[str, Any] = {"label": np.arange(n) % 4}
    for name in ("log_prob", "logits", "features"):
        if hasattr(model, name):
            columns[name] = getattr(model, name)(x).numpy()
    for column in columns.values():
        column.flags.writeable = False  # as it is read from a file
    return Reference(columns)


def view(model: Any, capabilities: set[str], n: int, reference: Reference | None = None) -> ModelView:
    return ModelView(model, capabilities, torch.arange(n), 0, "eval", reference)


def scores(model: Any, capabilities: set[str], x: Tensor, *names: str, reference: bool = True) -> dict[str, Tensor]:
    ids = torch.arange(len(x))
    seen = view(model, capabilities, len(x), held_out(model) if reference else None)
    return score_all(seen, x, draws_for(ids, 0, "threat", "ood"), names)


def test_the_catalogue_is_what_options_may_name() -> None:
    assert get_args(ScoreName) == tuple(SCORES)
    for score in SCORES.values():
        assert score.summary
        assert score.needs


def test_scores_of_logits() -> None:
    x = images(7)
    found = scores(Linear(), CLASSIFIER, x, "max-softmax", "energy", "entropy", "max-logit", reference=False)
    logits = Linear().logits(x)
    p = logits.softmax(dim=1)
    torch.testing.assert_close(found["max-softmax"], ((1 - p.amax(dim=1)) / p.amax(dim=1)).log())
    torch.testing.assert_close(found["energy"], -logits.exp().sum(dim=1).log())
    torch.testing.assert_close(found["entropy"], torch.from_numpy(stats.entropy(p.numpy(), axis=1)))
    torch.testing.assert_close(found["max-logit"], -logits.amax(dim=1))
    assert all(score.dtype == torch.float64 for score in found.values())


def test_scores_of_logits_do_not_saturate() -> None:
    logits = torch.tensor([[0.0, 200.0, 100.0], [0.0, 300.0, 100.0], [0.0, 1.0, float("-inf")]], dtype=torch.float64)
    assert max_softmax(logits).tolist() == [-100.0, -200.0, -1.0]
    certain = SCORES["entropy"]
    asked = Asked.__new__(Asked)
    asked.logits = logits
    entropy = certain.of(asked)
    assert (entropy > 0).all()
    assert entropy[1] < entropy[0]


def test_scores_of_a_density() -> None:
    x = images(6)
    found = scores(Gauss(), {"Density"}, x, "log-likelihood", "typicality", "complexity", "gradient-norm", "score-sum")
    log_p = Gauss().log_prob(x)
    reference = held_out(Gauss())["log_prob"]
    torch.testing.assert_close(found["log-likelihood"], -log_p)
    torch.testing.assert_close(found["typicality"], (log_p - reference.mean()).abs())
    torch.testing.assert_close(found["complexity"], -log_p / math.log(2) - png_bits(x))
    slope = -(x.double() - 0.5).flatten(1) / SD**2
    torch.testing.assert_close(found["gradient-norm"], -(log_p.exp() * slope.norm(dim=1)).log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["score-sum"], slope.sum(dim=1), rtol=1e-6, atol=1e-6)


def test_the_gradient_norm_does_not_underflow() -> None:
    class Far(Gauss):
        def log_prob(self, x: Tensor) -> Tensor:
            return super().log_prob(x) - 1e5

    x = images(4)
    near, far = (scores(m, {"Density"}, x, "gradient-norm", reference=False) for m in (Gauss(), Far()))
    torch.testing.assert_close(far["gradient-norm"] - near["gradient-norm"], torch.full((4,), 1e5, dtype=torch.float64))


def test_one_evaluation_serves_several_scores() -> None:
    x = images(5)
    for names, forwards, backwards in (
        (("log-likelihood", "two-tailed", "complexity"), 1, 0),
        (("gradient-norm", "score-sum", "log-likelihood"), 1, 1),
    ):
        seen = view(Gauss(), {"Density"}, 5, held_out(Gauss()))
        score_all(seen, x, draws_for(torch.arange(5), 0, "t"), names)
        assert seen.forwards.tolist() == [forwards] * 5
        assert seen.backwards.tolist() == [backwards] * 5


def test_an_image_has_the_same_scores_alone() -> None:
    x = images(6)
    for model, capabilities in ((Gauss(), {"Density"}), (Linear(), CLASSIFIER)):
        seen = view(model, capabilities, 6, held_out(model))
        names = [name for name in SCORES if not lacking(seen.own_capabilities, name)]
        draws = draws_for(torch.arange(6), 0, "t")
        whole = score_all(seen, x, draws, names)
        index = torch.tensor([4])
        alone = score_all(seen, x[index], draws[index], names)
        for name in names:
            torch.testing.assert_close(alone[name], whole[name][index], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_png_bits_are_the_size_of_the_file(channels: int) -> None:
    x = torch.rand(2, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    x[1] = 0.5
    bits = png_bits(x)
    assert bits[1] < bits[0]
    grey = (x[0] * 255).round().byte()
    pixels = grey.permute(1, 2, 0) if channels == 3 else grey.reshape(-1, 7)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="png", optimize=True)
    assert bits[0] == 8 * len(file.getvalue())
    assert np.array_equal(np.asarray(Image.open(file)), pixels.numpy())


def test_two_tailed_p_values_of_in_distribution_images_are_uniform() -> None:
    draw = np.random.default_rng(0)
    reference = Reference({"log_prob": draw.normal(-100, 10, 2000)})

    class Given:
        density_tag = "exact"

        def log_prob(self, x: Tensor) -> Tensor:
            return x[:, 0, 0, 0].double()

    values = torch.from_numpy(draw.normal(-100, 10, 1000))[:, None, None, None]
    seen = view(Given(), {"Density"}, 1000, reference)
    score = score_all(seen, values, draws_for(torch.arange(1000), 0, "t"), ["two-tailed"])["two-tailed"]
    assert stats.kstest((-2 * score).clamp(0, 1).numpy(), "uniform").pvalue > 0.01


def test_mahalanobis_against_scikit_learn() -> None:
    reference = held_out(Linear(), 200)
    features, labels = reference["features"], reference["label"]
    means = np.stack([features[labels == k].mean(axis=0) for k in range(4)])
    shrunk = covariance.ledoit_wolf(features - means[labels], assume_centered=True)
    found = Mahalanobis.of(reference, torch.zeros(1))
    assert found.shrinkage == pytest.approx(shrunk[1], rel=1e-9)
    x = Linear().features(images(10))
    inverse = np.linalg.inv(shrunk[0])
    wanted = [min(float((f - m) @ inverse @ (f - m)) for m in means) for f in x.numpy()]
    np.testing.assert_allclose(found(x).numpy(), wanted, rtol=1e-9)


def test_dead_and_too_many_features_do_not_stop_mahalanobis() -> None:
    draw = np.random.default_rng(1)
    features = np.concatenate([draw.normal(size=(20, 40)), np.zeros((20, 3))], axis=1)
    found = Mahalanobis.of(Reference({"features": features, "label": np.arange(20) % 5}), torch.zeros(1))
    assert 0 < found.shrinkage <= 1
    assert found(torch.from_numpy(features)).isfinite().all()
    with pytest.raises(ThreatError, match="do not vary"):
        ledoit_wolf(torch.zeros(5, 3, dtype=torch.float64))


def test_a_class_that_is_not_held_out_is_no_class_of_mahalanobis() -> None:
    reference = held_out(Linear(), 40)
    reference = Reference({**reference.columns, "label": np.arange(40) % 2 * 7})
    assert Mahalanobis.of(reference, torch.zeros(1)).means.shape == (2, 8)


def test_nearest_neighbours_against_scikit_learn() -> None:
    reference = held_out(Linear())
    bank = reference["features"] / np.linalg.norm(reference["features"], axis=1, keepdims=True)
    x = Linear().features(images(10))
    normalised = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    distances, _ = neighbors.NearestNeighbors(n_neighbors=NEIGHBOUR).fit(bank).kneighbors(normalised)
    found = NearestNeighbours.of(reference, torch.zeros(1))
    np.testing.assert_allclose(found(x).numpy(), distances[:, -1], rtol=1e-9)
    torch.testing.assert_close(found(3 * x), found(x))
    with pytest.raises(ThreatError, match="needs 10 held-out images, there are 9"):
        NearestNeighbours.of(Reference({"features": bank[:9]}), torch.zeros(1))


def test_vim_finds_the_last_layer_and_is_what_the_paper_says() -> None:
    model = Linear()
    reference = held_out(model, 100)
    found = ViM.of(reference, torch.zeros(1))
    origin = -np.linalg.pinv(model.weight.numpy().T) @ model.bias.numpy()
    np.testing.assert_allclose(found.origin.numpy(), origin, rtol=1e-6, atol=1e-8)
    centred = reference["features"] - origin
    values, vectors = np.linalg.eigh(centred.T @ centred)
    outside = vectors[:, np.argsort(-values)[4:]]
    alpha = reference["logits"].max(axis=1).mean() / np.linalg.norm(centred @ outside, axis=1).mean()
    assert found.alpha == pytest.approx(alpha, rel=1e-6)
    x = images(12)
    features, logits = model.features(x), model.logits(x)
    residual = np.linalg.norm((features.numpy() - origin) @ outside, axis=1)
    wanted = alpha * residual - np.log(np.exp(logits.numpy()).sum(axis=1))
    np.testing.assert_allclose(found(features, logits).numpy(), wanted, rtol=1e-6)


def test_vim_refuses_what_is_not_the_layer_before_the_last() -> None:
    reference = held_out(Linear(), 100)
    bent = Reference({**reference.columns, "logits": np.sin(reference["logits"])})
    with pytest.raises(ThreatError, match="no affine function of the features"):
        ViM.of(bent, torch.zeros(1))
    few = Reference({name: column[:9] for name, column in reference.columns.items()})
    with pytest.raises(ThreatError, match=r"more held-out images than features \(9 for 8\)"):
        ViM.of(few, torch.zeros(1))


@pytest.mark.filterwarnings("error")
def test_a_detector_is_fitted_once_for_all_batches() -> None:
    reference = held_out(Linear())
    made = []
    for start in (0, 3):
        seen = view(Linear(), CLASSIFIER, 3, reference)
        draws = draws_for(torch.arange(start, start + 3), 0, "t")
        score_all(seen, images(3), draws, ["mahalanobis", "knn", "vim"])
        made.append({key: id(value) for key, value in reference._made.items()})
    assert made[0] == made[1]
    assert len(made[0]) == 3


@pytest.mark.parametrize(
    ("model", "capabilities", "name", "line"),
    [
        (Linear(), CLASSIFIER, "own", "score 'own': the model has no ood_score() of its own"),
        (Linear(), CLASSIFIER, "typicality", "score 'typicality' needs a model with Density"),
        (Gauss(), {"Density"}, "vim", "score 'vim' needs a model with Classifier and Features"),
        (Gauss(), {"Density"}, "odin", "there is no score 'odin' (there are: own, "),
    ],
)
def test_a_score_that_a_model_does_not_have_is_one_line(
    model: Any, capabilities: set[str], name: str, line: str
) -> None:
    seen = view(model, capabilities, 2)
    assert lacking(seen.own_capabilities, name).startswith(line)
    with pytest.raises(ThreatError) as caught:
        score_all(seen, images(2), draws_for(torch.arange(2), 0, "t"), [name])
    assert "\n" not in str(caught.value)


def test_the_energy_of_class_densities_says_nothing() -> None:
    class Classes:
        num_classes = 2
        density_tag = "exact"

        def class_log_prob(self, x: Tensor) -> Tensor:
            return torch.stack([Gauss().log_prob(x), Gauss().log_prob(x + 0.1)], dim=1)

    assert "use 'log-likelihood'" in lacking(frozenset({"ClassDensity"}), "energy")
    x = images(3)
    found = scores(Classes(), {"ClassDensity"}, x, "log-likelihood", "max-softmax", reference=False)
    joint = Classes().class_log_prob(x) - math.log(2)
    torch.testing.assert_close(found["log-likelihood"], -joint.logsumexp(dim=1))


def test_which_scores_need_held_out_images() -> None:
    assert {name for name in SCORES if needs_reference([name])} == {
        *("typicality", "two-tailed", "mahalanobis", "knn", "vim")
    }
    assert not needs_reference(["own", "energy"])
    with pytest.raises(ThreatError, match="needs_reference"):
        scores(Gauss(), {"Density"}, images(2), "typicality", reference=False)


def test_how_likely_held_out_images_are() -> None:
    seen = view(Gauss(), {"Density"}, 2, held_out(Gauss()))
    log_prob = held_out(Gauss())["log_prob"]
    found = held_out_likelihood(seen, ["log-likelihood", "two-tailed"])
    assert found["held_out_log_prob"] == pytest.approx(log_prob.mean())
    assert found["held_out_log_prob_error"] == pytest.approx(stats.sem(log_prob))
    assert held_out_likelihood(seen, ["log-likelihood"]) == {}


def test_a_random_model_answers_all_scores_with_one_draw() -> None:
    fixed = Linear()

    class Random:
        num_classes = 4
        stochastic = True

        def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
            return fixed.logits(x) + draws.normal("noise", 0, (4,)).double()

    noise = draws_for(torch.arange(3), 0, "model", "eval").normal("noise", 0, (4,)).double()
    found = score_all(
        view(Random(), {"Classifier"}, 3), images(3), draws_for(torch.arange(3), 0, "t"), ["energy", "max-logit"]
    )
    logits = fixed.logits(images(3)) + noise
    torch.testing.assert_close(found["energy"], -logits.logsumexp(dim=1))
    torch.testing.assert_close(found["max-logit"], -logits.amax(dim=1))
