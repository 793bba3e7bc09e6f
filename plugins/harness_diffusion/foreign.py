"""Networks of the library diffusers, as the denoiser calls its networks; the library is imported on use.

`UNet2DModel` (pixels; Ho et al. 2020) and `DiTTransformer2DModel` (Peebles & Xie 2023), from a config or from a local
folder in diffusers' format. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.errors import MissingDataError, ModelError, did_you_mean, one_line
from harness_diffusion.networks import Condition, LayerNorm
from harness_diffusion.options import DiffusersOptions

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_DIT = "DiTTransformer2DModel"


class Foreign(nn.Module):
    """A network of diffusers behind the signature of `harness_diffusion.networks`.

    Attention runs on plain matrix products unless the network is in training mode, because fused kernels have neither a
    forward mode nor a second derivative; `fused_attention = True` takes the fused ones all the same.

    Attributes:
        inner: the network itself.
        steps: step k of that many is the time (k + 1) / steps. In between steps the network is told a fraction.
    """

    fused_attention = False

    def __init__(self, inner: nn.Module, channels: int, steps: int) -> None:
        super().__init__()
        self.inner = inner
        self.channels = channels
        self.steps = steps
        for module in inner.modules():
            if isinstance(module, nn.GroupNorm):  # in forward mode it takes no other memory layout
                module.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
            elif type(module) is nn.LayerNorm:
                module.__class__ = LayerNorm

    def forward(self, x: Tensor, condition: Condition, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W); of a network that predicts variances too, the mean."""
        fused = self.training or self.fused_attention
        kernels = contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH)
        with kernels:
            out: Tensor = self.inner(x, condition.time * self.steps - 1, class_labels=y, return_dict=False)[0]
        return out[:, : self.channels]


def make_foreign(
    options: DiffusersOptions, shape: tuple[int, int, int], num_classes: int, null_class: bool, steps: int
) -> Foreign:
    """A network with initial weights from torch's global generator.

    Args:
        options: a `folder` in them is not looked at, see `read_folder`.
        shape: (C, H, W) of the images.
        num_classes: 0 for a network that is told no class.
        steps: of the schedule that it was, or will be, trained on.

    Raises:
        ModelError: diffusers is not installed; the config does not fit the class or the images; one line.
    """
    kind = _class(options.architecture)
    config = {**_facts(options.architecture, shape, num_classes, null_class), **options.config}
    known = [name for name in inspect.signature(kind).parameters if name != "self"]
    for name in config:
        if name not in known:
            raise ModelError(f"network {options.architecture}: no argument '{name}'{did_you_mean(name, known)}")
    _check(options.architecture, config, shape, num_classes, null_class)
    try:
        inner: nn.Module = kind(**config)
    except (ValueError, TypeError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"network {options.architecture}: {one_line(error)[:300]}") from error
    for module in inner.modules():
        # Label dropout is the training's; the library's own would come on top of it.
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return Foreign(inner, shape[0], steps)


def read_folder(folder: Path) -> tuple[DiffusersOptions, Path]:
    """Options that hold the config of a local folder in diffusers' format, and the folder's weights.

    Raises:
        HarnessError: no such folder or files; another class than those above.
    """
    config_file, weights = folder / "config.json", folder / _WEIGHTS
    if not config_file.is_file():
        parts = [p.parent.name for p in sorted(folder.glob("*/config.json"))]
        hint = f"; it has {', '.join(parts)}, of which one is the network" if parts else ""
        raise MissingDataError(f"folder {folder} has no config.json{hint}")
    if not weights.is_file():
        raise MissingDataError(f"folder {folder} has no {_WEIGHTS}")
    try:
        written: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not JSON: {error}") from error
    name = written.get("_class_name", "UNet2DModel")
    if name == "Transformer2DModel" and written.get("norm_type") == "ada_norm_zero":
        name = _DIT  # what DiT was called before it had a class of its own
    if name not in ("UNet2DModel", _DIT):
        raise ModelError(f"{config_file} is of a {name}; known are UNet2DModel and {_DIT}")
    known = inspect.signature(_class(name)).parameters
    # Arguments that the class has lost since are harmless where they were off.
    config = {k: v for k, v in written.items() if not k.startswith("_") and (k in known or v not in (None, False))}
    return DiffusersOptions(architecture=name, config=config), weights


def _class(name: str) -> Any:
    try:
        import diffusers

        return getattr(diffusers, name)
    except ImportError as error:
        raise ModelError(
            f"network {name} needs the library diffusers: pip install 'harness-robustness[diffusion]'"
        ) from error
    except RuntimeError as error:  # diffusers found, but not what it needs
        raise ModelError(f"network {name}: diffusers does not import: {one_line(error)[:300]}") from error


def _facts(architecture: str, shape: tuple[int, int, int], num_classes: int, null_class: bool) -> dict[str, Any]:
    """The arguments that the data decide."""
    channels, height, width = shape
    if architecture == _DIT:
        return {
            "sample_size": height,
            "in_channels": channels,
            "out_channels": channels,
            "num_embeds_ada_norm": num_classes,  # its table has one row more, for the null class
        }
    rows = num_classes + (null_class and num_classes > 0)
    return {
        "sample_size": (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "num_class_embeds": rows or None,
    }


def _check(
    architecture: str, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int, null_class: bool
) -> None:
    if config["in_channels"] != shape[0]:
        raise ModelError(f"network {architecture} takes {config['in_channels']} channels, the images have {shape[0]}")
    if architecture == _DIT:
        if not num_classes:
            raise ModelError(f"network {architecture} is always told a class: leave out conditional = false")
        if shape[1] != shape[2] or shape[1] != config["sample_size"]:
            raise ModelError(
                f"network {architecture} takes {config['sample_size']}x{config['sample_size']} images, these have"
                f" {shape[1]}x{shape[2]}"
            )
        rows, wanted = config["num_embeds_ada_norm"], num_classes
    else:
        rows, wanted = config["num_class_embeds"] or 0, num_classes + (null_class and num_classes > 0)
    if rows != wanted:
        raise ModelError(
            f"network {architecture} has {rows} class embeddings, {wanted} are wanted (classes {num_classes},"
            f" null_class {str(null_class).lower()}; options conditional and null_class say which)"
        )
