"""What holds for every corruption of the weather and digital modules."""

from __future__ import annotations

import torch
from harness_corruptions.corruption import Corruption, Table
from hypothesis import strategies as st
from torch import Tensor

from harness.randomness import Draws, draws_for

TABLES: tuple[Table, ...] = ("imagenet-c", "cifar10-c")
SIDES = st.tuples(st.integers(8, 40), st.integers(8, 40))


def images(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth images with noise, (n, channels, height, width), on 8-bit levels; the first has a black part."""
    draws = draws_for(torch.arange(n), seed, "images")
    phase = draws.uniform("phase", 0, (channels, 1, 1)) * 6
    down, across = torch.arange(height)[:, None] / height, torch.arange(width) / width
    x = 0.5 + 0.3 * torch.sin(phase + 7 * across + 4 * down) + 0.1 * draws.normal("noise", 0, (channels, height, width))
    x = x.clamp(0, 1)
    x[0, :, : height // 3] = 0
    return (x * 255).round() / 255


def corrupted(
    corruption: Corruption, severity: int, table: Table, x: Tensor, draws: Draws, compat: bool = False
) -> Tensor:
    parameters = corruption.severities[table][severity - 1]
    drawn = corruption.draw(draws, 0, tuple(x.shape[1:]), parameters) if corruption.draw else {}
    if corruption.on_levels:
        return corruption.once(x, parameters, drawn, compat)
    return corruption.apply(x, parameters, drawn, compat)


def check_images(corruption: Corruption, sides: tuple[int, int], channels: int, severity: int) -> None:
    """Images of the same shape, in range; the input untouched; each the same whatever its batch."""
    x = images(5, channels, *sides)
    kept = x.clone()
    draws = draws_for(torch.tensor([3, 1, 4, 15, 9]), 0, "threat")
    for table in TABLES:
        for compat in (False, True):
            whole = corrupted(corruption, severity, table, x, draws, compat)
            assert whole.shape == x.shape
            assert whole.dtype == x.dtype
            assert whole.isfinite().all()
            assert whole.min() >= 0
            assert whole.max() <= 1
            part = corrupted(corruption, severity, table, x[[4, 1]], draws[[4, 1]], compat)
            alone = corrupted(corruption, severity, table, x[2:3], draws[2:3], compat)
            assert torch.equal(part, whole[[4, 1]])
            assert torch.equal(alone, whole[2:3])
    assert torch.equal(x, kept)


def check_randomness(corruption: Corruption) -> None:
    """Another seed gives other images, another number too; the same seed the same; none where nothing is drawn."""
    x = images(3, 3, 32, 32)
    ids = torch.arange(3)
    first, again, other = (corrupted(corruption, 3, "imagenet-c", x, draws_for(ids, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (corruption.draw is None)
    if corruption.draw is not None:
        parameters = corruption.severities["imagenet-c"][2]
        drawn = [corruption.draw(draws_for(ids, 0), number, (3, 32, 32), parameters) for number in (0, 1)]
        assert all(not torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
        if corruption.shared_draws:
            mild = corruption.draw(draws_for(ids, 0), 0, (3, 32, 32), corruption.severities["cifar10-c"][0])
            assert mild.keys() == drawn[0].keys()
            assert all(torch.equal(mild[name], drawn[0][name]) for name in mild)


def check_tables(corruption: Corruption) -> None:
    """Five severities in both tables, with as many parameters each; they differ between the tables."""
    assert {len(corruption.severities[table]) for table in TABLES} == {5}
    assert len({len(parameters) for table in TABLES for parameters in corruption.severities[table]}) == 1
    assert corruption.severities["imagenet-c"] != corruption.severities["cifar10-c"]
