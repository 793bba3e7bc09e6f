"""Common corruptions at five severities: what the model says of each corrupted image, beside the clean one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from harness.errors import HarnessError, MissingDataError, ThreatError, did_you_mean
from harness.options import Options, option, problem
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_corruptions import frost, reference
from harness_corruptions.catalogue import (
    ALL,
    COLOURED,
    EXTRA,
    SEVERITIES,
    SMALLEST_SIDE,
    STANDARD,
    corruptions,
    default_table,
)
from harness_corruptions.corruption import Table
from harness_corruptions.rows import joined, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from harness.datasets import DatasetFacts
    from harness.models import ModelView
    from harness.randomness import Draws

Backend = Literal["harness", "imagecorruptions"]
_SETS = {"standard": STANDARD, "all": ALL}


class CorruptionsOptions(Options):
    """Options of `corruptions`."""

    corruptions: Literal["standard", "all"] | tuple[str, ...] = option(
        "standard",
        help='"standard": the 15 of mean corruption error; "all": with the four extra ones'
        f" ({', '.join(EXTRA)}); or a list of names",
    )
    severities: tuple[int, ...] = option(SEVERITIES, help="how strong, of 1 to 5")
    table: Table | None = option(
        None,
        help='whose constants: "imagenet-c" or "cifar10-c"; by default "cifar10-c" for images of up to 64 px and'
        ' "imagenet-c" for larger ones and for backend imagecorruptions. The rows say which',
    )
    compat: bool = option(
        False,
        help="with the quirks of the original code that published numbers contain: glass blur copies pixels instead of"
        " swapping them, results are truncated to 8 bits instead of rounded",
    )
    backend: Backend = option(
        "harness", help='"imagecorruptions" runs that library, one image at a time on the CPU, quirks included'
    )

    @field_validator("corruptions", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value in _SETS:
                return value
            hint = f'; did you mean ["{value}"]?' if value in ALL else did_you_mean(value, _SETS)
            raise ValueError(f'"{value}" is neither "standard" nor "all" nor a list of names{hint}')
        if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
            raise problem('expected "standard", "all" or a list of names')
        unknown = [f"no corruption is called '{name}'{did_you_mean(name, ALL)}" for name in value if name not in ALL]
        if unknown:
            raise ValueError(" ".join(unknown) if all(text.endswith("?") for text in unknown) else "; ".join(unknown))
        return _once_each(value)

    @field_validator("severities")
    @classmethod
    def _in_range(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        outside = next((severity for severity in value if severity not in SEVERITIES), None)
        if outside is not None:
            raise ValueError(f"there is no severity {outside}: they go from 1 to 5")
        return _once_each(value)

    @model_validator(mode="after")
    def _of_the_library(self) -> CorruptionsOptions:
        if self.backend == "imagecorruptions" and self.table == "cifar10-c":
            raise problem("backend imagecorruptions has the constants of imagenet-c only: leave table out")
        return self


def _once_each(values: Any) -> tuple[Any, ...]:
    if not values:
        raise ValueError("an empty list corrupts nothing")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is listed twice")
    return tuple(values)


class Corruptions:
    """Rows of the clean images (`corruption` "none", `severity` 0) and of each corruption and severity.

    Images are taken in 8 bits and corrupted ones are given back in 8 bits. An image meets the same random numbers at
    every severity of a corruption (of snow and glass blur as far as their fields have one size), whichever others are
    asked for, so that severities compare like with like.

    Columns:
        those of `harness_corruptions.rows.rows_of`.
        table: whose constants, "imagenet-c" or "cifar10-c".
        left_out: which corruption of "standard" or "all" cannot be made here, and why: frost without its textures;
            else "". A mean over corruptions is mCE only where this is empty.

    Attributes:
        files, inputs: what the rows depend on beside the options.
    """

    budget: Budget | None = None

    def __init__(
        self,
        options: CorruptionsOptions,
        names: tuple[str, ...],
        left_out: Mapping[str, str],
        table: Table,
        levels: int = 256,
    ) -> None:
        self.options = options
        self.levels = levels
        self.names = names
        self.left_out = "; ".join(left_out.values())
        self.table: Table = table
        self.inputs: dict[str, Any] = {"corruptions": names, "table": table}
        self.files: tuple[Path, ...] = ()

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        if not model.capabilities & {"Classifier", "Density", "Detector"}:
            raise ThreatError("corruptions: the model neither classifies nor scores images, so nothing shows")
        with torch.no_grad():
            parts = [
                rows_of(model, batch, images, name, severity, self.levels)
                for name, severity, images in self._variants(batch)
            ]
        return joined(parts, table=self.table, left_out=self.left_out)

    def _variants(self, batch: Batch) -> Iterator[tuple[str, int, Tensor]]:
        """The clean images, then those of each corruption and severity."""
        yield "none", 0, batch.x
        for name in self.names:
            images = self._corrupted(batch.x, name, batch.draws.stream(name))
            for severity, corrupted in zip(self.options.severities, images, strict=True):
                yield name, severity, corrupted

    def _corrupted(self, x: Tensor, name: str, draws: Draws) -> Iterator[Tensor]:
        """Images at each severity."""
        options = self.options
        if options.backend == "harness":
            yield from corruptions()[name].at(x, options.severities, self.table, draws, compat=options.compat)
        else:
            yield from (by_library(x, name, severity, draws) for severity in options.severities)


def by_library(x: Tensor, name: str, severity: int, draws: Draws) -> Tensor:
    """Images (n, C, H, W) corrupted by the package imagecorruptions."""
    import torch

    images = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    found = torch.from_numpy(reference.corrupt(images, name, severity, draws)).permute(0, 3, 1, 2)
    return found.contiguous().to(x.device, x.dtype).div_(255)


def build(options: CorruptionsOptions, context: ThreatContext) -> Corruptions:
    """The threat.

    Raises:
        HarnessError: images too small, or of channels for which a corruption has no meaning.
        MissingDataError: frost asked for by name and its textures not installed; a library that is not installed.
    """
    _, height, width = context.data.shape
    library = options.backend == "imagecorruptions"
    names = _SETS[options.corruptions] if isinstance(options.corruptions, str) else options.corruptions
    if min(height, width) < SMALLEST_SIDE:
        raise HarnessError(
            f"corruptions: images of data set '{context.data.name}' are {height} x {width} px;"
            f" {SMALLEST_SIDE} x {SMALLEST_SIDE} is the least that can be corrupted"
        )
    _check_channels(names, context.data, library=library)
    table = options.table or ("imagenet-c" if library else default_table(height, width))
    if library:
        _check_library(context.data)
        made = Corruptions(options, names, {}, table, context.data.levels)
        made.files, made.inputs = reference.library_files(), {**made.inputs, "versions": reference.library_versions()}
        return made
    left_out = _missing(names)
    if left_out and not isinstance(options.corruptions, str):
        raise MissingDataError("; ".join(left_out.values()))
    there = tuple(name for name in names if name not in left_out)
    made = Corruptions(options, there, left_out, table, context.data.levels)
    made.files = frost.texture_files() if "frost" in there else ()
    return made


def _missing(names: tuple[str, ...]) -> Mapping[str, str]:
    """Corruptions that cannot be made here, and why."""
    if "frost" not in names:
        return {}
    why = frost.frost_problem()
    return {"frost": why} if why else {}


def _check_channels(names: tuple[str, ...], data: DatasetFacts, *, library: bool) -> None:
    channels = data.shape[0]
    if channels in (1, 3):
        return
    if library:
        raise HarnessError(
            f"corruptions: backend imagecorruptions takes images of 1 or 3 channels; those of data set '{data.name}'"
            f" have {channels}"
        )
    without = [name for name in names if name in COLOURED]
    if without:
        rest = [name for name in names if name not in COLOURED]
        named = ", ".join(f'"{name}"' for name in rest)
        hint = f"; list the others: corruptions = [{named}]" if rest else ""
        raise HarnessError(
            f"corruptions: {', '.join(without)} {'means' if len(without) == 1 else 'mean'} nothing for images of"
            f" {channels} channels (data set '{data.name}'){hint}"
        )


def _check_library(data: DatasetFacts) -> None:
    """Corrupts one black image, so that a missing package is known before the run."""
    import numpy as np

    reference.corrupt(np.zeros((1, *data.shape[1:], data.shape[0]), dtype=np.uint8), "contrast", 1, None)
