"""The inner maximisation of adversarial training, by projected gradient ascent."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from harness_torch.options import Adversarial


def perturb(model: nn.Module, x: Tensor, y: Tensor, attack: Adversarial, generator: Generator) -> Tensor:
    """Images near `x` with a high loss: PGD, Madry et al. 2018, *Towards Deep Learning Models Resistant to Adversarial
    Attacks*, section 2.1.

    The start is random, uniform in the ball; every step goes `step_size` along the sign of the gradient (l-inf) or
    along the gradient scaled to unit length (l2), and back into ball and [0, 1]. The model is in eval mode meanwhile,
    so that batch statistics are those of the images trained on, not of the attack's iterates.

    Args:
        x: (B, C, H, W) in [0, 1].
        y: int64 (B,).
        generator: a generator of the CPU, whatever device `x` is on.
    """
    eps = float(attack.eps)
    step = float(attack.step_size) if attack.step_size is not None else 2.5 * eps / attack.steps
    model.eval()
    delta = _start(x, eps, attack.norm, generator)
    for _ in range(attack.steps):
        moved = (x + delta).clamp(0, 1).requires_grad_()
        loss = F.cross_entropy(model(moved), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        if attack.norm == "linf":
            delta = (moved.detach() - x + step * gradient.sign()).clamp(-eps, eps)
        else:
            delta = _into_l2_ball(moved.detach() - x + step * gradient / _length(gradient), eps)
    return (x + delta).clamp(0, 1)


def _start(x: Tensor, eps: float, norm: str, generator: Generator) -> Tensor:
    if norm == "linf":
        return ((2 * torch.rand(x.shape, generator=generator) - 1) * eps).to(x.device)
    direction = torch.randn(x.shape, generator=generator)
    # Uniform in a D-ball: the radius is eps u^(1/D).
    radius = eps * torch.rand(x.shape[0], generator=generator) ** (1 / x[0].numel())
    return (direction / _length(direction) * radius[:, None, None, None]).to(x.device)


def _into_l2_ball(delta: Tensor, eps: float) -> Tensor:
    return delta * (eps / _length(delta)).clamp(max=1)


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return length.clamp_min(1e-12)[:, None, None, None]
