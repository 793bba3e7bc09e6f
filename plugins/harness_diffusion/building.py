"""From options to a denoiser, and from a checkpoint to the same one again, whichever diffusion plugin wrote it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness import checkpoints
from harness.errors import MissingDataError, ModelError, did_you_mean, one_line
from harness.models import ModelContext
from harness_diffusion import processes
from harness_diffusion.denoiser import Denoiser
from harness_diffusion.foreign import Foreign, make_foreign, read_folder
from harness_diffusion.networks import MLP, UNet
from harness_diffusion.options import Blueprint, DenoiserOptions, Design, DiffusersOptions, MLPOptions

BUILTIN = "builtin:"
NOTE = "denoiser"
"""Where, under `notes`, the header of a checkpoint says what it holds."""
_STEPS = 1000  # into which diffusers' networks take time to be divided, where the process has no steps of its own
_OWN_CHECKPOINTS = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True)
class Source:
    """What a denoiser is made from.

    Attributes:
        blueprint: what to build; it names no folder.
        weights: the checkpoint, or the weights of a folder in diffusers' format, if there are some.
    """

    blueprint: Blueprint
    weights: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it is made from, for the model's digest."""
        if self.weights is None:
            return ()
        configuration = self.weights.with_name("config.json")  # beside weights in diffusers' format
        return (self.weights, configuration) if configuration.is_file() else (self.weights,)

    def make(self, seed: int = 0) -> Denoiser:
        """A new denoiser on the CPU, in eval mode: initial weights from `seed`, then filled from the files.

        Raises:
            HarnessError: one line: a file is missing or unreadable, weights do not fit, diffusers is not installed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser = make_denoiser(self.blueprint)
        if self.weights is not None:
            tensors, _ = checkpoints.load(self.weights)
            fill(holder(denoiser), tensors, f"checkpoint {self.weights}")
        return denoiser.eval()


def find_source(options: DenoiserOptions, context: ModelContext, builtin: Path = _OWN_CHECKPOINTS) -> Source:
    """What the options name, for the data of `context`.

    Args:
        builtin: the folder behind ``builtin:``, searched before this package's own.

    Raises:
        HarnessError: one line: no such checkpoint, or it was made for other data.
    """
    facts = context.data
    if options.checkpoint is None:
        design = {name: getattr(options, name) for name in Design.model_fields}
        weights = None
        if isinstance(options.network, DiffusersOptions) and options.network.folder is not None:
            folder = find_path(options.network.folder, context.folder)
            design["network"], weights = read_folder(folder)
        blueprint = Blueprint(**design, shape=facts.shape, num_classes=facts.num_classes, levels=facts.levels)
        return Source(blueprint, weights)
    weights = find_checkpoint(options.checkpoint, context.folder, builtin)
    blueprint = read_blueprint(weights)
    if tuple(blueprint.shape) != tuple(facts.shape):
        raise ModelError(
            f"checkpoint {weights} is for images of shape {tuple(blueprint.shape)}, those of '{facts.name}' are"
            f" {tuple(facts.shape)}"
        )
    if blueprint.levels != facts.levels:
        raise ModelError(
            f"checkpoint {weights} is of images of {blueprint.levels} grey levels, those of '{facts.name}' have"
            f" {facts.levels}"
        )
    if blueprint.conditional and blueprint.num_classes < facts.num_classes:
        raise ModelError(
            f"checkpoint {weights} knows {blueprint.num_classes} classes, '{facts.name}' has {facts.num_classes}"
        )
    for name in Design.model_fields:
        if name in options.model_fields_set and getattr(options, name) != getattr(blueprint, name):
            raise ModelError(f"checkpoint {weights} was made with another `{name}`: leave it out, the file says it")
    return Source(blueprint, weights)


def make_denoiser(blueprint: Blueprint) -> Denoiser:
    """A denoiser with initial weights from torch's global generator."""
    classes = blueprint.num_classes if blueprint.conditional else 0
    process = processes.from_header(blueprint.process.model_dump())
    return Denoiser(
        _make_network(blueprint, process, classes),
        process,
        blueprint.parameterisation,
        classes,
        blueprint.null_class,
        blueprint.smallest_time,
    )


def holder(denoiser: Denoiser) -> nn.Module:
    """The module whose weights a checkpoint holds: the network, or what is inside one of diffusers."""
    return denoiser.network.inner if isinstance(denoiser.network, Foreign) else denoiser.network


def _make_network(blueprint: Blueprint, process: processes.Process, classes: int) -> nn.Module:
    options = blueprint.network
    if isinstance(options, DiffusersOptions):
        steps = process.steps if isinstance(process, processes.DDPM) else _STEPS
        return make_foreign(options, blueprint.shape, classes, blueprint.null_class, steps)
    rows = classes + (blueprint.null_class and classes > 0)
    arguments = options.model_dump(exclude={"kind"})
    if isinstance(options, MLPOptions):
        return MLP(blueprint.shape, rows, **arguments)
    halvings = 2 ** (len(options.channels) - 1)
    if any(side % halvings for side in blueprint.shape[1:]):
        raise ModelError(
            f"network unet: {len(options.channels)} resolutions need sides divisible by {halvings}, the images have"
            f" {blueprint.shape[1]}x{blueprint.shape[2]}"
        )
    return UNet(blueprint.shape, rows, **arguments)


def note(blueprint: Blueprint) -> dict[str, Any]:
    """What the header of a checkpoint says of the denoiser, as JSON."""
    return blueprint.model_dump(mode="json")


def read_blueprint(path: Path) -> Blueprint:
    """What a checkpoint's header says of the denoiser in it.

    Raises:
        HarnessError: no such file, or no diffusion plugin wrote it.
    """
    header = checkpoints.read_header(path)
    written = header.get("notes", {}).get(NOTE)
    if written is None:
        by = f"model '{header['plugin']}' wrote it" if "plugin" in header else "the harness did not write it"
        raise ModelError(f"checkpoint {path} holds no denoiser ({by})")
    try:
        return Blueprint.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"checkpoint {path}: notes.{NOTE}.{place}: {first['msg']}") from error


def find_checkpoint(name: str, folder: Path, builtin: Path = _OWN_CHECKPOINTS) -> Path:
    """The file behind a `checkpoint` option: ``builtin:NAME``, or a path that starts at `folder`.

    Raises:
        MissingDataError: no such file, or no built-in checkpoint of this name.
    """
    if not name.startswith(BUILTIN):
        path = find_path(name, folder)
        if not path.is_file():
            raise MissingDataError(f"checkpoint {path} does not exist")
        return path
    found = {p.stem: p for place in (_OWN_CHECKPOINTS, builtin) for p in sorted(place.glob("*.safetensors"))}
    wanted = name.removeprefix(BUILTIN)
    if wanted not in found:
        near = did_you_mean(wanted, found)
        raise MissingDataError(f"no built-in checkpoint '{wanted}'{near} (there are: {', '.join(found)})")
    return found[wanted]


def find_path(name: str, folder: Path) -> Path:
    """`name` as a path that starts at `folder`; ``$HARNESS_DATA`` and other environment variables are filled in.

    Raises:
        MissingDataError: no such variable.
    """
    filled = os.path.expandvars(name)
    unset = re.search(r"\$(\w+|\{\w+\})", filled)
    if unset:
        raise MissingDataError(f"{name}: the environment variable {unset.group(1).strip('{}')} is not set")
    return folder / Path(filled).expanduser()


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a module; every name and shape must fit.

    Raises:
        ModelError: one line.
    """
    try:
        result = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{where} does not fit the network: {one_line(error)[:300]}") from error
    problems = [f"missing {result.missing_keys[0]}"] if result.missing_keys else []
    problems += [f"not in the network: {result.unexpected_keys[0]}"] if result.unexpected_keys else []
    if problems:
        raise ModelError(f"{where} does not fit the network: {'; '.join(problems)}")
