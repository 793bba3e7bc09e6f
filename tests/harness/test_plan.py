"""Suite -> cells -> shards: what is skipped, what is planned, and what makes finished shards unusable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import checkpoints
from harness.datasets import DatasetFacts
from harness.errors import HarnessError
from harness.host import Host, load_host
from harness.plan import Plan, expand, microbatch_of, resolve
from harness.suite import load_suite

TOY = Path(__file__).parents[1] / "toy" / "toy_plugin.py"


@pytest.fixture(scope="module")
def toys() -> Host:
    return load_host([str(TOY)])


def plan(place: Any, toys: Host, *overrides: str, limit: int | None = None, only: tuple[str, ...] = ()) -> Plan:
    suite = load_suite(place.suite, toys, overrides)
    return resolve(suite, expand(suite, only), toys, device="cpu", data_root=None, limit=limit)


def digests(found: Plan) -> list[str]:
    return [cell.digest for cell in found.cells]


# Cells


def test_every_model_meets_every_threat_in_the_order_of_the_suite(workplace: Any, toys: Host) -> None:
    workplace.write(workplace.suite.read_text() + '\n[models.second]\nplugin = "toy-model"\n')
    suite = load_suite(workplace.suite, toys)
    assert [cell.id for cell in expand(suite)] == [
        f"{model}/{threat}/toy"
        for model in ("rows", "second")
        for threat in ("clean", "toy-attack[eps=0.05]", "toy-attack[eps=0.2]")
    ]


def test_a_pair_that_cannot_be_run_says_why(workplace: Any, toys: Host) -> None:
    workplace.write(workplace.suite.read_text() + '\n[models.flow]\nplugin = "toy-density"\n')
    suite = load_suite(workplace.suite, toys)
    skips = {cell.id: cell.skip for cell in expand(suite) if cell.skip}
    reason = "threat 'toy-attack' needs Classifier, which model 'flow' does not have"
    assert skips == {f"flow/toy-attack[eps={eps}]/toy": reason for eps in ("0.05", "0.2")}
    found = plan(workplace, toys)
    assert len(found.cells) == 4
    assert [cell.id for cell in found.skipped] == list(skips)
    assert len(found.order) == 6


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        ((), 3),
        (("*",), 3),
        (("rows/clean/toy",), 1),
        (("rows/toy-attack[eps=0.05]/toy",), 1),  # brackets stand for themselves
        (("*eps=0.?*",), 2),
        (("*/clean/*", "*0.2*"), 2),
        (("*/clean/*", "rows/clean/toy"), 1),
    ],
)
def test_only_keeps_the_cells_that_match(patterns: tuple[str, ...], count: int, workplace: Any, toys: Host) -> None:
    assert len(expand(load_suite(workplace.suite, toys), patterns)) == count


@pytest.mark.parametrize("pattern", ["row", "[rc]ows/clean/toy", "", "rows/clean"])
def test_a_pattern_without_a_cell_is_refused(pattern: str, workplace: Any, toys: Host) -> None:
    with pytest.raises(HarnessError, match="no cell matches"):
        expand(load_suite(workplace.suite, toys), (pattern,))


# Shards and samples


def test_shards_cover_the_samples_once_and_in_order(workplace: Any, toys: Host) -> None:
    for cell in plan(workplace, toys).cells:
        shards = cell.shards()
        assert [len(ids) for ids in shards] == [8, 8, 8, 6]
        assert np.concatenate(shards).tolist() == list(range(30))
        assert cell.manifest().shards == (0, 8, 16, 24)


def test_the_smallest_of_the_limits_counts(workplace: Any, toys: Host) -> None:
    workplace.edit('plugin = "toy-attack"', 'plugin = "toy-attack"\nlimit = 5')
    assert [len(c.ids) for c in plan(workplace, toys).cells] == [30, 5, 5]
    assert [len(c.ids) for c in plan(workplace, toys, limit=3).cells] == [3, 3, 3]
    assert [len(c.ids) for c in plan(workplace, toys, "suite.dataset.limit=4").cells] == [4, 4, 4]


def test_a_stratified_limit_keeps_the_shares_of_the_classes(workplace: Any, toys: Host) -> None:
    found = plan(workplace, toys, "suite.dataset.limit=9", "suite.dataset.subset=stratified")
    ids = found.cells[0].ids
    assert np.bincount(ids % 3).tolist() == [3, 3, 3]
    assert ids.tolist() != list(range(9))
    other = plan(
        workplace, toys, "suite.dataset.limit=9", "suite.dataset.subset=stratified", "suite.dataset.subset_seed=1"
    )
    assert other.cells[0].ids.tolist() != ids.tolist()


def test_budgets_of_one_attack_are_one_family(workplace: Any, toys: Host) -> None:
    clean, small, large = plan(workplace, toys).cells
    assert clean.family == ""
    assert small.family == large.family != ""
    assert small.digest != large.digest
    steps = plan(workplace, toys, "threats.toy-attack.steps=[1, 2]").cells[1:]
    assert len({cell.family for cell in steps}) == 2


# Models that cannot be built


def test_a_model_that_cannot_be_built_fails_its_own_cells_only(workplace: Any, toys: Host) -> None:
    broken = '\n[models.broken]\nplugin = "toy-model"\nkind = "factory raises"\n'
    exits = '\n[models.exits]\nplugin = "toy-model"\nkind = "factory exits"\n'
    lost = '\n[models.lost]\nplugin = "torch"\nfactory = "tiny_nets:Rows"\ncheckpoint = "absent.safetensors"\n'
    workplace.write(workplace.suite.read_text() + broken + exits + lost)
    found = plan(workplace, toys)
    assert {cell.cell.model.name for cell in found.cells} == {"rows"}
    failed = {cell.model.name: (error, trace) for cell, error, trace in found.failed}
    assert len(found.failed) == 9
    assert failed["broken"][0] == "model 'broken': RuntimeError: no weights here"
    assert "Traceback" in failed["broken"][1]
    assert failed["exits"][0] == "model 'exits': SystemExit: 0"
    assert "absent.safetensors does not exist" in failed["lost"][0]
    assert failed["lost"][1] == "", "the user can mend it: no traceback"


# Digests


@pytest.mark.parametrize(
    "override",
    [
        "suite.seed=1",
        "suite.shard_size=7",
        "suite.microbatch=4",
        "suite.store_images=false",
        "suite.dataset.samples=29",
        "suite.dataset.limit=29",
        "models.rows.factory_args.scale=9.0",
        "models.rows.num_classes=3",
    ],
)
def test_what_changes_rows_changes_every_digest(override: str, workplace: Any, toys: Host) -> None:
    before, after = digests(plan(workplace, toys)), digests(plan(workplace, toys, override))
    assert len(set(before)) == 3
    assert not set(before) & set(after)


def test_a_threats_parameter_changes_its_own_digests_only(workplace: Any, toys: Host) -> None:
    before = digests(plan(workplace, toys))
    after = digests(plan(workplace, toys, "threats.toy-attack.steps=3"))
    assert before[0] == after[0]
    assert not set(before[1:]) & set(after[1:])


def test_names_and_the_gate_change_no_digest(workplace: Any, toys: Host) -> None:
    before = digests(plan(workplace, toys))
    workplace.edit("[models.rows]", "[models.other]")
    workplace.edit('name = "tiny"', 'name = "renamed"')
    workplace.edit('plugin = "toy-attack"', 'plugin = "toy-attack"\nname = "renamed"')
    after = digests(plan(workplace, toys, "gate.mode=noninferior", "suite.level=0.9"))
    assert before == after


def test_writing_a_default_changes_no_digest(workplace: Any, toys: Host) -> None:
    explicit = plan(workplace, toys, "threats.toy-attack.steps=2", "suite.seed=0")
    assert digests(plan(workplace, toys)) == digests(explicit)


def test_the_identity_of_a_baseline_ignores_the_models_weights(workplace: Any, toys: Host) -> None:
    before = plan(workplace, toys).identity
    assert plan(workplace, toys, "models.rows.factory_args.scale=9.0").identity == before
    for override in ("suite.seed=1", "suite.dataset.limit=29", "threats.toy-attack.steps=3"):
        assert plan(workplace, toys, override).identity["hash"] != before["hash"]
    workplace.edit("[models.rows]", "[models.other]")
    assert plan(workplace, toys).identity["hash"] != before["hash"]


@pytest.fixture
def afresh(workplace: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Digests as a new process would see them: modules beside the suite are imported anew."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def now(plugin: Path = TOY) -> list[str]:
        for name in ("tiny_nets", "tiny_scale"):
            sys.modules.pop(name, None)
        found = plan(workplace, load_host([str(plugin)]))
        assert not found.failed, found.failed
        return digests(found)

    return now


def test_sources_and_bytes_of_files_are_part_of_the_digests(workplace: Any, afresh: Callable[..., list[str]]) -> None:
    workplace.edit('factory = "tiny_nets:Rows"', 'factory = "tiny_nets:Rows"\ncheckpoint = "w.safetensors"')
    plugin = workplace.write(TOY.read_text(), "plugin.py")

    def train(scale: float) -> None:
        weights = {"linear.weight": torch.eye(3, 9) * scale, "linear.bias": torch.zeros(3)}
        checkpoints.save(workplace.folder / "w.safetensors", weights, {})

    train(2.0)
    first = afresh(plugin)
    assert afresh(plugin) == first
    workplace.edit("return self.linear", "return 1.0 * self.linear", "tiny_nets.py")
    factory_changed = afresh(plugin)
    assert not set(first) & set(factory_changed)
    train(3.0)
    bytes_changed = afresh(plugin)
    assert not set(factory_changed) & set(bytes_changed)
    workplace.write(TOY.read_text() + "\n# changed\n", "plugin.py")
    assert not set(bytes_changed) & set(afresh(plugin)), "the plugin gives the data set: every cell is touched"


def test_the_digest_sees_what_the_options_do_not_say(workplace: Any, afresh: Callable[..., list[str]]) -> None:
    """A factory that takes its weights from a module that is not its own: the outputs on the probe images differ."""
    workplace.write("SCALE = 10.0\n", "tiny_scale.py")
    workplace.edit("import torch\n", "import torch\nfrom tiny_scale import SCALE\n", "tiny_nets.py")
    workplace.edit("scale=10.0", "scale=SCALE", "tiny_nets.py")
    before = afresh()
    workplace.write("SCALE = 11.0\n", "tiny_scale.py")
    assert not set(before) & set(afresh())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 8), 200), ((3, 32, 32), 200), ((3, 224, 224), 26), ((3, 4000, 4000), 1)],
)
def test_a_microbatch_shrinks_with_the_size_of_the_images(
    shape: tuple[int, int, int], expected: int, workplace: Any, toys: Host
) -> None:
    facts = DatasetFacts("any", shape, 256, ("a", "b"))
    assert microbatch_of(load_suite(workplace.suite, toys, ["suite.shard_size=200"]), facts) == expected
    assert microbatch_of(load_suite(workplace.suite, toys, ["suite.microbatch=100"]), facts) == 100
