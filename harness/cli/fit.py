"""`harness fit`: train a model on a data set and keep the recipe with the weights."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import ExitCode, HarnessError, PluginError, SuiteError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.host import Host
    from harness.info import ModelInfo
    from harness.suite import DatasetEntry

Progress = Callable[[int, int, Mapping[str, float]], None]
_LINE_EVERY = 5.0  # seconds between progress lines where there is no terminal


class InterruptedFitError(HarnessError):
    """Ctrl-C during training."""

    exit_code = ExitCode.INTERRUPTED


@dataclass(frozen=True)
class Job:
    """What is to be trained: validated options, recipe and data."""

    info: ModelInfo
    options: BaseModel | None
    recipe: BaseModel | None
    model_table: Mapping[str, Any]
    dataset: DatasetEntry


@click.command("fit", short_help="Train a model and write a checkpoint.")
@click.argument("model")
@click.option(
    "--dataset",
    "dataset",
    required=True,
    metavar="NAME[:SPLIT][,KEY=VALUE...]",
    help="Data to train on; the split is train where the data set has one and none is given.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Checkpoint to write.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the model or of its training."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HARNESS_DATA",
    help="Folder under which data lie (HARNESS_DATA).",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N", help="Where to train.")
@click.option("--fresh", is_flag=True, help="Start anew: ignore an unfinished training, replace a finished one.")
@click.option(
    "-p",
    "plugins",
    multiple=True,
    metavar="MODULE_OR_FILE",
    help="Load a plugin (a module name or a Python file), or block an installed one (no:NAME).",
)
def command(
    model: str,
    dataset: str,
    out: Path,
    assignments: tuple[str, ...],
    seed: int,
    data_root: Path | None,
    device: str,
    fresh: bool,
    plugins: tuple[str, ...],
) -> None:
    """Train MODEL, a model plugin such as torch, and write a checkpoint with its recipe.

    Interrupted, the same command goes on from the last finished epoch and ends with the same weights.
    """
    from harness.host import load_host

    if out.suffix != ".safetensors":
        raise HarnessError(f"--out {out}: a checkpoint's name must end in .safetensors")
    job = plan_job(load_host(plugins), model, dataset, assignments)
    results, fitted = run_job(job, plugins, out, seed, data_root, device, fresh)
    text = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in results.items())
    click.echo(f"{'wrote' if fitted else 'already trained:'} {out} ({text})" if text else f"wrote {out}")


def plan_job(host: Host, model: str, dataset: str, assignments: tuple[str, ...]) -> Job:
    """Validate what the command line asks for.

    Raises:
        HarnessError: one line: unknown model, data set or key, a value of the wrong type, a model without training.
    """
    from harness.cli.arguments import dataset_table, sort_assignments
    from harness.info import resolve
    from harness.suite import dataset_entry, validate_options

    info = host.models.get(model)
    if "Trainable" not in info.capabilities:
        able = [m.name for m in host.models if "Trainable" in m.capabilities]
        raise PluginError(f"model '{model}' cannot be trained (these can: {', '.join(able)})")
    owner = f"model plugin '{model}'"
    options_class, recipe_class = resolve(info.options, owner), resolve(info.fit_options, owner)
    tables = sort_assignments(assignments, options_class, recipe_class)
    options, problems = validate_options(options_class, tables[0], f"--set ({model})")
    recipe, more = validate_options(recipe_class, tables[1], f"--set ({model} training)")
    problems += more
    try:
        entry = dataset_entry(dataset_table(dataset, host, split="train"), host, "--dataset")
    except SuiteError as error:
        raise HarnessError("\n".join([*problems, *error.problems])) from error
    if problems:
        raise HarnessError("\n".join(problems))
    return Job(info, options, recipe, tables[0], entry)


def run_job(
    job: Job, plugins: tuple[str, ...], out: Path, seed: int, data_root: Path | None, device: str, fresh: bool
) -> tuple[dict[str, Any], bool]:
    """Train, or find that it was done before: the results in the checkpoint's header, and whether training ran."""
    from harness.checkpoints import read_header
    from harness.host import load_host
    from harness.loading import build_model, open_dataset
    from harness.suite import ModelEntry
    from harness.training import FitSession

    data = open_dataset(job.dataset, load_host(plugins), data_root)
    if data.facts.readout is not None:
        raise HarnessError(
            "fit: restrict, and lists of indices in label_map, say how a trained model is read: leave them out of"
            " --dataset"
        )
    device = _device(device)
    entry = ModelEntry(job.info.name, job.info, job.options, job.model_table)
    built = build_model(entry, data.facts, device, Path.cwd())
    header = _header(job, data.facts, data.digest(), len(data), seed) | _started_from(built.model)
    with _progress(f"fit {job.info.name}") as progress:
        session = FitSession(out, header, seed, progress, resume=not fresh, device=device)
        if not fresh and _finished(session, out):
            return read_header(out).get("results", {}), False
        try:
            built.model.fit(data, job.recipe, session)
        except KeyboardInterrupt:
            kept = "the same command goes on from there" if session.state_path.is_file() else "nothing was kept"
            raise InterruptedFitError(f"interrupted; {kept}") from None
    return read_header(out).get("results", {}), True


def _finished(session: Any, out: Path) -> bool:
    """Whether `out` holds just what is asked for.

    Raises:
        HarnessError: it, or an unfinished training beside it, was made by another recipe.
    """
    from harness.checkpoints import read_header

    for path, name in ((session.state_path, "unfinished training"), (out, "checkpoint")):
        if not path.exists():
            continue
        written = read_header(path)
        wanted = json.loads(json.dumps(dict(session.header)))
        if {k: v for k, v in written.items() if k not in ("state", "notes", "results")} != wanted:
            changed = [key for key in wanted if written.get(key) != wanted[key]] or ["header"]
            raise HarnessError(
                f"{path} is a {name} made otherwise ({', '.join(changed)} differ); --fresh replaces it, or choose"
                " another --out"
            )
        return path == out
    return False


def _header(job: Job, facts: Any, digest: str, samples: int, seed: int) -> dict[str, Any]:
    """What tells one training from another, and what a reader of the checkpoint needs."""
    return {
        "plugin": job.info.name,
        "options": job.options.model_dump(mode="json", exclude_unset=True) if job.options else {},
        "recipe": job.recipe.model_dump(mode="json") if job.recipe else {},
        "seed": seed,
        "dataset": dict(job.dataset.table),
        "data_digest": digest,
        "samples": samples,
        "shape": list(facts.shape),
        "classes": list(facts.class_names),
    }


def _started_from(model: Any) -> dict[str, Any]:
    """Digests of the files that training starts from: the path in the options may hold other weights tomorrow."""
    from harness.checkpoints import file_digest

    files = {Path(path).name: file_digest(Path(path)) for path in getattr(model, "files", ())}
    return {"started_from": files} if files else {}


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise HarnessError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise HarnessError(f"--device {name}: there is no CUDA device here")
    return name


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A progress bar, or a line every few seconds where nobody watches a terminal."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None, values="")

        def update(done: int, total: int, values: Mapping[str, float]) -> None:
            bars.update(task, completed=done, total=total, values=_values(values))

        yield update


def _plain_progress() -> Progress:
    last = -_LINE_EVERY

    def update(done: int, total: int, values: Mapping[str, float]) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            click.echo(f"{done}/{total} {_values(values)}", err=True)

    return update


def _values(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
