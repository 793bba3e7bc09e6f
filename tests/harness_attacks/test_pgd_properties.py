"""What must hold of PGD for any images, budget and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PER_SAMPLE = ("loss_first", "loss_last", "success_step", "restart", "gradient_steps", "zero_gradient_steps")


@st.composite
def batches(draw: st.DrawFn, shape: tuple[int, ...] = (1, 4, 4)) -> tuple[Tensor, Tensor, Tensor]:
    """Images of a random kind (pixels at 0, 1 and between), labels of 4 classes and distinct ids."""
    n = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.rand(n, *shape, generator=generator)
    x = (x * draw(st.sampled_from([1.0, 1.6])) - draw(st.sampled_from([0.0, 0.3]))).clamp(0, 1)
    ids = torch.tensor(draw(st.lists(st.integers(0, 10**6), min_size=n, max_size=n, unique=True)))
    return x, torch.randint(4, (n,), generator=generator), ids


budgets = st.sampled_from([("linf", e) for e in (1e-6, 1 / 255, 0.03, 0.3, 1.0)] + [
    ("l2", e) for e in (1e-6, 0.1, 1.0, 4.0)
] + [("l1", e) for e in (1e-6, 0.1, 2.0, 16.0)])  # fmt: skip
optional = st.fixed_dictionaries(
    {},
    optional={
        "loss": st.sampled_from(["margin", "dlr"]),
        "schedule": st.just("cosine"),
        "random_start": st.just(False),
        "early_stop": st.just(False),
        "target": st.sampled_from(["random", "least-likely", 2]),
        "step_size": st.sampled_from(["1/255", 0.5]),
    },
)


@FAST
@given(batch=batches(), budget=budgets, options=optional, steps=st.integers(1, 8))
def test_every_image_lies_in_the_box_and_in_the_ball(
    attack: Any, smooth_net: Any, batch: Any, budget: tuple[str, float], options: dict[str, Any], steps: int
) -> None:
    x, y, ids = batch
    norm, eps = budget
    adversarial = attack(smooth_net, x, y, ids, norm=norm, eps=eps, steps=steps, **options)["adversarial"]
    assert adversarial.shape == x.shape
    assert adversarial.dtype == torch.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    moved = (adversarial.double() - x.double()).flatten(1)
    if norm == "linf":
        assert moved.abs().max() <= eps  # exactly: the bounds are float32 numbers inside the ball
    elif norm == "l1":
        assert (moved.abs().sum(dim=1) <= eps * (1 + 1e-9)).all()  # rounded towards the clean image
    else:
        assert (moved.square().sum(dim=1).sqrt() <= eps + 1e-7).all()


@FAST
@given(batch=batches(), budget=budgets, options=optional, data=st.data())
def test_a_sample_gets_the_same_bits_alone_and_in_any_batch(
    attack: Any, smooth_net: Any, batch: Any, budget: tuple[str, float], options: dict[str, Any], data: st.DataObject
) -> None:
    x, y, ids = batch
    norm, eps = budget
    settings = {"norm": norm, "eps": eps, "steps": 4, **options}
    if options.get("random_start", True):
        settings["restarts"] = 2
    whole = attack(smooth_net, x, y, ids, **settings)
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    size = data.draw(st.integers(1, len(x)))
    for part in order.split(size):
        alone = attack(smooth_net, x[part], y[part], ids[part], **settings)
        assert torch.equal(alone["adversarial"], whole["adversarial"][part])
        for name in PER_SAMPLE:
            torch.testing.assert_close(alone[name], whole[name][part], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_verdicts_on_a_real_network_do_not_depend_on_the_batch(
    attack: Any, digits_cnn: Any, digits: Any, norm: str
) -> None:
    """Convolutions round differently in different batches, so bits may differ; verdicts, on 99.5 % of samples, not."""
    x, y = digits
    ids = torch.arange(len(x))
    options = {"norm": norm, "eps": 0.1 if norm == "linf" else 0.6, "steps": 10}
    whole = digits_cnn.logits(attack(digits_cnn, x, y, **options)["adversarial"]).argmax(dim=1)
    for size in (1, 7):
        parts = [
            digits_cnn.logits(attack(digits_cnn, x[i], y[i], i, **options)["adversarial"]).argmax(dim=1)
            for i in (ids[:140] if size == 1 else ids).split(size)
        ]
        found = torch.cat(parts)
        assert ((found != y[: len(found)]) == (whole != y)[: len(found)]).double().mean() >= 0.995


@FAST
@given(batch=batches(), options=optional)
def test_the_seed_and_nothing_else_decides_the_noise(
    attack: Any, smooth_net: Any, batch: Any, options: dict[str, Any]
) -> None:
    x, y, ids = batch
    first = attack(smooth_net, x, y, ids, eps=0.1, steps=3, **options)
    torch.manual_seed(int(ids[0]))
    again = attack(smooth_net, x, y, ids, eps=0.1, steps=3, **options)
    assert torch.equal(first["adversarial"], again["adversarial"])


def test_another_seed_gives_another_start(attack: Any, smooth_net: Any) -> None:
    x = torch.full((8, 1, 4, 4), 0.5)
    y = smooth_net.logits(x).argmax(dim=1)
    first = attack(smooth_net, x, y, eps=0.001, steps=1, step_size=1e-6)["adversarial"]
    attack.seed = 1
    assert (
        (attack(smooth_net, x, y, eps=0.001, steps=1, step_size=1e-6)["adversarial"] != first).flatten(1).any(1).all()
    )


@FAST
@given(batch=batches(), norm=st.sampled_from(["linf", "l2"]), options=optional)
def test_a_budget_of_zero_gives_the_clean_verdict(
    attack: Any, smooth_net: Any, batch: Any, norm: str, options: dict[str, Any]
) -> None:
    x, y, ids = batch
    assert torch.equal(attack(smooth_net, x, y, ids, norm=norm, eps=0, **options)["adversarial"], x)


@FAST
@given(batch=batches(), budget=budgets, options=optional)
def test_more_restarts_never_raise_robust_accuracy(
    attack: Any, smooth_net: Any, batch: Any, budget: tuple[str, float], options: dict[str, Any]
) -> None:
    x, _, ids = batch
    options.pop("random_start", None)
    y = smooth_net.logits(x).argmax(dim=1)
    norm, eps = budget
    few, many = (
        smooth_net.logits(
            attack(smooth_net, x, y, ids, norm=norm, eps=eps, steps=2, restarts=n, **options)["adversarial"]
        ).argmax(dim=1) != y
        for n in (1, 4)
    )  # fmt: skip
    assert not (few & ~many).any()


class Fragile(nn.Module):
    """A network with parts whose state an attack might disturb; raises at its third evaluation if told to."""

    num_classes = 3

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
        )
        self.raises = raises
        self.calls = 0

    def logits(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.raises and self.calls == 3:
            raise RuntimeError("third call")
        out: Tensor = self.body(x)
        return out


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_model_the_batch_and_the_generators_are_as_before(attack: Any, norm: str, raises: bool) -> None:
    model = Fragile(raises).eval()
    model.body[3].train()  # a mode of its own inside a model in eval mode
    model.body[4].requires_grad_(False)
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    y = torch.zeros(10, dtype=torch.int64)

    def state() -> list[Any]:
        modes = [m.training for m in model.modules()]
        flags = [(p.requires_grad, p.grad is None, p.detach().clone()) for p in model.parameters()]
        return [modes, flags, [b.clone() for b in model.buffers()], torch.is_grad_enabled()]

    torch.manual_seed(0)
    before, generator = state(), torch.get_rng_state()
    if raises:
        with pytest.raises(RuntimeError, match="third call"):
            attack(model, x, y, norm=norm, eps=0.1, steps=5)
    else:
        attack(model, x, y, norm=norm, eps=0.1, steps=5)
    after = state()
    assert torch.equal(torch.get_rng_state(), generator)
    assert before[0] == after[0]
    assert before[3] == after[3]
    for (needs, none, value), (needs_now, none_now, value_now) in zip(before[1], after[1], strict=True):
        assert (needs, none) == (needs_now, none_now)
        assert torch.equal(value, value_now)
    assert torch.equal(model.body[0].weight.grad, torch.ones_like(model.body[0].weight))
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert torch.equal(x, kept)
    assert not x.requires_grad
