"""What a threat must keep to, one function a check. Each raises AssertionError in a sentence that says what to fix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.capabilities import with_derived
from harness.datasets import DatasetSlice
from harness.evaluate import Setting, ShardTask, evaluate_batch
from harness.host import Host
from harness.info import ThreatInfo
from harness.judge import Judge, perturbation_norms
from harness.loading import BUDGET_TOLERANCE, BuiltModel, BuiltThreat, build_threat
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.suite import ThreatEntry
from harness.testing.checks_of_models import same_bits, tensors_of, validated
from harness.testing.global_state import global_state, other_global_seed
from harness.testing.toys import toy_model
from harness.threats import Batch, Threat

ROW_TOLERANCE = 1e-5
"""Largest difference that neighbours may make to a row's number, relative to the column's largest."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class WatchedDraws(Draws):
    """Random streams that note in `used` when they are drawn from."""

    used: list[str] = field(default_factory=list)

    def bits(self, name: str, number: int, shape: Any) -> Tensor:
        self.used.append(name)
        return super().bits(name, number, shape)


@dataclass
class ThreatSubject:
    """A threat under test, built as the engine builds it, with a model and images to run it on.

    Attributes:
        options: what a suite's threat table would hold.
        host, data_root: where the threat finds other data sets.
        model: what it runs against; None for a toy that has what the threat requires.
    """

    info: ThreatInfo
    options: Mapping[str, Any]
    data: DatasetSlice
    folder: Path
    host: Host
    data_root: Path | None = None
    model: BuiltModel | None = None
    device: str = "cpu"
    seed: int = 0
    samples: int = 6

    @cached_property
    def entry(self) -> ThreatEntry:
        options = validated(self.info.options, self.options, f"threat '{self.info.name}'")
        return ThreatEntry(self.info.name, self.info, options, None, self.options)

    @cached_property
    def checked(self) -> BuiltThreat:
        own = self.data
        return build_threat(self.entry, own.facts, self.host, self.data_root, self.folder, lambda: own)

    @property
    def threat(self) -> Threat:
        return self.checked.threat

    @cached_property
    def built(self) -> BuiltModel:
        return self.model or toy_model(self.info.requires, self.data.facts, self.device)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        return self.data.ids[: self.samples]

    def view_and_batch(
        self, built: BuiltModel, ids: NDArray[np.int64], seed: int, used: list[str]
    ) -> tuple[ModelView, Batch]:
        """What the engine hands the threat for these samples."""
        x, y = self.data.load(ids)
        samples = torch.from_numpy(ids.copy()).to(self.device)
        x, y = x.to(self.device), y.to(self.device)
        clean = None
        judge = built.view(samples, seed, "eval")
        if "Classifier" in judge.capabilities:
            with torch.no_grad():
                clean = judge.logits(x)
        streams = draws_for(samples, seed, "threat", self.info.name)
        draws = WatchedDraws(streams.key, streams.ids, streams.slots, used=used)
        shifted = Judge(built, x, y, samples, seed, None).shifted if self.threat.budget is None else None
        return built.view(samples, seed, "attack"), Batch(x, y, samples, draws, clean, judge=shifted)

    def rows(
        self,
        ids: NDArray[np.int64] | None = None,
        *,
        seed: int | None = None,
        built: BuiltModel | None = None,
        used: list[str] | None = None,
    ) -> Arrays:
        """The columns that the threat returns for these samples, with a `sample_id` in any case."""
        chosen = self.ids if ids is None else ids
        seed = self.seed if seed is None else seed
        view, batch = self.view_and_batch(built or self.built, chosen, seed, [] if used is None else used)
        columns = {name: as_array(values) for name, values in self.threat.run(view, batch).items()}
        return {"sample_id": chosen, **columns}


def as_array(values: Any) -> NDArray[Any]:
    """A column as NumPy, wherever it was."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def check_rows(s: ThreatSubject) -> None:
    """The columns make rows: of one length, one-dimensional, no Python objects, told apart by sample and variant."""
    view, batch = s.view_and_batch(s.built, s.ids, s.seed, [])
    columns = s.threat.run(view, batch)
    assert isinstance(columns, Mapping), f"run() returns a {type(columns).__name__}; return {{column name: values}}"
    arrays = {name: as_array(values) for name, values in columns.items()}
    count = len(arrays["sample_id"]) if "sample_id" in arrays else len(s.ids)
    for name, array in arrays.items():
        assert array.dtype != object, f"column '{name}' holds Python objects; use numbers, booleans or text"
        allowed = "four dimensions (B, C, H, W)" if name == "adversarial" else "one dimension (two for feature vectors)"
        fits = array.ndim == 4 if name == "adversarial" else array.ndim in (1, 2)
        assert fits, f"column '{name}' has {array.ndim} dimensions; it needs {allowed}"
        hint = "" if "sample_id" in arrays else " (several rows a sample need a column sample_id)"
        assert len(array) == count, f"column '{name}' has {len(array)} entries for {count} rows{hint}"
    taken = sorted(HOST_COLUMNS & arrays.keys() - ({"label"} if "sample_id" in arrays else set()))
    assert not taken, f"column '{taken[0]}' is added by the harness; give yours another name"
    missing = [name for name in s.info.variants if name not in arrays]
    assert not missing, f"ThreatInfo.variants names '{missing[0]}', but the rows have no such column"
    key = list(zip(*(arrays.get(name, s.ids).tolist() for name in ("sample_id", *s.info.variants)), strict=True))
    twice = next((k for k in key if key.count(k) > 1), None)
    names = ", ".join(("sample_id", *s.info.variants))
    assert twice is None, f"two rows have the same {names} {twice}: name the column that differs in ThreatInfo.variants"


def check_engine(s: ThreatSubject) -> None:
    """The engine takes the rows: it applies its own checks to what the threat returns."""
    setting = Setting("", str(s.folder), None, (), s.device, s.seed, len(s.ids), True)
    threat = (s.info.name, s.info.name, dict(s.options))
    task = ShardTask(setting, s.info.name, "", s.data.name, ("toy", "toy", {}), threat, s.ids)
    x, y = s.data.load(s.ids)
    evaluate_batch(s.built, s.checked, x, y, s.ids, task)


def check_budget(s: ThreatSubject) -> None:
    """Every adversarial image is in [0, 1] and inside the budget the threat declares."""
    budget = s.threat.budget
    name = s.info.budget_option
    if name is not None:
        assert budget is not None, f"ThreatInfo.budget_option is '{name}', but the threat's `budget` is None: set it"
        value = getattr(s.entry.options, name)
        eps = math.inf if value is None else float(value)  # not given: the smallest perturbation is looked for
        said = f"`budget.eps` is {budget.eps:g}, option '{name}' is {eps:g}"
        assert budget.eps == eps or abs(budget.eps - eps) <= BUDGET_TOLERANCE, said
    rows = s.rows()
    if "adversarial" not in rows:
        return
    x, _ = s.data.load(s.ids)
    images = torch.from_numpy(rows["adversarial"])
    assert images.shape == x.shape, f"adversarial images have shape {tuple(images.shape)}, the batch {tuple(x.shape)}"
    assert images.dtype == x.dtype, f"adversarial images are {images.dtype}, not {x.dtype}"
    low, high = float(images.min()), float(images.max())
    assert low >= 0 <= 1 - high, f"adversarial images hold values in [{low:.6g}, {high:.6g}]: clamp them to [0, 1]"
    if budget is not None:
        size = float(perturbation_norms(images, x)[budget.norm].max())
        limit = budget.eps * (1 + BUDGET_TOLERANCE) + BUDGET_TOLERANCE
        assert size <= limit, (
            f"an adversarial image is {size:.6g} away in {budget.norm}, eps is {budget.eps:.6g}: project after the"
            " last step, and after clamping"
        )


def check_determinism(s: ThreatSubject) -> None:
    """The same samples under the same seed give the same rows, bit for bit."""
    with other_global_seed(1):
        first = s.rows()
    with other_global_seed(2):
        second = s.rows()
    for name, column in first.items():
        assert _same_column(column, second[name]), (
            f"column '{name}' differs when the threat runs again with the same seed: take all randomness from"
            " `batch.draws`"
        )


def check_seed(s: ThreatSubject) -> None:
    """A threat that draws random numbers gives other rows under another seed."""
    used: list[str] = []
    first = s.rows(used=used)
    if not used:
        return
    others = [s.rows(seed=s.seed + k) for k in (1, 2, 3)]
    differ = any(not _same_column(column, other[name]) for other in others for name, column in first.items())
    assert differ, "the threat draws random numbers, but its rows are the same under every seed: are they used?"


def check_batch_invariance(s: ThreatSubject) -> None:
    """A sample's rows do not depend on which samples share its batch."""
    full = _by_sample(s.rows(), s.info.variants)
    half = len(s.ids) // 2 + 1
    for ids in [*(s.ids[i : i + 1] for i in range(len(s.ids))), s.ids[:half], s.ids[half:]]:
        if len(ids):
            _compare(full, _by_sample(s.rows(ids), s.info.variants), "in another batch")


def check_order_invariance(s: ThreatSubject) -> None:
    """A sample's rows do not depend on the order of the batch."""
    full = _by_sample(s.rows(), s.info.variants)
    _compare(full, _by_sample(s.rows(s.ids[::-1].copy()), s.info.variants), "in another order")


def check_random_model(s: ThreatSubject) -> None:
    """Against a random model too, a sample's rows do not depend on the others: model calls get their samples' draws."""
    if not s.info.requires <= with_derived({"Classifier"}) or s.model is not None:
        return
    noisy = toy_model(s.info.requires, s.data.facts, s.device, stochastic=True)
    full = _by_sample(s.rows(built=noisy), s.info.variants)
    for ids in (s.ids[::-1].copy(), s.ids[:1], s.ids[2:]):
        _compare(
            full,
            _by_sample(s.rows(ids, built=noisy), s.info.variants),
            "in another batch, the model being random (does every model call get the draws of just its samples,"
            " `draws[index]`?)",
        )


def check_model_untouched(s: ThreatSubject) -> None:
    """The model is left as it was: weights, mode, gradients, hooks."""
    # A fresh toy where one serves: what an earlier check left behind must not count as how the model was.
    built = s.model or toy_model(s.info.requires, s.data.facts, s.device)
    model = built.model
    before = {name: (t, t.detach().clone(), t.requires_grad) for name, t in tensors_of(model).items()}
    modes, hooks = _modes(model), _hooks(model)
    s.rows(built=built)
    after = tensors_of(model)
    for name, (tensor, values, wants) in before.items():
        assert same_bits(after[name], values), f"the threat changes the model's '{name}': put it back, in a `finally`"
        assert after[name].requires_grad == wants, f"the threat leaves requires_grad of '{name}' changed"
        assert tensor.grad is None, (
            f"the threat leaves a gradient in the model's '{name}': use model.input_gradient(), not .backward()"
        )
    assert _modes(model) == modes, "the threat leaves the model in another mode: do not call train() or eval()"
    assert _hooks(model) == hooks, "the threat leaves hooks on the model: remove them, in a `finally`"


def check_batch_untouched(s: ThreatSubject) -> None:
    """The batch is left as it was."""
    view, batch = s.view_and_batch(s.built, s.ids, s.seed, [])
    names = [name for name in ("x", "y", "ids", "clean_logits") if getattr(batch, name) is not None]
    kept = {name: getattr(batch, name).clone() for name in names}
    s.threat.run(view, batch)
    for name, values in kept.items():
        tensor: Tensor = getattr(batch, name)
        assert same_bits(tensor, values), f"the threat modifies batch.{name} in place: clone() it first"
        assert not tensor.requires_grad, f"the threat leaves requires_grad set on batch.{name}: clone() it first"


def check_global_rng(s: ThreatSubject) -> None:
    """The global generators of torch, NumPy and `random` are left as they were."""
    s.rows()  # what is imported or built on first use may draw; a run may not
    with global_state() as changed:
        s.rows()
    assert not changed, f"the threat uses the global generator of {' and '.join(changed)}: draw from `batch.draws`"


HOST_COLUMNS = frozenset(
    {
        "label",
        "clean_prediction",
        "clean_correct",
        "adversarial_prediction",
        "success",
        "linf",
        "l2",
        "l1",
        "l0",
        "forwards",
        "backwards",
    }
)
"""Columns that the harness adds itself."""

CHECKS: tuple[Callable[[ThreatSubject], None], ...] = (
    check_model_untouched,
    check_rows,
    check_engine,
    check_budget,
    check_determinism,
    check_seed,
    check_batch_invariance,
    check_order_invariance,
    check_random_model,
    check_batch_untouched,
    check_global_rng,
)


def _same_column(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _by_sample(rows: Arrays, variants: tuple[str, ...]) -> dict[int, Arrays]:
    """Rows of each sample, in the order of their variants."""
    out = {}
    for sample in dict.fromkeys(rows["sample_id"].tolist()):
        own = {name: column[rows["sample_id"] == sample] for name, column in rows.items()}
        keys = [own[name] for name in reversed(variants) if name in own]
        order = np.lexsort(keys) if keys else np.arange(len(own["sample_id"]))
        out[int(sample)] = {name: column[order] for name, column in own.items()}
    return out


def _compare(full: dict[int, Arrays], part: dict[int, Arrays], how: str) -> None:
    """Rows of `part` against those of the same samples in `full`."""
    for sample, rows in part.items():
        assert sample in full, f"sample {sample} has rows {how}, but none in the whole batch"
        for name, column in rows.items():
            scale = max(_largest(own[name]) for own in full.values())
            assert _close(column, full[sample][name], scale), (
                f"column '{name}' of sample {sample} differs {how}: nothing may be shared by a batch, such as a"
                " step size, a stopping rule, a statistic, or noise not taken from the sample's own draws"
            )


def _largest(column: NDArray[Any]) -> float:
    """The largest finite magnitude in a column of numbers; 0 for anything else."""
    if column.dtype.kind != "f":
        return 0.0
    return float(np.max(np.abs(column), initial=0.0, where=np.isfinite(column)))


def _close(a: NDArray[Any], b: NDArray[Any], scale: float) -> bool:
    if a.shape != b.shape or a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    return bool(np.allclose(a, b, rtol=ROW_TOLERANCE, atol=ROW_TOLERANCE * max(scale, 1e-6), equal_nan=True))


def _modes(model: Any) -> list[bool]:
    return [module.training for module in model.modules()] if isinstance(model, torch.nn.Module) else []


def _hooks(model: Any) -> int:
    if not isinstance(model, torch.nn.Module):
        return 0
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )
