"""Small networks that the harness trains or tests with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def digits_cnn(num_classes: int = 10) -> nn.Sequential:
    """A small CNN for 8x8 images of one channel: 39,000 parameters, no state beside its weights.

    Takes (B, 1, 8, 8), gives (B, num_classes).
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, num_classes),
    )


def mnist_cnn(num_classes: int = 10) -> nn.Sequential:
    """A small CNN for 28x28 images of one channel: 59,000 parameters, no state beside its weights.

    Two strided convolutions and a hidden layer, as Wong et al. 2020, *Fast is better than free*, train on MNIST, the
    hidden layer smaller. Takes (B, 1, 28, 28), gives (B, num_classes).
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 32),
        nn.ReLU(),
        nn.Linear(32, num_classes),
    )


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around which a parameter-free shortcut goes (option A)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.extra = planes - in_planes

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        # Option A: subsample the image, and pad the new channels with zeros, half before and half after.
        before = self.extra // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: He et al. 2016, *Deep Residual Learning for Image Recognition*, section 4.2.

    6n + 2 layers: a 3x3 convolution, 2n layers each with 16, 32 and 64 planes at 32, 16 and 8 pixels, global average
    pooling and a linear layer; shortcuts of option A. Takes (B, 3, 32, 32), gives (B, num_classes).
    """

    def __init__(self, n: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, n)
        self.layer2 = _stage(16, 32, 2, n)
        self.layer3 = _stage(32, 64, 2, n)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = out.mean(dim=(2, 3))
        logits: Tensor = self.linear(out)
        return logits


def cifar_resnet20(num_classes: int = 10) -> CifarResNet:
    """The ResNet-20 of He et al. 2016, section 4.2: 0.27 million parameters."""
    return CifarResNet(3, num_classes)


def _stage(in_planes: int, planes: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(in_planes, planes, stride), *(_BasicBlock(planes, planes, 1) for _ in range(blocks - 1))
    )
