"""The pictures: what they say is what the model says, and they are there for what can be drawn."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from harness_ib_inn.flattening import into_plane
from harness_ib_inn.posterior_maps import class_maps, likelihood_maps
from harness_ib_inn.sample_pictures import codes
from PIL import Image

from harness.explanations import AttackedImage, ExplainedSample, Picture


@pytest.fixture(scope="module")
def model(given: Any) -> Any:
    """Untrained, but with class means and couplings that are not those of the start."""
    made = given.model(layout="digits")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def sample(given: Any) -> ExplainedSample:
    """Sample 5, and an attack on it whose way has eleven images."""
    data = given.digits("test")
    x, y = data.load(np.array([5]))
    other, _ = data.load(np.array([6]))
    way = torch.cat([(1 - s) * x + s * other for s in torch.linspace(0, 1, 11)])
    attacked = AttackedImage("pgd[eps=8/255]", other, way, True)
    return ExplainedSample(5, int(y[0]), x, data.facts.class_names, (attacked,))


def by_name(pictures: Any) -> dict[str, Picture]:
    found = {picture.name: picture for picture in pictures}
    for picture in found.values():
        image = Image.open(io.BytesIO(picture.png))
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert picture.caption.endswith(".")
    return found


def test_an_attacked_sample_has_its_pictures(model: Any, sample: ExplainedSample) -> None:
    found = by_name(model.explain_sample(sample))
    attack = "pgd[eps=8/255]"
    assert list(found) == ["evidence", "decision plane", f"evidence {attack}", f"way {attack}"]
    way = found[f"way {attack}"].numbers
    assert len(way["path"]) == 13  # as it is, eleven on the way, stored
    assert way["path"][0] == pytest.approx(way["path"][1], abs=1e-4)
    stored = model.log_prob(sample.attacked[0].x)
    assert way["log_prob"][-1] == pytest.approx(float(stored), rel=1e-6)
    posterior = model.logits(sample.x).log_softmax(dim=1)[0]
    assert way["log_posterior"][0] == pytest.approx([float(posterior[way[k]]) for k in ("before", "after")], abs=1e-5)


def test_evidence_sums_to_the_likelihoods(model: Any, sample: ExplainedSample) -> None:
    numbers = by_name(model.explain_sample(sample))["evidence"].numbers
    z, log_det = codes(model, sample.x)
    first, second = numbers["classes"]
    log_q = model.class_log_prob(sample.x)[0] - log_det
    assert numbers["log_likelihood"][0] == pytest.approx([float(log_q[first]), float(log_q[second])], abs=1e-5)
    normal = torch.distributions.Normal(model.means.double(), 1).log_prob(z.double()).sum(dim=1)
    assert numbers["log_likelihood"][0] == pytest.approx([float(normal[first]), float(normal[second])], abs=1e-5)
    odds = np.array(numbers["log_odds_map"]).sum()
    assert odds == pytest.approx(float(normal[first] - normal[second]), abs=1e-5)
    posterior = model.logits(sample.x).log_softmax(dim=1)[0]
    assert numbers["log_posterior"][0] == pytest.approx([float(posterior[first]), float(posterior[second])], abs=1e-5)


def test_heat_maps_sum_to_the_log_posterior(model: Any, given: Any) -> None:
    data = given.digits("test")
    x, _ = data.load(data.ids[:20])
    posterior = model.logits(x).log_softmax(dim=1)
    for k in range(10):
        maps = model.heatmap(x, torch.full((20,), k))
        torch.testing.assert_close(maps.sum(dim=(1, 2)), posterior[:, k], rtol=0, atol=1e-5)


def test_likelihood_maps_sum_to_the_class_likelihoods(model: Any, given: Any) -> None:
    data = given.digits("test")
    x, _ = data.load(data.ids[:20])
    z, log_det = codes(model, x)
    maps = likelihood_maps(class_maps(z, model.means, model.to_spatial), model.latent_shape[0])
    found = maps.sum(dim=(2, 3)) + log_det[:, None]
    torch.testing.assert_close(found, model.class_log_prob(x), rtol=0, atol=1e-5)


def test_the_plane_of_the_two_likeliest_is_the_models(model: Any, sample: ExplainedSample) -> None:
    numbers = by_name(model.explain_sample(sample))["decision plane"].numbers
    scores = model.joint(codes(model, sample.x)[0])[0]
    assert numbers["classes"] == scores.argsort(descending=True)[:5].tolist()
    along = numbers["code"][0]
    margin = float(scores[numbers["classes"][0]] - scores[numbers["classes"][1]])
    assert (numbers["boundary"] - along) * numbers["distance"] == pytest.approx(margin, abs=1e-3)


def test_a_model_is_drawn_with_its_own_numbers(model: Any, given: Any) -> None:
    data = given.digits("test")
    found = by_name(model.explain_model(data))
    assert list(found) == ["similarity", "components", "receptive field"]
    x, y = data.load(data.ids)
    accuracy = float((model.logits(x).argmax(dim=1) == y).double().mean())
    assert found["components"].numbers["accuracy"][-1] == pytest.approx(accuracy, abs=1.5 / len(y))
    assert np.array(found["components"].numbers["spread"]).shape == model.latent_shape[1:]
    distances = torch.tensor(found["similarity"].numbers["distances"])
    torch.testing.assert_close(
        distances, torch.cdist(model.means, model.means), rtol=1e-3, atol=1e-2, check_dtype=False
    )
    assert np.array(found["receptive field"].numbers["sensitivity"]).shape == (8, 8)


def test_means_in_a_plane_have_their_decision_space_drawn(given: Any, sample: ExplainedSample) -> None:
    flat = given.model(layout="digits")
    into_plane(flat.class_means)
    data = given.digits("test")
    found = by_name(flat.explain_model(data))["decision space"].numbers
    x, y = data.load(data.ids)
    assert found["accuracy"] == pytest.approx(float((flat.logits(x).argmax(dim=1) == y).double().mean()), abs=1e-9)
    way = by_name(flat.explain_sample(sample))["way pgd[eps=8/255]"].numbers
    assert way["whole"] is True
    assert len(way["classes"]) == 10
