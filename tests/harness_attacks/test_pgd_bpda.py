"""A step without a gradient makes a network look robust; a declared surrogate shows that it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness_torch.model import build as build_torch
from harness_torch.options import TorchOptions
from torch import Tensor

from harness.bpda import straight_through
from harness.datasets import DatasetFacts
from harness.errors import HarnessError, ThreatError
from harness.models import ModelContext, prepare

LEVELS = torch.linspace(0.03, 0.97, 16)


def quantise(x: Tensor) -> Tensor:
    return torch.round(x * 16) / 16


def jpeg_like(x: Tensor) -> Tensor:
    """Rounds the coefficients of a cosine transform of the 8x8 image, the fine ones more coarsely."""
    n = torch.arange(8.0)
    basis = torch.cos((2 * n[None] + 1) * n[:, None] * torch.pi / 16) * 0.5
    basis[0] /= 2**0.5
    table = 0.04 * (1 + n[:, None] + n[None])
    coefficients = torch.round(basis @ x @ basis.T / table) * table
    return (basis.T @ coefficients @ basis).clamp(0, 1)


def thermometer(x: Tensor) -> Tensor:
    """How many of 16 levels a pixel exceeds, as a share: through booleans, so there is no graph at all."""
    return (x[..., None] > LEVELS).float().mean(dim=-1)


STEPS = {"quantisation": quantise, "jpeg": jpeg_like, "thermometer": thermometer}


@pytest.mark.parametrize("step", STEPS)
def test_with_a_surrogate_the_network_is_as_weak_as_without_the_step(
    attack: Any, scores: Any, plain_cnn: Any, digits: Any, step: str
) -> None:
    x, y = digits[0][:200], digits[1][:200]
    options = {"eps": 0.12, "steps": 20}

    def standing(model: Any) -> float:
        images = attack(model, x, y, **options)["adversarial"]
        return float((model.logits(images).argmax(dim=1) == y).double().mean())

    defended = scores(lambda x: plain_cnn.logits(STEPS[step](x)), 10)
    if step == "thermometer":
        with pytest.raises(ThreatError, match="gives no gradient"):
            attack(defended, x, y, **options)
    else:
        columns = attack(defended, x, y, **options)
        stuck = columns["gradient_steps"] > 0
        assert torch.equal(columns["zero_gradient_steps"][stuck], columns["gradient_steps"][stuck])
        assert standing(defended) > 0.6
    adaptive = scores(lambda x: plain_cnn.logits(straight_through(STEPS[step])(x)), 10)
    undefended = standing(plain_cnn)
    assert undefended < 0.2
    noise = 1.96 * (undefended * (1 - undefended) / len(x)) ** 0.5
    assert standing(adaptive) <= undefended + noise


FACTORY = """
import torch
from torch import nn

class Round(nn.Module):
    def forward(self, x):
        return torch.round(x * 4) / 4

def quantised():
    return nn.Sequential(nn.Sequential(Round()), nn.Flatten(), nn.Linear(64, 10))

def steep(x):
    return 3 * x
"""


def make(folder: Path, **options: Any) -> Any:
    facts = DatasetFacts("digits", (1, 8, 8), 17, tuple("0123456789"))
    table = {"factory": "my_steps_for_test:quantised", **options}
    return prepare(build_torch(TorchOptions(**table), ModelContext("mine", facts, "cpu", folder)), "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_steps_for_test.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_torch_model_declares_surrogates_by_name(folder: Path, digits: Any) -> None:
    x = digits[0][:9]
    plain, identity = make(folder), make(folder, surrogates={"0.0": "identity"})
    steep = make(folder, surrogates={"0": "my_steps_for_test:steep"})
    gradients = []
    for model in (plain, identity, steep):
        leaf = x.clone().requires_grad_()
        logits = model.logits(leaf)
        assert torch.equal(logits, plain.logits(x))
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
    assert (gradients[0] == 0).all()
    assert (gradients[1] != 0).any()
    torch.testing.assert_close(gradients[2], 3 * gradients[1])
    assert steep.source_modules == ("my_steps_for_test", "my_steps_for_test")


@pytest.mark.parametrize(
    ("surrogates", "message"),
    [
        ({"0.1": "identity"}, "surrogates: the module has no submodule '0.1'"),
        ({"0.0": "smooth"}, 'surrogates: \'smooth\' is neither "identity" nor "package.module:callable"'),
        ({"0.0": "my_steps_for_test:stepp"}, "surrogate 'my_steps_for_test:stepp': my_steps_for_test has no attribute"),
    ],
)
def test_a_wrong_surrogate_is_one_line(folder: Path, surrogates: dict[str, str], message: str) -> None:
    with pytest.raises(HarnessError) as caught:
        make(folder, surrogates=surrogates)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
