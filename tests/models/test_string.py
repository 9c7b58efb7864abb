"""The string model: filters against closed forms, decay and pitch as told, and a loop that never gains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.synthetic_string import KarplusString
from enhancer.models.string import PluckedString
from enhancer.models.string_filter import (
    NUM_SECTIONS,
    BandSections,
    at_frequencies,
    band_places,
    calibrated,
    filled,
    fractional_loss,
    lagrange,
)
from enhancer.models.string_loop import generate
from enhancer.signal.decay import octave_levels, octave_t60
from enhancer.string_metrics import string_metrics

RATE_HZ, HISTORY = 44_100, 2205


def controls(f0_hz: float, t60: Tensor | None = None, rows: int = 1) -> tuple[Tensor, ...]:
    one = torch.ones(rows)
    decay = 2 * torch.ones(rows, 9) if t60 is None else t60
    return f0_hz * one, 0.7 * one, 0.2 * one, decay, 0 * one


def history_of(rows: int = 1, gain: float = 0.1, seed: int = 0) -> Tensor:
    return gain * torch.randn(rows, HISTORY, generator=torch.Generator().manual_seed(seed))


def wild(model: PluckedString, scale: float, seed: int) -> PluckedString:
    """The model with random weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model


def test_lagrange_weights_delay_polynomials_and_never_gain() -> None:
    offset = torch.linspace(-0.5, 0.5, 21, dtype=torch.float64)
    weights = lagrange(offset)
    places = torch.arange(3.0, -4.0, -1.0).double()
    for power in range(7):
        torch.testing.assert_close(weights @ places**power, (-offset) ** power, atol=1e-12, rtol=0)
    hz = torch.linspace(1, RATE_HZ / 2, 500).expand(21, -1)
    assert fractional_loss(offset, hz, RATE_HZ).min() > -1e-12


def test_sections_are_the_filters_of_their_closed_form() -> None:
    """The impulse response of the state space against the response, and the loss against the formula of the text."""
    bands = BandSections(RATE_HZ)
    state_space = bands.state_space().numpy()
    hz = torch.tensor([100.0, 700.0, 5000.0])
    for number in (3, 8, NUM_SECTIONS - 1):
        a11, a12, a21, a22, b1, b2, c1, c2, d = state_space[number]
        state, response = np.zeros(2), []
        for n in range(30_000):
            x = 1.0 if n == 0 else 0.0
            response.append(c1 * state[0] + c2 * state[1] + d * x)
            state = np.array([[a11, a12], [a21, a22]]) @ state + np.array([b1, b2]) * x
        found = [
            np.sum(np.array(response) * np.exp(-2j * np.pi * f / RATE_HZ * np.arange(30_000)))
            for f in hz.numpy()
        ]
        np.testing.assert_allclose(found, bands.response(hz)[:, number].numpy(), atol=1e-6)
    nepers = torch.rand(1, NUM_SECTIONS + 1, generator=torch.Generator().manual_seed(0)).double()
    through = (1 + torch.expm1(-nepers) * bands.response(hz)).prod(-1)
    torch.testing.assert_close(bands.loss(nepers, hz[None])[0], -through.abs().log(), atol=1e-9, rtol=0)


def test_no_section_gains_whatever_its_nepers() -> None:
    bands = BandSections(RATE_HZ)
    hz = torch.linspace(0.1, 0.49 * RATE_HZ, 2000)[None]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        nepers = 6 * torch.rand(1, NUM_SECTIONS + 1, generator=generator).double() ** 4
        assert bands.loss(nepers, hz).min() >= 0, f"seed {seed}"


def test_a_decay_told_in_part_is_filled_from_its_neighbours_and_not_from_below_f0() -> None:
    nan = math.nan
    told = torch.tensor([[9.0, nan, 4.0, nan, 1.0, nan, nan, nan, nan]])
    expected = [4.0, 4.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(filled(told, torch.tensor([220.0]))[0], torch.tensor(expected).double())


def test_between_bands_losses_are_straight_lines_of_logarithms() -> None:
    values, places = torch.tensor([[1.0, 4.0]]), torch.tensor([[100.0, 400.0]])
    hz = torch.tensor([[50.0, 100.0, 200.0, 400.0, 900.0]])
    torch.testing.assert_close(
        at_frequencies(values, places, hz)[0], torch.tensor([1.0, 1.0, 2.0, 4.0, 4.0]).double()
    )


def test_the_place_of_a_band_with_one_partial_is_that_partial() -> None:
    places = band_places(torch.tensor([150.0]))[0]
    torch.testing.assert_close(places[1:3], torch.tensor([150.0, 300.0]).double())


def test_calibration_is_right_where_all_partials_decay_alike() -> None:
    f0 = torch.tensor([110.0])
    loss = calibrated(torch.full((1, 9), 2.0), f0)
    torch.testing.assert_close(
        loss, torch.full((1, 9), 3 * math.log(10) / (110 * 2)).double(), atol=0, rtol=1e-6
    )


@pytest.mark.parametrize(("f0_hz", "t60_seconds"), [(55.0, 4.0), (196.3, 0.5), (440.0, 8.0), (1244.5, 2.0)])
def test_an_untrained_string_decays_and_is_tuned_as_told(f0_hz: float, t60_seconds: float) -> None:
    """3 s of a Karplus-Strong tone whose T60 and pitch are known in closed form."""
    string = KarplusString(f0_hz, t60_seconds, damping=0.01, excitation="pluck")
    wave = torch.from_numpy(string.render(3.2)).float()[None, math.ceil(2 * string.period) :][
        :, : 3 * RATE_HZ
    ]
    t60 = octave_t60(octave_levels(wave, RATE_HZ))[0].t60_seconds.float()
    model = PluckedString(num_layers=1, hidden_size=8)
    with torch.no_grad():
        estimate = model(wave[:, :HISTORY], wave.shape[1] - HISTORY, *controls(f0_hz, t60))
    found = string_metrics(estimate, wave[:, HISTORY:], RATE_HZ, torch.tensor([f0_hz]))
    assert abs(found["t60_whole_error"].item()) < 0.05
    assert found["f0_error_cents"].item() < 0.5
    assert found["num_failures"].item() == 0


@pytest.mark.parametrize("gain", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_its_weights_a_bounded_string_never_gains(gain: float, seed: int) -> None:
    """From filters at rest, no delay - 3 samples ever hold more energy than the delay + 4 they all come from.

    For each sum over the samples up to N is at most that over those which they are read from, D - 3 to D + 3 earlier.
    0.3 s, at levels from -120 to 0 dBFS.
    """
    model = wild(PluckedString(hidden_size=16, is_odd=seed != 2, has_quarter_taps=True), 2.0, seed)
    history = history_of(gain=gain, seed=seed)
    with torch.no_grad():
        loop = model.loop(history, *controls(300.0))
        shares, half = loop.cut[:, :-1], loop.cut[:, -1]
        assert float(loop.loss.min()) >= 0 and float(shares.min()) >= 0 and float(shares.max()) <= 1
        assert bool(((half == 0) | (half == 2)).all())
        delay = int(loop.delay)
        start = history[:, -delay - 4 :]
        wave = generate(loop, start, 13_230)
    energy = wave[0].double().square().unfold(0, delay - 3, 1).sum(-1)
    assert float(energy.max() / start.double().square().sum()) <= 1 + 1e-5, f"gain {gain} seed {seed}"


def test_an_odd_string_turns_a_turned_history_round_and_silence_stays_silence() -> None:
    for is_bounded in (True, False):
        model = wild(PluckedString(hidden_size=8, is_bounded=is_bounded), 0.05, 3)
        history = history_of()
        with torch.no_grad():
            one, other = model(history, 2000, *controls(200.0)), model(-history, 2000, *controls(200.0))
        torch.testing.assert_close(one, -other, atol=0, rtol=0)
    bounded = wild(PluckedString(hidden_size=8, is_odd=False), 1.0, 4)
    with torch.no_grad():
        assert not bounded(torch.zeros(1, HISTORY), 2000, *controls(200.0)).any()


def test_dc_leaves_a_bounded_string() -> None:
    """A mean of -20 dBFS beside the tone is 100 dB down after a second, though the tone takes 8 s for 60."""
    model = PluckedString(num_layers=0)
    with torch.no_grad():
        wave = model(history_of() + 0.1, RATE_HZ, *controls(220.0, torch.full((1, 9), 8.0)))
    window = torch.hann_window(RATE_HZ // 5, periodic=False) ** 2
    assert abs(float(wave[0, -len(window) :] @ window / window.sum())) < 1e-6


def test_without_t60_among_its_controls_a_string_does_not_hear_it() -> None:
    model = PluckedString(controls=("f0", "velocity"), num_layers=1, hidden_size=4)
    with torch.no_grad():
        one = model(history_of(), 500, *controls(200.0))
        other = model(history_of(), 500, *controls(200.0, torch.full((1, 9), math.nan)))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.parametrize(("f0_hz", "text"), [(6000.0, "needed 8"), (30.0, "two periods")])
def test_a_string_that_does_not_fit_is_refused(f0_hz: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PluckedString()(history_of(), 10, *controls(f0_hz))
