"""Lag and polarity are found exactly, and pairs that do not fit are told apart from those that do."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import soundfile

from data_shards.align import measure_alignment
from tests.data_shards import pedal_audio

RATE_HZ = 44_100
SECONDS = 4.0


@pytest.fixture(scope="module")
def dry() -> np.ndarray:
    return pedal_audio.guitar(SECONDS, RATE_HZ)


@pytest.mark.parametrize("delay", [0, 1, 2, 65, 1024, 12_345, 19_999, 20_000])
@pytest.mark.parametrize("gain", [1.0, -0.01])
def test_a_distorted_copy_is_found_where_it_was_put(dry, delay, gain):
    found = measure_alignment(dry, gain * pedal_audio.delayed(pedal_audio.fuzz(dry), delay), RATE_HZ)
    assert (found.lag_samples, found.polarity, found.problem) == (delay, np.sign(gain), None)
    assert found.confidence > 0.5 and found.num_agreeing == found.num_voting


@pytest.mark.parametrize("delay", [1, 999, 20_000])
def test_a_device_with_filters_is_found_later_by_exactly_its_delay(dry, delay):
    wet = -pedal_audio.amp(dry, RATE_HZ)
    own = measure_alignment(dry, wet, RATE_HZ)
    assert 0 <= own.lag_samples <= 1 and own.polarity == -1 and own.problem is None
    found = measure_alignment(dry, pedal_audio.delayed(wet, delay), RATE_HZ)
    assert found.lag_samples == own.lag_samples + delay


def test_a_wet_file_that_is_early_has_a_negative_lag(dry):
    found = measure_alignment(pedal_audio.delayed(dry, 9), pedal_audio.fuzz(dry), RATE_HZ)
    assert (found.lag_samples, found.problem) == (-9, None)


@pytest.mark.parametrize("name", ["ampprofiling", "donnerflanger", "ds1-val", "hiemstra-dist"])
@pytest.mark.parametrize("delay", [0, 250, 20_000])
def test_real_pairs_have_the_lag_and_polarity_of_their_manifest(shared_audio, name, delay):
    # From the notes of the manifest: "polarity inverted, lag about +3", "lag about +1", "dropped first 9 samples (wet
    # led dry by 9) ... polarity inverted re dry", "lag 0".
    lag, polarity = {
        "ampprofiling": (3, -1),
        "donnerflanger": (1, -1),
        "ds1-val": (0, -1),
        "hiemstra-dist": (0, 1),
    }[name]
    with (shared_audio / "MANIFEST.csv").open(newline="") as stream:
        notes = "".join(row["note"] for row in csv.DictReader(stream) if name in row["file"])
    assert ("polarity inverted" in notes) <= (polarity == -1)
    heard, rate_hz = soundfile.read(
        shared_audio / "pedal" / f"{name}-input.wav", dtype="float32", always_2d=True
    )
    given, _ = soundfile.read(shared_audio / "pedal" / f"{name}-target.wav", dtype="float32")
    found = measure_alignment(heard[:, 0], pedal_audio.delayed(given, delay), rate_hz)
    assert (found.lag_samples, found.polarity, found.problem) == (lag + delay, polarity, None)


def test_another_performance_is_unrelated(dry):
    other = pedal_audio.fuzz(pedal_audio.guitar(SECONDS, RATE_HZ, seed=5))
    found = measure_alignment(dry, other, RATE_HZ)
    assert found.problem is not None and "unrelated" in found.problem


def test_noise_is_unrelated(dry):
    found = measure_alignment(dry, np.random.default_rng(3).standard_normal(len(dry)), RATE_HZ)
    assert found.problem is not None and "unrelated" in found.problem


def test_lost_samples_make_the_windows_disagree(dry):
    long = np.concatenate([dry, dry[::-1], dry])
    wet = pedal_audio.fuzz(long)
    half = len(wet) // 2
    broken = np.concatenate([wet[:half], wet[half + 128 :], np.zeros(128)])
    found = measure_alignment(long, broken, RATE_HZ)
    assert found.problem is not None and "windows disagree" in found.problem and "-128" in found.problem


def test_a_clock_that_drifts_is_seen():
    dry = pedal_audio.guitar(20.0, RATE_HZ)
    at = np.arange(len(dry)) * (1 - 15e-6)
    found = measure_alignment(dry, np.interp(at, np.arange(len(dry)), pedal_audio.fuzz(dry)), RATE_HZ)
    # 15 ppm of the 12.7 s between the middles of the first and the last third.
    assert found.problem is None and found.drift_samples == pytest.approx(15e-6 * 12.7 * RATE_HZ, abs=2)


def test_what_repeats_is_not_believed():
    beat = pedal_audio.guitar(0.25, RATE_HZ)
    dry = np.tile(beat, 16)
    found = measure_alignment(dry, pedal_audio.fuzz(dry), RATE_HZ)
    assert found.problem is not None and found.confidence < 0.25


def test_too_short_or_silent_is_said():
    assert "too short" in str(measure_alignment(np.ones(3000), np.ones(3000), RATE_HZ).problem)
    assert "dry file is silent" in str(
        measure_alignment(np.zeros(RATE_HZ), np.ones(RATE_HZ), RATE_HZ).problem
    )
    hiss = np.random.default_rng(0).standard_normal(RATE_HZ)
    assert "wet file is silent" in str(measure_alignment(hiss, np.zeros(RATE_HZ), RATE_HZ).problem)
