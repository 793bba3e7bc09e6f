"""Maps that sum to what they take apart."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from harness_ib_inn import posterior_maps
from harness_ib_inn.posterior_maps import class_maps, likelihood_maps, saliency_maps
from hypothesis import given, settings
from hypothesis import strategies as st


def maps(latents: Any) -> Any:
    return class_maps(latents.z, latents.means, latents.to_spatial)


def log_sum(latents: Any) -> torch.Tensor:
    """log S, S = sum_y q(z | y) without the constant, float64 (B,)."""
    distance = torch.cdist(latents.z.double(), latents.means.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return (-0.5 * distance.square()).logsumexp(dim=1)


@pytest.mark.parametrize("tilted", [False, True])
def test_each_class_map_sums_to_its_log_likelihood(latents: Any, tilted: bool) -> None:
    some = latents.make(0, tilted=tilted)
    found = likelihood_maps(maps(some), 6)
    assert found.shape == (5, 7, 3, 4)
    torch.testing.assert_close(found.sum(dim=(2, 3)), some.log_likelihood(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tilted", [False, True])
def test_posterior_maps_sum_to_the_log_posterior(latents: Any, tilted: bool) -> None:
    some = latents.make(1, tilted=tilted)
    found = posterior_maps.posterior_maps(maps(some), some.log_prior)
    torch.testing.assert_close(found.sum(dim=(2, 3)), some.log_posterior(), rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), classes=st.integers(2, 6), height=st.integers(1, 4), width=st.integers(1, 4),
    scale=st.floats(0.01, 30),
)  # fmt: skip
def test_the_sums_hold_for_any_shape_and_scale(seed: int, classes: int, height: int, width: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    likelihood = scale * torch.randn(3, classes, height, width, generator=generator, dtype=torch.float64)
    prior = torch.randn(classes, generator=generator).log_softmax(dim=0)
    wanted = (likelihood.sum(dim=(2, 3)) + prior).log_softmax(dim=1)
    found = posterior_maps.posterior_maps(likelihood, prior).sum(dim=(2, 3))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_what_is_subtracted_is_the_same_for_all_classes(latents: Any) -> None:
    some = latents.make(2, tilted=False)
    likelihood = maps(some)
    subtracted = likelihood - posterior_maps.posterior_maps(likelihood, some.log_prior)
    torch.testing.assert_close(subtracted, subtracted[:, :1].expand_as(subtracted), rtol=0, atol=1e-9)
    log_s = log_sum(some)
    torch.testing.assert_close(subtracted[:, 0].sum(dim=(1, 2)), log_s, rtol=0, atol=1e-9)


def test_the_shares_of_the_places_are_those_of_eq_32(latents: Any) -> None:
    some = latents.make(3, tilted=False)
    likelihood = maps(some)
    subtracted = (likelihood - posterior_maps.posterior_maps(likelihood, some.log_prior))[0, 0]
    saliency = saliency_maps(likelihood, some.log_prior)[0]
    r = (saliency - saliency.min()) / (saliency.max() - saliency.min())
    share = (r + 0.03) / (r + 0.03).sum()
    torch.testing.assert_close(subtracted, log_sum(some)[0] * share)


def test_what_is_salient_is_bright_and_places_differ_less_than_by_the_papers_wording(latents: Any) -> None:
    some = latents.make(3, batch=40, shape=(12, 4, 4), tilted=False)
    by_class = maps(some)
    ours = posterior_maps.posterior_maps(by_class, some.log_prior).mean(dim=1).flatten(1)
    saliency = saliency_maps(by_class, some.log_prior).flatten(1)
    r = 1 - (saliency - saliency.amin(dim=1, keepdim=True)) / (saliency.amax(1, True) - saliency.amin(1, True))
    share = (r + 0.03) / (r + 0.03).sum(dim=1, keepdim=True)
    worded = by_class.mean(dim=1).flatten(1) - log_sum(some)[:, None] * share
    alike = [[float(torch.corrcoef(torch.stack([m[n], saliency[n]]))[0, 1]) for n in range(40)] for m in (ours, worded)]
    assert statistics.mean(alike[0]) > 0.3
    assert max(alike[1]) < -0.5
    assert bool((ours.std(dim=1) < worded.std(dim=1)).all())


def test_an_image_of_one_place_keeps_its_sum(latents: Any) -> None:
    some = latents.make(4, shape=(9, 1, 1))
    found = posterior_maps.posterior_maps(maps(some), some.log_prior)
    torch.testing.assert_close(found[:, :, 0, 0], some.log_posterior(), rtol=0, atol=1e-9)


def test_saliency_sums_to_the_log_density_of_one_class_only(latents: Any) -> None:
    one = latents.make(5, classes=1)
    found = saliency_maps(likelihood_maps(maps(one), 6), one.log_prior).sum(dim=(1, 2))
    torch.testing.assert_close(found, -one.log_likelihood()[:, 0], rtol=0, atol=1e-9)
    several = latents.make(5)
    sums = saliency_maps(likelihood_maps(maps(several), 6), several.log_prior).sum(dim=(1, 2))
    log_density = (several.log_likelihood() + several.log_prior.double()).logsumexp(dim=1)
    assert float((sums + log_density).abs().min()) > 1


def test_many_classes_are_taken_in_parts(latents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    some = latents.make(6)
    whole = maps(some)
    monkeypatch.setattr(posterior_maps, "_CHUNK", 1)
    torch.testing.assert_close(maps(some), whole, rtol=1e-12, atol=0)
