"""Building what a suite names, and the digests that tell builds apart."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError, MissingDataError, ModelError, PluginError, SuiteError, ThreatError
from harness.host import Host, load_host
from harness.info import ModelInfo, ThreatInfo
from harness.loading import build_model, build_threat, code_version, digest_of, model_digest, open_dataset
from harness.suite import ModelEntry, ThreatEntry, dataset_entry, model_entry, threat_entry

TOY = str(Path(__file__).parents[1] / "toy" / "toy_plugin.py")


@pytest.fixture(scope="module")
def toys() -> Host:
    return load_host([TOY])


@pytest.fixture
def facts(toys: Host) -> Any:
    return open_dataset(dataset_entry("toy", toys, "dataset"), toys, None).facts


def model(toys: Host, facts: Any, folder: Path, plugin: str = "toy-model", **table: Any) -> Any:
    return build_model(model_entry("m", plugin, table, toys), facts, "cpu", folder)


# Data sets


def test_the_smaller_of_two_limits_counts(toys: Host) -> None:
    entry = dataset_entry({"name": "toy", "limit": 7}, toys, "dataset")
    assert len(open_dataset(entry, toys, None)) == 7
    assert len(open_dataset(entry, toys, None, limit=5)) == 5
    assert len(open_dataset(entry, toys, None, limit=9)) == 7


def test_no_sample_left_is_an_error(toys: Host) -> None:
    entry = dataset_entry({"name": "toy", "samples": 2, "classes": ["c"]}, toys, "dataset")
    with pytest.raises(HarnessError, match="dataset 'toy': no sample is left by the options given"):
        open_dataset(entry, toys, None)


def test_data_that_need_a_root_say_so(toys: Host, tmp_path: Path) -> None:
    entry = dataset_entry("mnist", toys, "dataset")
    with pytest.raises(MissingDataError, match=r"there is no data root; .*--data-root or .*HARNESS_DATA"):
        open_dataset(entry, toys, None)
    with pytest.raises(MissingDataError, match=r"t10k-images-idx3-ubyte\.gz does not exist"):
        open_dataset(entry, toys, tmp_path)


# Models and threats


def test_a_model_is_frozen_and_in_eval_mode(toys: Host, facts: Any, workplace: Any) -> None:
    built = model(toys, facts, workplace.folder, "torch", factory="tiny_nets:Rows")
    assert not built.model.training
    assert not any(p.requires_grad for p in built.model.parameters())
    assert str(workplace.folder) in sys.path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("factory raises", "model 'm': RuntimeError: no weights here"),
        ("factory exits", "model 'm': SystemExit: 0"),
        ("no method", "model 'm': plugin 'toy-model' declares Classifier but lacks logits, num_classes"),
    ],
)
def test_a_factory_that_fails_is_one_line(kind: str, message: str, toys: Host, facts: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        model(toys, facts, tmp_path, kind=kind)
    assert str(caught.value) == message


def test_what_a_plugin_forgot_to_declare_is_found(facts: Any, toys: Host, tmp_path: Path) -> None:
    honest = toys.models.get("toy-model")
    info = ModelInfo(name="x", summary="", factory=honest.factory, options=honest.options, capabilities=frozenset())
    entry = ModelEntry("m", info, model_entry("m", "toy-model", {}, toys).options, {})
    with pytest.raises(ModelError, match=r"has a method logits\(\) but does not declare Classifier"):
        build_model(entry, facts, "cpu", tmp_path)


def test_a_factory_path_that_leads_nowhere_names_the_plugin(facts: Any, tmp_path: Path, toys: Host) -> None:
    info = ModelInfo(name="x", summary="", factory="absent_module:build", capabilities=frozenset())
    with pytest.raises(PluginError, match="model 'm': cannot load 'absent_module:build': ModuleNotFoundError"):
        build_model(ModelEntry("m", info, None, {}), facts, "cpu", tmp_path)


def test_a_threat_factory_that_fails_is_one_line(facts: Any, tmp_path: Path, toys: Host) -> None:
    def fails(options: Any, context: Any) -> Any:
        raise ValueError("two\nlines")

    entry = ThreatEntry("t", ThreatInfo(name="x", summary="", factory=fails), None, None, {})
    with pytest.raises(ThreatError) as caught:
        build_threat(entry, facts, toys, None, tmp_path)
    assert str(caught.value) == "threat 't': ValueError: two lines"


def test_a_threat_may_open_other_data(facts: Any, tmp_path: Path, toys: Host) -> None:
    class Curious:
        budget = None

        def __init__(self, samples: int, context: Any) -> None:
            self.images = context.open_dataset({"name": "toy", "samples": samples})

    def inputs(samples: int) -> str:
        info = ThreatInfo(name="x", summary="", factory=lambda options, context: Curious(samples, context))
        return build_threat(ThreatEntry("t", info, None, None, {}), facts, toys, None, tmp_path).inputs

    assert inputs(4) == inputs(4) != inputs(5)  # what it opened is part of what its rows are found by

    def own(samples: int) -> str:
        class Pairing:
            budget = None

            def __init__(self, options: Any, context: Any) -> None:
                assert len(context.open_own()) == samples

        info = ThreatInfo(name="x", summary="", factory=Pairing)
        data = open_dataset(dataset_entry({"name": "toy", "samples": samples}, toys, "d"), toys, None)
        entry = ThreatEntry("t", info, None, None, {})
        return build_threat(entry, facts, toys, None, tmp_path, lambda: data).inputs

    assert own(4) == own(4) != own(5)

    def mistaken(options: Any, context: Any) -> Any:
        return context.open_dataset({"name": "toy", "sampels": 4})

    wrong = ThreatEntry("t", ThreatInfo(name="x", summary="", factory=mistaken), None, None, {})
    with pytest.raises(SuiteError, match=r"threat 't' dataset .toy. sampels: unknown key; did you mean 'samples'"):
        build_threat(wrong, facts, toys, None, tmp_path)


# Digests


def test_a_model_digest_is_that_of_the_model_not_of_its_name(toys: Host, facts: Any, tmp_path: Path) -> None:
    def digest(name: str, **table: Any) -> str:
        entry = model_entry(name, "toy-model", table, toys)
        return model_digest(entry, build_model(entry, facts, "cpu", tmp_path), facts, "cpu")

    assert digest("a") == digest("b")
    assert digest("a") != digest("a", scale=9.0)


def test_a_random_model_has_a_steady_digest(toys: Host, facts: Any, tmp_path: Path) -> None:
    entry = model_entry("a", "toy-random", {}, toys)
    assert len({model_digest(entry, build_model(entry, facts, "cpu", tmp_path), facts, "cpu") for _ in range(3)}) == 1


def test_code_version_covers_the_whole_package_of_a_path() -> None:
    assert code_version("harness_attacks.pgd:build") != code_version("harness_ood.ood:build")
    assert code_version("harness_attacks.pgd:build") == code_version("harness_attacks.pgd")
    assert len(code_version("no_such_module:x")) == 64


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))
    assert digest_of(value) != digest_of({**value, "another key": 1.5})


def test_threat_options_are_checked_where_a_worker_reads_them_again(toys: Host) -> None:
    with pytest.raises(SuiteError, match="epz: unknown key"):
        threat_entry("t", "toy-attack", {"eps": 0.1, "epz": 1}, toys)


def test_a_bound_factory_is_known_by_its_function_and_what_is_bound() -> None:
    first, second = functools.partial(sorted, key=len), functools.partial(sorted, key=str)
    versions = {code_version(f) for f in (first, second, functools.partial(filter_nothing, 1), filter_nothing)}
    assert len(versions) == 4
    assert code_version(functools.partial(sorted, key=len)) == code_version(first)


def filter_nothing(value: int) -> int:
    return value


def test_a_model_that_draws_without_saying_so_is_refused(facts: Any, tmp_path: Path) -> None:
    class Noisy(torch.nn.Module):
        num_classes = 3

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(x), 3)

    info = ModelInfo(name="noisy", summary="", capabilities=frozenset({"Classifier"}), factory=lambda *_: Noisy())
    entry = ModelEntry("m", info, None, {})
    with pytest.raises(ModelError, match=r"logits\(\) answers differently when asked twice"):
        model_digest(entry, build_model(entry, facts, "cpu", tmp_path), facts, "cpu")
