"""The model `torch`: a module, its normalisation, and checks on what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness import checkpoints
from harness.errors import ModelError
from harness.models import ModelContext
from harness.randomness import Draws
from harness_torch.loading import (
    declare,
    fill,
    find_checkpoint,
    find_file,
    load_program,
    make_module,
    one_line,
    read_weights,
    submodule,
)
from harness_torch.options import FitRecipe, Normalize, TorchOptions

if TYPE_CHECKING:
    from harness.datasets import DatasetSlice
    from harness.training import FitSession


@dataclass(frozen=True)
class Source:
    """Where a model comes from, with what the header of its checkpoint adds to the options.

    Attributes:
        options: the options, those left out filled in from the header.
        weights: the checkpoint file, if there is one.
        program: the file that holds the whole model, if there is one.
    """

    options: TorchOptions
    weights: Path | None
    program: Path | None

    def module(self, seed: int = 0, device: str = "cpu") -> nn.Module:
        """A new module: made with initial weights from `seed`, then filled from the checkpoint."""
        if self.program is not None:
            return load_program(self.program, device)
        assert self.options.factory is not None  # find_source sees to it
        module = make_module(self.options.factory, self.options.factory_args, seed)
        if self.weights is not None:
            fill(
                module, read_weights(self.weights, self.options.key, self.options.prefix), f"checkpoint {self.weights}"
            )
        for name, surrogate in self.options.surrogates.items():
            declare(module, name, surrogate)
        return module


class TorchClassifier(nn.Module):
    """A module as a classifier of images in [0, 1].

    Attributes:
        module: the user's module, which takes normalised images (B, C, H, W) and returns logits (B, K).
        num_classes: K.
        files: the files it was built from, for the model's digest.
        source_modules: names of the Python modules that define it, for the model's digest.
    """

    stochastic = False
    num_classes: int
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, source: Source, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.module = module
        factory = source.options.factory
        self.files: tuple[Path, ...] = tuple(path for path in (source.weights, source.program) if path is not None)
        named = [*([factory] if factory else []), *source.options.surrogates.values()]
        self.source_modules: tuple[str, ...] = tuple(path.partition(":")[0] for path in named if ":" in path)
        normalize = source.options.normalize or Normalize(mean=(0.0,), std=(1.0,))
        self.normalizes = source.options.normalize is not None
        self.register_buffer("mean", torch.tensor(normalize.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(normalize.std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1], unchecked: what training differentiates."""
        out: Tensor = self.module((x - self.mean) / self.std if self.normalizes else x)
        return out

    def logits(self, x: Tensor) -> Tensor:
        """(B, K) logits of images (B, C, H, W) in [0, 1].

        Raises:
            ModelError: the module raised, or returned another shape, another type or NaN.
        """
        return self.checked(x)

    @property
    def features(self) -> Callable[..., Tensor] | None:
        """Gives the features (B, F) of images: what leaves the submodule that option `features` names; else None.

        Raises (when called):
            ModelError: as `logits` does; or the submodule did not run, ran more than once, or gives no tensor (B, ...).
        """
        return self._features if self.source.options.features else None

    def fit(self, data: DatasetSlice, recipe: FitRecipe, session: FitSession) -> None:
        """Train the module anew (from the checkpoint, where the options name one) and write `session.out`."""
        from harness_torch.training import train

        if self.source.program is not None:
            raise ModelError(f"model '{self.name}': an exported file cannot be trained; give its factory")
        self.module = self.source.module(session.seed)
        train(self, data, recipe, session)

    def _features(self, x: Tensor) -> Tensor:
        name = self.source.options.features
        assert name is not None  # or there is no method `features`
        seen: list[Any] = []

        def keep(_module: nn.Module, _given: Any, out: Any) -> None:
            seen.append(out.clone() if isinstance(out, Tensor) else out)  # the next step may work in place

        hook = submodule(self.module, name, "features").register_forward_hook(keep)
        try:
            self.checked(x)
        finally:
            hook.remove()
        out = seen[0] if len(seen) == 1 else None
        if not isinstance(out, Tensor) or out.ndim < 2 or out.shape[0] != x.shape[0]:
            found = f"ran {len(seen)} times" if len(seen) != 1 else "gives no tensor (B, ...)"
            raise ModelError(f"model '{self.name}': submodule '{name}' of option features {found} for a batch")
        return out.mean(dim=(2, 3)) if out.ndim == 4 else out.flatten(1)

    def checked(self, x: Tensor) -> Tensor:
        """What `logits` returns and raises, with the randomness that happens to be there."""
        try:
            out: Any = self(x)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ModelError(
                f"model '{self.name}' raised on images of shape {tuple(x.shape)}: {one_line(error)[:300]}"
            ) from error
        if not isinstance(out, Tensor):
            raise ModelError(f"model '{self.name}' returned a {type(out).__name__}, not a tensor of logits (B, K)")
        if out.ndim != 2 or out.shape[0] != x.shape[0] or not out.is_floating_point():
            kind = f"{str(out.dtype).removeprefix('torch.')} {tuple(out.shape)}"
            raise ModelError(f"model '{self.name}' returned {kind} for {x.shape[0]} images, not logits (B, K)")
        if bool(out.isnan().any()):
            bad = int(out.isnan().any(dim=1).sum())
            raise ModelError(f"model '{self.name}' returned NaN for {bad} of {x.shape[0]} images")
        return out


class RandomTorchClassifier(TorchClassifier):
    """A module that draws from torch's global generator.

    Each image is evaluated alone, the generator seeded from the image's own stream and put back afterwards, so that an
    answer depends neither on the batch nor on what ran before.
    """

    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        """(B, K) logits of images (B, C, H, W), each a draw of its stream. Raises as for a deterministic module."""
        if not len(x):
            return x.new_zeros(0, self.num_classes)
        return self._each(self.checked, x, draws)

    def _features(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        return self._each(super()._features, x, draws)

    def _each(self, ask: Callable[[Tensor], Tensor], x: Tensor, draws: Draws) -> Tensor:
        """Answers for images one by one, torch's generator seeded from each image's stream."""
        words = draws.bits("torch.manual_seed", 0, (2,)).tolist()
        devices = [x.device] if x.device.type == "cuda" else []
        answers = []
        with torch.random.fork_rng(devices=devices):
            for image, (high, low) in zip(torch.split(x, 1), words, strict=True):
                torch.manual_seed((high << 31) ^ low)
                answers.append(ask(image))
        return torch.cat(answers)


def build(options: TorchOptions, context: ModelContext) -> TorchClassifier:
    """The model plugin's factory.

    Raises:
        HarnessError: one line: a file is missing or unreadable, a factory raised, weights do not fit, outputs are no
            logits.
    """
    source = find_source(options, context)
    module = source.module(device=context.device)
    kind = RandomTorchClassifier if options.random else TorchClassifier
    model = kind(context.name, source, module)
    model.to(context.device).eval()
    channels = len(model.mean)
    if channels not in (1, context.data.shape[0]):
        raise ModelError(
            f"model '{context.name}': normalize has {channels} channels, images of '{context.data.name}' have"
            f" {context.data.shape[0]}"
        )
    if source.options.features:
        submodule(model.module, source.options.features, "features")
    model.num_classes = options.num_classes or _probe(model, context)
    return model


def find_source(options: TorchOptions, context: ModelContext) -> Source:
    """Find the files, and take from a checkpoint's header the factory and normalisation that the options leave out."""
    if options.file is not None:
        return Source(options, None, find_file(options.file, context.folder, "file"))
    if options.checkpoint is None:
        return Source(options, None, None)
    weights = find_checkpoint(options.checkpoint, context.folder)
    written = checkpoints.read_header(weights).get("options", {}) if weights.suffix == ".safetensors" else {}
    filled: dict[str, Any] = {}
    if options.factory is None:
        if not written.get("factory"):
            raise ModelError(
                f"model '{context.name}': checkpoint {weights} does not say what builds its module; give `factory`"
            )
        filled = {"factory": written["factory"], "factory_args": written.get("factory_args", {})}
    if options.normalize is None and written.get("normalize"):
        filled["normalize"] = written["normalize"]
    return Source(TorchOptions.model_validate({**options.model_dump(exclude_unset=True), **filled}), weights, None)


def _probe(model: TorchClassifier, context: ModelContext) -> int:
    """K, from two blank images: two, so that a program exported for one image is found out here."""
    blank = torch.zeros(2, *context.data.shape, device=context.device)
    with torch.no_grad():
        if isinstance(model, RandomTorchClassifier):
            from harness.randomness import draws_for

            out = model.logits(blank, draws=draws_for(torch.arange(2, device=context.device), 0, "probe"))
        else:
            out = model.logits(blank)
    return int(out.shape[1])
