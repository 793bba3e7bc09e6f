"""Suite file -> Suite: what the user wrote in TOML, validated, all problems listed at once."""

from __future__ import annotations

import itertools
import math
import tomllib
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from harness.datasets import SliceSpec
from harness.errors import MissingDataError, PluginError, SuiteError, did_you_mean
from harness.gate_options import GateOptions
from harness.host import Host
from harness.info import ModelInfo, ThreatInfo, resolve
from harness.option_problems import problem_lines
from harness.options import Options, option
from harness.suite_datasets import with_tables_checked
from harness.suite_overrides import apply_override

OptionsT = TypeVar("OptionsT", bound=BaseModel)


class SuiteTable(Options):
    """The `[suite]` table."""

    name: str = option(help="name of the suite; the run folder is runs/NAME unless --out says otherwise", min_length=1)
    dataset: str | dict[str, Any] = option(help="data set: a name, or a table with name, split and its options")
    heldout: str | dict[str, Any] | None = option(
        None, help="images that detector thresholds come from [1,000 of the train split], written like dataset"
    )
    probes: Literal["default", "all", "none"] = option(
        "default", help="further attacks by which the audit finds out whether an attack failed"
    )
    seed: int = option(0, help="seed of every random stream", ge=0)
    level: float = option(0.95, help="confidence level of the intervals", gt=0.5, lt=1)
    shard_size: int = option(256, help="samples in one unit of work", ge=1)
    microbatch: int | None = option(None, help="samples evaluated at a time [the shard, or fewer if large]", ge=1)
    store_images: bool = option(True, help="keep every attacked image in the rows, so that it can be replayed")


class SliceTable(Options):
    """The keys of a dataset table that the host understands for every data set."""

    limit: int | None = option(None, help="use only so many samples", ge=1)
    subset: Literal["first", "stratified"] = option("first", help="which samples a limit keeps")
    subset_seed: int = option(0, help="seed of a stratified subset", ge=0)
    classes: tuple[str | int, ...] | None = option(None, help="keep only samples of these classes (names or indices)")
    label_map: dict[str, str | int | tuple[int, ...]] | str = option(
        help="classes of the data set -> classes of the model: names, indices or, where any of several is right, lists"
        " of indices; or a JSON file that says so (a relative path starts at the data root)",
        default_factory=dict,
    )
    restrict: bool = option(
        False, help="the model chooses among the classes kept alone, whatever its others score (ImageNet-A)"
    )


class ThreatTable(Options):
    """The keys of a threat table that the host understands for every threat."""

    name: str | None = option(None, help="what to call the threat in results", min_length=1)
    limit: int | None = option(None, help="use only so many samples for this threat", ge=1)


_THREAT_KEYS = ("plugin", *ThreatTable.model_fields)


@dataclass(frozen=True)
class DatasetEntry:
    """A data set as asked for: the plugin, its options and the choice of samples."""

    name: str
    options: BaseModel | None
    spec: SliceSpec
    table: Mapping[str, Any]  # as written, JSON-able: what a worker validates again


@dataclass(frozen=True)
class ModelEntry:
    """One `[models.NAME]` table; `table` holds its options as written."""

    name: str
    info: ModelInfo
    options: BaseModel | None
    table: Mapping[str, Any]


@dataclass(frozen=True)
class ThreatEntry:
    """One threat with concrete parameters: a `[[threats]]` table, or one point of its grid."""

    label: str
    info: ThreatInfo
    options: BaseModel | None
    limit: int | None
    table: Mapping[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        """Every option with its resolved value, as JSON."""
        return {} if self.options is None else self.options.model_dump(mode="json")

    @property
    def budget(self) -> float | None:
        """The value of the option that sets the attack's strength, if it has one."""
        name = self.info.budget_option
        value = None if name is None else getattr(self.options, name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Suite:
    """A validated suite."""

    path: Path | None
    folder: Path
    settings: SuiteTable
    dataset: DatasetEntry
    models: tuple[ModelEntry, ...]
    threats: tuple[ThreatEntry, ...]
    gate: GateOptions | None
    metrics: Mapping[str, BaseModel] = field(default_factory=dict)  # options of group metrics, by name
    replays: tuple[ThreatEntry, ...] = ()  # added for one run (`--from`); no part of what a baseline must share

    @property
    def name(self) -> str:
        return self.settings.name

    def resolved(self) -> dict[str, Any]:
        """The suite with every default filled in, as JSON."""
        return {
            "suite": self.settings.model_dump(mode="json"),
            "models": {m.name: {"plugin": m.info.name, **_dump(m.options)} for m in self.models},
            "threats": [{"plugin": t.info.name, "label": t.label, "limit": t.limit, **t.params} for t in self.threats],
            "metrics": {name: _dump(options) for name, options in self.metrics.items()},
            "gate": _dump(self.gate) if self.gate else None,
        }


def load_suite(path: Path | str, host: Host, overrides: Sequence[str] = ()) -> Suite:
    """Read and validate a suite file.

    Args:
        path: a TOML file, or the name of a suite that ships with the harness ("quickstart").
        overrides: ``key=value`` after `--set`: ``suite.seed=1``, ``models.mine.checkpoint=w.safetensors``,
            ``threats.pgd.steps=10`` (every threat of that plugin or name), ``threats[0].eps=[0.1, 0.2]``.

    Raises:
        MissingDataError: no such file.
        SuiteError: everything that is wrong with it, one line each.
    """
    file = find_suite(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(str(path), [f"not valid TOML: {error}"]) from error
    except UnicodeDecodeError as error:
        raise SuiteError(str(path), [f"not UTF-8 text (byte {error.start}); save it as UTF-8"]) from error
    except OSError as error:
        raise MissingDataError(f"suite {path} cannot be read: {error.strerror or error}") from error
    for text in overrides:
        apply_override(document, text)
    return parse_suite(document, host, source=str(path), path=file)


def find_suite(path: Path | str) -> Path:
    """The file meant: a path, or the name of one of the suites that ship with the harness."""
    file = Path(path)
    shipped = shipped_suites()
    bundled = shipped.joinpath(*file.parts[1:]) if file.parts[:1] == ("suites",) else shipped / f"{file}.toml"
    try:
        for candidate in (file, bundled):
            if candidate.is_file():
                return candidate.resolve()
    except OSError as error:
        raise MissingDataError(f"suite {path} cannot be read: {error.strerror or error}") from error
    known = [f.relative_to(shipped).with_suffix("").as_posix() for f in shipped.rglob("*.toml")]
    wanted = file.as_posix().removesuffix(".toml")  # also of ".", which has no name to take a suffix off
    what = "is a folder; give the suite file" if file.is_dir() else f"no such file{did_you_mean(wanted, known)}"
    raise MissingDataError(f"suite {path}: {what}")


def shipped_suites() -> Path:
    """The folder of the suites that ship with the harness: in the wheel, or beside it in a checkout."""
    here = Path(__file__).parent
    return here / "_suites" if (here / "_suites").is_dir() else here.parent / "suites"


def parse_suite(document: Mapping[str, Any], host: Host, *, source: str = "suite", path: Path | None = None) -> Suite:
    """Validate a suite given as the dictionary a TOML file would give.

    Raises:
        SuiteError: everything that is wrong with it, one line each.
    """
    problems: list[str] = []
    known = ("suite", "models", "threats", "metrics", "gate")
    for key in document:
        if key not in known:
            problems.append(f"{key}: unknown table{did_you_mean(key, known)} (a suite has {', '.join(known)})")
    settings = _table(SuiteTable, document.get("suite"), "suite", problems)
    # Without settings the data set can still be checked, so that all problems are listed at once.
    table = document["suite"] if isinstance(document.get("suite"), dict) else {}
    dataset = None
    for key in ("dataset", "heldout"):
        if table.get(key) is not None:
            try:
                entry = dataset_entry(table[key], host, f"suite.{key}")
                dataset = entry if key == "dataset" else dataset
            except SuiteError as error:
                problems.extend(error.problems)
    models = _models(document.get("models"), host, problems)
    threats = _threats(document.get("threats"), host, problems)
    metrics = _metrics(document.get("metrics", {}), host, problems)
    if isinstance(document.get("models"), dict):
        problems.extend(_unknown_models(metrics, list(document["models"])))
    gate = _table(GateOptions, document["gate"], "gate", problems) if "gate" in document else None
    for index, rule in enumerate(gate.rules if gate else ()):
        if rule.metric.partition("[")[0] not in host.metrics:
            near = did_you_mean(rule.metric, [info.name for info in host.metrics])
            problems.append(f"gate rules[{index}].metric: '{rule.metric}' is not a metric{near}")
    if not problems:
        problems.extend(f"{at}: {value} is not a finite number" for at, value in _not_finite(document))
    if problems or settings is None or dataset is None:
        raise SuiteError(source, problems or ["suite.dataset: missing"])
    folder = path.parent if path else Path.cwd()
    return Suite(path, folder, settings, dataset, tuple(models), tuple(threats), gate, metrics)


def validate_options(
    options: type[OptionsT] | None, table: Mapping[str, Any], where: str, beside: Iterable[str] = ()
) -> tuple[OptionsT | None, list[str]]:
    """A plugin's options from a table, or the problems, each a line that begins with `where` and the key's path.

    `beside` names keys that stand in the same table but are not the plugin's: a mistyped key may mean one of them.
    """
    if options is None:
        return None, [f"{where} {key}: unknown key{did_you_mean(key, beside)}" for key in table]
    try:
        return options.model_validate(dict(table)), []
    except ValidationError as error:
        return None, problem_lines(options, error, where, beside)


def dataset_entry(raw: Any, host: Host, where: str, beside: Iterable[str] = ()) -> DatasetEntry:
    """A data set from its name or table; `beside` as of `validate_options`.

    Raises:
        SuiteError: everything that is wrong with it, one line each.
    """
    table = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        example = '{ name = "digits", split = "test" }'
        raise SuiteError(where, [f"{where}: expected a name or a table with a name, such as {example}"])
    name = table["name"]
    try:
        info = host.datasets.get(name)
        options_class = resolve(info.options, f"dataset '{name}'")
    except PluginError as error:
        raise SuiteError(where, [f"{where} name: {error}"]) from error
    own = {k: v for k, v in table.items() if k in SliceTable.model_fields}
    rest = {k: v for k, v in table.items() if k not in own and k != "name"}
    slicing, found = validate_options(SliceTable, own, f"{where} ({name})")
    options, more = validate_options(
        options_class, rest, f"{where} ({name})", ("name", *beside, *SliceTable.model_fields)
    )
    if slicing is None or more:
        raise SuiteError(where, found + more)
    return DatasetEntry(name, options, SliceSpec(**dict(slicing)), dict(table))


def model_entry(name: str, plugin: str, table: Mapping[str, Any], host: Host) -> ModelEntry:
    """A model from its plugin's name and options.

    Raises:
        SuiteError: everything that is wrong with it, one line each.
    """
    where = f"models.{name} ({plugin})"
    try:
        info = host.models.get(plugin)
        options_class = resolve(info.options, f"model plugin '{plugin}'")
    except PluginError as error:
        raise SuiteError(where, [f"models.{name} plugin: {error}"]) from error
    options, problems = validate_options(options_class, table, where, ("plugin",))
    if problems:
        raise SuiteError(where, problems)
    return ModelEntry(name, info, options, table)


def threat_entry(
    label: str, plugin: str, table: Mapping[str, Any], host: Host, limit: int | None = None
) -> ThreatEntry:
    """A threat with concrete parameters from its plugin's name and options.

    Raises:
        SuiteError: everything that is wrong with it, one line each.
    """
    info, options_class = _threat_info(plugin, host, label)
    options, problems = validate_options(options_class, table, label, _THREAT_KEYS)
    problems = with_tables_checked(
        problems, options_class, table, label, lambda raw, at, beside: dataset_entry(raw, host, at, beside)
    )
    if problems:
        raise SuiteError(label, problems)
    return ThreatEntry(label, info, options, limit, table)


def _threat_info(plugin: str, host: Host, where: str) -> tuple[ThreatInfo, type[BaseModel] | None]:
    try:
        info = host.threats.get(plugin)
        return info, resolve(info.options, f"threat '{plugin}'")
    except PluginError as error:
        raise SuiteError(where, [f"{where} plugin: {error}"]) from error


def _models(raw: Any, host: Host, problems: list[str]) -> list[ModelEntry]:
    if not isinstance(raw, dict) or not raw:
        problems.append("models: a suite needs at least one table [models.NAME]")
        return []
    entries = []
    for name, table in raw.items():
        problems.extend(_name_problem(f"models.{name!r}", name))
        plugin = table.get("plugin") if isinstance(table, dict) else None
        if not isinstance(plugin, str):
            problems.append(f"models.{name} plugin: missing; name a model plugin (see `harness plugins`)")
            continue
        try:
            entries.append(model_entry(name, plugin, {k: v for k, v in table.items() if k != "plugin"}, host))
        except SuiteError as error:
            problems.extend(error.problems)
    return entries


def _threats(raw: Any, host: Host, problems: list[str]) -> list[ThreatEntry]:
    if not isinstance(raw, list) or not raw:
        problems.append("threats: a suite needs at least one table [[threats]]")
        return []
    entries: list[ThreatEntry] = []
    for index, table in enumerate(raw):
        plugin = table.get("plugin") if isinstance(table, dict) else None
        if not isinstance(plugin, str):
            problems.append(f"threats[{index}] plugin: missing; name a threat (see `harness plugins`)")
            continue
        try:
            entries.extend(_grid(plugin, table, f"threats[{index}] ({plugin})", host))
        except SuiteError as error:
            problems.extend(error.problems)
    labels = Counter(entry.label for entry in entries)
    problems.extend(
        f"threats: {count} threats are called '{label}'; give them names"
        for label, count in labels.items()
        if count > 1
    )
    return entries


def _grid(plugin: str, table: Mapping[str, Any], where: str, host: Host) -> list[ThreatEntry]:
    """The threats of one `[[threats]]` table: one for each combination of the lists given for scalar options."""
    info, options_class = _threat_info(plugin, host, where)
    if info.internal:
        raise SuiteError(where, [f"{where} plugin: '{plugin}' is planned by the harness itself; leave it out"])
    common, problems = validate_options(
        ThreatTable, {k: table[k] for k in ThreatTable.model_fields if k in table}, where
    )
    own = {k: v for k, v in table.items() if k not in _THREAT_KEYS}
    grid = [key for key, value in own.items() if isinstance(value, list) and not _takes_list(options_class, key)]
    problems.extend(f"{where} {key}: an empty list makes no cells" for key in grid if not own[key])
    entries = []
    for point in itertools.product(*([(key, value) for value in own[key]] for key in grid)):
        concrete = {**own, **dict(point)}
        try:
            entry = threat_entry(where, plugin, concrete, host)
        except SuiteError as error:
            problems.extend(p for p in error.problems if p not in problems)
            continue
        if common is not None:
            shown = dict(point) if common.name else concrete
            label = (common.name or plugin) + _params_text(shown, entry.options)
            entries.append(replace(entry, label=label, limit=common.limit))
    problems.extend(_name_problem(f"{where} name", common.name or plugin) if common else [])
    if problems:
        raise SuiteError(where, problems)
    return entries


def _metrics(raw: Any, host: Host, problems: list[str]) -> dict[str, BaseModel]:
    """Options of every group metric that has some, by its name: those of `[metrics.NAME]`, else the defaults."""
    if not isinstance(raw, dict) or not all(isinstance(table, dict) for table in raw.values()):
        problems.append("metrics: expected tables [metrics.NAME]")
        return {}
    takers = {info.name: info for info in host.metrics if info.options is not None}
    for name in raw.keys() - takers.keys():
        what = "has no options" if name in host.metrics else f"is not a metric{did_you_mean(name, takers)}"
        problems.append(f"metrics.{name}: '{name}' {what}")
    found: dict[str, BaseModel] = {}
    for name, info in takers.items():
        try:
            options_class = resolve(info.options, f"metric '{name}'")
        except PluginError as error:
            problems.extend([f"metrics.{name}: {error}"] if name in raw else [])
            continue
        options, wrong = validate_options(options_class, raw.get(name, {}), f"metrics.{name}")
        problems.extend(wrong)
        if options is not None:
            found[name] = options
    return found


def _unknown_models(metrics: Mapping[str, BaseModel], models: Sequence[str]) -> Iterator[str]:
    """Options of metrics that name a model (`model_or` of `harness.options.option`) which the suite has not."""
    for metric, options in metrics.items():
        for key, field_info in type(options).model_fields.items():
            extra = field_info.json_schema_extra
            others = extra.get("model_or") if isinstance(extra, dict) else None
            named = getattr(options, key)
            if isinstance(others, list) and named not in (*models, *others):
                known = [*models, *(str(other) for other in others if other)]
                allowed = "".join(f' or "{other}"' for other in others if other)
                yield (
                    f"metrics.{metric} {key}: '{named}' is no model of the suite ({', '.join(models)}){allowed}"
                    f"{did_you_mean(str(named), known)}"
                )


def _name_problem(where: str, name: str) -> list[str]:
    """Names become part of cell ids (model/threat/dataset), of lines in the terminal and of JUnit files."""
    if name.strip() == name and name and name.isprintable() and "/" not in name:
        return []
    return [f"{where}: not a name: expected printable text without '/' and without spaces at its ends"]


def _not_finite(value: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """Where a document holds inf or nan, which JSON has no words for."""
    if isinstance(value, float) and not math.isfinite(value):
        yield at, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{at}[{index}]")


def _params_text(shown: Mapping[str, Any], options: BaseModel | None) -> str:
    """`[eps=8/255, norm=linf]`: parameters as the user wrote them, in the order the plugin declares them."""
    if not shown or options is None:
        return ""
    values = options.model_dump(mode="json")
    parts = [f"{key}={_compact(values[key])}" for key in type(options).model_fields if key in shown]
    return f"[{','.join(parts)}]"


def _compact(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(_compact(v) for v in value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}={_compact(v)}" for k, v in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _takes_list(options: type[BaseModel] | None, key: str) -> bool:
    """Whether an option is a list by type, so that a list given for it is one value and not a grid."""
    found = options.model_fields.get(key) if options is not None else None
    return found is not None and _is_sequence(found.annotation)


def _is_sequence(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, UnionType, typing.Annotated):
        return any(_is_sequence(a) for a in typing.get_args(annotation))
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, (list, tuple, set, frozenset, Sequence)) and kind is not str


def _table(model: type[OptionsT], raw: Any, where: str, problems: list[str]) -> OptionsT | None:
    if not isinstance(raw, dict):
        what = "missing; a suite needs a table" if raw is None else f"{raw!r} is no table; expected"
        problems.append(f"{where}: {what} [{where}]")
        return None
    # `dataset_entry` says what is wrong with a data set, in better words than a choice between two types.
    value, found = validate_options(model, raw, where)
    told = tuple(f"suite {key}:" for key in ("dataset", "heldout") if key in raw)
    problems.extend(p for p in found if not p.startswith(told))
    return value


def _dump(options: BaseModel | None) -> dict[str, Any]:
    return {} if options is None else options.model_dump(mode="json")
