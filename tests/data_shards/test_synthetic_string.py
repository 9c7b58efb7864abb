"""The Karplus-Strong generator against a loop of single samples and the closed forms of its filters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal

from data_shards.synthetic_string import (
    CUTOFF_PERIODS,
    PEAK_DB,
    KarplusString,
    draw_string,
    name_of_pitch,
    note_seconds,
    write_string_notes,
)

RATE_HZ = 44_100


def loop_of_single_samples(string, seconds):
    """The same string, one sample after another: a delay line, a one-pole filter, an allpass filter."""
    count = round(seconds * string.rate_hz)
    low, high = CUTOFF_PERIODS
    cutoff_hz = min(string.f0_hz * low * (high / low) ** string.velocity, 0.45 * string.rate_hz)
    pole = math.exp(-2 * math.pi * cutoff_hz / string.rate_hz)
    burst = string._excitation()
    struck = np.zeros(count)
    struck[: len(burst)] = burst
    struck = signal.lfilter([(1 - pole) ** 2], [1, -2 * pole, pole**2], struck)
    wave = np.zeros(count)
    low_passed = before = allpassed = 0.0
    for n in range(count):
        delayed = wave[n - string.delay] if n >= string.delay else 0.0
        low_passed = (1 - string.pole) * delayed + string.pole * low_passed
        allpassed = string.allpass * low_passed + before - string.allpass * allpassed
        before = low_passed
        wave[n] = struck[n] + string.gain * allpassed
    low_db, high_db = PEAK_DB
    return wave * 10 ** ((low_db + (high_db - low_db) * string.velocity) / 20) / np.abs(wave).max()


@pytest.mark.parametrize("excitation", ["noise", "pluck"])
@pytest.mark.parametrize(("f0_hz", "t60"), [(55.0, 0.5), (220.0, 1.5), (1318.5, 8.0)])
def test_a_tone_is_that_of_a_loop_of_single_samples(f0_hz, t60, excitation):
    string = KarplusString(f0_hz, t60, damping=0.05, position=0.13, velocity=0.8, excitation=excitation)
    # What lies beyond the end folds back 120 dB down.
    np.testing.assert_allclose(string.render(0.5), loop_of_single_samples(string, 0.5), atol=3e-7, rtol=0)


@pytest.mark.parametrize("number", range(40))
def test_the_loop_delays_f0_by_one_period_and_loses_60_db_in_t60(number):
    string = draw_string(3, number)
    at_f0 = string.loop_at(np.exp(2j * np.pi * np.array([string.f0_hz]) / RATE_HZ))[0]
    # One period is a full turn, whose phase is 0.
    assert np.angle(at_f0) == pytest.approx(0, abs=1e-9), string
    assert abs(at_f0) ** (string.f0_hz * string.t60_seconds) == pytest.approx(1e-3), string
    assert string.t60_at(string.f0_hz) == pytest.approx(string.t60_seconds)
    assert string.gain < 1 and 0 < string.pole < 1 and abs(string.allpass) < 1
    assert string.t60_at(5 * string.f0_hz) < string.t60_seconds


def test_there_is_no_dc_and_the_partial_with_a_node_where_it_is_plucked_is_missing():
    # 44100 / 441 Hz: a period of 100 samples exactly, plucked at a quarter.
    string = KarplusString(441.0, 8.0, damping=0.001, position=0.25)
    wave = string.render(4.0)
    assert abs(wave.mean()) < 1e-7
    spectrum = np.abs(np.fft.rfft(wave[:RATE_HZ] * np.hanning(RATE_HZ)))
    levels = [spectrum[441 * k - 2 : 441 * k + 3].max() for k in range(1, 9)]
    assert max(levels[3], levels[7]) < 0.01 * min(levels[:3])


def test_equal_strings_are_equal_and_seeds_and_numbers_are_not():
    assert draw_string(0, 5) == draw_string(0, 5)
    assert draw_string(0, 5) != draw_string(1, 5) != draw_string(1, 6)
    first, other = (KarplusString(100.0, 1.0, seed=seed).render(0.2) for seed in (1, 2))
    np.testing.assert_array_equal(first, KarplusString(100.0, 1.0, seed=1).render(0.2))
    assert np.abs(first - other).max() > 0.01


def test_velocity_is_louder_and_brighter():
    soft, hard = (KarplusString(110.0, 3.0, velocity=velocity).render(0.5) for velocity in (0.1, 0.9))
    assert 20 * np.log10(np.abs(hard).max() / np.abs(soft).max()) == pytest.approx(0.8 * 22)
    centroid = [
        np.average(np.arange(len(s)), weights=s) for s in (np.abs(np.fft.rfft(w)) for w in (soft, hard))
    ]
    assert centroid[1] > 1.5 * centroid[0]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"f0_hz": 6000.0}, "f0_hz is 6000.0; needed a value above 0 and up to rate / 8"),
        ({"t60_seconds": 0.0}, "t60_seconds is 0.0"),
        ({"damping": 1.0}, "damping 1.0 and position"),
        ({"excitation": "bow"}, "needed noise or pluck"),
    ],
)
def test_a_string_that_cannot_be_is_an_error(values, text):
    with pytest.raises(ValueError, match=text):
        KarplusString(**{"f0_hz": 100.0, "t60_seconds": 1.0, **values})


def test_notes_are_written_with_what_is_known_of_them(tmp_path):
    write_string_notes(tmp_path / "a", seed=4, rate_hz=22_050, report=lambda *_: None, num_notes=3)
    lines = (tmp_path / "a" / "notes.csv").read_text().splitlines()
    assert lines[0] == "file,f0_hz,velocity,position" and len(lines) == 4
    string = draw_string(4, 2, 22_050)
    assert lines[3].split(",")[0] == f"ks0002-{name_of_pitch(string.f0_hz)}.wav"
    assert float(lines[3].split(",")[1]) == pytest.approx(string.f0_hz)
    assert note_seconds(string) >= 1


def test_pitches_have_their_names():
    assert [name_of_pitch(hz) for hz in (440.0, 82.41, 155.56, 1318.5, 16.35)] == [
        "a4",
        "e2",
        "eb3",
        "e6",
        "c0",
    ]
