"""Frost: a crop of a photographed texture, from the imagecorruptions package, added to the image."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import MissingDataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters

FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")
INSTALL = "pip install --no-deps imagecorruptions"
GREY_OF_RGB = (0.2989, 0.5870, 0.1140)


def frost_problem() -> str:
    """Why frost cannot be made here, with what to do about it; "" where it can."""
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or not spec.submodule_search_locations:
        return f"frost needs the textures of the package imagecorruptions, which is not installed: {INSTALL}"
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        return f"frost: {', '.join(missing)} missing in {folder}: {INSTALL}==1.1.2"
    return ""


@functools.cache
def texture(number: int) -> Tensor:
    """The texture `number` (0 to 5), float32 (3, H, W), red, green, blue in [0, 255].

    Raises:
        MissingDataError: the package is not installed, or lacks the file.
    """
    import numpy as np
    import torch
    from PIL import Image

    problem = frost_problem()
    if problem:
        raise MissingDataError(problem)
    with Image.open(texture_files()[number]) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def texture_files() -> tuple[Path, ...]:
    """The files of the six textures; call it where `frost_problem` finds none."""
    # Found, not imported: its import fails on current versions of its dependencies.
    spec = importlib.util.find_spec("imagecorruptions")
    assert spec is not None
    assert spec.submodule_search_locations
    return tuple(Path(spec.submodule_search_locations[0]) / "frost" / name for name in FILES)


class Textures(NamedTuple):
    """All six, scaled and laid end to end: pixel (y, x) of texture i is at ``start[i] + y * width[i] + x``.

    Attributes:
        pixels: uint8 (P, 3), red, green, blue.
        start, height, width: int64 (6,).
    """

    pixels: Tensor
    start: Tensor
    height: Tensor
    width: Tensor


def textures(height: int, width: int, scale: float, device: torch.device) -> Textures:
    """The textures for images of a size: scaled by `scale`, or by more where one would not be 1.1 times the image."""
    factors = []
    for number in range(len(FILES)):
        rows, columns = texture(number).shape[1:]
        factors.append(max(scale, 1.1 * (height / rows), 1.1 * (width / columns)))
    return _scaled(tuple(factors), device)


@functools.lru_cache(maxsize=2)
def _scaled(factors: tuple[float, ...], device: torch.device) -> Textures:
    import torch
    from torch.nn.functional import interpolate

    pixels = []
    for number, factor in enumerate(factors):
        image = texture(number)[None]
        if factor >= 1:
            size = [-int(-side * factor // 1) for side in image.shape[2:]]
            image = interpolate(image, size=size, mode="bicubic", align_corners=False)
        else:
            # Without a low-pass filter, as OpenCV shrinks: what CIFAR-10-C was made with.
            image = interpolate(
                image, scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )
        pixels.append(image[0].round_().clamp_(0, 255))
    sizes = torch.tensor([image.shape[1:] for image in pixels])
    areas = sizes.prod(dim=1)
    flat = torch.cat([image.flatten(1).T for image in pixels]).to(torch.uint8)
    start = areas.cumsum(0) - areas
    return Textures(flat.to(device), start.to(device), sizes[:, 0].to(device), sizes[:, 1].to(device))


def draw_frost(draws: Draws, number: int, _shape: tuple[int, ...], _parameters: Parameters) -> Drawn:
    """``texture``, ``top`` and ``left`` (n,), uniform on [0, 1): which texture, and where the crop lies in it."""
    return {name: draws.uniform(name, number, ()) for name in ("texture", "top", "left")}


def frost(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """a * x + b * texture; `parameters`: a, b and the scale of the textures.

    Args:
        compat: only the first five textures are used, the last row and column of crops are never reached, and for one
            channel red and blue are exchanged in the weights of grey: as in the original.

    Images that do not have three channels get the grey value of the texture in each.

    Raises:
        MissingDataError: the textures are not installed.
    """
    import torch

    a, b, scale = parameters
    height, width = x.shape[2:]
    bank = textures(height, width, scale, x.device)
    which = (drawn["texture"] * (5 if compat else 6)).long()
    spare = 0 if compat else 1
    top = (drawn["top"] * (bank.height[which] - height + spare)).long()
    left = (drawn["left"] * (bank.width[which] - width + spare)).long()
    # A row of a crop is a run of the bank, copied whole: (n, H, W, 3).
    runs = bank.pixels.as_strided((len(bank.pixels) - width + 1, 3 * width), (3, 1))
    rows = top[:, None] + torch.arange(height, device=x.device)
    first = (bank.start[which] + left)[:, None] + rows * bank.width[which][:, None]
    crop = runs.index_select(0, first.flatten()).view(len(x), height, width, 3)
    crop = crop.permute(0, 3, 1, 2).contiguous().to(x.dtype).div_(255)
    if x.shape[1] != 3:
        weights = x.new_tensor(GREY_OF_RGB[::-1] if compat else GREY_OF_RGB)
        crop = (crop * weights[:, None, None]).sum(dim=1, keepdim=True)
    return (a * x).add_(crop, alpha=b).clamp_(0, 1)
