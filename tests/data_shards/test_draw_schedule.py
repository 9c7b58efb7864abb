"""The order of the draws and their random numbers: bijective, uniform, and frozen for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_shards.schedule import below, digest_words, generator, permutation_key, permute, sample_of_draw

GOLDEN_DIGEST = (15288367879716553950, 1843916356160312106)
GOLDEN_SMALL = [6, 4, 5, 8, 2, 7, 0, 3, 9, 1, 0, 7]
GOLDEN_LARGE = [704882, 541532, 475596, 493145]
GOLDEN_RANDOM = [0.4733482023905027, 0.9215931746606572, 0.91791986124115]
GOLDEN_RANDOM_LATE = [0.8408933716824519, 0.8536548626760272]
SEEDS = st.integers(min_value=0, max_value=2**63)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(min_value=1, max_value=1200), seed=SEEDS, epoch=st.integers(min_value=0, max_value=9))
def test_the_permutation_is_a_bijection_for_any_size(size, seed, epoch):
    key = permutation_key(seed, "fg", epoch)
    assert sorted(permute(position, size, key) for position in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 4**8 + 7])
def test_the_permutation_is_a_bijection_at_powers_of_two_and_four(size):
    key = permutation_key(3, "fg", 0)
    seen = np.zeros(size, dtype=bool)
    seen[[permute(position, size, key) for position in range(size)]] = True
    assert seen.all()


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(min_value=10**6, max_value=2**48), seed=SEEDS, fraction=st.floats(0, 1, exclude_max=True)
)
def test_positions_of_huge_corpora_stay_in_range(size, seed, fraction):
    assert 0 <= sample_of_draw(seed, below(fraction, size), size) < size


def test_an_epoch_takes_every_sample_once_and_the_next_takes_another_order():
    size = 101
    draws = [sample_of_draw(5, draw, size) for draw in range(3 * size)]
    epochs = [tuple(draws[start : start + size]) for start in range(0, 3 * size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_other_seeds_and_streams_take_other_orders():
    orders = {
        tuple(sample_of_draw(seed, draw, 50, stream) for draw in range(50))
        for seed in (0, 1)
        for stream in ("fg", "bg")
    }
    assert len(orders) == 4


@pytest.mark.parametrize("size", [2, 3, 5, 16, 37, 100])
def test_every_sample_is_equally_likely_at_every_position(size):
    """Chi-square of where a position goes, over many epochs; 6 sizes x 3 positions at p = 1e-5 each."""
    for position in sorted({0, size // 2, size - 1}):
        counts = np.bincount(
            [permute(position, size, permutation_key(11, "fg", epoch)) for epoch in range(60 * size)],
            minlength=size,
        )
        assert stats.chisquare(counts).pvalue > 1e-5, f"size {size}, position {position}: {counts}"


def test_neighbouring_positions_do_not_stay_neighbours():
    """The step between the samples of successive draws is as spread as that of a true shuffle."""
    size = 4000
    order = np.array([sample_of_draw(1, draw, size) for draw in range(size)])
    shuffled = np.random.default_rng(0).permutation(size)
    assert stats.ks_2samp(np.diff(order), np.diff(shuffled)).pvalue > 1e-4


def test_the_generator_is_uniform_over_draws():
    first = np.array([generator(2, draw, "mix").random() for draw in range(5000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06


def test_the_generator_depends_on_seed_draw_and_stream_only():
    numbers = {
        tuple(generator(seed, draw, stream).random(4))
        for seed in (0, 1)
        for draw in (0, 1, 2**40)
        for stream in ("mix", "crop")
    }
    assert len(numbers) == 12
    np.testing.assert_array_equal(generator(9, 7, "mix").random(8), generator(9, 7, "mix").random(8))


def test_below_covers_its_range_and_never_reaches_size():
    assert {below(u, 3) for u in (0.0, 0.34, 0.67, 0.9999999)} == {0, 1, 2}
    assert below(np.nextafter(1.0, 0.0), 2**53) == 2**53 - 1


def test_frozen_numbers_of_the_seed_contract():
    """These values are part of every saved run: a change breaks resume. Do not update them."""
    assert digest_words("generator", 0, "mix", words=2) == GOLDEN_DIGEST
    assert [sample_of_draw(0, draw, 10) for draw in range(12)] == GOLDEN_SMALL
    assert [
        sample_of_draw(1234, draw, 1_000_003, "bg") for draw in (0, 1, 999_999, 5_000_000)
    ] == GOLDEN_LARGE
    assert generator(0, 0, "mix").random(3).tolist() == GOLDEN_RANDOM
    assert generator(7, 123_456_789, "crop").random(2).tolist() == GOLDEN_RANDOM_LATE
