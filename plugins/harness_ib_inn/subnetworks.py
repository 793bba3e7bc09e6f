"""The networks that predict the coefficients of couplings: ResNet's residual branches and a 1x1 projection, or linear
layers.

Their last layer starts at zero, so that an untrained coupling changes nothing. They are never inverted, so they may
hold batch normalisation; its statistics make the likelihood depend on the batch while training, never afterwards.
"""

from __future__ import annotations

from torch import nn


def pointwise(channels_in: int, channels_out: int, width: int) -> nn.Module:
    """Two 1x1 convolutions: mixes channels only."""
    return nn.Sequential(nn.Conv2d(channels_in, width, 1), nn.ReLU(), _projection(width, channels_out))


def basic(channels_in: int, channels_out: int, width: int, stride: int = 1, norm: bool = True) -> nn.Module:
    """3x3, 3x3, projection: the branch of a basic residual block (He et al. 2016)."""
    return nn.Sequential(
        *_convolution(channels_in, width, 3, 1, norm),
        *_convolution(width, width, 3, stride, norm),
        _projection(width, channels_out),
    )


def bottleneck(channels_in: int, channels_out: int, width: int, stride: int = 1, norm: bool = True) -> nn.Module:
    """1x1, 3x3, 1x1 to four times the width, projection: the branch of a bottleneck block of ResNet-50 (figure 9)."""
    return nn.Sequential(
        *_convolution(channels_in, width, 1, 1, norm),
        *_convolution(width, width, 3, stride, norm),
        *_convolution(width, 4 * width, 1, 1, norm),
        _projection(4 * width, channels_out),
    )


def entry(channels_in: int, channels_out: int, width: int, stride: int = 1, norm: bool = True) -> nn.Module:
    """7x7, projection: the first convolution of ResNet-50."""
    return nn.Sequential(*_convolution(channels_in, width, 7, stride, norm), _projection(width, channels_out))


def dense(channels_in: int, channels_out: int, width: int, size: tuple[int, int]) -> nn.Module:
    """Three linear layers over all places of feature maps of `size`, for maps as small as a convolution's reach."""
    places = size[0] * size[1]
    last = nn.Linear(width, channels_out * places)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels_in * places, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        last,
        nn.Unflatten(1, (channels_out, *size)),
    )


def _convolution(channels_in: int, channels_out: int, size: int, stride: int, norm: bool) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=not norm)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return (layer, *((nn.BatchNorm2d(channels_out),) if norm else ()), nn.ReLU())


def _projection(channels_in: int, channels_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels_in, channels_out, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
