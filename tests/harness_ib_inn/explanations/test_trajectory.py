"""The way of an attack in latent space."""

from __future__ import annotations

import math
from typing import Any

import torch
from harness_ib_inn.trajectory import trajectory


def test_posteriors_and_log_likelihoods_are_the_models(latents: Any) -> None:
    some = latents.make(0)
    log_det = torch.linspace(3, 4, 5)
    found = trajectory(some.z, log_det, some.means, some.log_prior)
    torch.testing.assert_close(found.log_posterior, some.log_posterior(), rtol=0, atol=1e-9)
    wanted = (some.log_likelihood() + some.log_prior.double()).logsumexp(dim=1) + log_det.double()
    torch.testing.assert_close(found.log_prob, wanted, rtol=0, atol=1e-9)


def test_the_classes_are_those_the_way_passes_closest_to(latents: Any) -> None:
    some = latents.make(1, classes=9)
    share = torch.linspace(0, 1, 11)[:, None]
    way = (1 - share) * some.means[2] + share * some.means[6]
    found = trajectory(way, torch.zeros(11), some.means, some.log_prior)
    assert set(found.classes[:2].tolist()) == {2, 6}
    assert len(found.classes) == 5
    assert not found.exact
    assert found.path.shape == (11, 2)


def test_the_plane_is_fitted_through_their_means(latents: Any) -> None:
    some = latents.make(2)
    found = trajectory(some.z, torch.zeros(5), some.means, some.log_prior)
    centres = some.means[found.classes].double()
    back = found.plane.origin + found.means @ found.plane.basis
    left = (centres - back).square().sum()
    extents = torch.linalg.svdvals(centres - centres.mean(dim=0))
    assert math.isclose(float(left), float(extents[2:].square().sum()), rel_tol=1e-9)


def test_for_means_in_a_plane_every_class_is_shown_and_the_place_in_it_decides(latents: Any) -> None:
    some = latents.make(3, batch=50)
    basis = torch.linalg.qr(torch.randn(some.means.shape[1], 2, generator=torch.Generator().manual_seed(0))).Q
    means = some.means @ basis @ basis.T
    found = trajectory(some.z, torch.zeros(50), means, some.log_prior)
    assert found.exact
    assert len(found.classes) == 7
    scores = some.log_prior[found.classes].double() - 0.5 * torch.cdist(found.path, found.means).square()
    assert torch.equal(found.classes[scores.argmax(dim=1)], found.log_posterior.argmax(dim=1))
