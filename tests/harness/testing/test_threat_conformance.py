"""The conformance kit on threats: good ones pass everything, and each check catches the fault it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import Amount, Batch, Budget, ModelView, Options, ThreatInfo, option
from harness.errors import HarnessError
from harness.host import Host, PluginRecord, load_host
from harness.testing import check_threat, parametrize_with_checks, synthetic_data, threat_checks, toy_model
from harness.testing.checks import Check
from harness.testing.checks_of_threats import CHECKS

EMPTY = Host()
Run = Callable[[Any, ModelView, Batch], Any]


class Eps(Options):
    eps: Amount = option(help="budget", unit="[0, 1] pixel units")


class NoiseAttack:
    """Good: the strongest of three random points of the ball, then one gradient step."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.budget: Budget | None = Budget("linf", eps)

    def run(self, model: ModelView, batch: Batch) -> Any:
        best, score = batch.x, torch.full(batch.y.shape, -torch.inf)
        for k in range(3):
            x = self.inside(batch.x + self.eps * batch.draws.normal("start", k, batch.x.shape[1:]).sign(), batch.x)
            loss = self.loss(model, x, batch, batch.draws.numbered(k)).detach()
            better = loss > score
            best, score = torch.where(better[:, None, None, None], x, best), torch.where(better, loss, score)
        standing = batch.clean_correct.nonzero()[:, 0]
        if len(standing):
            x = best[standing].clone().requires_grad_()
            loss = self.loss(model, x, batch, batch.draws[standing].numbered(3), standing)
            step = self.eps * model.input_gradient(loss, x).sign()
            best = best.clone()
            best[standing] = self.inside(x.detach() + step, batch.x[standing])
        return {"adversarial": best, "loss": score}

    def inside(self, x: Tensor, centre: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, centre - self.eps), centre + self.eps).clamp(0, 1)

    def loss(self, model: ModelView, x: Tensor, batch: Batch, draws: Any, index: Any = slice(None)) -> Tensor:
        logits = model.logits(x, draws)
        return logits.logsumexp(dim=1) - logits.gather(1, batch.y[index][:, None])[:, 0]


class Scores:
    """Good: two rows a sample, no attack, no randomness."""

    budget: Budget | None = None

    def run(self, model: ModelView, batch: Batch) -> Any:
        with torch.no_grad():
            found = [model.ood_score(x, batch.draws) for x in (batch.x, 1 - batch.x)]
        names = ["in"] * len(batch.ids) + ["inverted"] * len(batch.ids)
        return {"sample_id": batch.ids.repeat(2), "set": names, "ood_score": torch.cat(found)}


def attack(kind: Callable[[float], Any] = NoiseAttack, **facts: Any) -> ThreatInfo:
    return ThreatInfo(
        name="toy",
        summary="a toy",
        factory=lambda options, context: kind(float(options.eps)),
        options=Eps,
        requires=frozenset({"Classifier"}),
        budget_option="eps",
        **facts,
    )


def scores(kind: Callable[[], Any] = Scores, variants: tuple[str, ...] = ("set",)) -> ThreatInfo:
    return ThreatInfo(
        name="toy",
        summary="a toy",
        factory=lambda options, context: kind(),
        requires=frozenset({"Detector"}),
        variants=variants,
    )


def failures(threat: ThreatInfo, options: dict[str, Any] | None = None, **settings: Any) -> dict[str, str]:
    """Name -> message of the checks that fail."""
    found = {}
    for check in threat_checks(threat, options or ({"eps": "8/255"} if threat.options else {}), host=EMPTY, **settings):
        try:
            check()
        except AssertionError as error:
            found[check.name] = str(error)
    return found


@pytest.mark.parametrize("threat", [attack(), scores()], ids=["attack", "scores"])
def test_good_threats_pass(threat: ThreatInfo) -> None:
    assert failures(threat) == {}
    assert failures(threat, data=synthetic_data((3, 6, 5), 4), samples=3, seed=7) == {}


def edited(run: Run) -> Callable[[float], Any]:
    """The good attack with another `run`."""
    return type(run.__name__, (NoiseAttack,), {"run": run})


good = NoiseAttack.run


def a_list(self: Any, model: ModelView, batch: Batch) -> Any:
    return [good(self, model, batch)]


def objects(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "notes": [{"a": 1}] * len(batch.ids)}


def too_many_dimensions(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "noise": batch.x}


def too_few_rows(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "steps": [1]}


def host_column(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "success": batch.y > 3}


def no_adversarial_range(self: Any, model: ModelView, batch: Batch) -> Any:
    found = good(self, model, batch)
    return {**found, "adversarial": torch.full_like(found["adversarial"], torch.nan)}


def unclamped(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "adversarial": batch.x - 1}


def outside_the_ball(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "adversarial": (batch.x + 1.01 * self.eps).clamp(0, 1)}


def other_type(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "adversarial": batch.x.double()}


def global_noise(self: Any, model: ModelView, batch: Batch) -> Any:
    return {**good(self, model, batch), "noise": torch.rand(len(batch.ids))}


def numpy_draw(self: Any, model: ModelView, batch: Batch) -> Any:
    np.random.rand()  # noqa: NPY002
    return good(self, model, batch)


def unused_noise(self: Any, model: ModelView, batch: Batch) -> Any:
    batch.draws.normal("noise", 0, (2,))
    return {"adversarial": batch.x}


def shared_step(self: Any, model: ModelView, batch: Batch) -> Any:
    return {"adversarial": (batch.x + self.eps * batch.x.mean()).clamp(0, 1)}


def by_position(self: Any, model: ModelView, batch: Batch) -> Any:
    return {"adversarial": batch.x, "place": torch.arange(len(batch.ids))}


def by_order(self: Any, model: ModelView, batch: Batch) -> Any:
    """Depends on the order, not on who is there."""
    ascending = (batch.ids.diff() >= 0).all()
    return {"adversarial": batch.x, "ascending": ascending.expand(len(batch.ids))}


def wrong_draws(self: Any, model: ModelView, batch: Batch) -> Any:
    """Attacks a half of the batch with the draws of its first samples."""
    half = batch.ids.sort().indices[len(batch.ids) // 2 :]
    x = batch.x.clone()
    with torch.no_grad():
        confident = model.logits(x[half], batch.draws[: len(half)]).softmax(dim=1).amax(dim=1)
    out = torch.zeros(len(batch.ids))
    out[half] = confident
    return {"adversarial": x, "confident": out}


def changes_weights(self: Any, model: ModelView, batch: Batch) -> Any:
    with torch.no_grad():
        next(model._model.parameters()).mul_(1.01)
    return good(self, model, batch)


def unfreezes(self: Any, model: ModelView, batch: Batch) -> Any:
    model._model.requires_grad_(True)
    return good(self, model, batch)


def backward(self: Any, model: ModelView, batch: Batch) -> Any:
    weight = next(model._model.parameters())
    weight.requires_grad_(True)
    model.logits(batch.x).sum().backward()
    weight.requires_grad_(False)
    return good(self, model, batch)


def training_mode(self: Any, model: ModelView, batch: Batch) -> Any:
    model._model.train()
    return good(self, model, batch)


def leaves_a_hook(self: Any, model: ModelView, batch: Batch) -> Any:
    model._model.register_forward_hook(lambda *_: None)
    return good(self, model, batch)


def in_place(self: Any, model: ModelView, batch: Batch) -> Any:
    batch.x.add_(self.eps).clamp_(0, 1)
    return {"adversarial": batch.x}


def leaves_grad(self: Any, model: ModelView, batch: Batch) -> Any:
    batch.x.requires_grad_(True)
    return {"adversarial": batch.x.detach()}


def strange_capability(self: Any, model: ModelView, batch: Batch) -> Any:
    return {"adversarial": batch.x, "density": model.log_prob(batch.x)}


FAULTS: list[tuple[Run, str, str]] = [
    (a_list, "rows", r"run\(\) returns a list; return"),
    (objects, "rows", "column 'notes' holds Python objects"),
    (too_many_dimensions, "rows", "column 'noise' has 4 dimensions; it needs one dimension"),
    (too_few_rows, "rows", "column 'steps' has 1 entries for 6 rows .several rows a sample need a column sample_id"),
    (host_column, "rows", "column 'success' is added by the harness"),
    (strange_capability, "rows", "raised AttributeError"),
    (no_adversarial_range, "engine", r"adversarial images lie outside \[0, 1\] .or are not finite"),
    (outside_the_ball, "engine", "the rows are refused"),
    (unclamped, "budget", r"adversarial images hold values in \[.*: clamp them to"),
    (outside_the_ball, "budget", r"is 0.03\d+ away in linf, eps is 0.03\d+: project after the last step"),
    (other_type, "budget", "adversarial images are torch.float64, not torch.float32"),
    (global_noise, "determinism", "column 'noise' differs when the threat runs again"),
    (unused_noise, "seed", "its rows are the same under every seed"),
    (shared_step, "batch_invariance", r"column 'adversarial' of sample \d+ differs in another batch"),
    (by_position, "batch_invariance", "column 'place' of sample 1 differs in another batch"),
    (by_order, "order_invariance", r"column 'ascending' of sample \d+ differs in another order"),
    (wrong_draws, "random_model", "does every model call get the draws of just its samples"),
    (changes_weights, "model_untouched", "the threat changes the model's .*weight"),
    (unfreezes, "model_untouched", "leaves requires_grad of .*weight' changed"),
    (backward, "model_untouched", r"leaves a gradient in the model's .*, not .backward\(\)"),
    (training_mode, "model_untouched", "in another mode"),
    (leaves_a_hook, "model_untouched", "leaves hooks on the model"),
    (in_place, "batch_untouched", "modifies batch.x in place"),
    (leaves_grad, "batch_untouched", "leaves requires_grad set on batch.x"),
    (global_noise, "global_rng", "uses the global generator of torch"),
    (numpy_draw, "global_rng", "uses the global generator of NumPy"),
]


@pytest.mark.parametrize(("run", "check", "message"), FAULTS, ids=[f"{f[0].__name__}-{f[1]}" for f in FAULTS])
def test_each_check_catches_its_fault(run: Run, check: str, message: str) -> None:
    (found,) = [c for c in threat_checks(attack(edited(run)), {"eps": "8/255"}, host=EMPTY) if c.name == check]
    with pytest.raises(AssertionError, match=f"^toy-{check}: .*{message}"):
        found()


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (host_column, {"rows"}),
        (numpy_draw, {"global_rng"}),
        (unused_noise, {"seed"}),
        (by_order, {"order_invariance", "random_model"}),
        (leaves_grad, {"batch_untouched"}),
        (training_mode, {"model_untouched"}),
        (global_noise, {"determinism", "batch_invariance", "order_invariance", "random_model", "global_rng"}),
    ],
)
def test_a_fault_is_reported_by_its_own_check_only(run: Run, expected: set[str]) -> None:
    assert set(failures(attack(edited(run)))) == expected


def test_every_check_is_tested_for_its_fault() -> None:
    assert {function.__name__.removeprefix("check_") for function in CHECKS} == {fault[1] for fault in FAULTS}


def test_the_budget_declared_must_be_that_of_the_options() -> None:
    class NoBudget(NoiseAttack):
        def __init__(self, eps: float) -> None:
            super().__init__(eps)
            self.budget = None

    class Halved(NoiseAttack):
        def __init__(self, eps: float) -> None:
            super().__init__(eps / 2)

    assert "budget_option is 'eps', but the threat's `budget` is None" in failures(attack(NoBudget))["budget"]
    assert "its budget is 0.05, but option eps is 0.1" in failures(attack(Halved), {"eps": 0.1})["budget"]


def test_rows_must_be_told_apart() -> None:
    assert "two rows have the same sample_id (0,)" in failures(scores(variants=()))["rows"]
    assert "variants names 'kind', but the rows have no such column" in failures(scores(variants=("kind",)))["rows"]


def test_an_attack_in_l2() -> None:
    class L2(NoiseAttack):
        def __init__(self, eps: float) -> None:
            super().__init__(eps)
            self.budget = Budget("l2", eps)

        def run(self, model: ModelView, batch: Batch) -> Any:
            noise = batch.draws.normal("noise", 0, batch.x.shape[1:])
            step = self.eps * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
            return {"adversarial": (batch.x + step).clamp(0, 1)}

    assert failures(attack(L2), {"eps": 0.5}) == {}


def test_a_toy_model_for_what_a_threat_requires() -> None:
    facts = synthetic_data().facts
    assert toy_model({"Classifier", "Detector"}, facts).capabilities == {"Classifier"}
    assert "Sampler" in toy_model({"ClassDensity", "Sampler"}, facts).capabilities
    with pytest.raises(HarnessError, match="no toy model of the kit has Trainable"):
        toy_model({"Trainable"}, facts)


def test_a_threat_runs_on_the_model_given() -> None:
    seen = []

    class Watching(Scores):
        def run(self, model: ModelView, batch: Batch) -> Any:
            seen.append(model._model)
            return super().run(model, batch)

    model = toy_model({"Sampler"}, synthetic_data().facts)
    assert failures(scores(Watching), model=model) == {}
    assert set(seen) == {model.model}


def test_check_threat_lists_failures_and_takes_expected_ones() -> None:
    broken = attack(edited(numpy_draw))
    with pytest.raises(AssertionError, match="toy-global_rng: the threat uses the global generator of NumPy"):
        check_threat(broken, {"eps": 0.1}, host=EMPTY)
    check_threat(broken, {"eps": 0.1}, host=EMPTY, expected_failures={"global_rng": "an old library"})
    host = load_host(entry_point_plugins=False)
    host.threats.add(attack(), PluginRecord("test", "here"))
    check_threat("toy", {"eps": "8/255"}, host=host)
    with pytest.raises(AssertionError, match="epz"):
        check_threat("toy", {"epz": "8/255"}, host=host)


@parametrize_with_checks(
    threat_checks(attack(edited(numpy_draw)), {"eps": 0.1}, host=EMPTY),
    expected_failures={"global_rng": "an old library"},
)
def test_parametrize_with_checks(check: Check) -> None:
    check()


def test_synthetic_data_are_images_that_the_toy_tells_apart() -> None:
    data = synthetic_data((3, 8, 8), 5, samples=50, levels=17)
    x, y = data.load(data.ids)
    assert torch.equal((x * 16).round() / 16, x)
    built = toy_model({"Classifier"}, data.facts)
    logits = built.view(torch.arange(50), 0, "eval").logits(x)
    assert (logits.argmax(dim=1) == y).float().mean() > 0.9
    assert data.digest() == synthetic_data((3, 8, 8), 5, samples=50, levels=17).digest()
    assert data.digest() != synthetic_data((3, 8, 8), 5, samples=50, levels=16).digest()
