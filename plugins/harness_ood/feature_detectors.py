"""Detectors in feature space, made of the features of held-out images; all in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ThreatError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import Reference

NEIGHBOUR = 10
_AFFINE = 1e-3  # largest relative error of logits as an affine function of the features, before ViM is refused


@dataclass(frozen=True)
class Mahalanobis:
    """Squared distance from the nearest class mean under a covariance shared by the classes (Lee et al. 2018, eq. 2).

    The covariance of the held-out features about their class means, shrunk towards a multiple of the identity by the
    intensity of Ledoit & Wolf (2004): dead or more features than images would make it singular.

    Attributes:
        whitening: (F, F), inverse of the covariance's Cholesky factor.
        means: (classes, F) class means, whitened.
        shrinkage: weight of the identity, in [0, 1].
    """

    whitening: Tensor
    means: Tensor
    shrinkage: float

    @classmethod
    def of(cls, held_out: Reference, like: Tensor) -> Mahalanobis:
        """From columns `features` and `label`, on the device of `like`.

        Raises:
            ThreatError: features that do not vary within the classes.
        """
        import torch

        features = _on(held_out["features"], like)
        classes, code = torch.unique(torch.as_tensor(held_out["label"], device=like.device), return_inverse=True)
        sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, code, features)
        means = sums / code.bincount()[:, None]
        covariance, shrinkage = ledoit_wolf(features - means[code])
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        factor = torch.linalg.cholesky(covariance)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        return cls(whitening, means @ whitening.T, shrinkage)

    def __call__(self, features: Tensor) -> Tensor:
        import torch

        whitened = features @ self.whitening.T
        mode = "donot_use_mm_for_euclid_dist"  # exact near zero, and no neighbour in the batch has a say
        return torch.cdist(whitened, self.means, compute_mode=mode).amin(dim=1).square()


def ledoit_wolf(centred: Tensor) -> tuple[Tensor, float]:
    """Covariance (F, F) of centred rows (n, F), (1 - s) S + s tr(S)/F I, and the intensity s that is optimal for it.

    Ledoit & Wolf, *A well-conditioned estimator for large-dimensional covariance matrices*, JMVA 88 (2004), lemma 3.3.

    Raises:
        ThreatError: nothing varies.
    """
    import torch

    n, size = centred.shape
    sample = centred.T @ centred / n
    scale = sample.trace() / size
    if not bool(scale > 0):
        raise ThreatError("the features of held-out images do not vary: does option features name the right layer?")
    identity = torch.eye(size, dtype=sample.dtype, device=sample.device)
    distance = (sample - scale * identity).square().sum()
    squares = centred.square()
    error = (squares.T @ squares / n - sample.square()).sum() / n
    share = 0.0 if float(distance) == 0 else min(max(float(error / distance), 0.0), 1.0)
    return (1 - share) * sample + share * scale * identity, share


@dataclass(frozen=True)
class NearestNeighbours:
    """Distance of l2-normalised features from the `NEIGHBOUR`-th nearest of held-out images (Sun et al. 2022, eq. 1).

    Ten is their choice for 1 % of ImageNet's training images.
    """

    bank: Tensor

    @classmethod
    def of(cls, held_out: Reference, like: Tensor) -> NearestNeighbours:
        """From column `features`, on the device of `like`.

        Raises:
            ThreatError: too few images.
        """
        features = _on(held_out["features"], like)
        if len(features) < NEIGHBOUR:
            raise ThreatError(f"score 'knn' needs {NEIGHBOUR} held-out images, there are {len(features)}")
        return cls(_normalised(features))

    def __call__(self, features: Tensor) -> Tensor:
        import torch

        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(_normalised(features), self.bank, compute_mode=mode)
        return distances.kthvalue(NEIGHBOUR, dim=1).values


@dataclass(frozen=True)
class ViM:
    """Virtual-logit matching (Wang et al. 2022, section 4.2): alpha ||residual of the features|| - logsumexp(logits).

    The residual is what lies outside the principal space of the features about the origin at which all logits are
    equal to zero as far as can be, o = -W^+ b. W and b, the last layer, are read off the held-out features and logits.
    The principal space has 1,000 dimensions for 2,048 features and more, 512 for 768 and more, else half as many as
    there are features (the authors' choices). alpha makes the mean virtual logit that of the largest logits.

    Attributes:
        origin: (F,).
        residual: (F, F - dimensions), orthonormal columns that span the complement of the principal space.
        alpha: scale of the virtual logit.
    """

    origin: Tensor
    residual: Tensor
    alpha: float

    @classmethod
    def of(cls, held_out: Reference, like: Tensor) -> ViM:
        """From columns `features` and `logits`, on the device of `like`.

        Raises:
            ThreatError: too few images to find the last layer, or the features are not what goes into it.
        """
        import torch

        features, logits = _on(held_out["features"], like), _on(held_out["logits"], like)
        origin = _origin(features, logits)
        size = features.shape[1]
        dimensions = 1000 if size >= 2048 else 512 if size >= 768 else size // 2
        centred = features - origin
        _, directions = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
        residual = directions[:, : size - dimensions].contiguous()
        length = (centred @ residual).norm(dim=1).mean()
        if not bool(length > 0):
            raise ThreatError("score 'vim': held-out features have no residual outside their principal space")
        return cls(origin, residual, float(logits.amax(dim=1).mean() / length))

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        length: Tensor = ((features - self.origin) @ self.residual).norm(dim=1)
        return self.alpha * length - logits.logsumexp(dim=1)


def _origin(features: Tensor, logits: Tensor) -> Tensor:
    """-W^+ b of the last layer, by least squares; where a feature never varies, W does not use it."""
    import torch

    n, size = features.shape
    if n <= size + 1:
        raise ThreatError(
            f"score 'vim' needs more held-out images than features ({n} for {size}): raise the limit of suite.heldout"
        )
    mean = features.mean(dim=0)
    # By the pseudo-inverse: dead features make the system singular, and plain least squares on a GPU refuses that.
    weights = torch.linalg.pinv(features - mean, rtol=1e-10) @ (logits - logits.mean(dim=0))
    bias = logits.mean(dim=0) - mean @ weights
    error = (features @ weights + bias - logits).norm() / (logits - logits.mean(dim=0)).norm().clamp_min(1e-300)
    if not bool(error < _AFFINE):
        raise ThreatError(
            "score 'vim': the logits are no affine function of the features (relative error"
            f" {float(error):.2g}): let option features name the layer before the last linear one"
        )
    origin: Tensor = -bias @ torch.linalg.pinv(weights)
    return origin


def _normalised(features: Tensor) -> Tensor:
    length: Tensor = features.norm(dim=1, keepdim=True)
    return features / length.clamp_min(1e-12)


def _on(column: Any, like: Tensor) -> Tensor:
    """A held-out column as float64 on the device of `like`."""
    import torch

    return torch.as_tensor(column, dtype=torch.float64, device=like.device)
