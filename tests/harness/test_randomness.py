"""Random streams: published bits, the right distributions, and the same noise for a sample in whatever batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from harness.randomness import Draws, draws_for, philox

KINDS: dict[str, Callable[[Draws, tuple[int, ...]], Tensor]] = {
    "bits": lambda draws, shape: draws.bits("a", 1, shape),
    "uniform": lambda draws, shape: draws.uniform("a", 1, shape, torch.float64),
    "normal": lambda draws, shape: draws.normal("a", 1, shape, torch.float64),
    "rademacher": lambda draws, shape: draws.rademacher("a", 1, shape),
    "integers": lambda draws, shape: draws.integers("a", 1, shape, 17),
}


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    """Vectors `philox4x32 10` of Random123's tests/kat_vectors."""
    c0, c1, c2, c3 = (torch.tensor([int(word, 16)]) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    out = philox((c0, c1, c2, c3), (k0, k1))
    assert " ".join(f"{int(word):08x}" for word in out) == expected


def test_bits_are_philox_of_block_number_and_sample_id() -> None:
    """The layout of key and counter, spelled out: changing it would change every result ever stored."""
    draws = draws_for(torch.tensor([7 + (5 << 32)]), 3, "threat", "pgd").numbered(2)
    digest = hashlib.blake2b(b"(3, 'threat', 'pgd', 'start', 2)", digest_size=8).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
    counters = [tuple(torch.tensor([word]) for word in (block, 9, 7, 5)) for block in range(2)]
    words = [int(word) for c in counters for word in philox((c[0], c[1], c[2], c[3]), key)]
    assert draws.bits("start", 9, (2, 3)).flatten().tolist() == words[:6]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(), (1,), (2,), (3,), (5,), (1, 8, 8), (3, 7, 5)]),
    ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=40, unique=True),
    data=st.data(),
)
def test_noise_of_a_sample_is_the_same_bits_in_any_batch(
    kind: str, shape: tuple[int, ...], ids: list[int], data: st.DataObject
) -> None:
    draw = KINDS[kind]
    draws = draws_for(torch.tensor(ids), 0, "t")
    whole = draw(draws, shape)
    assert whole.shape == (len(ids), *shape)

    order = torch.tensor(data.draw(st.permutations(range(len(ids)))))
    assert torch.equal(draw(draws[order], shape), whole[order])
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    assert torch.equal(draw(draws[mask], shape), whole[mask])
    size = data.draw(st.integers(1, len(ids)))
    shards = [draw(draws_for(torch.tensor(ids[i : i + size]), 0, "t"), shape) for i in range(0, len(ids), size)]
    assert torch.equal(torch.cat(shards), whole)


def test_indexing_keeps_the_rows_of_the_batch_that_was_handed_out() -> None:
    draws = draws_for(torch.tensor([10, 20, 30, 40]), 0, "t")
    left = draws[torch.tensor([True, False, True, True])][torch.tensor([2, 0])]
    assert left.ids.tolist() == [40, 10]
    assert left.slots.tolist() == [3, 0]
    assert left.stream("x").numbered(3).slots.tolist() == [3, 0]


def test_everything_that_names_a_stream_changes_it_completely() -> None:
    ids = torch.arange(64)
    base = draws_for(ids, 0, "t")
    variants = {
        "base": base.bits("a", 0, (16,)),
        "seed": draws_for(ids, 1, "t").bits("a", 0, (16,)),
        "stream": draws_for(ids, 0, "u").bits("a", 0, (16,)),
        "restart 0": base.stream("restart", 0).bits("a", 0, (16,)),
        "restart 1": base.stream("restart", 1).bits("a", 0, (16,)),
        "draw": base.numbered(1).bits("a", 0, (16,)),
        "name": base.bits("b", 0, (16,)),
        "number": base.bits("a", 1, (16,)),
        "high word of the id": draws_for(ids + (1 << 32), 0, "t").bits("a", 0, (16,)),
    }
    words = torch.cat([bits.flatten() for bits in variants.values()])
    # 9216 words of 32 bits: 0.01 coincidences expected by chance.
    assert len(set(words.tolist())) >= len(words) - 1


def test_a_numpy_integer_names_the_same_stream_as_an_integer() -> None:
    ids = torch.arange(3)
    ours = draws_for(ids, np.int64(4), "t").stream("restart", np.int32(1)).bits("a", 0, (4,))  # type: ignore[arg-type]
    assert torch.equal(ours, draws_for(ids, 4, "t").stream("restart", 1).bits("a", 0, (4,)))


def test_global_generators_are_neither_read_nor_advanced() -> None:
    draws = draws_for(torch.arange(5), 0, "t")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draws.normal("a", 0, (7,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draws.normal("a", 0, (7,)), first)


P_MIN = 1e-4  # the streams are fixed, so these tests either always pass or never do


@pytest.fixture(scope="module")
def many() -> Draws:
    return draws_for(torch.arange(400), 0, "distribution")


def test_uniform_is_uniform_on_the_half_open_interval(many: Draws) -> None:
    u = many.uniform("u", 0, (1000,))
    assert u.dtype == torch.float32
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > P_MIN


def test_normal_is_standard_normal_with_tails(many: Draws) -> None:
    z = many.normal("z", 0, (1000,), torch.float64).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > P_MIN
    # Of 400,000 draws 25.3 lie beyond 4 standard deviations on average.
    assert stats.binomtest(int((abs(z) > 4).sum()), z.size, 2 * stats.norm.sf(4)).pvalue > P_MIN
    assert abs(stats.skew(z)) < 5 * np.sqrt(6 / z.size)
    assert abs(stats.kurtosis(z)) < 5 * np.sqrt(24 / z.size)


def test_both_halves_of_box_muller_are_independent(many: Draws) -> None:
    z = many.normal("z", 1, (1000,), torch.float64)
    pairs = torch.stack([z[:, :500].flatten(), z[:, 500:].flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / np.sqrt(pairs.shape[1])
    assert abs(float(torch.corrcoef(pairs**2)[0, 1])) < 5 / np.sqrt(pairs.shape[1])


@pytest.mark.parametrize("high", [2, 9, 10, 17, 256])
def test_integers_are_equally_likely(many: Draws, high: int) -> None:
    k = many.integers("k", 0, (500,), high).flatten()
    counts = np.bincount(k.numpy(), minlength=high)
    assert counts.size == high
    assert stats.chisquare(counts).pvalue > P_MIN


def test_rademacher_is_a_fair_sign(many: Draws) -> None:
    sign = many.rademacher("s", 0, (500,)).flatten()
    assert set(sign.tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((sign > 0).sum()), len(sign)).pvalue > P_MIN


def test_neighbouring_ids_numbers_and_entries_are_uncorrelated(many: Draws) -> None:
    z = many.normal("z", 2, (400,), torch.float64)
    other = many.normal("z", 3, (400,), torch.float64)
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z, other)):
        pairs = torch.stack([a.flatten(), b.flatten()])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / np.sqrt(pairs.shape[1])


def test_every_bit_of_a_word_is_fair(many: Draws) -> None:
    bits = many.bits("b", 0, (500,)).flatten()
    assert int(bits.min()) >= 0
    assert int(bits.max()) < 2**32
    for place in range(32):
        ones = int(((bits >> place) & 1).sum())
        assert stats.binomtest(ones, len(bits)).pvalue > P_MIN / 32, place


@pytest.mark.gpu
def test_bits_are_the_same_on_a_gpu() -> None:
    ids = torch.arange(100) * 10**9
    here, there = draws_for(ids, 0, "t"), draws_for(ids.cuda(), 0, "t")
    assert torch.equal(there.bits("a", 0, (3, 8, 8)).cpu(), here.bits("a", 0, (3, 8, 8)))
    assert torch.equal(there.uniform("a", 0, (3, 8, 8)).cpu(), here.uniform("a", 0, (3, 8, 8)))
    torch.testing.assert_close(there.normal("a", 0, (99,)).cpu(), here.normal("a", 0, (99,)), rtol=1e-6, atol=1e-6)
