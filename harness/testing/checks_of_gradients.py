"""Gradients of a model: finite, and equal to finite differences.

The gradient that an attack would use is compared with central differences along random unit directions,
(f(x + h v) - f(x - h v)) / 2h, where f is a random combination of a method's outputs. In float64, where the model can
be converted (a `torch.nn.Module` that computes in the type of its input), with h = 1e-6 and a tolerance of 0.1 % of
the typical slope; else in float32 with several steps h and a tolerance of 5 %. The median over directions counts, since
a difference that crosses a kink of a ReLU is off by chance, while a wrong gradient is wrong in every direction.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from harness.loading import BuiltModel
from harness.randomness import draws_for
from harness.testing.checks_of_models import ModelSubject

DIRECTIONS = 5
TOLERANCE = {torch.float64: 1e-3, torch.float32: 5e-2}
STEPS = {torch.float64: (1e-6,), torch.float32: (1e-2, 3e-2, 3e-3)}
_IMAGES = 2
_METHODS = {"Density": "log_prob", "ClassDensity": "class_log_prob", "Detector": "ood_score"}


class Score:
    """f: images -> (B,), a random combination of what one method of a model returns."""

    def __init__(self, built: BuiltModel, method: str, ids: Tensor, seed: int) -> None:
        self.built, self.method, self.ids, self.seed = built, method, ids, seed

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self.built.view(self.ids, self.seed, "attack"), self.method)(x)
        if out.ndim == 1:
            return out
        weights = draws_for(self.ids, 0, "gradient").normal("weights", 0, out.shape[1:], out.dtype)
        return (out * weights).sum(dim=1)

    def gradient(self, x: Tensor) -> Tensor:
        """Of the sum over the batch, with respect to the images."""
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            return self.built.view(self.ids, self.seed, "attack").input_gradient(self(x), x)


def check_gradients(s: ModelSubject) -> None:
    """Gradients with respect to the images are finite, and equal to finite differences."""
    methods = [name for capability, name in _METHODS.items() if capability in s.info.capabilities]
    if {"Classifier", "ClassDensity"} & s.info.capabilities:
        methods.insert(0, "logits")
    double = _in_double(s.built, s)
    for method in methods:
        x, _, ids = s.batch()
        score = Score(s.built, method, ids, s.seed)
        # Scores that only rank images, such as a quantile, need no gradient; what attacks climb does.
        if method == "logits" or _differentiable(score, x):
            _check_finite(score, x)
            _check_slopes(s, method, double)


def _check_finite(score: Score, x: Tensor) -> None:
    gradient = score.gradient(x)
    assert gradient.shape == x.shape, f"the gradient of {score.method}() has shape {tuple(gradient.shape)}"
    bad = ~gradient.flatten(1).isfinite().all(dim=1)
    where = "an all-black or all-white image" if not bad[:-2].any() else "ordinary images"
    assert not bad.any(), f"the gradient of {score.method}() is NaN or infinite for {int(bad.sum())} images ({where})"


def _check_slopes(s: ModelSubject, method: str, double: BuiltModel | None) -> None:
    x, _, ids = s.batch()
    x, ids = 0.1 + 0.8 * x[:_IMAGES], ids[:_IMAGES]
    if double is not None and _resolves(Score(double, method, ids, s.seed), x.double()):
        score, x = Score(double, method, ids, s.seed), x.double()
    else:
        score = Score(s.built, method, ids, s.seed)
    errors = [_slope_error(score, x, step) for step in STEPS[x.dtype]]
    tolerance = TOLERANCE[x.dtype]
    assert min(errors) <= tolerance, (
        f"the gradient of {method}() differs from finite differences by {min(errors):.2g} of the slope (tolerance"
        f" {tolerance:g} in {str(x.dtype).removeprefix('torch.')}): is there a detach(), a rounding, a straight-through"
        " or custom backward in the model? An attack would be led astray"
    )


def _slope_error(score: Score, x: Tensor, step: float) -> float:
    """Largest error over the images, median over directions, relative to the root mean square slope."""
    gradient = score.gradient(x)
    streams = draws_for(score.ids, 0, "gradient")
    exact, numeric = [], []
    with torch.no_grad():
        size = score(x).abs()
        for k in range(DIRECTIONS):
            v = streams.normal("direction", k, x.shape[1:], x.dtype)
            v = v / v.flatten(1).norm(dim=1)[:, None, None, None]
            exact.append((gradient * v).flatten(1).sum(dim=1))
            numeric.append((score(x + step * v) - score(x - step * v)) / (2 * step))
    slopes = torch.stack(exact), torch.stack(numeric)
    error = (slopes[0] - slopes[1]).abs().median(dim=0).values
    typical = torch.maximum(*(a.square().mean(dim=0).sqrt() for a in slopes))
    # What rounding of f itself does to the difference is no fault of the gradient.
    rounding = 10 * torch.finfo(x.dtype).eps * size / step
    relative = (error - rounding).clamp_min(0) / typical.clamp_min(1e-30)
    return float(torch.where(error <= rounding, 0.0, relative).max())


def _in_double(built: BuiltModel, s: ModelSubject) -> BuiltModel | None:
    """A copy of the model in float64, or None where it has none or does not run."""
    if not isinstance(built.model, nn.Module):
        return None
    try:
        twin = BuiltModel(copy.deepcopy(built.model).double(), built.capabilities)
        x, _, ids = s.batch()
        view = twin.view(ids, s.seed, "attack")
        method = "logits" if "Classifier" in view.capabilities else "log_prob"
        if "Density" in view.capabilities or "Classifier" in view.capabilities:
            with torch.no_grad():
                getattr(view, method)(x.double())
    except Exception:  # whatever a model raises when its types are changed, it is then checked in its own type
        return None
    return twin


def _resolves(score: Score, x: Tensor) -> bool:
    """Whether the model computes in float64 throughout: a step that float32 would round away is seen."""
    with torch.no_grad():
        try:
            direction = draws_for(score.ids, 0, "gradient").normal("resolution", 0, x.shape[1:], x.dtype)
            return not torch.equal(score(x), score(x + 1e-11 * direction))
        except Exception:  # as in _in_double
            return False


def _differentiable(score: Score, x: Tensor) -> bool:
    with torch.enable_grad():
        return bool(score(x.clone().requires_grad_()).requires_grad)
