"""The way of an attack in latent space."""

from __future__ import annotations

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


def test_the_classes_are_those_of_both_ends_and_the_next_nearest(latents: Any) -> None:
    some = latents.make(1, classes=9, tilted=False)
    share = torch.linspace(0, 1, 11)[:, None]
    way = (1 - share) * some.means[2] + share * some.means[6]
    found = trajectory(way, torch.zeros(11), some.means, some.log_prior)
    assert found.classes[:2].tolist() == [2, 6]
    others = [k for k in range(9) if k not in (2, 6)]
    nearest = torch.cdist(way, some.means)[:, others].amin(dim=0).argmin()
    assert found.classes[2:].tolist() == [others[nearest]]
    assert not found.whole
    assert found.path.shape == (11, 2)


def test_a_way_that_ends_where_it_began_shows_three_classes_too(latents: Any) -> None:
    some = latents.make(4, tilted=False)
    found = trajectory(some.means[[3, 3]], torch.zeros(2), some.means, some.log_prior)
    assert int(found.classes[0]) == 3
    assert len(set(found.classes.tolist())) == 3


def test_the_place_in_the_plane_decides_between_its_three_classes(latents: Any) -> None:
    some = latents.make(2, batch=60)
    found = trajectory(some.z, torch.zeros(60), some.means, some.log_prior)
    back = found.plane.origin + found.means @ found.plane.basis
    torch.testing.assert_close(back, some.means[found.classes].double(), rtol=0, atol=1e-9)
    inside = some.log_prior[found.classes].double() - 0.5 * torch.cdist(found.path, found.means).square()
    whole = some.log_posterior()[:, found.classes]
    gaps = inside - whole
    torch.testing.assert_close(gaps, gaps[:, :1].expand_as(gaps), rtol=0, atol=1e-4)


def test_for_means_in_a_plane_every_class_is_shown_and_the_place_in_it_decides(latents: Any) -> None:
    some = latents.make(3, batch=50)
    basis = torch.linalg.qr(torch.randn(some.means.shape[1], 2, generator=torch.Generator().manual_seed(0))).Q
    means = some.means @ basis @ basis.T
    found = trajectory(some.z, torch.zeros(50), means, some.log_prior)
    assert found.whole
    assert len(found.classes) == 7
    scores = some.log_prior[found.classes].double() - 0.5 * torch.cdist(found.path, found.means).square()
    assert torch.equal(found.classes[scores.argmax(dim=1)], found.log_posterior.argmax(dim=1))
