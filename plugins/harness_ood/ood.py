"""Out-of-distribution scores of the data beside those of images that no training distribution holds."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, ValidationInfo, field_validator

from harness.errors import ModelError, ThreatError, did_you_mean
from harness.options import Options, option, problem
from harness.suite_datasets import DatasetTables
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_ood.other_data import OtherData, Resize, open_other
from harness_ood.partners import Partners, partners_of
from harness_ood.scores import ScoreName, held_out_likelihood, lacking, needs_reference, score_all
from harness_ood.sets import CHANGED, NOISE, on_levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from harness.models import ModelView

SetName = Literal[
    "uniform",
    "constant",
    "gaussian",
    "rademacher",
    "blobs",
    "interpolated",
    "rotated",
    "flipped",
    "contrast",
    "blurred",
    "permuted",
]
IN = "in"


def _named(table: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(table.get("name"), str):
        raise problem("every data set needs a name, such as { name = 'mnist', split = 'test' }")
    return table


_Named = Annotated[dict[str, Any], AfterValidator(_named)]


class OODOptions(Options):
    """Options of `ood`."""

    sets: tuple[SetName, ...] = option(
        ("uniform", "constant"),
        help='noise: "uniform", "constant" (one random colour an image), "gaussian", "rademacher" (black or white),'
        ' "blobs"; the data changed: "interpolated" (the mean of two images), "rotated", "flipped" (upside down),'
        ' "contrast" (0.3 of it), "blurred", "permuted" (pixels)',
    )
    datasets: Annotated[tuple[_Named, ...], DatasetTables(("set",))] = option(
        (),
        help='other data sets, written like dataset, with a key set to call it by: { name = "npz", set = "SVHN" }',
    )
    resize: Resize = option("none", help="how images of another size become the data's; none: they are refused")
    near: tuple[str, ...] = option((), help="sets that lie near the data (OpenOOD): marked in the column distance")
    far: tuple[str, ...] = option((), help="sets that lie far from the data")
    scores: tuple[ScoreName, ...] = option((), help="out-of-distribution scores [the model's own, or max-softmax]")

    @property
    def uses_held_out(self) -> bool:
        """Whether a score is made with images held out from the test."""
        return needs_reference(self.scores)

    def lacking(self, capabilities: frozenset[str]) -> str:
        """Why a model of these capabilities of its own has not all of the scores, in a line; empty where it has."""
        return "; ".join(reason for name in self.scores if (reason := lacking(capabilities, name)))

    @field_validator("sets", "near", "far", "scores")
    @classmethod
    def _once_each(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise problem(f"'{twice}' is listed twice")
        return names

    @field_validator("datasets")
    @classmethod
    def _told_apart(cls, tables: tuple[dict[str, Any], ...], info: ValidationInfo) -> tuple[dict[str, Any], ...]:
        if not tables and info.data.get("sets") == ():
            raise problem("no set is named, here or in sets: there is nothing to tell the data from")
        names = [IN, *get_args(SetName)]
        for table in tables:
            if not isinstance(table.get("set", ""), str):
                raise problem(f"the key set of data set '{table['name']}' is no text")
            name = table.get("set", table["name"])
            if name in names:
                raise problem(f"two sets are called '{name}': name one of them otherwise, with its key set")
            names.append(name)
        return tables

    @field_validator("near", "far")
    @classmethod
    def _among_the_sets(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not {"sets", "datasets"} <= info.data.keys():
            return names  # those are wrong themselves: nobody knows the sets
        known = {*info.data["sets"], *(t.get("set", t["name"]) for t in info.data["datasets"])}
        for name in names:
            if name not in known:
                raise problem(f"'{name}' is none of the sets{did_you_mean(name, map(str, known))}")
            if name in info.data.get("near", ()):
                raise problem(f"'{name}' is near already")
        return names


class OODSet(NamedTuple):
    """The images of one set that go with samples of a batch.

    Attributes:
        name: "in", or the set's.
        x: float32 (n, C, H, W).
        rows: int64 (n,), the places in the batch of the samples that they go with.
        image: int64 (n,), what the images are called in their own data set.
        size: how many images that data set has; 0 for a set that is made for every sample.
        conversion: what was done to bring them to the data's shape and levels.
    """

    name: str
    x: Tensor
    rows: Tensor
    image: Tensor
    size: int = 0
    conversion: str = ""


@dataclass(frozen=True)
class OOD:
    """Rows of the data (`set` = "in") and of the images of each set, all scored alike.

    Images that are made come from the random stream of the sample whose id they bear; all lie on the data's own grey
    levels. Image k of another data set goes with the k-th of the suite's samples (`own`, their ids in order): a set is
    cut where the data are fewer, and has fewer rows where it is smaller.

    Columns:
        sample_id: int64; in a set that of the sample which the image goes with.
        set: "in", or the set's name.
        score: which score, "own" or "max-softmax" unless the option `scores` names some.
        ood_score: float64, higher is more out-of-distribution.
        distance: "near", "far" or "", as the options say.
        image_id: int64, what the image is called in the data set that it comes from.
        set_size: int64, how many images that data set has; 0 for a set that is made.
        conversion: what was done to the image's size, channels and grey levels, in words.
    """

    sets: tuple[SetName, ...]
    levels: int
    others: tuple[OtherData, ...] = ()
    own: NDArray[np.int64] | None = None
    partners: Partners | None = None
    scores: tuple[str, ...] = ()
    distance: dict[str, str] = field(default_factory=dict)
    budget: Budget | None = None

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        names = self.scores or (model.ood_score_name,)
        held_out = held_out_likelihood(model, names)
        parts: dict[str, list[Any]] = {}
        for images in self._images(batch):
            draws = batch.draws[images.rows].numbered(_draw_number(images.name))
            scores = score_all(model, images.x, draws, names)
            ids, n = batch.ids[images.rows], len(images.rows)
            for name in names:
                found = scores[name].double()
                if name == "own" or len(names) == 1:  # of several one may be undefined, as its metrics say
                    found = _not_nan(found, name, images.name, ids)
                columns = {
                    "sample_id": ids,
                    "set": [images.name] * n,
                    "score": [name] * n,
                    "ood_score": found,
                    "distance": [self.distance.get(images.name, "")] * n,
                    "image_id": images.image,
                    "set_size": torch.full_like(ids, images.size),
                    "conversion": [images.conversion] * n,
                    **{column: [value] * n for column, value in held_out.items()},
                }
                for column, values in columns.items():
                    parts.setdefault(column, []).append(values)
        return {name: _joined(values) for name, values in parts.items()}

    def _images(self, batch: Batch) -> Iterator[OODSet]:
        import torch

        everyone = torch.arange(len(batch.ids), device=batch.ids.device)
        shape = tuple(batch.x.shape[1:])
        yield OODSet(IN, batch.x, everyone, batch.ids)
        for name in self.sets:
            if name in NOISE:
                x = NOISE[name](batch.draws, shape, self.levels)
            elif name in CHANGED:
                x = CHANGED[name](batch.x, batch.draws, self.levels)
            else:
                x = self._interpolated(batch)
            yield OODSet(name, x, everyone, batch.ids)
        for other in self.others:
            places = self._places(batch.ids)
            rows = everyone[places < len(other)]
            if len(rows):
                numbers = places[rows].cpu().numpy()
                image = torch.from_numpy(other.ids(numbers)).to(batch.ids.device)
                x = other.load(numbers, batch.x.device)
                yield OODSet(other.name, x, rows, image, len(other), other.conversion)

    def _places(self, ids: Tensor) -> Tensor:
        """The place of each sample among the suite's, int64 (B,)."""
        import torch

        return ids if self.own is None else torch.searchsorted(torch.from_numpy(self.own).to(ids.device), ids)

    def _interpolated(self, batch: Batch) -> Tensor:
        """The mean of each image and its partner: the middle of the line between them, where it is furthest from both.

        Du & Mordatch 2019; Hendrycks et al. 2019 (arithmetic mean of a random pair).
        """
        if self.partners is None:
            raise ThreatError("set 'interpolated' needs the images to pair the batch's with")
        return on_levels((batch.x.double() + self.partners.of(batch).x.double()) / 2, self.levels)


def build(options: OODOptions, context: ThreatContext) -> OOD:
    """The threat.

    Raises:
        HarnessError: a data set that cannot be opened, or whose images do not fit the data's.
    """
    others = tuple(open_other(table, options.resize, context) for table in options.datasets)
    own = context.open_own() if context.open_own and others else None
    if own:
        for other in others:
            other.check_apart(own)
    near, far = dict.fromkeys(options.near, "near"), dict.fromkeys(options.far, "far")
    return OOD(
        sets=options.sets,
        levels=context.data.levels,
        others=others,
        own=own.ids if own else None,
        partners=partners_of(context) if "interpolated" in options.sets else None,
        scores=options.scores,
        distance={**near, **far},
    )


def _draw_number(name: str) -> int:
    """The draw with which a random model answers for a set: of its own, whichever other sets are asked for."""
    made: Sequence[str] = (IN, *get_args(SetName))
    return made.index(name) if name in made else len(made) + zlib.crc32(name.encode())


def _joined(parts: Iterable[Any]) -> Any:
    import torch

    values = list(parts)
    return [v for part in values for v in part] if isinstance(values[0], list) else torch.cat(values)


def _not_nan(scores: Tensor, score: str, name: str, ids: Tensor) -> Tensor:
    bad = scores.isnan()
    if bool(bad.any()):
        what = "the data" if name == IN else f"set '{name}'"
        first = int(ids[bad][0])
        raise ModelError(f"score '{score}' is NaN for {int(bad.sum())} of {len(ids)} images of {what} (first: {first})")
    return scores
