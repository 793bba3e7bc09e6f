"""`harness explain`: pictures of why a model decided as it did, for the samples of a run or of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import HarnessError, MissingDataError, PluginError, did_you_mean

if TYPE_CHECKING:
    from harness.datasets import DatasetSlice
    from harness.explanations import AttackedImage, ExplainedSample, Picture
    from harness.loading import BuiltModel


@dataclass(frozen=True)
class Subject:
    """What is explained: a model, the data its samples come from, and where pictures go.

    Attributes:
        made_of: digest of what the explanations are made of.
        seed: of the streams of a model with randomness.
    """

    name: str
    built: BuiltModel
    data: DatasetSlice
    device: str
    folder: Path
    made_of: str
    seed: int = 0


@click.command("explain", short_help="Write pictures of why a model decided as it did.")
@click.argument("target", metavar="RUN|MODEL")
@click.option(
    "--sample", "samples", type=click.IntRange(min=0), multiple=True, required=True, metavar="ID",
    help="Sample to explain; may be given several times.",
)  # fmt: skip
@click.option("--model", metavar="NAME", help="Which model of the run, where it has several.")
@click.option("--only", multiple=True, metavar="GLOB", help="Of the run's attacks only those whose cell matches.")
@click.option("--dataset", metavar="NAME[:SPLIT][,KEY=VALUE...]", help="For MODEL: the data the sample comes from.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="For MODEL: an option of it.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="For MODEL: folder [explanations/MODEL].")
@click.option("--device", metavar="auto|cpu|cuda|cuda:N", help="Where to compute [that of the run, or auto].")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data sets [the run's, HARNESS_DATA].")
@click.option("-p", "plugins", multiple=True, metavar="PLUGIN", help="Load a module or file; no:NAME blocks one.")
def command(target: str, samples: tuple[int, ...], **options: Any) -> None:
    """Write heat maps, and what else the model can draw of itself, as pictures.

    RUN is the folder of a finished run: its samples are explained, with what its attacks made of them, into
    RUN/explanations/; `harness report RUN` then puts the pictures into report.html. MODEL is a model plugin.
    """
    from harness.arithmetic import fixed_arithmetic

    is_run = Path(target).is_dir()
    _refuse(options, ("dataset", "assignments", "out") if is_run else ("model", "only"), is_run)
    with fixed_arithmetic():
        paths = _explain_run(Path(target), samples, **options) if is_run else _explain_model(target, samples, **options)
    for path in paths:
        click.echo(f"wrote {path}")
    if is_run:
        click.echo(f"harness report {target} puts them into its report.html")


def _refuse(options: dict[str, Any], foreign: Sequence[str], is_run: bool) -> None:
    for name in foreign:
        if options.pop(name):
            flag = {"assignments": "--set"}.get(name, f"--{name}")
            there, here = ("a model plugin", "a run") if is_run else ("a run", "a model plugin")
            raise HarnessError(f"{flag} is for {there}; this is {here}")


def _explain_run(
    folder: Path,
    samples: Sequence[int],
    model: str | None,
    only: Sequence[str],
    device: str | None,
    data_root: Path | None,
    plugins: tuple[str, ...],
) -> list[Path]:
    from harness.explanations import FOLDER
    from harness.report.explanations import made_of
    from harness.retrace import Retracing
    from harness.store import load_run

    run = load_run(folder)
    again = Retracing.of(run, _chosen_model(run.info, model, folder), device, data_root, plugins)
    subject = Subject(
        again.model, again.built, again.data, again.device, folder / FOLDER, made_of(run, again.model), again.seed
    )
    _check(subject, samples)
    attacks = again.attacks(only)
    written = []
    for sample in samples:
        attacked, notes = again.attacked(sample, attacks)
        for note in notes:
            click.echo(f"harness: note: {note}", err=True)
        written += _explain_sample(subject, sample, attacked)
    return [*written, *_explain_itself(subject)]


def _chosen_model(info: dict[str, Any], wanted: str | None, folder: Path) -> str:
    names = list(info.get("suite", {}).get("models", {}))
    if wanted is not None and wanted not in names:
        raise HarnessError(f"--model {wanted}: run {folder} has no such model{did_you_mean(wanted, names)}")
    if wanted is None and len(names) != 1:
        raise HarnessError(f"run {folder} has several models: choose one with --model ({', '.join(names)})")
    return wanted or names[0]


def _explain_model(
    plugin: str,
    samples: Sequence[int],
    dataset: str | None,
    assignments: Sequence[str],
    out: Path | None,
    device: str | None,
    data_root: Path | None,
    plugins: tuple[str, ...],
) -> list[Path]:
    from harness.cli.arguments import dataset_table, sort_assignments
    from harness.host import load_host
    from harness.info import resolve
    from harness.loading import build_model, model_digest, open_dataset
    from harness.runner import data_root as root_of
    from harness.runner import pick_device
    from harness.suite import dataset_entry, model_entry

    host = load_host(plugins)
    if plugin not in host.models:
        try:
            host.models.get(plugin)
        except PluginError as error:
            raise MissingDataError(f"{plugin}: no such run folder, and {error}") from error
    if dataset is None:
        raise HarnessError(f"--dataset is missing: name the data that sample {samples[0]} comes from, such as digits")
    info = host.models.get(plugin)
    table, _ = sort_assignments(assignments, resolve(info.options, f"model plugin '{plugin}'"))
    entry = model_entry(plugin, plugin, table, host)
    data = open_dataset(dataset_entry(dataset_table(dataset, host), host, "--dataset"), host, root_of(data_root))
    device = pick_device(device or "auto")
    built = build_model(entry, data.facts, device, Path.cwd())
    digest = model_digest(entry, built, data.facts, device)[:16]
    subject = Subject(plugin, built, data, device, out or Path("explanations") / plugin, digest)
    _check(subject, samples)
    written = [path for sample in samples for path in _explain_sample(subject, sample, ())]
    return [*written, *_explain_itself(subject)]


def _check(subject: Subject, samples: Sequence[int]) -> None:
    """Say what is wrong before anything is computed."""
    if "Explainer" not in subject.built.capabilities:
        raise HarnessError(f"model '{subject.name}' cannot explain: it has no heatmap() (capability Explainer)")
    ids = subject.data.ids
    for sample in samples:
        if sample not in ids:
            raise HarnessError(
                f"--sample {sample}: not a sample of {subject.data.name}, which has {len(ids)} here, from"
                f" {int(ids[0])} to {int(ids[-1])}"
            )


def _explain_sample(subject: Subject, sample_id: int, attacked: Sequence[AttackedImage]) -> list[Path]:
    import numpy as np
    import torch

    from harness.explanations import ExplainedSample, collected, write_pictures
    from harness.report.heatmaps import heatmap_pictures

    x, y = subject.data.load(np.array([sample_id], dtype=np.int64))
    sample = ExplainedSample(
        sample_id, int(y[0]), x.to(subject.device), subject.data.facts.class_names, tuple(attacked)
    )
    ids = torch.tensor([sample_id], device=subject.device)
    view = subject.built.view(ids, subject.seed, "eval")
    pictures = heatmap_pictures(view, sample, str(getattr(subject.built.model, "heatmap_unit", "")))
    pictures += collected(_asked(subject, "explain_sample", sample, ids), subject.name)
    return write_pictures(subject.folder, subject.name, sample_id, pictures, subject.made_of)


def _explain_itself(subject: Subject) -> list[Path]:
    import torch

    from harness.explanations import collected, write_pictures

    ids = torch.zeros(1, dtype=torch.int64, device=subject.device)
    pictures = collected(_asked(subject, "explain_model", subject.data, ids), subject.name)
    if not pictures:
        return []
    return write_pictures(subject.folder, subject.name, None, pictures, subject.made_of)


def _asked(subject: Subject, method: str, about: ExplainedSample | DatasetSlice, ids: Any) -> Sequence[Picture]:
    """What an optional method of the model gives; nothing where the model has none.

    A model speaks of its own classes: where the data have others, it is not asked.
    """
    from harness.randomness import draws_for

    model = subject.built.model
    ask = getattr(model, method, None)
    if ask is None or subject.built.readout is not None:
        return []
    stochastic = bool(getattr(model, "stochastic", False))
    extra = {"draws": draws_for(ids, subject.seed, "model", "eval")} if stochastic else {}
    return list(ask(about, **extra))
