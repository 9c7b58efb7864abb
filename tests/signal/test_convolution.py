"""Rooms against scipy's convolution; FFT lengths against a search."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enhancer.signal import convolution
from enhancer.signal.convolution import RirBank, fast_fft_length


def has_only_small_factors(number):
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 100_000))
def test_a_fast_length_is_the_next_even_number_without_large_factors(num_samples):
    length = fast_fft_length(num_samples)
    assert length >= num_samples and length % 2 == 0 and has_only_small_factors(length)
    between = range(num_samples + num_samples % 2, length, 2)
    assert not any(has_only_small_factors(number) for number in between)


def test_one_second_with_a_room_of_one_second_has_the_length_of_the_benchmark():
    assert fast_fft_length(44_100 + 44_101 - 1) == 88_200


def test_no_samples_have_no_fft():
    with pytest.raises(ValueError, match="at least 1 sample"):
        fast_fft_length(0)


@pytest.fixture
def rirs(random):
    return torch.randn(5, 301, generator=random) * torch.exp(-torch.arange(301) / 60)


@pytest.mark.parametrize("length", [100, 1000, 4001])
def test_rows_are_convolved_causally_and_cut(length, rirs, random):
    wave = torch.randn(4, length, generator=random)
    index = torch.tensor([2, 0, 4, 2])
    wet = RirBank(rirs).apply(wave, index)
    for row, room in enumerate(index.tolist()):
        expected = scipy.signal.fftconvolve(wave[row].double().numpy(), rirs[room].double().numpy())[:length]
        np.testing.assert_allclose(wet[row].numpy(), expected, atol=2e-5)


def test_a_room_of_one_unit_tap_changes_nothing_and_moves_nothing(noise_wave):
    bank = RirBank(torch.eye(1, 400))
    torch.testing.assert_close(bank.apply(noise_wave, torch.zeros(2, dtype=torch.int64)), noise_wave)


def test_rows_without_a_room_are_returned_bit_for_bit(rirs, random):
    wave = torch.randn(5, 777, generator=random)
    wet = RirBank(rirs).apply(wave, torch.tensor([-1, 3, -1, -1, 0]))
    assert torch.equal(wet[[0, 2, 3]], wave[[0, 2, 3]])
    assert not torch.isclose(wet[[1, 4]], wave[[1, 4]]).all()
    assert torch.equal(RirBank(rirs).apply(wave, torch.full((5,), -1)), wave)


def test_a_bank_too_large_to_cache_gives_the_same(rirs, random, monkeypatch):
    wave = torch.randn(3, 500, generator=random)
    index = torch.tensor([1, -1, 2])
    cached = RirBank(rirs).apply(wave, index)
    monkeypatch.setattr(convolution, "CACHE_BYTES", 0)
    torch.testing.assert_close(RirBank(rirs).apply(wave, index), cached)


def test_the_input_is_left_alone(rirs, noise_wave):
    before = noise_wave.clone()
    RirBank(rirs).apply(noise_wave, torch.tensor([0, 1]))
    assert torch.equal(noise_wave, before)


def test_a_room_the_bank_does_not_hold_is_refused(rirs, noise_wave):
    with pytest.raises(ValueError, match="rir index 5 but the bank holds 5"):
        RirBank(rirs).apply(noise_wave, torch.tensor([0, 5]))


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="needed \\[rooms, taps\\]"):
        RirBank(torch.zeros(0, 10))
