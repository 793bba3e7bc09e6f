"""The model `sbgc`: closed forms, shared noise, gradients, failures that are said, and digits."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_datasets.digits import Digits, DigitsOptions
from harness_sbgc.model import RandomSbgc, Sbgc, build
from harness_sbgc.noise import StreamNoise, fixed_stream
from harness_sbgc.options import SbgcOptions
from torch import Tensor

from harness.checkpoints import load, save
from harness.datasets import DatasetFacts
from harness.errors import HarnessError, ModelError
from harness.models import ModelContext, bits_per_dim, prepare
from harness.randomness import draws_for

FACTS = DatasetFacts(name="digits", shape=(1, 8, 8), class_names=tuple("0123456789"), levels=17)
EMBEDDED = Path(__file__).parents[2] / "plugins" / "harness_diffusion" / "checkpoints" / "digits-mlp.safetensors"


def model(trained: bool = True, **options: Any) -> Any:
    table = {**({"checkpoint": "builtin:digits-mlp"} if trained else {}), **options}
    return prepare(build(SbgcOptions.model_validate(table), ModelContext("m", FACTS, "cpu", Path())), "cpu")


def digits(count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    data = Digits(DigitsOptions(split="test"))
    index = np.arange(start, start + count)
    return data.images(index), torch.from_numpy(np.asarray(data.labels())[index])


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, over the largest log-likelihood."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("process", ["vp", "sub-vp", "ve"])
def test_an_untrained_network_has_a_closed_form(process: str) -> None:
    """It predicts no noise, so the score is 0 and the flow scales x by alpha(1) / alpha(eps): a normal density."""
    found = model(trained=False, process={"kind": process}, steps=40)
    x, _ = digits(3)
    noise = found.noise(fixed_stream(0, x.device), 3)
    p = found.denoiser.process
    v = 2 * ((16 * x.double() + noise.dequantisation()) / 17) - 1
    ratio = float(p.mean_coefficient(1.0) / p.mean_coefficient(p.smallest_time))
    wanted = p.prior_log_prob(ratio * v) + 64 * math.log(2 * ratio)
    scores = found.class_log_prob(x)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, wanted[:, None].expand(-1, 10), rtol=2e-5, atol=1e-3)


def test_the_prior_of_the_classes_counts() -> None:
    found = model(steps=2)
    x, _ = digits(3)
    scores = found.class_log_prob(x)
    torch.testing.assert_close(found.ood_score(x), -(scores - math.log(10)).logsumexp(dim=1))
    torch.testing.assert_close(found.logits(x), scores - scores.logsumexp(dim=1, keepdim=True))


def test_temperature_divides_the_logits() -> None:
    x, _ = digits(2)
    plain = model(steps=2).logits(x)
    torch.testing.assert_close(model(steps=2, temperature=4.0).logits(x), plain / 4)
    torch.testing.assert_close(model(steps=2, temperature="bits-per-dim").logits(x), plain / (64 * math.log(2)))


def test_noise_is_shared_by_the_classes_and_by_images_where_fixed() -> None:
    one = StreamNoise(fixed_stream(3, torch.device("cpu")), 4, (1, 8, 8), 2, False)
    assert one.probes(1).shape == (4, 2, 1, 8, 8)
    assert torch.equal(one.probes(1)[0], one.probes(1)[3])
    assert not torch.equal(one.probes(1), one.probes(2))
    fresh = StreamNoise(draws_for(torch.arange(4), 0, "model", "eval"), 4, (1, 8, 8), 2, True)
    assert not torch.equal(fresh.dequantisation()[0], fresh.dequantisation()[1])
    assert fresh.diffusion(0)[0].shape == (4,)
    assert not set(fresh.probes(0).unique().tolist()) <= {-1.0, 1.0}
    # An untrained network does not look at the class, so only noise could tell classes apart.
    x, _ = digits(2)
    scores = model(trained=False, steps=3).class_log_prob(x)
    torch.testing.assert_close(scores, scores[:, :1].expand(-1, 10))


def test_fixed_and_fresh_noise() -> None:
    x, _ = digits(3)
    fixed, other = model(steps=2), model(steps=2, noise_seed=1)
    assert torch.equal(fixed.class_log_prob(x), fixed.class_log_prob(x))
    assert not torch.equal(fixed.class_log_prob(x), other.class_log_prob(x))
    fresh = model(steps=2, noise="fresh")
    assert isinstance(fresh, RandomSbgc)
    draws = draws_for(torch.tensor([5, 9, 7]), 0, "model", "eval")
    first = fresh.class_log_prob(x, draws=draws)
    assert torch.equal(first, fresh.class_log_prob(x, draws=draws))
    assert not torch.equal(first, fresh.class_log_prob(x, draws=draws.numbered(1)))
    only = fresh.class_log_prob(x[[2]], draws=draws[torch.tensor([2])])
    assert gap(only, first[[2]]) < 1e-5


@pytest.mark.parametrize("options", [{}, {"solver": "rk45"}], ids=["rk4", "rk45"])
def test_an_image_alone_or_among_64_others(options: dict[str, Any]) -> None:
    found = model(**options)
    x, _ = digits(65)
    with torch.no_grad():
        full = found.class_log_prob(x)
        for row in (0, 40):
            alone = found.class_log_prob(x[row : row + 1])
            assert gap(alone[0], full[row]) < 1e-5


def test_rows_at_a_time_change_nothing() -> None:
    x, _ = digits(5)
    assert gap(model(steps=2, rows=20).class_log_prob(x), model(steps=2).class_log_prob(x)) < 1e-5
    assert model(steps=2).class_log_prob(x[:0]).shape == (0, 10)


def test_an_image_over_the_step_limit_is_named() -> None:
    x, _ = digits(6)
    free = model(solver="rk45", rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        found = free.likelihoods(x, fixed_stream(0, x.device))
        tries = ((found.evaluations - 2) // 6).amax(dim=1)
        limit = int(tries.max()) - 1
        tight = model(solver="rk45", rtol=1e-3, atol=1e-3, max_steps=limit)
        part = tight.likelihoods(x, fixed_stream(0, x.device))
        over = (tries > limit).nonzero()[:, 0].tolist()
        assert part.failed.any(dim=1).nonzero()[:, 0].tolist() == over
        assert torch.equal(part.log_prob.isnan(), part.failed)
        with pytest.raises(ModelError, match=rf"no likelihood for {len(over)} of 6 images \(number {over[0]}") as error:
            tight.class_log_prob(x)
    assert f"within {limit} steps; raise max_steps" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", ["exact", "adjoint", "surrogate"])
def test_gradients_against_finite_differences(way: str) -> None:
    """In float64, along the direction of each gradient itself."""
    steps = 6 if way == "exact" else 12
    found = model(gradient=way, steps=steps, surrogate_draws=64).double()
    x, y = digits(3)
    x = (0.1 + 0.8 * x).double()

    def margin(at: Tensor) -> Tensor:
        scores = found.class_log_prob(at)
        return scores.gather(1, y[:, None])[:, 0] - scores.gather(1, (y[:, None] + 1) % 10)[:, 0]

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(at).sum(), at)
    unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        slope = (margin(x + 1e-5 * unit) - margin(x - 1e-5 * unit)) / 2e-5
    predicted = gradient.flatten(1).norm(dim=1)
    if way == "exact":
        torch.testing.assert_close(predicted, slope, rtol=1e-5, atol=1e-5)
    else:  # another gradient than the number's, but it must lead uphill
        assert bool((slope > 0).all()), slope
    if way == "adjoint":
        torch.testing.assert_close(predicted, slope, rtol=0.2, atol=0)


def test_logits_of_an_attack_have_gradients() -> None:
    found = model(steps=2)
    x, _ = digits(2)
    at = x.requires_grad_()
    (gradient,) = torch.autograd.grad(found.logits(at)[:, 0].sum(), at)
    assert gradient.dtype == torch.float32
    assert float(gradient.abs().sum()) > 0


def test_digits_are_recognised() -> None:
    found = model(steps=6)
    x, y = digits(60)
    with torch.no_grad():
        scores = found.class_log_prob(x)
    assert float((scores.argmax(dim=1) == y).double().mean()) >= 0.95
    own = bits_per_dim(scores.gather(1, y[:, None])[:, 0], FACTS.shape, FACTS.levels).mean()
    assert 2.2 < float(own) < 2.8


@pytest.mark.slow
def test_the_whole_test_split() -> None:
    found = model()
    data = Digits(DigitsOptions(split="test"))
    x, y = digits(len(data.labels()))
    assert len(y) == 359
    with torch.no_grad():
        right = (found.logits(x).argmax(dim=1) == y).double().mean()
    assert float(right) >= 0.97


def test_noise_is_further_out_than_digits() -> None:
    found = model(steps=4)
    x, _ = digits(10)
    with torch.no_grad():
        inside = found.ood_score(x)
        outside = found.ood_score(torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert float(inside.max()) < float(outside.min())


@pytest.mark.parametrize("options", [{}, {"solver": "rk45"}, {"sample_by": "diffusion", "sampling": {"steps": 30}}])
def test_samples_are_of_the_class_asked_for(options: dict[str, Any]) -> None:
    found = model(**options)
    y = torch.arange(20) % 10
    images = found.sample(y, draws=draws_for(torch.arange(20), 0, "threat", "sample"))
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    with torch.no_grad():
        right = (model(steps=4).logits(images).argmax(dim=1) == y).double().mean()
    assert float(right) >= 0.8


def test_unknown_class() -> None:
    with pytest.raises(ModelError, match="knows classes 0 to 9, not 10"):
        model().sample(torch.tensor([10]), draws=draws_for(torch.arange(1), 0, "x"))


def test_a_denoiser_without_classes_is_refused(tmp_path: Path) -> None:
    tensors, header = load(EMBEDDED)
    changed = copy.deepcopy(header)
    changed["notes"]["denoiser"]["conditional"] = False
    path = tmp_path / "plain.safetensors"
    save(path, {n: t for n, t in tensors.items() if "classes" not in n}, changed)
    with pytest.raises(ModelError, match=r"plain.safetensors is a denoiser without a class embedding") as error:
        model(checkpoint=str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="conditional = false makes a denoiser without a class embedding"):
        model(trained=False, conditional=False)


def test_unknown_checkpoint() -> None:
    with pytest.raises(HarnessError, match="no built-in checkpoint 'digits'; did you mean 'digits-"):
        model(checkpoint="builtin:digits")


def test_the_embedded_file_is_small_and_says_what_made_it() -> None:
    assert EMBEDDED.stat().st_size < 4_000_000
    header = load(EMBEDDED)[1]
    assert header["notes"]["denoiser"]["levels"] == 17
    assert isinstance(model(), Sbgc)


@pytest.mark.slow
def test_the_papers_network_can_be_built() -> None:
    """DDPM++ with 4 blocks a resolution, 67.19 million weights in the paper; docs/sbgc.md says what differs."""
    pytest.importorskip("diffusers")
    blocks = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    config = {
        "block_out_channels": [128, 256, 256, 256],
        "layers_per_block": 4,
        "down_block_types": blocks,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(blocks)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": 256,
    }
    facts = DatasetFacts(name="cifar10", shape=(3, 32, 32), class_names=tuple("0123456789"), levels=256)
    options = SbgcOptions.model_validate({"network": {"kind": "diffusers", "config": config}, "null_class": False})
    found = build(options, ModelContext("m", facts, "cpu", Path()))
    assert sum(p.numel() for p in found.denoiser.parameters()) == 60_137_731
