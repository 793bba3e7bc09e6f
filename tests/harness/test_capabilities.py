"""Capabilities: what the host derives, and where a declaration and the methods disagree."""

from __future__ import annotations

import inspect

import pytest

from harness import capabilities
from harness.capabilities import METHODS, OPTIONAL, PROTOCOLS, mismatches, offered, with_derived


class Complete:
    """Every method of every capability."""

    num_classes = 3
    density_tag = "exact"

    def logits(self, x): ...
    def log_prob(self, x): ...
    def class_log_prob(self, x): ...
    def ood_score(self, x): ...
    def features(self, x): ...
    def sample(self, y, *, draws): ...
    def heatmap(self, x, y): ...
    def fit(self, data, recipe, session): ...


@pytest.mark.parametrize(
    ("own", "derived"),
    [
        ({"Classifier"}, {"Classifier", "Detector"}),
        ({"ClassDensity"}, {"ClassDensity", "Classifier", "Density", "Detector"}),
        ({"Density"}, {"Density"}),
        ({"Detector", "Sampler"}, {"Detector", "Sampler"}),
        (set(), set()),
    ],
)
def test_what_the_host_derives(own: set[str], derived: set[str]) -> None:
    assert with_derived(own) == derived
    assert with_derived(derived) == derived


def test_every_capability_has_its_method_in_its_protocol() -> None:
    assert METHODS.keys() == PROTOCOLS.keys()
    for name, method in METHODS.items():
        assert callable(getattr(PROTOCOLS[name], method))
        assert inspect.getdoc(getattr(PROTOCOLS[name], method))
        assert getattr(capabilities, name) is PROTOCOLS[name]


def test_a_model_that_keeps_its_word() -> None:
    assert mismatches(Complete(), METHODS) == []
    assert mismatches(object(), ()) == []


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_not_declared(name: str) -> None:
    (problem,) = mismatches(Complete(), set(METHODS) - {name})
    assert problem == f"has a method {METHODS[name]}() but does not declare {name}"


@pytest.mark.parametrize("name", sorted(METHODS.keys() - OPTIONAL))
def test_a_capability_that_is_not_implemented(name: str) -> None:
    lacking = type("Lacking", (Complete,), {METHODS[name]: property(lambda self: _absent())})()
    (problem,) = mismatches(lacking, METHODS)
    assert problem == f"declares {name} but lacks {METHODS[name]}"


def test_an_optional_capability_is_one_that_some_models_of_a_plugin_lack() -> None:
    lacking = type("Lacking", (Complete,), {"features": None})()
    assert mismatches(lacking, METHODS) == []
    assert offered(lacking, METHODS) == METHODS.keys() - {"Features"}
    assert offered(Complete(), METHODS) == METHODS.keys()
    assert offered(Complete(), {"Classifier"}) == {"Classifier"}


def test_a_network_may_keep_a_submodule_of_the_name_of_an_optional_method() -> None:
    class Layer:
        def __call__(self, x): ...

    network = type("Network", (Complete,), {"features": Layer()})()
    assert mismatches(network, METHODS.keys() - {"Features"}) == []


def _absent() -> None:
    raise AttributeError("not there")


def test_an_attribute_that_is_missing() -> None:
    class Nameless:
        def logits(self, x): ...

    assert mismatches(Nameless(), {"Classifier"}) == ["declares Classifier but lacks num_classes"]


def test_all_disagreements_are_reported_together() -> None:
    problems = mismatches(Complete(), {"Classifier", "Telepath"})
    assert problems[0] == "declares unknown capability 'Telepath'"
    assert len(problems) == 1 + len(METHODS) - 1
