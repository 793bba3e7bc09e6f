"""Bit flips: the truth on closed forms, nested flips, the grid, and what the rows say."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_bitflip import register_threats
from harness_bitflip.bitflip import BitFlipOptions, build
from harness_bitflip.grey_levels import on_grid
from harness_datasets.digits import DigitsOptions
from harness_datasets.digits import build as build_digits
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import harness
from harness.datasets import DatasetContext, DatasetFacts
from harness.errors import ThreatError
from harness.evaluate import Setting, ShardTask, evaluate_batch
from harness.host import load_host
from harness.loading import BuiltModel, BuiltThreat
from harness.metrics.bitflip import BITFLIP_BITS_PER_DIM, DELTA_BITS_PER_DIM
from harness.randomness import Draws
from harness.threats import ThreatContext

Rows = dict[str, np.ndarray]


class Categorical:
    """Components independent, each at level k with probability p[k]: a density that is constant on a level's cell.

    A level's cell is 1 / levels wide, as the conversion to bits/dim has it, so that bits/dim are -mean log2 p[k].
    """

    density_tag = "exact"

    def __init__(self, p: Tensor) -> None:
        self.p = p.double()

    def log_prob(self, x: Tensor) -> Tensor:
        levels = len(self.p)
        cell = (x.double() * (levels - 1)).round().long()
        return (self.p.log()[cell] + math.log(levels)).flatten(1).sum(dim=1)


class Brightness:
    """A classifier of two classes by the sum of the image's least significant bits."""

    num_classes = 2

    def logits(self, x: Tensor) -> Tensor:
        low = ((x * 255).round().long() % 2).float().mean(dim=(1, 2, 3))
        return torch.stack([4 * low, 2 - 0 * low], dim=1)


@pytest.fixture
def run() -> Callable[..., Rows]:
    """Rows of images (B, C, H, W), as the engine makes them."""

    def rows(
        model: Any,
        capabilities: set[str],
        x: Tensor,
        levels: int = 256,
        ids: np.ndarray | None = None,
        labels: Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Rows:
        ids = np.arange(len(x)) if ids is None else ids
        data = DatasetFacts("tests", tuple(x.shape[1:]), levels, ("a", "b"))
        context = ThreatContext(data, lambda table: pytest.fail("opens a data set"), Path())
        threat = build(BitFlipOptions.model_validate(options), context)
        setting = Setting("", "", None, (), "cpu", seed, len(x), False)
        task = ShardTask(setting, "cell", "", "tests", ("m", "m", {}), ("bitflip", "bitflip", options), ids)
        y = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels
        built = BuiltModel(model, frozenset(capabilities))
        return evaluate_batch(built, BuiltThreat(threat, None), x, y, ids, task)

    return rows


@pytest.fixture
def info() -> Any:
    found: list[Any] = []
    register_threats(found.append)
    return found[0]


def images(levels: int, n: int = 8, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Tensor:
    level = torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return level.float() / (levels - 1)


Run = Callable[..., Rows]


def of(rows: Rows, pi: float, column: str) -> Any:
    return rows[column][rows["pi"] == pi]


def test_a_known_density_gives_its_analytic_bits_and_delta(run: Run) -> None:
    """Level k with probability p[k]; flipped, k becomes k ^ 1: every number follows from the two histograms."""
    levels = 256
    p = torch.arange(levels).add(3).double().pow(1.5) * (1 + 0.8 * (torch.arange(levels) % 2))
    p = p / p.sum()
    x = (images(levels, 40, (3, 8, 8)) * 255).div(2).floor() * 2 / 255  # even levels: every flip makes one likelier
    rows = run(Categorical(p), {"Density"}, x)
    level = (x * 255).round().long()
    clean = -p.log2()[level].flatten(1).mean(dim=1).numpy()
    flipped = -p.log2()[level ^ 1].flatten(1).mean(dim=1).numpy()
    np.testing.assert_allclose(of(rows, 0, "bits_per_dim"), clean, atol=1e-9)
    np.testing.assert_allclose(of(rows, 1, "bits_per_dim"), flipped, atol=1e-9)
    np.testing.assert_allclose(of(rows, 1, "delta_bits_per_dim"), flipped - clean, atol=1e-9)
    assert BITFLIP_BITS_PER_DIM.estimate(rows, 0.95)["0"].value == pytest.approx(clean.mean(), abs=1e-4)
    delta = DELTA_BITS_PER_DIM.estimate(rows, 0.95)
    assert delta["1"].value == pytest.approx(abs(flipped.mean() - clean.mean()), abs=1e-4)
    # At pi = 0.5 the expectation over the flips is half of it: these are 40 x 192 of them.
    assert delta["0.5"].value == pytest.approx(delta["1"].value / 2, rel=0.05)


def test_samples_of_the_density_itself_meet_its_entropy_and_cross_entropy(run: Run) -> None:
    """p_data is the model: bits/dim is its entropy, flipped the cross-entropy of p_pi; eq. 9 is their difference."""
    p = torch.tensor([0.4, 0.02, 0.3, 0.08, 0.1, 0.06, 0.03, 0.01], dtype=torch.float64)
    n, size = 256, 400
    # As many of each level as p says, so that the expectation over the data is met exactly.
    level = torch.repeat_interleave(torch.arange(8), (p * size).round().long()).expand(n, -1)
    order = torch.rand(n, size, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    x = level.gather(1, order).view(n, 1, 20, 20).float() / 7
    rows = run(Categorical(p), {"Density"}, x, levels=8)
    entropy = float(-(p * p.log2()).sum())
    crossed = float(-(p * p[torch.arange(8) ^ 1].log2()).sum())
    found, delta = BITFLIP_BITS_PER_DIM.estimate(rows, 0.99), DELTA_BITS_PER_DIM.estimate(rows, 0.99)
    assert found["0"].value == pytest.approx(entropy, abs=1e-4)
    assert found["1"].value == pytest.approx(crossed, abs=1e-4)
    assert delta["1"].value == pytest.approx(crossed - entropy, abs=1e-4)
    assert delta["0.5"].low <= (crossed - entropy) / 2 <= delta["0.5"].high


def test_a_discretised_logistic_at_any_bit(run: Run) -> None:
    edges = torch.linspace(-4, 4, 257, dtype=torch.float64)
    cdf = torch.sigmoid(edges / 0.7)
    cdf[0], cdf[-1] = 0, 1
    p = cdf.diff()
    x = images(256, 20)
    level = (x * 255).round().long()
    for bit in (0, 3, 7):
        rows = run(Categorical(p), {"Density"}, x, bit=bit, pi=(1.0,))
        expected = (p.log2()[level] - p.log2()[level ^ (1 << bit)]).flatten(1).mean(dim=1)
        np.testing.assert_allclose(of(rows, 1, "delta_bits_per_dim"), expected.numpy(), atol=1e-9)
        assert (rows["bit"] == bit).all()


def test_a_uniform_density_changes_nothing(run: Run) -> None:
    rows = run(Categorical(torch.full((256,), 1 / 256)), {"Density"}, images(256))
    np.testing.assert_allclose(rows["bits_per_dim"], 8.0, atol=1e-9)
    assert (rows["delta_bits_per_dim"] == 0).all()


def test_flips_on_seventeen_levels_leave_the_largest_alone_and_say_so(run: Run) -> None:
    p = torch.arange(1, 18).double() / 153
    x = images(17, 12)
    rows = run(Categorical(p), {"Density"}, x, levels=17)
    level = (x * 16).round().long().flatten(1)
    assert of(rows, 1, "not_made").tolist() == (level == 16).sum(dim=1).tolist()
    assert of(rows, 1, "flipped").tolist() == (level < 16).sum(dim=1).tolist()
    turned = torch.where(level == 16, level, level ^ 1)
    np.testing.assert_allclose(of(rows, 1, "bits_per_dim"), -p.log2()[turned].mean(dim=1).numpy(), atol=1e-9)
    assert (of(rows, 0, "flipped") == 0).all()
    assert (of(rows, 0, "not_made") == 0).all()
    half = of(rows, 0.5, "flipped") + of(rows, 0.5, "not_made")
    assert 0.4 < half.sum() / level.numel() < 0.6


class Recorder:
    """A density that keeps what it was shown."""

    density_tag = "exact"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def log_prob(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x.double().sum(dim=(1, 2, 3))


def test_pi_nought_is_the_image_and_flips_are_nested(run: Run) -> None:
    model, x = Recorder(), images(256, 10, (3, 6, 5))
    rows = run(model, {"Density"}, x, pi=(0.0, 0.2, 0.6, 1.0))
    clean, some, more, every = model.seen
    assert torch.equal(clean, x)
    changed = [image != x for image in (some, more, every)]
    assert (changed[0] <= changed[1]).all()
    assert (changed[1] <= changed[2]).all()
    assert changed[2].all()
    assert torch.equal((every * 255).round().long(), (x * 255).round().long() ^ 1)
    assert of(rows, 0.2, "flipped").tolist() == changed[0].flatten(1).sum(dim=1).tolist()
    assert changed[0].float().mean() == pytest.approx(0.2, abs=0.05)
    grid = more * 255
    torch.testing.assert_close(grid, grid.round(), atol=1e-4, rtol=0)


def test_a_sample_keeps_its_flips_in_any_batch(run: Run) -> None:
    x, ids = images(256, 6), np.array([3, 5, 8, 20, 21, 40])
    p = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.1
    whole = run(Categorical(p / p.sum()), {"Density"}, x, ids=ids)
    for i, sample in enumerate(ids):
        alone = run(Categorical(p / p.sum()), {"Density"}, x[i : i + 1], ids=ids[i : i + 1])
        mine = whole["sample_id"] == sample
        for column in ("pi", "flipped", "bits_per_dim", "delta_bits_per_dim"):
            assert np.array_equal(whole[column][mine], alone[column]), column
    other = run(Categorical(p / p.sum()), {"Density"}, x, ids=ids, seed=1)
    assert (of(other, 0.5, "flipped") != of(whole, 0.5, "flipped")).any()
    again = run(Categorical(p / p.sum()), {"Density"}, x, ids=ids, pi=(0.5,))
    assert np.array_equal(of(again, 0.5, "bits_per_dim"), of(whole, 0.5, "bits_per_dim"))


def test_an_image_off_the_grid_is_refused_or_rounded(run: Run, one_line: Callable[[str], str]) -> None:
    x = images(256, 4)
    x[2, 0, 1, 1] = 0.3005
    x[3, 0, 0, 0] = 0.7001
    with pytest.raises(ThreatError) as caught:
        run(Categorical(torch.full((256,), 1 / 256)), {"Density"}, x)
    line = one_line(str(caught.value))
    assert line.startswith("2 of 4 images do not lie on the 256 grey levels")
    assert "sample 2 holds 0.3005, that is 76.6275 of 255" in line
    assert 'off_grid = "round"' in line
    model = Recorder()
    rows = run(model, {"Density"}, x, off_grid="round")
    assert of(rows, 0, "rounded").tolist() == [0, 0, 1, 1]
    for shown in model.seen:
        torch.testing.assert_close(shown * 255, (shown * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(model.seen[0][:2], x[:2])
    assert model.seen[0][2, 0, 1, 1] == torch.tensor(77) / 255


def test_digits_are_on_their_grid() -> None:
    data = build_digits(DigitsOptions(), DatasetContext(None))
    assert not on_grid(data.images(np.arange(50)), data.levels).off.any()


def test_a_classifier_reports_accuracy_and_logit_change(run: Run) -> None:
    x = images(256, 30)
    rows = run(Brightness(), {"Classifier"}, x)
    assert {"prediction", "correct", "confidence", "entropy", "ood_score", "logit_change"} <= rows.keys()
    assert "bits_per_dim" not in rows
    before, after = (
        Brightness().logits(image).log_softmax(dim=1) for image in (x, ((x * 255).round().long() ^ 1) / 255)
    )
    expected = (after - before).abs().amax(dim=1)
    np.testing.assert_allclose(of(rows, 1, "logit_change"), expected.numpy(), atol=1e-5)
    assert (of(rows, 0, "logit_change") == 0).all()
    assert np.array_equal(of(rows, 1, "prediction"), after.argmax(dim=1).numpy())
    assert (rows["forwards"] == 6).all()  # at each pi one for the verdict, one for the logits


def test_a_class_that_is_never_possible_did_not_change(run: Run) -> None:
    class Two(Brightness):
        num_classes = 3

        def logits(self, x: Tensor) -> Tensor:
            out = super().logits(x)
            return torch.cat([out, torch.full_like(out[:, :1], float("-inf"))], dim=1)

    assert np.isfinite(run(Two(), {"Classifier"}, images(256))["logit_change"]).all()


def test_a_surrogate_has_no_bits_per_dim(run: Run) -> None:
    model = Recorder()
    model.density_tag = "surrogate"
    rows = run(model, {"Density"}, images(256))
    assert "log_prob" in rows
    assert not {"bits_per_dim", "delta_bits_per_dim"} & rows.keys()


class Noisy:
    stochastic = True
    num_classes = 2

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        return draws.normal("n", 0, (2,)) + x.mean(dim=(1, 2, 3))[:, None]


def test_a_random_model_is_shown_both_images_with_the_same_draw(run: Run) -> None:
    rows = run(Noisy(), {"Classifier"}, images(256, 20))
    np.testing.assert_allclose(rows["logit_change"], 0, atol=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True).filter(any))
def test_the_clean_image_is_always_a_row(pi: list[float]) -> None:
    chosen = BitFlipOptions.model_validate({"pi": pi}).pi
    assert chosen.count(0) == 1
    assert set(chosen) == {0, *pi}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"pi": [0, 1.5]}, "1.5 is no probability: it must be in [0, 1]"),
        ({"pi": [0.5, 0.5]}, "0.5 is listed twice"),
        ({"pi": [0]}, "no probability above 0 is given: nothing would be flipped"),
        ({"bit": -1}, "Input should be greater than or equal to 0"),
        ({"off_grid": "floor"}, "Input should be 'refuse' or 'round'"),
    ],
)
def test_a_mistake_in_options_is_one_line(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BitFlipOptions.model_validate(table)
    (error,) = caught.value.errors()
    assert error["msg"] == text


def test_a_bit_that_the_levels_do_not_have_is_one_line(one_line: Callable[[str], str]) -> None:
    data = DatasetFacts("digits", (1, 8, 8), 17, ())
    context = ThreatContext(data, lambda table: pytest.fail("opens a data set"), Path())
    with pytest.raises(ThreatError) as caught:
        build(BitFlipOptions(bit=5), context)
    assert one_line(str(caught.value)) == "bit 5: the 17 grey levels of data set 'digits' have bits 0 to 4"


def test_it_is_registered_by_facts_alone(info: Any) -> None:
    assert (info.name, info.variants, info.requires) == ("bitflip", ("pi",), frozenset())


SUITE = """
[suite]
name = "lsb"
dataset = { name = "digits", split = "test", limit = 20 }
[models.mine]
plugin = "torch"
factory = "lsb_nets:rows"
[[threats]]
plugin = "bitflip"
"""
NETS = """
import torch
def rows():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The suite's model, importable for as long as a test runs."""
    (tmp_path / "lsb_nets.py").write_text(NETS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("lsb_nets", None)


@pytest.mark.usefixtures("nets")
def test_a_run_of_a_suite(tmp_path: Path) -> None:
    (tmp_path / "lsb.toml").write_text(SUITE)
    host = load_host()
    if "bitflip" not in {threat.name for threat in host.threats}:  # a checkout installed before there was this plugin
        host = load_host(("harness_bitflip",))
    harness.run(tmp_path / "lsb.toml", host=host, out=tmp_path / "run", workers=1)
    (cell,) = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert (cell["status"], cell["id"]) == ("ok", "mine/bitflip/digits")


def test_a_probability_may_be_a_fraction() -> None:
    options = BitFlipOptions.model_validate({"pi": ["1/2", 1]})
    assert options.pi == (0, 0.5, 1)
    assert options.model_dump(mode="json")["pi"] == ["0", "1/2", "1"]
