"""Building the model from options and checkpoints. Errors are one line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harness import checkpoints
from harness.errors import MissingDataError, ModelError, did_you_mean
from harness.models import ModelContext
from harness_ib_inn.detection import TrainingScores
from harness_ib_inn.layouts import LAYOUTS, Mixing
from harness_ib_inn.model import IBINN, SCORES, check_shape
from harness_ib_inn.options import IBINNOptions

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).parent / "checkpoints"


def build_from(options: IBINNOptions, context: ModelContext, seed: int = 0) -> IBINN:
    """A model with the weights of its checkpoint; without one with initial weights from `seed`.

    Raises:
        HarnessError: as `harness_ib_inn.model.build`.
    """
    path = None if options.checkpoint is None else find_checkpoint(options.checkpoint, context.folder)
    tensors, header = ({}, {}) if path is None else checkpoints.load(path)
    written = header.get("results", {})
    layout = LAYOUTS[_layout(options, written, path, context.name)]
    mixing: Mixing = _agreed("mixing", options.mixing, written.get("mixing", "orthogonal"), path, context.name)
    check_shape(tuple(context.data.shape), layout, options.crops, context.name)
    classes = len(header["classes"]) if "classes" in header else context.data.num_classes
    model = IBINN(
        layout, classes, context.data.levels, mixing, seed, options.detector, options.crops, context.name
    )  # fmt: skip
    if path is not None:
        model.files = (path,)
        model.class_names = tuple(header.get("classes", ()))
        _fill(model, tensors, path)
        if int(model.levels) != context.data.levels:
            raise ModelError(
                f"model '{context.name}': checkpoint {path} is of images of {int(model.levels)} grey levels, those of"
                f" '{context.data.name}' have {context.data.levels}"
            )
    return model.eval()


def builtin_names() -> list[str]:
    """Names of the checkpoints that come with the plugin; the folder also holds the baseline's, for another plugin."""
    paths = sorted(BUILTIN_FOLDER.glob("*.safetensors"))
    return [path.stem for path in paths if checkpoints.read_header(path).get("plugin") == "ib-inn"]


def find_checkpoint(name: str, folder: Path) -> Path:
    """The path behind option `checkpoint`: ``builtin:NAME``, or a path that starts at `folder`.

    Raises:
        MissingDataError: no such file, no built-in checkpoint of this name, or an environment variable that is not set.
    """
    if name.startswith(BUILTIN):
        wanted = name.removeprefix(BUILTIN)
        known = builtin_names()
        if wanted not in known:
            near = did_you_mean(wanted, known)
            raise MissingDataError(f"no built-in checkpoint '{wanted}'{near} (there are: {', '.join(known)})")
        return BUILTIN_FOLDER / f"{wanted}.safetensors"
    filled = os.path.expandvars(name)
    unset = re.search(r"\$(\w+|\{\w+\})", filled)
    if unset:
        raise MissingDataError(f"checkpoint {name}: the environment variable {unset.group(1).strip('{}')} is not set")
    path = folder / Path(filled).expanduser()
    if not path.is_file():
        raise MissingDataError(f"checkpoint {path} does not exist")
    return path


def _layout(options: IBINNOptions, written: Mapping[str, Any], path: Path | None, name: str) -> str:
    if path is None:
        assert options.layout is not None  # the options see to it
        return options.layout
    if written.get("layout") not in LAYOUTS:
        raise ModelError(
            f"model '{name}': checkpoint {path} was not written by `harness fit ib-inn`: it names no layout"
        )
    layout: str = _agreed("layout", options.layout, written["layout"], path, name)
    return layout


def _agreed(what: str, asked: Any, written: Any, path: Path | None, name: str) -> Any:
    """What the checkpoint says, unless the options say otherwise.

    Raises:
        ModelError: they do, and there is a checkpoint.
    """
    if asked is None or asked == written:
        return written
    if path is None:
        return asked
    raise ModelError(
        f"model '{name}': checkpoint {path} is of {what} {written}, the options say {asked}; leave {what} out, or train"
        " another checkpoint"
    )


def _fill(model: IBINN, tensors: Mapping[str, Tensor], path: Path) -> None:
    weights = {name: tensor for name, tensor in tensors.items() if name != SCORES}
    own = model.state_dict()
    wrong = sorted(n for n in own.keys() | weights.keys() if _shape(own.get(n)) != _shape(weights.get(n)))
    if wrong:
        raise ModelError(
            f"model '{model.name}': checkpoint {path} does not fit layout {model.layout.name} with"
            f" {model.num_classes} classes ({len(wrong)} tensors differ, first {wrong[0]}): was it written by another"
            " version?"
        )
    model.load_state_dict(weights)
    if SCORES in tensors:
        model.training_scores = TrainingScores.from_tensor(tensors[SCORES])


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
