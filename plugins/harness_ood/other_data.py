"""Images of other data sets, brought to the shape and the grey levels of the data that a model knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.datasets import DatasetFacts, DatasetSlice
from harness.errors import ThreatError
from harness.threats import ThreatContext
from harness_ood.sets import on_levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Resize = Literal["none", "nearest", "bilinear", "bicubic"]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class OtherData:
    """The images of another data set, as an out-of-distribution set.

    Image k of the set is the k-th of `images`.

    Attributes:
        name: of the set, in the rows.
        images: the data set's samples.
        data: the data that they are brought to.
        resize: how, where sizes differ.
    """

    name: str
    images: DatasetSlice
    data: DatasetFacts
    resize: Resize

    def __len__(self) -> int:
        return len(self.images)

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the data set itself calls its images of these numbers."""
        return self.images.ids[numbers]

    def load(self, numbers: NDArray[np.int64], device: Any) -> Tensor:
        """float32 (B, C, H, W): the images of these numbers, converted."""
        x, _ = self.images.load(self.ids(numbers))
        return self._converted(x.to(device))

    def check_apart(self, own: DatasetSlice) -> None:
        """Refuse images of the suite's own data set among these.

        Raises:
            ThreatError: there are some.
        """
        import numpy as np

        same = self.images.dataset.digest() == own.dataset.digest()
        shared = np.intersect1d(self.images.ids, own.ids).size if same else 0
        if shared:
            raise ThreatError(
                f"set '{self.name}': {shared} of its {len(self)} images are the suite's own: they are not"
                " out-of-distribution; name another data set, or other classes of this one on each side"
            )

    @property
    def conversion(self) -> str:
        """What is done to the images, in words; empty where nothing is."""
        theirs, ours = self.images.facts, self.data
        steps = []
        if theirs.shape[0] != ours.shape[0]:
            steps.append("grey repeated to RGB" if ours.shape[0] == 3 else "RGB to grey (ITU-R BT.601)")
        if theirs.shape[1:] != ours.shape[1:]:
            steps.append(f"resized {self.resize} {_size(theirs.shape)} to {_size(ours.shape)}")
        if theirs.levels != ours.levels:
            steps.append(f"rounded from {theirs.levels} to {ours.levels} grey levels")
        return ", ".join(steps)

    def _converted(self, x: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        if not self.conversion:
            return x
        (channels, *size), x = self.data.shape, x.double()
        if x.shape[1] == 1 and channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and channels == 1:
            x = (x * torch.tensor(_LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(dim=1, keepdim=True)
        if x.shape[2:] != torch.Size(size):
            if self.resize == "nearest":
                x = F.interpolate(x, size, mode="nearest-exact")
            else:
                x = F.interpolate(x, size, mode=self.resize, antialias=True)
        return on_levels(x, self.data.levels)


def open_other(table: Mapping[str, Any], resize: Resize, context: ThreatContext) -> OtherData:
    """The set that a table ``{name = "mnist", split = "test", set = "MNIST"}`` asks for.

    Raises:
        HarnessError: the data set cannot be opened, or its images have another size and nobody says how to resize, or
            a number of channels that does not convert.
    """
    table = dict(table)
    label = str(table.pop("set", table["name"]))
    images = context.open_dataset(table)
    other = OtherData(label, images, context.data, resize)
    theirs, ours = images.facts.shape, context.data.shape
    if theirs[0] != ours[0] and {theirs[0], ours[0]} != {1, 3}:
        raise ThreatError(
            f"set '{label}': its images have {theirs[0]} channels, the data {ours[0]}; only 1 and 3 convert"
        )
    if theirs[1:] != ours[1:] and resize == "none":
        raise ThreatError(
            f"set '{label}': its images are {_size(theirs)}, those of data set '{context.data.name}' {_size(ours)};"
            ' set resize ("bilinear", "bicubic" or "nearest") or leave it out'
        )
    return other


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]}x{shape[2]}"
