"""What a model must keep to, one function a check. Each raises AssertionError in a sentence that says what to fix."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import checkpoints
from harness.capabilities import mismatches, offered
from harness.datasets import DatasetSlice
from harness.errors import HarnessError
from harness.info import ModelInfo, resolve
from harness.loading import BuiltModel
from harness.models import ModelContext, prepare
from harness.randomness import draws_for
from harness.suite import validate_options
from harness.testing.global_state import global_state, other_global_seed
from harness.training import FitSession

BATCH_TOLERANCE = 1e-5
"""Largest difference that neighbours may make to an answer, relative to the largest answer of the batch."""
PRECISION_NATS = 1e-2
"""Coarsest rounding of a log-likelihood that class differences survive."""

_SCORES = {
    "Classifier": "logits",
    "Density": "log_prob",
    "ClassDensity": "class_log_prob",
    "Detector": "ood_score",
    "Features": "features",
}
Answers = dict[str, Tensor]


@dataclass
class ModelSubject:
    """A model under test, built as the engine builds it, and the images it is asked about.

    Attributes:
        options: what a suite's model table would hold.
        recipe: what `harness fit --set` would set, for a training of a few seconds; None to train nothing.
        checkpoint_option: the option that takes the path of a checkpoint.
    """

    info: ModelInfo
    options: Mapping[str, Any]
    data: DatasetSlice
    folder: Path
    device: str = "cpu"
    seed: int = 0
    samples: int = 5
    recipe: Mapping[str, Any] | None = None
    checkpoint_option: str = "checkpoint"
    _images: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)

    def build(self) -> BuiltModel:
        """A fresh model, from the factory."""
        owner = f"model plugin '{self.info.name}'"
        options = validated(self.info.options, self.options, owner)
        context = ModelContext(self.info.name, self.data.facts, self.device, self.folder)
        model = resolve(self.info.factory, owner)(options, context)
        return BuiltModel(prepare(model, self.device), offered(model, self.info.capabilities))

    @cached_property
    def built(self) -> BuiltModel:
        return self.build()

    @property
    def stochastic(self) -> bool:
        return bool(getattr(self.built.model, "stochastic", False))

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and sample ids; the last two images are all black and all white."""
        if self._images is None:
            ids = self.data.ids[: self.samples]
            x, y = self.data.load(ids)
            x[-2:] = torch.tensor([0.0, 1.0])[-len(x[-2:]) :, None, None, None]
            device = torch.device(self.device)
            self._images = x.to(device), y.to(device), torch.from_numpy(ids).to(device)
        x, y, ids_ = self._images
        return x.clone(), y.clone(), ids_.clone()

    def answers(self, x: Tensor, y: Tensor, ids: Tensor, *, seed: int | None = None) -> Answers:
        """All that the model says of these images, by method; class scores also where the host derives them."""
        with torch.no_grad():
            return answers(self.built, x, y, ids, self.seed if seed is None else seed)


def answers(built: BuiltModel, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> Answers:
    """All that a model says of these images, by method."""
    view = built.view(ids, seed, "eval")
    out: Answers = {}
    for capability, method in _SCORES.items():
        if capability in built.capabilities or (capability == "Classifier" and capability in view.capabilities):
            out[method] = getattr(view, method)(x)
    streams = draws_for(ids, seed, "model", "eval")
    if "Sampler" in built.capabilities:
        out["sample"] = built.model.sample(y, draws=streams)
    if "Explainer" in built.capabilities:
        extra = {"draws": streams} if view.stochastic else {}
        out["heatmap"] = built.model.heatmap(x, y, **extra)
    return out


def validated(options: Any, table: Mapping[str, Any], owner: str) -> Any:
    """A plugin's options from a table.

    Raises:
        HarnessError: all that is wrong with the table.
    """
    found, problems = validate_options(resolve(options, owner), table, owner)
    if problems:
        raise HarnessError("; ".join(problems))
    return found


def check_capabilities(s: ModelSubject) -> None:
    """Declared capabilities and implemented methods agree, in both directions."""
    problems = mismatches(s.built.model, s.info.capabilities)
    assert not problems, f"{'; '.join(problems)}: make ModelInfo.capabilities and the model's methods agree"


def check_outputs(s: ModelSubject) -> None:
    """Shapes and types of all answers; enough classes for the labels."""
    x, y, ids = s.batch()
    found = s.answers(x, y, ids)
    for method, out in found.items():
        assert out.is_floating_point(), f"{method}() returns {out.dtype}; return a floating point tensor"
        assert out.device == x.device, f"{method}() returns a tensor on {out.device} for images on {x.device}"
    if "logits" in found:
        classes = found["logits"].shape[1]
        wanted = s.data.facts.num_classes
        assert classes >= wanted, f"num_classes is {classes}, the data have {wanted} classes: raise it"
    if "sample" in found:
        sample = found["sample"]
        assert sample.shape == x.shape, f"sample() returned {tuple(sample.shape)}, not {tuple(x.shape)}"
        assert sample.dtype == torch.float32, f"sample() returned {sample.dtype}, not float32"
        low, high = float(sample.min()), float(sample.max())
        assert low >= 0 <= 1 - high, f"sample() returned values in [{low:.4g}, {high:.4g}]; images lie in [0, 1]"
    if "heatmap" in found:
        shape = tuple(found["heatmap"].shape)
        assert len(shape) == 3, f"heatmap() returned {shape}; return one map an image, (B, H', W')"
        assert shape[0] == len(x), f"heatmap() returned {shape[0]} maps for {len(x)} images"


def check_finite(s: ModelSubject) -> None:
    """No NaN and no infinity, on the data and on all-black and all-white images."""
    x, y, ids = s.batch()
    for method, out in s.answers(x, y, ids).items():
        bad = (~out.flatten(1).isfinite() if out.ndim > 1 else ~out[:, None].isfinite()).any(dim=1)
        where = "an all-black or all-white image" if not bad[:-2].any() else "ordinary images"
        assert not bad.any(), f"{method}() is NaN or infinite for {int(bad.sum())} of {len(x)} images ({where})"


def check_eval_mode(s: ModelSubject) -> None:
    """Nothing in the model is in training mode, before and after it is asked."""
    x, y, ids = s.batch()
    built = s.build()
    for when in ("as built", "after it was asked"):
        training = [name for name, module in _modules(built.model) if module.training]
        assert not training, (
            f"'{training[0]}' is in training mode {when} (dropout and batch norm are active): call .eval() in the"
            " factory, or make the model a torch.nn.Module so that the harness does; never call .train() in a method"
        )
        with torch.no_grad():
            answers(built, x, y, ids, s.seed)


def check_state_untouched(s: ModelSubject) -> None:
    """Parameters and buffers are the same after the model was asked."""
    x, y, ids = s.batch()
    before = {name: tensor.detach().clone() for name, tensor in tensors_of(s.built.model).items()}
    s.answers(x, y, ids)
    after = tensors_of(s.built.model)
    changed = [name for name in before if not same_bits(before[name], after[name])]
    assert not changed, f"asking the model changes its '{changed[0]}': an answer must not depend on earlier questions"


def check_determinism(s: ModelSubject) -> None:
    """The same images under the same streams give the same bits."""
    x, y, ids = s.batch()
    with other_global_seed(1):
        first = s.answers(x, y, ids)
    with other_global_seed(2):
        second = s.answers(x, y, ids)
    advice = (
        "take all randomness from the `draws` that the method is given"
        if s.stochastic
        else "remove the randomness, or set `stochastic = True` and take it from `draws`"
    )
    for method, out in first.items():
        assert same_bits(out, second[method]), f"{method}() answers differently when asked twice: {advice}"


def check_stochastic(s: ModelSubject) -> None:
    """A model that says it is random gives other answers under other streams."""
    if not s.stochastic:
        return
    x, y, ids = s.batch()
    first = s.answers(x, y, ids)
    others = [s.answers(x, y, ids, seed=s.seed + k) for k in (1, 2, 3)]
    differ = any(not same_bits(out, other[method]) for other in others for method, out in first.items())
    assert differ, (
        "the model declares `stochastic = True` but answers alike under every stream: use `draws`, or drop the"
        " declaration (attacks spend several evaluations a step on a random model)"
    )


def check_batch_invariance(s: ModelSubject) -> None:
    """What the model says of an image does not depend on its neighbours: alone, among others, in another order."""
    x, y, ids = s.batch()
    full = s.answers(x, y, ids)
    groups = {"alone": [torch.tensor([i]) for i in range(len(x))], "in another order": [torch.arange(len(x)).flip(0)]}
    groups["among fewer"] = [torch.arange(len(x))[: len(x) // 2 + 1]]
    for how, choices in groups.items():
        for index in choices:
            found = s.answers(x[index], y[index], ids[index])
            for method, out in found.items():
                gap = _relative_gap(out, full[method][index], full[method])
                assert gap <= BATCH_TOLERANCE, (
                    f"{method}() of an image {how} differs by {gap:.2g} (relative) from its answer in the whole batch:"
                    " nothing may be shared by a batch, such as statistics of batch norm, a normalisation over the"
                    " batch, a solver's step size, or noise not taken from the sample's own `draws`"
                )


def check_global_rng(s: ModelSubject) -> None:
    """The global generators of torch, NumPy and `random` are left as they were."""
    x, y, ids = s.batch()
    with global_state() as changed:
        s.answers(x, y, ids)
    assert not changed, (
        f"the model uses the global generator of {' and '.join(changed)}: draw from `draws` (set `stochastic = True`)"
    )


def check_input_untouched(s: ModelSubject) -> None:
    """The images given are not modified."""
    x, y, ids = s.batch()
    kept, version, labels = x.clone(), x._version, y.clone()
    s.answers(x, y, ids)
    same = same_bits(x, kept) and torch.equal(y, labels) and x._version == version
    assert same, "the model modifies the images it is given in place: work on a copy (x - mean, not x.sub_(mean))"


def check_reproducible_build(s: ModelSubject) -> None:
    """Building the model again gives the same model, whatever the global generators hold."""
    x, y, ids = s.batch()
    found = []
    for seed in (1, 2):
        with other_global_seed(seed), torch.no_grad():
            found.append(answers(s.build(), x, y, ids, s.seed))
    for method, out in found[0].items():
        assert same_bits(out, found[1][method]), (
            f"building the model twice gives two models ({method}() differs), so worker processes would disagree:"
            " load a checkpoint, or make the initial weights from a seed of the options"
        )


def check_class_density(s: ModelSubject) -> None:
    """Class scores, class densities, prior and marginal of one model agree (Bayes' rule)."""
    x, _, ids = s.batch()
    prior: Tensor | None = getattr(s.built.model, "log_prior", None)
    view = s.built.view(ids, s.seed, "eval")
    with torch.no_grad():
        joint = view.class_log_prob(x).double()
        if prior is not None:
            shape = tuple(prior.shape)
            assert shape == (view.num_classes,), f"log_prior has shape {shape}, not ({view.num_classes},)"
            total = float(prior.double().exp().sum())
            assert abs(total - 1) < 1e-4, f"exp(log_prior) sums to {total:.6g}, not to 1"
            joint = joint + prior.to(joint)
        if "Classifier" in s.info.capabilities:
            logits = view.logits(x).double()
            gap = _relative_gap(logits - logits[:, :1], joint - joint[:, :1])
            assert gap < 1e-3, (
                f"differences of logits() and of log_prior + class_log_prob() disagree (relative {gap:.2g}): drop"
                " logits(), the harness derives it"
            )
        if "Density" in s.info.capabilities and view.density_tag == "exact" and not s.stochastic:
            uniform = torch.tensor(float(view.num_classes)).log() if prior is None else 0.0
            gap = _relative_gap(view.log_prob(x).double(), joint.logsumexp(dim=1) - uniform)
            assert gap < 1e-3, (
                f"log_prob() is not the class densities' sum weighted by the prior (relative {gap:.2g}): drop"
                " log_prob(), the harness derives it"
            )


def check_likelihood_precision(s: ModelSubject) -> None:
    """Log-likelihoods are returned in a type that resolves differences between classes."""
    x, y, ids = s.batch()
    for method, out in s.answers(x, y, ids).items():
        if method in ("log_prob", "class_log_prob"):
            largest = float(out.abs().max())
            step = largest * torch.finfo(out.dtype).eps
            assert step <= PRECISION_NATS, (
                f"{method}() is {largest:.3g} nats in {out.dtype}, rounded to {step:.2g}: return float64"
            )


def check_checkpoint_round_trip(s: ModelSubject) -> None:
    """fit() writes a safetensors checkpoint from which a new model gives the answers of the trained one."""
    assert s.recipe is not None
    recipe = validated(s.info.fit_options, s.recipe, f"training of '{s.info.name}'")
    x, y, ids = s.batch()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "checkpoint.safetensors"
        header = _fit_header(s, recipe)
        trained = s.build()
        with global_state() as changed:
            trained.model.fit(s.data, recipe, FitSession(path, header, s.seed, _no_progress, device=s.device))
        assert path.is_file(), "fit() wrote no checkpoint: end with session.finish(tensors)"
        written = checkpoints.read_header(path)
        lost = [key for key in header if written.get(key) != header[key]]
        assert not lost, f"the checkpoint's header lacks '{lost[0]}': write it with session.finish(tensors)"
        left = FitSession(path, header, s.seed, _no_progress).state_path
        assert not left.exists(), f"fit() left {left.name} beside the checkpoint: end with session.finish(tensors)"
        assert not changed, f"fit() leaves the global generator of {' and '.join(changed)} changed: use session.seed"
        again = replace(s, options={**s.options, s.checkpoint_option: str(path)})
        with torch.no_grad():
            prepare(trained.model, s.device)
            before, after = answers(trained, x, y, ids, s.seed), answers(again.build(), x, y, ids, s.seed)
        for method, out in before.items():
            gap = _relative_gap(after[method], out)
            assert gap <= BATCH_TOLERANCE, (
                f"{method}() of the model loaded from the checkpoint differs by {gap:.2g} (relative) from that of the"
                " model fit() left behind: save every parameter and buffer, and let fit() leave the trained model"
            )


_DENSITIES = frozenset({"Density", "ClassDensity"})
CHECKS: dict[Callable[[ModelSubject], None], frozenset[str]] = {
    check_capabilities: frozenset(),
    check_outputs: frozenset(),
    check_finite: frozenset(),
    check_eval_mode: frozenset(),
    check_state_untouched: frozenset(),
    check_determinism: frozenset(),
    check_stochastic: frozenset(),
    check_batch_invariance: frozenset(),
    check_global_rng: frozenset(),
    check_input_untouched: frozenset(),
    check_reproducible_build: frozenset(),
    check_class_density: frozenset({"ClassDensity"}),
    check_likelihood_precision: _DENSITIES,
}
"""The checks of a model, each with the capabilities of which it needs one (none: it applies to all)."""


def _fit_header(s: ModelSubject, recipe: Any) -> dict[str, Any]:
    """As `harness fit` writes it."""
    header = {
        "plugin": s.info.name,
        "options": dict(s.options),
        "recipe": recipe.model_dump(mode="json") if recipe is not None else {},
        "seed": s.seed,
        "dataset": {"name": s.data.name},
        "data_digest": s.data.digest(),
        "samples": len(s.data),
        "shape": list(s.data.facts.shape),
        "classes": list(s.data.facts.class_names),
    }
    out: dict[str, Any] = json.loads(json.dumps(header, default=str))
    return out


def _no_progress(done: int, total: int, values: Mapping[str, float]) -> None:
    """Training in a test reports to nobody."""


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every entry, NaN equal to NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _relative_gap(found: Tensor, wanted: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference of two answers over the largest entry of `scale` (of `wanted` by default)."""
    if found.shape != wanted.shape:
        return float("inf")
    largest = float((wanted if scale is None else scale).abs().double().nan_to_num(posinf=0, neginf=0).max())
    gap = (found.double() - wanted.double()).abs()
    gap = torch.where((found == wanted) | (found.isnan() & wanted.isnan()), 0.0, gap)
    return float(gap.max()) / max(largest, 1e-12)


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model, also of one that is no module itself but holds some."""
    if isinstance(model, nn.Module):
        yield from ((name or type(model).__name__, module) for name, module in model.named_modules())
        return
    for name, value in getattr(model, "__dict__", {}).items():
        if isinstance(value, nn.Module):
            yield from (((f"{name}.{inner}" if inner else name), module) for inner, module in value.named_modules())


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Every parameter and buffer, by name."""
    out = {}
    for name, module in _modules(model):
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            out[f"{name}.{key}"] = tensor
    return out
