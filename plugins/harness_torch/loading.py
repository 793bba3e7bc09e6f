"""Modules and weights from where users keep them: factories, checkpoints and exported files. Errors are one line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import checkpoints
from harness.bpda import declare_surrogate
from harness.errors import HarnessError, MissingDataError, ModelError, did_you_mean

BUILTIN = "builtin:"
_BUILTIN_FOLDER = Path(__file__).parent / "checkpoints"
_SHOWN = 3  # names listed in a message before "and N more"


_NOT_TENSORS = {
    "aotinductor/": "compiled machine code",
    "custom_obj_": "pickled objects",
    "opaque_obj_": "pickled objects",
}


def one_line(error: BaseException) -> str:
    """An exception as type and text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def find_checkpoint(name: str, folder: Path) -> Path:
    """The path behind a `checkpoint` option: ``builtin:NAME``, ``builtin:PACKAGE/NAME``, or a path from `folder`.

    Raises:
        MissingDataError: no such file, or no built-in checkpoint of this name.
    """
    if name.startswith(BUILTIN):
        package, _, wanted = name.removeprefix(BUILTIN).rpartition("/")
        shipped = _shipped_by(package) if package else _BUILTIN_FOLDER
        known = [path.stem for path in sorted(shipped.glob("*.safetensors"))]
        if wanted not in known:
            near = did_you_mean(wanted, known)
            raise MissingDataError(f"no built-in checkpoint '{wanted}'{near} (there are: {', '.join(known)})")
        return shipped / f"{wanted}.safetensors"
    return find_file(name, folder, "checkpoint")


def _shipped_by(package: str) -> Path:
    """The folder `checkpoints` of an installed package."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(f"{BUILTIN}{package}/...: there is no package '{package}'")
    return Path(spec.submodule_search_locations[0]) / "checkpoints"


def find_file(name: str, folder: Path, what: str) -> Path:
    """`name` as a path that starts at `folder`; ``$HARNESS_DATA`` and other environment variables are filled in.

    Raises:
        MissingDataError: no such file, or no such variable.
    """
    filled = os.path.expandvars(name)
    unset = re.search(r"\$(\w+|\{\w+\})", filled)
    if unset:
        variable = unset.group(1).strip("{}")
        raise MissingDataError(f"{what} {name}: the environment variable {variable} is not set")
    path = folder / Path(filled).expanduser()
    if not path.is_file():
        raise MissingDataError(f"{what} {path} does not exist")
    return path


def load_factory(path: str, what: str = "factory") -> Callable[..., Any]:
    """The callable behind ``"package.module:callable"``; `what` it is, for messages.

    Raises:
        ModelError: one line with the cause.
    """
    module_name, _, attribute = path.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        advice = "install it, or put it beside the suite file"
        raise ModelError(f"{what} '{path}': there is no module '{missing}'; {advice}") from error
    except Exception as error:
        raise ModelError(f"{what} '{path}': importing {module_name} failed: {one_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            near = did_you_mean(part, [name for name in dir(target) if not name.startswith("_")])
            raise ModelError(f"{what} '{path}': {module_name} has no attribute '{attribute}'{near}")
        target = getattr(target, part)
    if not callable(target):
        raise ModelError(f"{what} '{path}' is a {type(target).__name__}, not something to call")
    result: Callable[..., Any] = target
    return result


def make_module(path: str, arguments: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Call a factory, with torch's global generator seeded meanwhile and put back afterwards.

    Initial weights come from the global generator; with the seed they are the same in every process.

    Raises:
        ModelError: it cannot be imported, raises, or returns something else than a module.
    """
    factory = load_factory(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory(**arguments)
        except HarnessError:
            raise
        except Exception as error:
            raise ModelError(f"factory '{path}' raised {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"factory '{path}' returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def read_weights(path: Path, key: str | None = None, prefix: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Args:
        key: entry of the file's outer dictionary that holds the weights.
        prefix: take the tensors whose names begin with it, and remove it.

    Raises:
        HarnessError: unreadable; holds anything but tensors; `key` or `prefix` not found.
    """
    content: Any = checkpoints.load(path)[0] if path.suffix == ".safetensors" else _load_pickle(path)
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            held = [str(k) for k in content] if isinstance(content, Mapping) else []
            raise ModelError(f"checkpoint {path} has no key '{key}'{did_you_mean(key, held)} (it has {_some(held)})")
        content = content[key]
    if isinstance(content, nn.Module) or not isinstance(content, Mapping):
        raise ModelError(f"checkpoint {path} holds a {type(content).__name__}, not weights by name")
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other:
        nested = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
        advice = f"; is key = '{nested[0]}' missing?" if nested else ""
        raise ModelError(f"checkpoint {path} holds entries that are no tensors: {_some(other)}{advice}")
    weights = {str(name): value for name, value in content.items()}
    if prefix:
        chosen = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if not chosen:
            raise ModelError(f"checkpoint {path}: no name begins with prefix '{prefix}' (there are {_some(weights)})")
        return chosen
    return weights


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a module; every name and shape must fit.

    Raises:
        ModelError: one line naming the first missing, unexpected and misshapen tensors.
    """
    own = module.state_dict()
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if isinstance(own[name], Tensor) and own[name].shape != weights[name].shape
    ]
    problems = [f"wrong shapes: {_some(sorted(wrong))}"] if wrong else []
    result = module.load_state_dict({n: w for n, w in weights.items() if not wrong or n not in own}, strict=False)
    missing = sorted(own.keys() - weights.keys()) if wrong else result.missing_keys
    problems += [f"missing: {_some(missing)}"] if missing else []
    problems += [f"not in the model: {_some(result.unexpected_keys)}"] if result.unexpected_keys else []
    if problems:
        raise ModelError(f"{where} does not fit the model: {'; '.join(problems)}")


def submodule(module: nn.Module, name: str, what: str) -> nn.Module:
    """The submodule `name`; `what` asks for it, for messages.

    Raises:
        ModelError: there is none of this name.
    """
    steps: dict[str, nn.Module] = dict(module.named_modules())
    if not name or name not in steps:
        known = [step for step in steps if step]
        near = did_you_mean(name, known)
        raise ModelError(f"{what}: the module has no submodule '{name}'{near} (it has {_some(known)})")
    return steps[name]


def declare(module: nn.Module, name: str, surrogate: str) -> None:
    """Give the submodule `name` the gradient of a surrogate: "identity", or the callable behind a path.

    Raises:
        ModelError: no such submodule, or no such callable.
    """
    step = submodule(module, name, "surrogates")
    if surrogate != "identity" and ":" not in surrogate:
        raise ModelError(f'surrogates: \'{surrogate}\' is neither "identity" nor "package.module:callable"')
    declare_surrogate(step, None if surrogate == "identity" else load_factory(surrogate, "surrogate"))


def load_program(path: Path, device: str) -> nn.Module:
    """An exported program (``.pt2``) or a TorchScript file, on `device`.

    Pickled code in the file is refused; but a program is code, so load only one whose maker you trust.

    Raises:
        ModelError: not such a file.
    """
    try:
        if path.suffix == ".pt2":
            return _load_exported(path, device)
        script: nn.Module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except HarnessError:
        raise
    except Exception as error:
        kind = "exported program" if path.suffix == ".pt2" else "TorchScript file"
        raise ModelError(f"file {path} is not a readable {kind}: {one_line(error)[:300]}") from error
    return script


class ExportedModule(nn.Module):
    """A program made by torch.export: runs as it was exported, and has no train or eval mode to switch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._call = [module]  # in a list, so that it is no submodule: it refuses train() and eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._call[0](x)
        return logits


def _load_exported(path: Path, device: str) -> nn.Module:
    from torch.export.passes import move_to_device_pass

    with zipfile.ZipFile(path) as archive:
        held = [part for part in _NOT_TENSORS if any(part in name for name in archive.namelist())]
    if held:
        raise ModelError(
            f"file {path} holds {_NOT_TENSORS[held[0]]}; give a program of tensors saved by torch.export.save"
        )
    with _tensors_only():
        program = torch.export.load(path)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return ExportedModule(module)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make every torch.load refuse pickled code: torch.export asks for it in places, and falls back to it in others."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)", str(error))
        named = f" ({found.group(1)})" if found and "." in found.group(1) else ""
        raise ModelError(
            f"checkpoint {path} is damaged, or pickles more than tensors{named}, which could run code; it was not"
            " loaded: save the model's state_dict() alone, best as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"checkpoint {path} cannot be read: {one_line(error)[:300]}") from error


def _some(names: Any) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
