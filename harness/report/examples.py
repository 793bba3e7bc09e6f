"""The strongest adversarial images of a run: which they are, and the pictures of them."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.checkpoints import write_atomically
from harness.errors import StoreError

if TYPE_CHECKING:
    from harness.store import Run

CleanImages = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Sample ids (B,) to their images, float32 (B, C, H, W) in [0, 1]."""

FOLDER = "examples"
_GAIN = 10.0
_SAME_IMAGE = 1e-4
_NORMS = ("linf", "l2", "l1", "l0")
_FACTS = ("sample_id", "label", "clean_prediction", "clean_correct", "adversarial_prediction", "success", *_NORMS)
_LOSS = "loss_last"


@dataclass(frozen=True)
class Example:
    """One attacked image.

    Attributes:
        cell: id of the cell.
        label, clean_prediction, adversarial_prediction: class indices.
        success: whether the attacked image counts as a success of the attack.
        norms: norms of the perturbation, in [0, 1] units.
        attacked: the picture's path; clean and difference are None where the clean image is not to be had.
        gain: what the difference was multiplied by before it was drawn around mid-grey.
    """

    cell: str
    sample_id: int
    label: int
    clean_prediction: int
    adversarial_prediction: int
    success: bool
    norms: Mapping[str, float]
    attacked: Path
    clean: Path | None = None
    difference: Path | None = None
    gain: float | None = None


def collect_examples(run: Run, clean_images: CleanImages | None = None, limit: int = 8) -> list[Example]:
    """Choose the strongest adversarial images of every attack cell and write their pictures into `examples/`.

    Strongest means: successes with the smallest perturbation (in the attack's own norm, ties broken by l2) first, then
    the failures that came closest (highest final loss where the attack reports one, else the largest perturbation).
    Samples misclassified before the attack are left out. Pictures are 8-bit PNG at the size of the data.

    Args:
        clean_images: gives the images before the attack; without it, or where they are not those of the run, there is
            only the attacked picture.
        limit: examples of each cell.

    Raises:
        StoreError: rows cannot be read, or pictures cannot be written.
    """
    folder = run.folder / FOLDER
    chosen = [(cell, rows) for cell in run.cells() if (rows := _strongest(run, cell, limit)) is not None]
    clean = _clean_by_id(clean_images, [rows["sample_id"] for _, rows in chosen])
    pictures: dict[str, bytes] = {}
    examples = []
    for cell, rows in chosen:
        for i in range(len(rows["sample_id"])):
            example = _example(folder, cell["id"], {name: values[i] for name, values in rows.items()}, clean, pictures)
            if example is not None:
                examples.append(example)
    _write(folder, pictures)
    return examples


def _strongest(run: Run, cell: Mapping[str, Any], limit: int) -> dict[str, NDArray[Any]] | None:
    """The rows of a cell's examples, strongest first; None where the cell stores no adversarial image."""
    if cell.get("status") != "ok":
        return None
    columns = run.columns(cell["id"])
    if "adversarial" not in columns or not columns.issuperset(_FACTS):
        return None
    facts = run.rows(cell["id"], [*_FACTS, *({_LOSS} & columns)])
    order = rank(facts, cell.get("params", {}).get("norm", "l2"))[:limit]
    if not len(order):
        return None
    # Only the chosen images are read: a cell's images together may be larger than memory.
    ids = facts["sample_id"][order]
    again = run.rows(cell["id"], ["sample_id", "adversarial", *_NORMS], ids)
    place = [_same_row(again, facts, i) for i in order]
    return {**{name: values[order] for name, values in facts.items()}, "adversarial": again["adversarial"][place]}


def _same_row(some: Mapping[str, NDArray[Any]], facts: Mapping[str, NDArray[Any]], row: int) -> int:
    """Where row `row` of all rows stands in the part of them that was read again (a sample may have several rows)."""
    same = np.logical_and.reduce([some[name] == facts[name][row] for name in ("sample_id", *_NORMS)])
    return int(np.flatnonzero(same)[0])


def rank(rows: Mapping[str, NDArray[Any]], norm: str) -> NDArray[np.int64]:
    """Indices of the rows worth showing, strongest first, one for each sample (see `collect_examples`)."""
    size = rows[norm if norm in _NORMS else "l2"]
    success = np.asarray(rows["success"], dtype=bool)
    candidates = np.flatnonzero(np.asarray(rows["clean_correct"], dtype=bool) & np.isfinite(size))
    nearness = np.nan_to_num(np.asarray(rows.get(_LOSS, size), dtype=np.float64), nan=-np.inf)
    # An l-inf attack leaves nearly every success on the border of the ball: those are ties, up to rounding.
    first = np.where(success, np.round(size, 6), -nearness)
    keys = (rows["sample_id"], rows["l2"], first, ~success)
    order = candidates[np.lexsort([key[candidates] for key in keys])]
    _, once = np.unique(rows["sample_id"][order], return_index=True)
    ranked: NDArray[np.int64] = order[np.sort(once)]
    return ranked


def _clean_by_id(
    clean_images: CleanImages | None, wanted: Sequence[NDArray[np.int64]]
) -> dict[int, NDArray[np.float32]]:
    if clean_images is None or not wanted:
        return {}
    ids = np.unique(np.concatenate(wanted))
    images = np.asarray(clean_images(ids), dtype=np.float32)
    return {int(i): image for i, image in zip(ids, images, strict=True)}


def _example(
    folder: Path,
    cell: str,
    row: Mapping[str, Any],
    clean_by_id: Mapping[int, NDArray[np.float32]],
    pictures: dict[str, bytes],
) -> Example | None:
    """One example, its pictures added to `pictures`; None where the image's shape cannot be known."""
    sample = int(row["sample_id"])
    clean = clean_by_id.get(sample)
    flat = np.asarray(row["adversarial"], dtype=np.float32).ravel()
    shape = clean.shape if clean is not None else likely_shape(flat.size)
    if shape is None or math.prod(shape) != flat.size:
        return None
    attacked = flat.reshape(shape)
    if clean is not None and abs(float(np.abs(attacked - clean).max()) - float(row["linf"])) > _SAME_IMAGE:
        clean = None  # the data are no longer those of the run
    stem = safe_stem(cell, sample)
    names = {part: f"{stem}-{part}.png" for part in ("attacked", "clean", "difference")}
    pictures[names["attacked"]] = png(attacked)
    gain = None
    if clean is not None:
        picture, gain = difference_picture(clean, attacked)
        pictures[names["clean"]], pictures[names["difference"]] = png(clean), png(picture)
    return Example(
        cell=cell,
        sample_id=sample,
        label=int(row["label"]),
        clean_prediction=int(row["clean_prediction"]),
        adversarial_prediction=int(row["adversarial_prediction"]),
        success=bool(row["success"]),
        norms={norm: float(row[norm]) for norm in _NORMS},
        attacked=folder / names["attacked"],
        clean=folder / names["clean"] if clean is not None else None,
        difference=folder / names["difference"] if clean is not None else None,
        gain=gain,
    )


def safe_stem(cell: str, sample: int) -> str:
    """A file name's beginning that any file system takes, whatever the cell's id holds; unlike for unlike ids."""
    words = re.sub(r"[^a-z0-9]+", "-", cell.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(cell.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{words}-{digest}-{sample}" if words else f"{digest}-{sample}"


def likely_shape(size: int) -> tuple[int, int, int] | None:
    """(C, H, W) of a square grey or colour image with `size` entries, or None."""
    for channels in (1, 3):
        side = math.isqrt(size // channels)
        if channels * side * side == size:
            return channels, side, side
    return None


def difference_picture(clean: NDArray[np.float32], attacked: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """The perturbation around mid-grey, times 10 or by the largest factor that still fits; and that factor."""
    difference = attacked - clean
    largest = float(np.abs(difference).max())
    gain = min(_GAIN, 0.5 / largest) if largest > 0 else _GAIN
    return np.asarray(0.5 + gain * difference, dtype=np.float32), gain


def png(image: NDArray[np.float32]) -> bytes:
    """An image (C, H, W) in [0, 1] as an 8-bit PNG; other than one or three channels become their mean."""
    from PIL import Image

    shown = image if image.shape[0] in (1, 3) else image.mean(axis=0, keepdims=True)
    pixels = np.round(np.clip(shown, 0.0, 1.0) * 255.0).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _write(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Make `folder` hold exactly these pictures (other files are left alone)."""
    try:
        if pictures:
            folder.mkdir(exist_ok=True)
        for path in folder.glob("*.png"):
            if path.name not in pictures:
                path.unlink()
        for name, data in pictures.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise StoreError(f"cannot write pictures into {folder}: {error.strerror or error}") from error
