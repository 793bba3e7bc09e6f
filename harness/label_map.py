"""From the classes of a data set to those of a model: renamed, numbered anew, or one that stands for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError, did_you_mean
from harness.readout import Readout

Ints = NDArray[np.int64]
Target = str | int | tuple[int, ...]
OTHERS = "(another class of the model)"


class Classes(NamedTuple):
    """The classes of a slice.

    Attributes:
        new: the new label of each class of the data set; -1 for one that is left out.
        names: of the new classes.
        readout: how the model's outputs are read as these classes; None where they are these classes.
    """

    new: Ints
    names: tuple[str, ...]
    readout: Readout | None = None


def map_classes(
    name: str, names: tuple[str, ...], label_map: Mapping[str, Target], kept: Sequence[int], *, restrict: bool = False
) -> Classes:
    """
    Args:
        name: of the data set, for messages.
        names: of its classes.
        label_map: see `harness.datasets.SliceSpec`.
        kept: the classes whose samples are used.
        restrict: whether the model chooses among the kept classes alone.

    Raises:
        HarnessError: what is wrong with the label map.
    """
    unknown = sorted(set(label_map) - set(names))
    if unknown:
        raise HarnessError(
            f"dataset '{name}': label_map: '{unknown[0]}' is not a class of it{did_you_mean(unknown[0], names)}"
        )
    if all(isinstance(target, str) for target in label_map.values()):
        renamed = [str(label_map.get(class_name, class_name)) for class_name in names]
        merged = tuple(dict.fromkeys(renamed))
        new = np.array([merged.index(class_name) for class_name in renamed], dtype=np.int64)
        if not restrict:
            return Classes(new, merged)
        return _read_out(name, merged, {int(new[label]): (int(new[label]),) for label in kept}, new, restrict=True)
    outputs = {names.index(class_name): _indices(name, target) for class_name, target in label_map.items()}
    missing = [names[label] for label in kept if label not in outputs]
    if missing:
        raise HarnessError(
            f"dataset '{name}': label_map gives no index for class '{missing[0]}'"
            f" ({len(missing)} missing); add it, or leave the class out with the key classes, or as [] in label_map"
        )
    if restrict or any(len(found) > 1 for found in outputs.values()):
        chosen = {label: outputs[label] for label in kept if outputs[label]}
        return _read_out(name, names, chosen, np.arange(len(names)), restrict=restrict)
    new = np.array([*(outputs.get(label, ()) or (-1,) for label in range(len(names)))], dtype=np.int64)[:, 0]
    by_index = {found[0]: names[label] for label, found in outputs.items() if found}
    return Classes(new, tuple(by_index.get(i, str(i)) for i in range(int(new.max()) + 1)))


def _indices(name: str, target: Target) -> tuple[int, ...]:
    if isinstance(target, str):
        raise HarnessError(f"dataset '{name}': label_map: give names for all classes or indices for all, not both")
    found = tuple(sorted(set(target))) if isinstance(target, tuple) else (target,)
    if found and found[0] < 0:
        raise HarnessError(f"dataset '{name}': label_map: class indices start at 0")
    return found


def _read_out(
    name: str, names: tuple[str, ...], outputs: Mapping[int, tuple[int, ...]], labels: Ints, *, restrict: bool
) -> Classes:
    """Classes numbered in the order of their outputs.

    Args:
        outputs: of the classes that are kept, by their label.
        labels: what `outputs` calls each class of the data set.
    """
    groups = sorted(set(outputs.values()))
    owners: dict[int, tuple[int, ...]] = {}
    for group in groups:
        for output in group:
            if owners.setdefault(output, group) != group:
                first, second = (
                    next(names[k] for k, g in outputs.items() if g == one) for one in (owners[output], group)
                )
                raise HarnessError(
                    f"dataset '{name}': label_map: class {output} is in the sets of '{first}' and '{second}', which"
                    " are not the same set: a prediction could not be told to be one or the other"
                )
    place = {group: number for number, group in enumerate(groups)}
    new = np.array([place[outputs[int(k)]] if int(k) in outputs else -1 for k in labels], dtype=np.int64)
    shown = tuple(next(names[k] for k, g in outputs.items() if g == group) for group in groups)
    return Classes(new, shown if restrict else (*shown, OTHERS), Readout(tuple(groups), restrict))
