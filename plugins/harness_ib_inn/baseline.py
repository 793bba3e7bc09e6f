"""Feed-forward residual networks of the size of an IB-INN, to compare it with: factories for the model `torch`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class _Residual(nn.Module):
    """A basic residual block (He et al. 2016, figure 2), with a 1x1 convolution as shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def digits_resnet(num_classes: int = 10) -> nn.Sequential:
    """The residual network beside layout `digits`: 135,000 parameters; that layout has 134,000.

    Downsampled where the IB-INN is, to 4x4 and 2x2 pixels, then averaged. Takes (B, 1, 8, 8), gives (B, num_classes).
    """
    return nn.Sequential(
        _Residual(1, 32, stride=2),
        _Residual(32, 32),
        _Residual(32, 45, stride=2),
        _Residual(45, 45),
        _Residual(45, 45),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(45, num_classes),
    )
