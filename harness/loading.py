"""Builds what a suite names: data sets, models, threats; and the digests by which their results are found again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.arithmetic import fixed_arithmetic
from harness.capabilities import METHODS, mismatches, offered
from harness.checkpoints import file_digest
from harness.datasets import Dataset, DatasetContext, DatasetFacts, DatasetSlice
from harness.errors import HarnessError, MissingDataError, ModelError, SuiteError, ThreatError
from harness.host import Host
from harness.info import resolve
from harness.label_map import Target
from harness.models import ModelContext, ModelView, Reference, prepare
from harness.randomness import draws_for
from harness.readout import Readout
from harness.suite import DatasetEntry, ModelEntry, ThreatEntry, dataset_entry
from harness.threats import Budget, Threat, ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

PROBE_IMAGES = 2
BUDGET_TOLERANCE = 1e-6


@dataclass(frozen=True)
class BuiltModel:
    """A model ready to serve, what it can do, and how its outputs are read as the classes of the data."""

    model: Any
    capabilities: frozenset[str]
    readout: Readout | None = None

    def view(self, ids: Tensor, seed: int, purpose: Any, reference: Reference | None = None) -> ModelView:
        return ModelView(self.model, self.capabilities, ids, seed, purpose, reference, self.readout)


@dataclass(frozen=True)
class BuiltThreat:
    """A threat ready to run.

    `budget` is what it was when built: the host holds every image to that. `inputs` is a digest of what the threat
    reads beside its options: the data sets it opened, the files it names in an attribute `files`, and what it says
    of anything else in an attribute `inputs` (JSON). `left_out`, of an attribute of that name, is what it cannot show
    here of what was asked for, and why, in a line; reports say so.
    """

    threat: Threat
    budget: Budget | None
    inputs: str = ""
    left_out: str = ""


def open_dataset(entry: DatasetEntry, host: Host, data_root: Path | None, limit: int | None = None) -> DatasetSlice:
    """The samples an entry asks for; `limit` is a further limit, such as a threat's own or that of `--limit`."""
    info = host.datasets.get(entry.name)
    factory = resolve(info.factory, f"dataset '{entry.name}'")
    dataset: Dataset = _guarded(
        lambda: factory(entry.options, DatasetContext(data_root)), f"dataset '{entry.name}'", HarnessError
    )
    limits = [n for n in (entry.spec.limit, limit) if n is not None]
    spec = replace(entry.spec, limit=min(limits) if limits else None)
    if isinstance(spec.label_map, str):
        spec = replace(spec, label_map=_label_map(spec.label_map, entry.name, dataset.class_names, data_root))
    found = DatasetSlice(entry.name, dataset, spec)
    if not len(found):
        raise HarnessError(f"dataset '{entry.name}': no sample is left by the options given")
    return found


def _label_map(given: str, name: str, classes: Sequence[str], data_root: Path | None) -> dict[str, Target]:
    """What a JSON file says of these classes; it may say more, of others.

    Raises:
        HarnessError: it cannot be read, or is no label map.
    """
    what = f"dataset '{name}': label_map"
    path = Path(given).expanduser()
    if not path.is_absolute():
        if data_root is None:
            raise MissingDataError(f"{what}: {given} starts at the data root, and none is given (--data-root)")
        path = data_root / path
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingDataError(f"{what}: {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise HarnessError(f"{what}: {path} is no JSON: {error}") from error
    if not isinstance(said, dict) or not all(_is_target(target) for target in said.values()):
        raise HarnessError(f'{what}: {path} must be {{"class": index, "class": [index, index], ...}}, or all names')
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in said.items() if key in classes}
    if not found:
        raise HarnessError(f"{what}: {path} names none of the classes ({', '.join(classes[:3])}, ...)")
    return found


def _is_target(said: Any) -> bool:
    return isinstance(said, str) or all(type(k) is int for k in (said if isinstance(said, list) else [said]))


def build_model(entry: ModelEntry, facts: DatasetFacts, device: str, folder: Path) -> BuiltModel:
    """The model on its device, in eval mode.

    Raises:
        ModelError: the factory raised, or what it built does not have the capabilities its plugin declares, or not the
            classes that the data name.
    """
    what = f"model '{entry.name}'"
    on_import_path(folder)
    factory = resolve(entry.info.factory, what)
    context = ModelContext(entry.name, facts, device, folder)
    model = prepare(_guarded(lambda: factory(entry.options, context), what, ModelError), device)
    problems = mismatches(model, entry.info.capabilities)
    if problems:
        raise ModelError(f"{what}: plugin '{entry.info.name}' {'; '.join(problems)}")
    built = BuiltModel(model, offered(model, entry.info.capabilities), facts.readout)
    if facts.readout is not None and hasattr(model, "num_classes"):
        _guarded(partial(facts.readout.width, int(model.num_classes)), what, ModelError)
    return built


def build_threat(
    entry: ThreatEntry,
    facts: DatasetFacts,
    host: Host,
    data_root: Path | None,
    folder: Path,
    own: Callable[[], DatasetSlice] | None = None,
) -> BuiltThreat:
    """The threat, given a way to open other data sets, and by `own` the one that the suite evaluates.

    Raises:
        ThreatError: the factory raised, or the threat's budget is not the one that its options say.
    """
    opened: list[str] = []

    def open_other(table: Mapping[str, Any]) -> DatasetSlice:
        found = open_dataset(dataset_entry(table, host, f"threat '{entry.label}' dataset"), host, data_root)
        opened.append(found.digest())
        return found

    def open_own() -> DatasetSlice:
        assert own is not None
        found = own()
        opened.append(found.digest())
        return found

    what = f"threat '{entry.label}'"
    factory = resolve(entry.info.factory, what)
    context = ThreatContext(facts, open_other, folder, open_own if own else None)
    threat: Threat = _guarded(lambda: factory(entry.options, context), what, ThreatError)
    budget = threat.budget
    if budget is not None and entry.budget is not None and not abs(budget.eps - entry.budget) <= BUDGET_TOLERANCE:
        raise ThreatError(
            f"{what}: its budget is {budget.eps:g}, but option {entry.info.budget_option} is {entry.budget:g}"
        )
    files: Iterable[Path] = getattr(threat, "files", ())
    parts = [opened, [file_digest(Path(f)) for f in files], *([threat.inputs] if hasattr(threat, "inputs") else [])]
    return BuiltThreat(threat, budget, digest_of(parts), str(getattr(threat, "left_out", "")))


def on_import_path(folder: Path) -> None:
    """Let a suite's factories be imported from beside the suite file."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def model_digest(entry: ModelEntry, built: BuiltModel, facts: DatasetFacts, device: str) -> str:
    """Identity of a model: options, files, source of its factory, and its outputs on a fixed probe batch.

    The outputs tell apart what the rest cannot, such as two wrappers around one state dict.
    """
    files: Iterable[Path] = getattr(built.model, "files", ())
    modules: Iterable[str] = getattr(built.model, "source_modules", ())
    return digest_of(
        {
            "plugin": entry.info.name,
            "options": {} if entry.options is None else entry.options.model_dump(mode="json"),
            "files": [file_digest(Path(f)) for f in files],
            "code": [code_version(entry.info.factory), *(code_version(m) for m in sorted(modules))],
            "outputs": _probe(built, facts, device),
        }
    )


def _probe(built: BuiltModel, facts: DatasetFacts, device: str) -> list[str]:
    """Digests of what each of the model's methods answers for fixed images."""
    import torch

    ids = torch.arange(PROBE_IMAGES, device=device)
    x = draws_for(ids, 0, "probe").uniform("image", 0, facts.shape)
    view = replace(built, readout=None).view(ids, 0, "eval")  # the model's own outputs, whatever the data's classes
    answers = []
    with fixed_arithmetic(), torch.no_grad():
        for name in ("Classifier", "ClassDensity", "Density", "Detector"):
            if name in built.capabilities:
                ask = getattr(view, METHODS[name])
                first, again = (
                    _guarded(partial(_asked, ask, x), "the model's first evaluation", ModelError) for _ in "ab"
                )
                if first != again:
                    raise ModelError(
                        f"{METHODS[name]}() answers differently when asked twice with the same draws: a model that is"
                        " random must say so (stochastic = True; random = true for plugin torch)"
                    )
                answers.append(hashlib.sha256(first).hexdigest())
    return answers


def _asked(ask: Callable[[Tensor], Tensor], x: Tensor) -> bytes:
    return ask(x).double().cpu().numpy().tobytes()


def digest_of(value: Any) -> str:
    """sha256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def code_version(target: str | Callable[..., Any]) -> str:
    """Hash of the source that a factory path or module name leads to: its whole top-level package, or its one file.

    Of a `functools.partial` that is the source of its function, and what is bound to it.
    """
    if isinstance(target, partial):
        return digest_of([code_version(target.func), repr(target.args), repr(sorted(target.keywords.items()))])
    module = target.partition(":")[0] if isinstance(target, str) else getattr(target, "__module__", "")
    loaded = sys.modules.get(module)
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top) if top not in sys.modules else getattr(sys.modules[top], "__spec__", None)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    if not files:
        origin = getattr(loaded, "__file__", None) or (spec.origin if spec else None)
        files = [Path(origin)] if origin and Path(origin).is_file() else []
    state = hashlib.sha256(module.encode())
    for file in files:
        state.update(file.name.encode())
        state.update(file.read_bytes())
    return state.hexdigest()


def _guarded(build: Callable[[], Any], what: str, kind: type[HarnessError]) -> Any:
    """Run a plugin's code; what it raises becomes one line that says whose it is, with the cause kept."""
    try:
        return build()
    except SuiteError:
        raise
    except HarnessError as error:
        raise type(error)(str(error) if what in str(error) else f"{what}: {error}") from error
    except (Exception, SystemExit) as error:  # a factory that calls sys.exit() takes down its cells, not the run
        text = " ".join(str(error).split())
        raise kind(f"{what}: {type(error).__name__}: {text}") from error
