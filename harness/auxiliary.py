"""Cells that a suite does not list: held-out scores that thresholds come from, and the probes of the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.capabilities import with_derived
from harness.errors import HarnessError, SuiteError
from harness.info import Probe, resolve
from harness.models import refuse_nan
from harness.suite import DatasetEntry, ModelEntry, Suite, ThreatEntry, dataset_entry, threat_entry
from harness.threats import Batch, Budget, Columns, ThreatContext

if TYPE_CHECKING:
    from pathlib import Path

    from harness.datasets import DatasetSlice, Ints
    from harness.host import Host
    from harness.models import ModelView

HELD_OUT_SCORES = "held-out-scores"
"""The threat by which a model's scores of held-out images are made."""
REPLAY = "replay"
"""The threat that shows a run's adversarial images again."""
TRANSFER_ADVICE = "images found on another model are stronger than the attack: the worst case over both counts"
_HELD_OUT_LIMIT = 1000


class HeldOutScores:
    """What a model says of clean images: rows that a `harness.models.Reference` is made of.

    Columns: `label` int64 (the host's own); `ood_score` float64; `log_prob` float64, nats, where the model has a
    density; `logits` (n, K) where it is a classifier, as in `Batch.clean_logits`; `features` (n, F) where it exposes
    them; the last two in the type the model gives them.
    """

    budget: Budget | None = None

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        with torch.no_grad():
            columns = {}
            if "Detector" in model.capabilities:
                columns["ood_score"] = model.ood_score(batch.x, batch.draws).double()
            if "Density" in model.capabilities:
                columns["log_prob"] = model.log_prob(batch.x, batch.draws).double()
            if batch.clean_logits is not None:
                columns["logits"] = batch.clean_logits
            if "Features" in model.capabilities:
                columns["features"] = model.features(batch.x, batch.draws)
        for name, values in columns.items():
            refuse_nan(values, batch.ids, name, "held-out images")
        return columns


def build_held_out_scores(options: None, context: ThreatContext) -> HeldOutScores:  # noqa: ARG001 - a factory's signature
    return HeldOutScores()


def needs_reference(threat: ThreatEntry) -> bool:
    """Whether the threat asks for held-out scores."""
    wants = threat.info.needs_reference
    return bool(wants(threat.options)) if callable(wants) else wants


def gains_by_reference(model: ModelEntry, threat: ThreatEntry, suite: Suite) -> bool:
    """Whether robust accuracy is told with the detector at work too, given held-out scores.

    So it is for a model with a detector of its own; and for any classifier where another attack of the suite evades its
    detector, so that the two can be compared.
    """
    detects = "Detector" in model.info.capabilities or any(needs_reference(other) for other in suite.threats)
    return detects and threat.info.budget_option is not None


def held_out(suite: Suite, host: Host) -> DatasetEntry | None:
    """The images that thresholds come from: as the suite says, else a stratified 1,000 of the data set's train split.

    None where the suite does not say and the data set has no other split.

    Raises:
        SuiteError: what is wrong with the suite's `heldout`.
    """
    given = suite.settings.heldout
    if given is not None:
        return dataset_entry(given, host, "suite.heldout")
    if getattr(suite.dataset.options, "split", "train") == "train":
        return None
    kept = {k: v for k, v in suite.dataset.table.items() if k not in ("limit", "subset")}
    try:
        return dataset_entry(
            {**kept, "split": "train", "limit": _HELD_OUT_LIMIT, "subset": "stratified"}, host, "suite.heldout"
        )
    except SuiteError:  # it calls its splits something else
        return None


def check_disjoint(test: DatasetSlice, other: DatasetSlice) -> None:
    """Thresholds fixed on the test images would flatter the model.

    Raises:
        HarnessError: the two share images.
    """
    if test.dataset.digest() == other.dataset.digest() and np.intersect1d(test.ids, other.ids).size:
        raise HarnessError("suite.heldout shares images with the test data: thresholds must come from other images")


def probes_of(model: ModelEntry, threat: ThreatEntry, wanted: str) -> Sequence[Probe]:
    """The probes that a threat's plugin names for these options.

    Args:
        wanted: "none", "default" or "all", as the suite says.
    """
    if wanted == "none" or threat.info.probes is None or "Classifier" not in with_derived(model.info.capabilities):
        return ()
    named = resolve(threat.info.probes, f"probes of threat '{threat.info.name}'")(threat.options)
    return [probe for probe in named if probe.default or wanted == "all"]


def probe_entry(probe: Probe, threat: ThreatEntry, host: Host) -> ThreatEntry:
    """The threat that a probe runs.

    Raises:
        SuiteError: its plugin is not there, or does not take these options.
    """
    label = f"{threat.label} probe {probe.name}"
    entry = threat_entry(label, probe.plugin, probe.table, host)
    return replace(entry, label=label)


def replays(suite: Suite, folder: Path, name: str, host: Host) -> tuple[ThreatEntry, ...]:
    """One replay of a run's adversarial images for each budget that the suite's own attacks have (`--from RUN`).

    Args:
        name: what the run is called in the cells' ids.

    Raises:
        HarnessError: the suite has no attack with a norm and a budget, or no plugin replays.
    """
    budgets = dict.fromkeys(
        (t.params["norm"], str(t.params[t.info.budget_option or ""]))
        for t in suite.threats
        if t.budget is not None and "norm" in t.params
    )
    if not budgets:
        raise HarnessError("--from: the suite has no attack with a norm and a budget to replay within")
    return tuple(
        threat_entry(
            f"replay[run={name},norm={norm},eps={eps}]",
            REPLAY,
            {"run": str(folder.absolute()), "norm": norm, "eps": eps},
            host,
        )
        for norm, eps in budgets
    )


def evenly(ids: Ints, count: int) -> Ints:
    """At most `count` of the ids, spread over them: a data set may come sorted by class."""
    if count >= len(ids):
        return ids
    return ids[np.linspace(0, len(ids) - 1, count).round().astype(np.int64)]
