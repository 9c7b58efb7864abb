"""Synthetic recordings are repeatable and are what their names say, measured with scipy."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile
from scipy import signal

from data_shards import synthetic
from data_shards.synthetic_noise import NOISES, coloured, hum, impulsive
from data_shards.synthetic_notes import Instrument, bow, play, pluck, random_instrument
from data_shards.synthetic_rooms import simulate_room
from data_shards.synthetic_voice import Speaker, random_speaker, speak
from hparams.errors import UserError

RATE_HZ = 22_050
SPEAKER = Speaker(pitch_hz=120.0, tract_scale=1.0, syllables_per_second=4.0, breathiness=0.02)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def frame_levels_db(wave: np.ndarray, frame: int) -> np.ndarray:
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    return 20 * np.log10(np.sqrt(np.mean(frames**2, axis=1)) + 1e-9)


def pitch_of(wave: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Place of the highest autocorrelation between two periods."""
    correlation = signal.correlate(wave, wave)[len(wave) - 1 :]
    first, last = int(RATE_HZ / high_hz), int(RATE_HZ / low_hz)
    return RATE_HZ / (first + int(np.argmax(correlation[first:last])))


def test_a_voice_speaks_in_phrases_with_pauses():
    levels = frame_levels_db(speak(SPEAKER, 12.0, RATE_HZ, rng()), RATE_HZ // 20)
    pauses = np.mean(levels < -45)
    assert 0.08 < pauses < 0.5, pauses
    assert np.mean(levels > -25) > 0.3


def test_a_voice_has_the_pitch_of_its_speaker():
    found = {}
    for pitch_hz in (100.0, 200.0):
        wave = speak(Speaker(pitch_hz, 1.0, 4.0, 0.01), 8.0, RATE_HZ, rng())
        frames = wave[: len(wave) // 1024 * 1024].reshape(-1, 1024)
        loud = frames[np.argsort(-np.mean(frames**2, axis=1))[:60]]
        found[pitch_hz] = np.median([pitch_of(frame, pitch_hz / 1.7, pitch_hz * 1.7) for frame in loud])
    for pitch_hz, measured in found.items():
        assert abs(np.log2(measured / pitch_hz)) < 0.25, found


def test_speakers_differ_and_cover_low_and_high_voices():
    pitches = [random_speaker(rng(seed)).pitch_hz for seed in range(40)]
    assert min(pitches) < 120 and max(pitches) > 190


@pytest.mark.parametrize("pitch_hz", [82.4, 220.0, 440.0])
def test_notes_have_their_pitch(pitch_hz):
    plucked = pluck(pitch_hz, RATE_HZ, RATE_HZ, 0.5, rng())
    bowed = bow(pitch_hz, RATE_HZ, RATE_HZ, 0.5, rng())
    for wave in (plucked, bowed):
        measured = pitch_of(wave[2000:10_000], pitch_hz / 1.5, pitch_hz * 1.5)
        assert abs(np.log2(measured / pitch_hz)) * 12 < 0.5, measured


def test_a_plucked_string_decays_and_a_bowed_one_does_not():
    plucked = frame_levels_db(pluck(196.0, RATE_HZ, RATE_HZ, 0.5, rng()), RATE_HZ // 10)
    bowed = frame_levels_db(bow(196.0, RATE_HZ, RATE_HZ, 0.5, rng()), RATE_HZ // 10)
    assert plucked[1] - plucked[8] > 20
    assert abs(bowed[2] - bowed[7]) < 3


def test_the_corrected_sawtooth_aliases_less_than_the_naive_one():
    """Energy between the partials of a high note, against the same spectrum without correction."""
    at = np.arange(RATE_HZ)
    pitch_hz = 1733.0
    advance = np.full(RATE_HZ, pitch_hz / RATE_HZ)
    phase = np.cumsum(advance) % 1.0
    from data_shards.synthetic_notes import _blep

    def between_partials(wave: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
        partial = np.abs((at[: len(spectrum)] + pitch_hz / 2) % pitch_hz - pitch_hz / 2) < 6
        return float(spectrum[~partial].sum() / spectrum.sum())

    naive, corrected = 2 * phase - 1, 2 * phase - 1 - _blep(phase, advance)
    assert between_partials(corrected) < between_partials(naive) / 5


@pytest.mark.parametrize("kind", ["plucked", "bowed"])
def test_instruments_play_for_the_asked_time_at_peak_one(kind):
    instrument = random_instrument(kind, rng(5))
    assert isinstance(instrument, Instrument)
    wave = play(instrument, 3.0, RATE_HZ, rng(5))
    assert wave.shape == (3 * RATE_HZ,) and np.abs(wave).max() == pytest.approx(1.0)


def test_coloured_noise_has_a_slope_of_0_3_or_6_db_an_octave():
    slopes = set()
    for seed in range(12):
        hz, power = signal.welch(coloured(4.0, RATE_HZ, rng(seed)), RATE_HZ, nperseg=2048)
        band = (hz > 100) & (hz < 6000)
        slope = np.polyfit(np.log2(hz[band]), 10 * np.log10(power[band]), 1)[0]
        nearest = round(slope / 3.01)
        assert abs(slope - 3.01 * nearest) < 0.4, slope
        slopes.add(nearest)
    assert slopes == {0, -1, -2}


def test_hum_stands_on_multiples_of_the_mains():
    hz, power = signal.periodogram(hum(4.0, RATE_HZ, rng(1)), RATE_HZ, window="hann")
    strongest = hz[np.argsort(-power)[:20]]
    distances = [min(abs(f / mains - round(f / mains)) * mains for mains in (50.0, 60.0)) for f in strongest]
    assert max(distances) < 3.0, strongest


def test_impulses_are_far_above_their_mean():
    wave = impulsive(5.0, RATE_HZ, rng(2))
    assert np.abs(wave).max() / np.sqrt(np.mean(wave**2)) > 5


@pytest.mark.parametrize("name", sorted(NOISES))
def test_noises_are_finite_of_the_asked_length_and_repeatable(name):
    wave = NOISES[name](1.3, RATE_HZ, rng(7))
    assert wave.shape == (round(1.3 * RATE_HZ),) and np.isfinite(wave).all()
    np.testing.assert_array_equal(wave, NOISES[name](1.3, RATE_HZ, rng(7)))


def reverberation_seconds(response: np.ndarray, rate_hz: int) -> float:
    """RT60 from the slope between -5 and -25 dB of Schroeder's backward integral."""
    decay_db = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2) + 1e-12)
    first, last = (int(np.argmax(decay_db < level)) for level in (-5, -25))
    return 60 * (last - first) / rate_hz / (decay_db[first] - decay_db[last])


def test_rooms_reverberate_about_as_long_as_asked():
    pytest.importorskip("pyroomacoustics", reason="pyroomacoustics (the [rooms] extra) is not installed")
    for wanted in (0.2, 0.4, 0.8):
        found = [
            reverberation_seconds(simulate_room(wanted, RATE_HZ, rng(seed)), RATE_HZ) for seed in range(3)
        ]
        assert wanted / 2 < np.median(found) < wanted * 1.6, (wanted, found)


def test_a_missing_room_simulator_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(UserError, match=r"pip install 'wavewright\[rooms\]'"):
        simulate_room(0.3, RATE_HZ, rng())


def test_audio_folders_are_repeatable_and_seeds_differ(tmp_path):
    def write(name: str, seed: int) -> dict[str, bytes]:
        folder = tmp_path / name
        synthetic.write_foregrounds(
            folder / "fg", seed=seed, rate_hz=8000, num_speakers=1, num_instruments=1, seconds=1.0
        )
        synthetic.write_backgrounds(folder / "bg", 4, seed=seed, rate_hz=8000, seconds=1.0)
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.wav"))}

    one, again, other = write("one", 3), write("again", 3), write("other", 4)
    assert one == again and len(one) == 3 + 2 * 2 + 4
    assert one.keys() == other.keys() and all(one[name] != other[name] for name in one)
    for path in (tmp_path / "one").rglob("*.wav"):
        wave, rate_hz = soundfile.read(path)
        assert rate_hz == 8000 and len(wave) == 8000 and 0.05 < np.abs(wave).max() <= 1.0
