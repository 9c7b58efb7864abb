"""Losses of models of devices against numpy and scipy, across chunks, at silence; A-weighting against the standard."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.signal
import torch

from enhancer.losses.a_weighting import a_weighting_gain, a_weighting_taps
from enhancer.losses.device import EPSILON, HFHinge, PreemphasisedEsr, Spectral, dc, esr, mae, mse
from enhancer.losses.weighted import WeightedLoss

RATE = 44_100


@pytest.fixture
def pair(random):
    """Estimate and target [3, 3000] with offsets."""
    estimate, target = 0.2 * torch.randn(2, 3, 3000, generator=random)
    return estimate + 0.05, target - 0.02


def ratio(error, target):
    return np.mean(error**2) / (np.mean(target**2) + 1e-5)


def arrays(*tensors):
    return [tensor.double().numpy() for tensor in tensors]


def test_esr_is_its_definition(pair):
    e, t = arrays(*pair)
    assert esr(*pair).item() == pytest.approx(ratio(t - e, t), rel=1e-5)


def test_dc_is_its_definition(pair):
    e, t = arrays(*pair)
    expected = np.mean((t.mean(1) - e.mean(1)) ** 2) / (np.mean(t**2) + 1e-5)
    assert dc(*pair).item() == pytest.approx(expected, rel=1e-4)


def test_mse_and_mae_are_their_definitions(pair):
    e, t = arrays(*pair)
    assert mse(*pair).item() == pytest.approx(np.mean((t - e) ** 2), rel=1e-5)
    assert mae(*pair).item() == pytest.approx(np.mean(np.abs(t - e)), rel=1e-5)


@pytest.mark.parametrize("coefficient", [0.85, 0.95])
def test_esr_with_a_highpass_is_that_of_signals_filtered_by_scipy(pair, coefficient):
    e, t = (scipy.signal.lfilter([1, -coefficient], [1], wave) for wave in arrays(*pair))
    found = PreemphasisedEsr("highpass", RATE, coefficient)(*pair).item()
    assert found == pytest.approx(ratio(t - e, t), rel=1e-5)


def test_esr_with_a_weighting_is_that_of_signals_filtered_by_scipy(pair):
    e, t = (scipy.signal.lfilter(a_weighting_taps(RATE), [1], wave) for wave in arrays(*pair))
    assert PreemphasisedEsr("a_weighting", RATE)(*pair).item() == pytest.approx(ratio(t - e, t), rel=1e-4)


@pytest.mark.parametrize("name", ["highpass", "a_weighting"])
def test_chunks_are_filtered_as_the_whole_is(pair, name):
    """The powers of chunks, each told what came before it, add up to those of the whole segment."""
    loss = PreemphasisedEsr(name, RATE)
    estimate, target = pair
    bounds = [0, 1, 100, 1100, 2048, 3000]
    found = []
    for start, stop in pairwise(bounds):
        for error_of in (target - estimate, target):
            past = None if start == 0 else error_of[:, :start]
            found.append((start, loss._filter(error_of[:, start:stop], past)))
    whole = [loss._filter(target - estimate, None), loss._filter(target, None)]
    for index, expected in enumerate(whole):
        pieces = torch.cat([wave for _, wave in found[index::2]], dim=1)
        torch.testing.assert_close(pieces, expected, atol=1e-6, rtol=0)
    start, stop = 1100, 2048
    before = (estimate[:, :start], target[:, :start])
    error, signal = (wave[:, start:stop].double().numpy() for wave in whole)
    value = loss(estimate[:, start:stop], target[:, start:stop], before).item()
    assert value == pytest.approx(ratio(error, signal), rel=1e-4)


def test_a_weighted_sum_hands_on_what_came_before(pair):
    loss = PreemphasisedEsr("highpass", RATE)
    estimate, target = pair
    before = (estimate[:, :9], target[:, :9])
    total, values = WeightedLoss({"esr": (1.0, esr), "pre": (2.0, loss)})(
        estimate[:, 9:], target[:, 9:], before
    )
    assert values["pre"].item() == loss(estimate[:, 9:], target[:, 9:], before).item()
    assert values["pre"].item() != loss(estimate[:, 9:], target[:, 9:]).item()
    assert total.item() == pytest.approx((values["esr"] + 2 * values["pre"]).item(), rel=1e-6)


def test_an_unknown_preemphasis_is_refused():
    with pytest.raises(ValueError, match="needed 'highpass' or 'a_weighting'"):
        PreemphasisedEsr("lowpass", RATE)


# IEC 61672-1:2013, table 3, in dB at the exact frequencies of one-third octaves 1000 * 10^(n / 10).
TABLE = {-15: -39.4, -12: -26.2, -9: -16.1, -6: -8.6, -3: -3.2, 0: 0.0, 3: 1.2, 6: 1.0, 9: -1.1, 12: -6.6}


def test_the_a_weighting_is_the_table_of_the_standard():
    gains = a_weighting_gain(np.array([1000 * 10 ** (n / 10) for n in TABLE]))
    assert np.abs(20 * np.log10(gains) - list(TABLE.values())).max() <= 0.051


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_the_a_weighting_filter_follows_the_formula(rate_hz):
    frequency, response = scipy.signal.freqz(a_weighting_taps(rate_hz), worN=8192, fs=rate_hz)
    level = 20 * np.log10(np.abs(response))
    heard = (frequency >= 125) & (frequency <= 20_000)
    assert np.abs(level - 20 * np.log10(a_weighting_gain(np.maximum(frequency, 1))))[heard].max() < 0.3
    assert level[frequency < 50].max() < -20


def hinge_by_scipy(estimate, target, fmin=10_000.0, strength=0.5):
    """The formula on scipy's transform of each row in the middle of zeros."""
    total = []
    for pair in zip(estimate, target, strict=True):
        magnitudes = []
        for wave in pair:
            frames = -(-len(wave) // 512) + 1
            padded = np.zeros(1024 + (frames - 1) * 512 + 2048)
            padded[1024:][: len(wave)] = wave
            frequency, _, spectrum = scipy.signal.stft(
                padded, fs=RATE, nperseg=2048, noverlap=2048 - 512, boundary=None, padded=False
            )
            magnitudes.append(np.abs(spectrum[:, :frames]) * 1024)
        excess = np.maximum(magnitudes[0] - magnitudes[1], 0)[frequency >= fmin]
        total.append(np.mean(np.log1p(excess)))
    return strength * np.mean(total)


@pytest.mark.parametrize("length", [3000, 2048, 2047, 570, 1])
@pytest.mark.parametrize("fmin", [10_000.0, 5000.0, 0.0])
def test_hf_hinge_is_its_formula_also_on_chunks_shorter_than_a_window(pair, length, fmin):
    estimate, target = (wave[:, :length] for wave in pair)
    expected = hinge_by_scipy(*arrays(estimate, target), fmin)
    assert HFHinge(RATE, fmin)(estimate, target).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_lack_of_high_frequencies_costs_nothing_and_an_excess_costs(pair):
    loss = HFHinge(RATE)
    _, target = pair
    for factor in (0.999, 0.5, 1e-3, 0.0):
        estimate = (factor * target).requires_grad_()
        value = loss(estimate, target)
        (slope,) = torch.autograd.grad(value, estimate)
        assert value.item() == 0 and not slope.any()
    costs = [loss(factor * target, target).item() for factor in (1.1, 2.0, 10.0)]
    assert 0 < costs[0] < costs[1] < costs[2]


def test_what_happens_below_fmin_costs_nothing():
    time = torch.arange(8192) / RATE
    low, high = (
        0.5 * torch.sin(2 * torch.pi * hz * time)[None] * torch.hann_window(8192) for hz in (2000, 15_000)
    )
    silence = torch.zeros_like(low)
    loss = HFHinge(RATE)
    assert loss(low, silence).item() < 1e-4 < 0.01 < loss(high, silence).item()


def test_strength_scales_the_hinge(pair):
    assert HFHinge(RATE, strength=2.0)(*pair).item() == pytest.approx(
        4 * HFHinge(RATE)(*pair).item(), rel=1e-6
    )


@pytest.mark.parametrize("silent", ["estimate", "target", "both"])
@pytest.mark.parametrize(
    "loss", [esr, dc, PreemphasisedEsr(), PreemphasisedEsr("a_weighting"), HFHinge(RATE)]
)
def test_silence_has_a_finite_value_and_slope(pair, silent, loss):
    estimate, target = (
        torch.zeros_like(wave) if silent in (name, "both") else wave
        for name, wave in zip(("estimate", "target"), pair, strict=True)
    )
    estimate.requires_grad_()
    value = loss(estimate, target)
    (slope,) = torch.autograd.grad(value, estimate)
    assert value.isfinite() and slope.isfinite().all()
    assert EPSILON == 1e-5


@pytest.mark.parametrize("loss", [esr, dc, PreemphasisedEsr(), HFHinge(RATE, 5000.0)])
def test_the_slope_is_that_of_finite_differences(pair, loss, random):
    estimate, target = pair
    direction = estimate + 0.1 * torch.randn(estimate.shape, generator=random)
    leaf = estimate.clone().requires_grad_()
    loss(leaf, target).backward()
    ahead, behind = (loss(estimate + sign * 1e-3 * direction, target).double() for sign in (1, -1))
    assert (leaf.grad * direction).sum().item() == pytest.approx(
        float(ahead - behind) / 2e-3, rel=0.02, abs=1e-4
    )


def test_autocast_does_not_round_them(pair):
    for loss in (esr, dc, PreemphasisedEsr(), PreemphasisedEsr("a_weighting"), HFHinge(RATE)):
        outside = loss(*pair)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(*pair), outside)


def test_a_hinge_above_the_highest_frequency_is_refused():
    with pytest.raises(ValueError, match=r"fmin is 10000.0 Hz but a rate of 16000 Hz ends at 8000.0"):
        HFHinge(16_000)


def test_spectral_still_works_and_says_what_it_is_called_now(pair):
    with pytest.warns(DeprecationWarning, match="it is called HFHinge"):
        loss = Spectral(RATE, strength=0.7)
    assert torch.equal(loss(*pair), HFHinge(RATE, strength=0.7)(*pair))
