"""Pairs of images and the likelihood between them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_ood.interpolation import Interpolation, InterpolationOptions, build
from harness_ood.partners import Partners
from scipy import stats
from torch import Tensor

import harness
from harness.datasets import DatasetSlice, Ints, SliceSpec
from harness.errors import ModelError, ThreatError
from harness.host import load_host
from harness.metrics.interpolation import INTERPOLATION_CONVEX_SHARE
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.testing import Check, parametrize_with_checks, synthetic_data, threat_checks
from harness.threats import Batch, ThreatContext

SHAPE = (1, 3, 3)


class Given:
    class_names = ("a", "b")
    levels = 256
    shape = SHAPE

    def __init__(self, n: int = 40, seed: int = 0) -> None:
        self.x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))

    def labels(self) -> Ints:
        return np.arange(len(self.x), dtype=np.int64) % 2

    def images(self, index: Ints) -> Tensor:
        return self.x[torch.from_numpy(np.asarray(index))]

    def digest(self) -> str:
        return "given"


POOL = DatasetSlice("given", Given())


class Normal:
    """log p = -sharpness |x - 1/2|^2 / 2: a parabola along every line."""

    density_tag = "exact"

    def __init__(self, sharpness: float) -> None:
        self.sharpness = sharpness

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.sharpness / 2 * (x.double() - 0.5).square().sum(dim=(1, 2, 3))


def batch(ids: Tensor, pool: DatasetSlice = POOL, seed: int = 0) -> Batch:
    x = pool.dataset.images(ids.numpy())
    return Batch(x, ids % 2, ids, draws_for(ids, seed, "threat", "interpolation"))


def rows(model: Any, ids: Tensor, points: int = 24, seed: int = 0) -> Any:
    view = ModelView(model, {"Density"}, ids, seed, "attack")
    return Interpolation(points, Partners(POOL), 256).run(view, batch(ids, seed=seed)), view


def test_a_partner_is_any_other_image_each_as_likely() -> None:
    found = []
    for seed in range(60):
        pairs = Partners(POOL).of(batch(torch.arange(40), seed=seed))
        assert (pairs.ids != torch.arange(40)).all()
        assert torch.equal(pairs.x, POOL.dataset.images(pairs.ids.numpy()))
        found.append((pairs.ids - torch.arange(40)) % 40)
    counts = torch.cat(found).bincount(minlength=40)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-4


def test_a_partner_depends_on_neither_the_batch_nor_the_limit() -> None:
    whole = Partners(POOL).of(batch(torch.arange(40))).ids
    part = Partners(POOL).of(batch(torch.tensor([31, 4]))).ids
    assert part.tolist() == whole[[31, 4]].tolist()


def test_partners_come_from_the_classes_that_are_kept() -> None:
    odd = DatasetSlice("given", Given(), SliceSpec(classes=("b",)))
    pairs = Partners(odd).of(batch(torch.tensor([1, 3, 39])))
    assert (pairs.ids % 2 == 1).all()
    assert (pairs.ids != torch.tensor([1, 3, 39])).all()


def test_one_image_has_no_partner() -> None:
    with pytest.raises(ThreatError, match="has one image"):
        Partners(DatasetSlice("given", Given(1))).of(batch(torch.tensor([0]), DatasetSlice("given", Given(1))))


def test_the_curve_of_a_normal_density_is_its_parabola() -> None:
    ids = torch.tensor([3, 17, 20])
    columns, view = rows(Normal(7.0), ids)
    assert columns["sample_id"].tolist() == ids.tolist() * 24
    t = columns["t"].view(24, 3)
    assert torch.equal(t, (torch.arange(24).double() / 23)[:, None].expand(-1, 3))
    a, b = POOL.dataset.images(ids.numpy()), POOL.dataset.images(columns["partner"][:3].numpy())
    for k in range(24):
        mixture = t[k, :, None, None, None] * a + (1 - t[k, :, None, None, None]) * b
        expected = Normal(7.0).log_prob(mixture)
        torch.testing.assert_close(columns["log_prob"].view(24, 3)[k], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(columns["log_prob"].view(24, 3)[0], Normal(7.0).log_prob(b))
    assert torch.equal(columns["log_prob"].view(24, 3)[-1], Normal(7.0).log_prob(a))
    bits = -columns["log_prob"] / (9 * math.log(2)) + 8
    torch.testing.assert_close(columns["bits_per_dim"], bits)
    assert columns["label"].tolist() == (ids % 2).tolist() * 24
    assert view.forwards.tolist() == [24, 24, 24]


def test_convexity_is_told_from_its_opposite() -> None:
    """The negative of a normal density's parabola is convex, itself it is concave."""
    for sharpness, share in ((7.0, 0.0), (-7.0, 1.0)):
        columns, _ = rows(Normal(sharpness), torch.arange(40))
        found = INTERPOLATION_CONVEX_SHARE.estimate({k: v.numpy() for k, v in columns.items()}, 0.95)[""]
        assert found.value == share
        assert found.n == 40


def test_any_number_of_points() -> None:
    columns, _ = rows(Normal(1.0), torch.arange(4), points=5)
    assert sorted(set(columns["t"].tolist())) == [0, 0.25, 0.5, 0.75, 1]


def test_a_random_density_keeps_its_draw_along_the_line() -> None:
    class Noisy(Normal):
        stochastic = True

        def log_prob(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
            return super().log_prob(x) + 100 * draws.normal("n", 0, (), torch.float64)

    noisy, _ = rows(Noisy(7.0), torch.arange(6))
    plain, _ = rows(Normal(7.0), torch.arange(6))
    shift = (noisy["log_prob"] - plain["log_prob"]).view(24, 6)
    torch.testing.assert_close(shift, shift[:1].expand(24, -1))
    assert shift[0].std() > 10


def test_a_surrogate_has_no_bits_per_dim() -> None:
    model = Normal(1.0)
    model.density_tag = "surrogate"
    assert "bits_per_dim" not in rows(model, torch.arange(3))[0]


def test_a_density_that_is_not_a_number_is_one_line(one_line: Callable[[str], str]) -> None:
    class Broken(Normal):
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.where(x.mean(dim=(1, 2, 3)) < 0.4, float("nan"), super().log_prob(x))

    with pytest.raises(ModelError) as caught:
        rows(Broken(1.0), torch.arange(40))
    assert one_line(str(caught.value)).startswith("log_prob is NaN on ")


def test_its_factory_opens_the_suites_data() -> None:
    few = DatasetSlice("given", Given(), SliceSpec(limit=3, classes=("b",)))
    context = ThreatContext(few.facts, lambda table: pytest.fail("opens another data set"), Path(), lambda: few)
    threat = build(InterpolationOptions(points=7), context)
    assert threat.points == 7
    assert threat.partners.pool.ids.tolist() == list(range(1, 40, 2))
    with pytest.raises(ThreatError, match="open_own is None"):
        build(InterpolationOptions(), replace(context, open_own=None))


HOST = load_host()


@parametrize_with_checks(threat_checks("interpolation", {"points": 5}, host=HOST, data=synthetic_data((3, 6, 5), 5)))
def test_conformance(check: Check) -> None:
    check()


SUITE = """
[suite]
name = "between"
dataset = { name = "digits", split = "test" }
[models.density]
plugin = "toy-density"
[[threats]]
plugin = "interpolation"
limit = 20
points = 6
"""


def test_a_run_of_a_suite(tmp_path: Path) -> None:
    (tmp_path / "between.toml").write_text(SUITE)
    toys = Path(__file__).parents[1] / "toy" / "toy_plugin.py"
    run = harness.run(tmp_path / "between.toml", host=load_host((str(toys),)), out=tmp_path / "run", workers=1)
    (cell,) = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert (cell["status"], cell["error"]) == ("ok", "")
    found = run.rows(cell["id"], ["sample_id", "t", "partner", "log_prob"])
    assert len(found["t"]) == 120
    # log p = -|x|^2 bends downwards on every line.
    assert INTERPOLATION_CONVEX_SHARE.estimate(found, 0.95)[""].value == 0
