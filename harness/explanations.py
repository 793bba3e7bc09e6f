"""What passes between `harness explain` and a model that explains itself, and the folder where the pictures lie.

A model with the capability `Explainer` gives heat maps, which the host draws. It may give more pictures by two optional
methods, which take a keyword ``draws`` as every method of a model with randomness does:

    explain_sample(sample: ExplainedSample) -> Iterable[Picture]      of one image
    explain_model(data: DatasetSlice) -> Iterable[Picture]            of the model itself, on images of that data set

and say by an attribute ``heatmap_unit`` (text) what its heat maps hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.checkpoints import write_atomically
from harness.errors import HarnessError, StoreError

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "explanations"
INDEX = "index.json"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class AttackedImage:
    """What an attack made of an image.

    Attributes:
        threat: the attack, as the run calls it.
        x: float32 (1, C, H, W) in [0, 1], the image that the run stored.
        iterates: float32 (T, C, H, W), the images at which the attack asked the model, in their order: its way,
            restarts and trials included. Recorded by repeating the attack on the random numbers of the run; where there
            were very many, every second, fourth, ... one. Empty where the attack cannot be repeated.
        repeated: whether the repeated attack ended at the stored image.
    """

    threat: str
    x: Tensor
    iterates: Tensor
    repeated: bool


@dataclass(frozen=True, eq=False)
class ExplainedSample:
    """The image to be explained, on the model's device.

    Attributes:
        label: its class, as an index.
        x: float32 (1, C, H, W) in [0, 1].
        class_names: a name for each class, in label order.
        attacked: what the run's attacks made of it.
    """

    sample_id: int
    label: int
    x: Tensor
    class_names: tuple[str, ...]
    attacked: tuple[AttackedImage, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture with what must be known to read it.

    Attributes:
        name: of its file, without ending; unlike those of the same sample's other pictures.
        title: a few words.
        caption: what is shown and how to read it, in full sentences.
        png: the file.
        numbers: what the picture says, for programs; JSON.
    """

    name: str
    title: str
    caption: str
    png: bytes
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """A picture in a folder of explanations.

    Attributes:
        model: the model's name.
        sample_id: the image it explains; None where it is of the model itself.
        made_of: digest of what it was made of, as `write_pictures` was given it.
        path: the PNG.
    """

    model: str
    sample_id: int | None
    made_of: str
    title: str
    caption: str
    path: Path
    numbers: Mapping[str, Any]


def write_pictures(
    folder: Path, model: str, sample_id: int | None, pictures: Sequence[Picture], made_of: str
) -> list[Path]:
    """Write pictures into a folder, in place of those that it has of this model and sample.

    Raises:
        StoreError: the folder cannot be written.
        HarnessError: two pictures have one name, or the folder's index is damaged.
    """
    names = [picture.name for picture in pictures]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise HarnessError(f"model '{model}' gives two explanations the name '{twice}'")
    entries = []
    for picture in pictures:
        file = f"{_stem(model, sample_id)}-{_plain(picture.name)}.png"
        about = {"model": model, "sample_id": sample_id, "made_of": made_of, "file": file}
        said = {"title": picture.title, "caption": picture.caption, "numbers": dict(picture.numbers)}
        entries.append({**about, **said})
    before = _entries(folder)
    kept = [e for e in before if (e["model"], e["sample_id"]) != (model, sample_id)]
    try:
        for picture, entry in zip(pictures, entries, strict=True):
            write_atomically(folder / str(entry["file"]), picture.png)
        index = json.dumps({"schema": SCHEMA, "explanations": [*kept, *entries]}, indent=1, ensure_ascii=False)
        write_atomically(folder / INDEX, (index + "\n").encode())
        for stale in {e["file"] for e in before} - {e["file"] for e in (*kept, *entries)}:
            (folder / stale).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror or error}") from error
    return [folder / str(entry["file"]) for entry in entries]


def read_pictures(folder: Path) -> list[Explanation]:
    """What a folder of explanations holds; nothing where there is no such folder.

    Raises:
        HarnessError: its index is damaged.
    """
    found = []
    for entry in _entries(folder):
        path = folder / entry.pop("file")
        found.append(Explanation(path=path, **entry))
    return found


def _entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / INDEX
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries: list[dict[str, Any]] = document["explanations"]
        files = [entry[key] for entry in entries for key in ("file", "model", "made_of", "title", "caption")]
        sound = document["schema"] == SCHEMA and all(isinstance(text, str) for text in files)
        sound = sound and all("sample_id" in e and isinstance(e["numbers"], dict) for e in entries)
        # An index may come from anywhere, and what it names is read into the report.
        sound = sound and all(Path(e["file"]).name == e["file"] and e["file"].endswith(".png") for e in entries)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path} cannot be read ({type(error).__name__}); delete it and explain again") from error
    if not sound:
        raise HarnessError(f"{path} is not an index of explanations of this version; delete it and explain again")
    return entries


def class_name(names: Sequence[str], index: int) -> str:
    """A class by name, or by number where it has none."""
    return names[index] if 0 <= index < len(names) else str(index)


def collected(pictures: Iterable[Picture], model: str) -> list[Picture]:
    """A model's pictures as a list.

    Raises:
        HarnessError: what the model gave are no pictures.
    """
    found = list(pictures)
    for picture in found:
        if not isinstance(picture, Picture) or not picture.png.startswith(b"\x89PNG"):
            raise HarnessError(f"model '{model}' gave {type(picture).__name__} for an explanation, not a PNG Picture")
    return found


def _stem(model: str, sample_id: int | None) -> str:
    return f"{_plain(model)}-{'model' if sample_id is None else sample_id}"


def _plain(text: str) -> str:
    """What any file system takes, unlike for unlike texts: a plain one as it is, any other with a digest."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    if plain == text:
        return plain
    return f"{plain or 'x'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
