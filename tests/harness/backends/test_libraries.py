"""Every library through the engine: budgets, costs, errors, class densities, and nothing left behind."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import Run, ThreatInfo, run
from harness.backends.options import BackendOptions
from harness.errors import HarnessError, ThreatError
from harness.host import Host, load_host
from harness.loading import BuiltModel
from harness.models import ModelView
from harness.randomness import draws_for
from harness.testing import Check, parametrize_with_checks, synthetic_data, threat_checks, toy_model
from harness.testing.global_state import global_state
from harness.threats import Batch, Columns, ThreatContext

pytestmark = pytest.mark.backends

DATA = synthetic_data((3, 6, 5), 5)
STEPS = 5


@dataclass(frozen=True)
class Library:
    """A library: its plugin, an attack of five gradient steps in a budget, one for the smallest norm, typing errors."""

    name: str
    title: str
    install: str
    fixed: Mapping[str, Any]
    smallest: Mapping[str, Any]
    attack_typed: tuple[str, str]
    argument_typed: tuple[str, str]

    @property
    def info(self) -> ThreatInfo:
        found: list[ThreatInfo] = []
        importlib.import_module(f"harness_{self.name}").register_threats(found.append)
        return found[0]

    def build(self, **changes: Any) -> Any:
        factory = importlib.import_module(f"harness_{self.name}.attack").build
        options = BackendOptions.model_validate({**self.fixed, **changes})
        return factory(options, ThreatContext(DATA.facts, _no_dataset, Path()))

    def attack(self, built: BuiltModel, **changes: Any) -> tuple[Columns, ModelView, Batch]:
        view, batch = batch_for(built)
        return self.build(**changes).run(view, batch), view, batch


LIBRARIES = {
    library.name: library
    for library in (
        Library(
            "art",
            "ART",
            'pip install "harness-robustness[art]"',
            {
                "attack": "ProjectedGradientDescent",
                "norm": "linf",
                "eps": 0.1,
                "arguments": {"max_iter": STEPS, "num_random_init": 1},
            },
            {"attack": "HopSkipJump", "norm": "l2", "arguments": {"max_iter": 1, "max_eval": 50, "init_eval": 20}},
            ("CarliniL2", "CarliniL2Method"),
            ("max_iters", "max_iter"),
        ),
        Library(
            "torchattacks",
            "torchattacks",
            "pip install --no-deps torchattacks",
            {"attack": "PGD", "norm": "linf", "eps": 0.1, "arguments": {"steps": STEPS}},
            {"attack": "CW", "norm": "l2", "arguments": {"c": 10, "steps": 40}},
            ("PDG", "PGD"),
            ("step", "steps"),
        ),
        Library(
            "foolbox",
            "Foolbox",
            'pip install "harness-robustness[foolbox]"',
            {
                "attack": "LinfPGD",
                "norm": "linf",
                "eps": 0.1,
                "arguments": {"steps": STEPS, "rel_stepsize": 0.5},
            },
            {"attack": "L2DeepFoolAttack", "norm": "l2"},
            ("L2DeepFool", "L2DeepFoolAttack"),
            ("stepz", "steps"),
        ),
    )
}
THERE = [name for name in LIBRARIES if importlib.util.find_spec(name)]


def _no_dataset(table: Mapping[str, Any]) -> Any:
    raise AssertionError(f"the threat opened {table}")


def batch_for(built: BuiltModel, samples: int = 6) -> tuple[ModelView, Batch]:
    x, y = DATA.load(np.arange(samples))
    ids = torch.arange(samples)
    with torch.no_grad():
        clean = built.view(ids, 0, "eval").logits(x)
    return built.view(ids, 0, "attack"), Batch(x, y, ids, draws_for(ids, 0, "threat"), clean)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    pytest.importorskip(request.param)
    return LIBRARIES[request.param]


@pytest.fixture
def classifier() -> BuiltModel:
    return toy_model({"Classifier"}, DATA.facts)


@parametrize_with_checks(
    check
    for name in THERE
    for table, left_out in (
        (LIBRARIES[name].fixed, ()),
        # The kit compares a budget with the option, and there is none; only HopSkipJump draws.
        (LIBRARIES[name].smallest, ("budget",) if name == "art" else ("budget", "seed")),
    )
    for check in threat_checks(LIBRARIES[name].info, table, host=Host(), data=DATA)
    if check.name not in left_out
)
def test_conformance(check: Check) -> None:
    check()


def suite_table(plugin: str, options: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key} = {value}" for key, value in options.get("arguments", {}).items())
    eps = f"eps = {options['eps']}\n" if "eps" in options else ""
    return (
        f'[[threats]]\nplugin = "{plugin}"\nattack = "{options["attack"]}"\nnorm = "{options["norm"]}"\n{eps}'
        f"arguments = {{ {arguments} }}\n"
    )


def test_through_a_suite(library: Library, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(
        '[suite]\nname = "backend"\ndataset = { name = "digits", limit = 8 }\n'
        '[models.cnn]\nplugin = "torch"\ncheckpoint = "builtin:digits-cnn"\n'
        + suite_table(library.name, library.fixed)
        + suite_table(library.name, library.smallest)
    )
    plugins = () if library.name in load_host().threats else (f"harness_{library.name}",)
    done: Run = run(suite, out=tmp_path / "out", workers=1, device="cpu", plugins=plugins)
    fixed, smallest = [cell["id"] for cell in done.cells()]
    rows = done.rows(fixed, ["success", "linf", "claimed", "refused", "forwards", "backwards", "gradient_steps"])
    assert rows["success"].sum() >= 4
    assert rows["linf"].max() <= 0.1 * (1 + 1e-6)
    assert np.array_equal(rows["claimed"], rows["success"])
    assert not rows["refused"].any()
    assert (rows["gradient_steps"] == STEPS).all()
    assert (rows["backwards"] == STEPS).all()
    assert (rows["forwards"] > STEPS).all()
    found = done.rows(smallest, ["found", "minimal_norm", "l2"])
    assert found["found"].any()
    assert np.array_equal(found["minimal_norm"][found["found"]], found["l2"][found["found"]])
    assert np.isinf(found["minimal_norm"][~found["found"]]).all()


def test_a_class_density_is_attacked_too(library: Library) -> None:
    built = toy_model({"ClassDensity"}, DATA.facts)
    assert "Classifier" not in built.capabilities
    columns, view, batch = library.attack(built, eps=0.3)
    with torch.no_grad():
        fooled = view.logits(columns["adversarial"]).argmax(dim=1) != batch.y
    assert fooled[batch.clean_correct].any()
    assert torch.equal(fooled & batch.clean_correct, columns["claimed"])


def test_nothing_is_left_behind(library: Library, classifier: BuiltModel) -> None:
    """The model is in training mode and trainable here, which the engine never hands out."""
    model = classifier.model.train().requires_grad_(True)
    view, batch = batch_for(classifier)
    library.build().run(view, batch)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_all_is_as_before_after_an_exception(library: Library, classifier: BuiltModel) -> None:
    class Fails:
        num_classes = 5
        calls = 0

        def logits(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("out of order")
            logits: Tensor = classifier.model.logits(x)
            return logits

    _, batch = batch_for(classifier)
    kept, kind, threat = batch.x.clone(), np.random.RandomState, library.build()
    failing = ModelView(Fails(), {"Classifier"}, batch.ids, 0, "attack")
    with global_state() as changed, pytest.raises(ThreatError, match=r"failed on 1 sample\(s\).*: out of order$"):
        threat.run(failing, batch)
    assert changed == []
    assert np.random.RandomState is kind
    assert torch.is_grad_enabled()
    assert torch.equal(batch.x, kept)
    assert not batch.x.requires_grad


def test_together_costs_the_same_in_sum(library: Library, classifier: BuiltModel) -> None:
    alone, view, batch = library.attack(classifier)
    together, other, _ = library.attack(classifier, together=True)
    assert alone["claimed"].any()
    assert together["claimed"].any()
    assert int(view.backwards.sum()) == int(other.backwards.sum()) == STEPS * int(batch.clean_correct.sum())


def test_what_a_user_can_mend_is_one_line(library: Library) -> None:
    typed, meant = library.attack_typed
    with pytest.raises(HarnessError, match=rf"^attack: \w+ has no attack '{typed}'; did you mean '{meant}'\?$"):
        library.build(attack=typed)
    typed, meant = library.argument_typed
    with pytest.raises(
        HarnessError, match=rf"^arguments\.{typed}: \w+ has no such argument; did you mean '{meant}'\?$"
    ):
        library.build(arguments={typed: 3})
    with pytest.raises(HarnessError, match=r"^eps: \w+ needs a budget$"):
        library.build(eps=None)


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_without_the_library_the_command_that_installs_it(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        """An import system in which the library is not there."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] == library.name:
                raise ModuleNotFoundError(f"No module named '{library.name}'", name=library.name)

    for name in [name for name in sys.modules if name.partition(".")[0] == library.name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    message = f"{library.title} is not installed: {library.install}"
    with pytest.raises(HarnessError, match=f"^{re.escape(message)}$"):
        library.build()
