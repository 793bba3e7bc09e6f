"""The model: exact inverse and density, bits/dim with the right constant, Bayes' rule, samples, crops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from harness_ib_inn.layouts import LAYOUTS
from harness_ib_inn.model import IBINN
from harness_ib_inn.training import dequantise

from harness.models import bits_per_dim
from harness.randomness import draws_for

BETAS = ("0", "1", "8", "inf")


def checkpoint(beta: str) -> dict[str, str]:
    return {"checkpoint": f"builtin:digits-beta{beta}"}


@pytest.mark.parametrize("beta", BETAS)
def test_decoding_gives_the_image_back_for_a_thousand_images(given: Any, beta: str) -> None:
    model, data = given.model(**checkpoint(beta)), given.digits("train")
    x, _ = data.load(data.ids[:1000])
    z, _ = model.encode(x)
    assert z.shape == (1000, 64)
    assert (model.decode(z) - x).abs().max() < 1e-4


@pytest.mark.parametrize("beta", BETAS)
def test_the_log_determinant_is_that_of_the_full_jacobian(given: Any, beta: str) -> None:
    model, data = given.model(**checkpoint(beta)).double(), given.digits("test")
    x = data.load(data.ids[:2])[0].double()
    _, log_det = model.encode(x)
    for image, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda a: model.encode(a)[0], image[None]).reshape(64, 64)
        assert found.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-6)


def test_the_density_integrates_to_one(given: Any) -> None:
    """Two pixels: a sum over a grid of v; log_prob is a density of v = ((levels - 1) x + u) / levels."""
    model = given.shaken(given.toy, 3, 4)
    step = 0.05
    axis = torch.arange(-7, 8, step, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis)[:, :, None, None]
    x = (v * 4 - model.noise) / 3
    assert float(model.log_prob(x).exp().sum() * step**2) == pytest.approx(1.0, abs=1e-4)
    of_classes = model.class_log_prob(x).exp().sum(dim=0) * step**2
    torch.testing.assert_close(of_classes, torch.ones(3).double(), rtol=0, atol=1e-4)
    z, log_det = model.encode(x)  # and the density of x itself, from the log-determinant with respect to x
    of_x = (model.joint(z).logsumexp(dim=1) - z.square().sum(dim=1) / 2 + log_det).exp() / (2 * math.pi)
    assert float(of_x.sum() * (step * 4 / 3) ** 2) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_per_dim_of_a_known_density(levels: int) -> None:
    """An untrained network with all means at 0 is a Gaussian, v ~ N(1/2, 1/16)."""
    model = IBINN(LAYOUTS["digits"], 10, levels).eval().requires_grad_(False)
    for parameter in model.class_means.parameters():
        parameter.zero_()
    x = torch.randint(0, levels, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / (levels - 1)
    v = (x.double() * (levels - 1) + model.noise) / levels
    of_v = -8 * (v - 0.5).square() + math.log(4) - 0.5 * math.log(2 * math.pi)
    wanted = -of_v.flatten(1).mean(dim=1) / math.log(2) + math.log2(levels)
    found = bits_per_dim(model.log_prob(x.float()), (1, 8, 8), levels)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_an_image_is_judged_inside_its_bin_and_as_noise_would_be_on_average(given: Any) -> None:
    model, data = given.model(**checkpoint("1")), given.digits("test")
    x, _ = data.load(data.ids)
    bins = (model.dequantised(x) * 17).floor()
    torch.testing.assert_close(bins, (x * 16).round())
    draws = torch.Generator().manual_seed(0)
    on_average = torch.stack(
        [model.log_prob_of_latent(*model.flow(dequantise(x, 17, draws))).mean() for _ in range(10)]
    ).mean()
    bits = [float(bits_per_dim(value, (1, 8, 8), 17)) for value in (model.log_prob(x).mean(), on_average)]
    assert bits[0] == pytest.approx(bits[1], abs=0.03)
    model.noise.fill_(0.5)
    assert bits_per_dim(model.log_prob(x).mean(), (1, 8, 8), 17) < bits[1] - 0.05  # what the bins' centres would say


def test_bayes_rule(given: Any) -> None:
    model, data = given.model(**checkpoint("8")), given.digits("test")
    x, _ = data.load(data.ids[:50])
    joint = model.class_log_prob(x) + model.log_prior
    torch.testing.assert_close(model.log_prob(x), joint.logsumexp(dim=1))
    torch.testing.assert_close(model.logits(x).log_softmax(dim=1), joint.log_softmax(dim=1))
    z, log_det = model.encode(x)
    distance = (z[:, None] - model.means[None]).double().square().sum(dim=2)
    scaled = 64 * math.log(17 / 16)  # from a density of x to one of v
    wanted = -distance / 2 - 32 * math.log(2 * math.pi) + log_det[:, None] + scaled
    torch.testing.assert_close(model.class_log_prob(x), wanted, rtol=1e-6, atol=1e-3)
    assert model.log_prior.exp().sum().item() == pytest.approx(1.0)


def test_means_have_the_low_rank_of_equation_15(given: Any) -> None:
    model = given.model(**checkpoint("8"))
    pooled, rest = model.means_parts
    assert pooled.shape == (10, 16)
    assert rest.shape == (10, 48)
    assert torch.equal(torch.cat([pooled, rest], dim=1), model.means)
    assert torch.linalg.matrix_rank(rest) == LAYOUTS["digits"].rank
    z = torch.randn(5, 64, dtype=torch.float64)
    means = model.means.double()
    torch.testing.assert_close(
        model.class_means.scores(z), z @ means.T - means.square().sum(dim=1) / 2, rtol=1e-5, atol=1e-5
    )


def test_the_spatial_latent_is_an_isometry_and_pooled_features_come_first(given: Any) -> None:
    model = given.model(**checkpoint("1"))
    z = torch.randn(4, 64)
    maps = model.to_spatial(z)
    assert maps.shape == (4, *model.latent_shape) == (4, 16, 2, 2)
    torch.testing.assert_close(maps.flatten(1).norm(dim=1), z.norm(dim=1))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) * 2, z[:, :16])


@pytest.mark.parametrize("beta", BETAS)
def test_a_heatmap_sums_to_the_log_posterior(given: Any, beta: str) -> None:
    model, data = given.model(**checkpoint(beta)), given.digits("test")
    x, _ = data.load(data.ids[:100])
    posteriors = model.logits(x).log_softmax(dim=1)
    for label in (0, 7):
        y = torch.full((100,), label)
        heat = model.heatmap(x, y)
        assert heat.shape == (100, 2, 2)
        torch.testing.assert_close(heat.sum(dim=(1, 2)), posteriors[:, label], rtol=1e-7, atol=1e-5)


def test_a_heatmap_sums_to_the_log_posterior_under_another_prior(given: Any) -> None:
    model = given.shaken(LAYOUTS["digits"], 3, 17)
    model.log_prior.copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    heat = model.heatmap(x, torch.tensor([0, 1, 2, 0, 1]))
    wanted = model.logits(x).log_softmax(dim=1)[range(5), [0, 1, 2, 0, 1]]
    torch.testing.assert_close(heat.sum(dim=(1, 2)), wanted)


def test_samples_look_like_their_class_and_are_grey_levels(given: Any) -> None:
    model = given.model(**checkpoint("1"))
    y = torch.arange(10).repeat(20)
    x = model.sample(y, draws=draws_for(torch.arange(200), 0, "sample"))
    torch.testing.assert_close(x * 16, (x * 16).round(), rtol=0, atol=1e-4)
    assert (model.logits(x).argmax(dim=1) == y).double().mean() > 0.4  # the Gaussians of the classes overlap
    alone = model.sample(y[7:8], draws=draws_for(torch.arange(7, 8), 0, "sample"))
    torch.testing.assert_close(alone, x[7:8])


def test_one_network_evaluation_gives_all_logits_and_the_density(given: Any) -> None:
    model, calls = given.model(**checkpoint("1")), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.rand(2, 1, 8, 8)
    for method in (model.logits, model.log_prob, model.class_log_prob, model.ood_score):
        calls.clear()
        method(x)
        assert calls == [1]


def test_ten_crops_average_posteriors(given: Any) -> None:
    kwargs: dict[str, Any] = {"num_classes": 3, "levels": 17}
    model = given.shaken(LAYOUTS["digits"], crops="ten", **kwargs)
    one = given.shaken(LAYOUTS["digits"], crops="centre", **kwargs)
    x = torch.rand(4, 1, 10, 12, dtype=torch.float64)
    places = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
    crops = [x[:, :, r : r + 8, c : c + 8] for r, c in places]
    crops += [crop.flip(3) for crop in crops]
    wanted = torch.stack([one.logits(crop).softmax(dim=1) for crop in crops]).mean(dim=0)
    torch.testing.assert_close(model.logits(x).exp(), wanted)
    torch.testing.assert_close(model.log_prob(x), one.log_prob(crops[4]))
    torch.testing.assert_close(one.logits(x), one.logits(crops[4]))
    assert model.density_tag == one.density_tag == "surrogate"  # bits/dim of an image is not that of its centre
    assert given.shaken(LAYOUTS["digits"], **kwargs).density_tag == "exact"


# --- layouts


@pytest.mark.parametrize(
    ("name", "latent", "parameters"),
    [("mnist", (16, 7, 7), 435_328), ("cifar10", (192, 4, 4), 8_358_796)],
)
def test_other_layouts_are_invertible(name: str, latent: tuple[int, int, int], parameters: int) -> None:
    layout = LAYOUTS[name]
    model = IBINN(layout, 10, 256).eval().requires_grad_(False)
    assert model.latent_shape == latent
    assert sum(p.numel() for p in model.parameters()) == parameters
    draws = torch.Generator().manual_seed(1)
    for parameter in model.blocks.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
    x = torch.rand(2, *layout.shape, generator=draws)
    z, log_det = model.encode(x)
    assert log_det.isfinite().all()
    assert (model.decode(z) - x).abs().max() < 1e-4


@pytest.mark.slow
def test_the_imagenet_layout_has_the_papers_size() -> None:
    """Tables 1, 4 and 5: 3072 maps of 7x7; 55.4 M parameters in the network, 77.5 M in all; 9.08 G multiply-adds."""
    from torch.utils.flop_counter import FlopCounterMode

    model = IBINN(LAYOUTS["imagenet"], 1000, 256).eval().requires_grad_(False)
    assert model.latent_shape == (3072, 7, 7)
    assert model.dimensions == 150_528
    in_all = sum(p.numel() for p in model.parameters())
    of_means = sum(p.numel() for p in model.class_means.parameters())
    assert round(in_all / 1e6, 1) == 77.5
    assert round((in_all - of_means) / 1e6, 1) == 55.4
    draws = torch.Generator().manual_seed(1)
    for parameter in model.blocks.parameters():
        parameter += 0.005 * torch.randn(parameter.shape, generator=draws)
    x = torch.rand(1, 3, 224, 224, generator=draws)
    with FlopCounterMode(display=False) as counter:
        z, log_det = model.encode(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(9.08, rel=0.015)
    assert log_det.isfinite().all()
    assert (model.decode(z) - x).abs().max() < 1e-4
