"""The simulated pedal against scipy's solution of its circuit, and the demo corpus made with it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, signal

from data_shards.corpus import Corpus
from data_shards.synthetic_device import (
    DEMO_DRIVES,
    DEMO_TONES,
    Overdrive,
    play_guitar,
    solve_clipper,
    write_device_pairs,
)
from launch import demo_corpora

RATE_HZ = 44_100
# Values of the circuit as published (see data_shards.synthetic_device), written down again.
R1, C1, C2 = 4_700.0, 47e-9, 51e-12
SATURATION, THERMAL = 2.52e-9, 0.0452892


def chirp_volts(at_seconds: np.ndarray | float) -> np.ndarray:
    """An 8 ms burst of partials up to 5 kHz, at most 0.6 V, and silence around it."""
    at = np.asarray(at_seconds, dtype=np.float64)
    window = np.where((at > 0.001) & (at < 0.009), np.sin(np.pi * (at - 0.001) / 0.008) ** 2, 0.0)
    partials = sum(np.sin(2 * np.pi * hz * at + hz) / number for number, hz in enumerate((330, 990, 5000), 1))
    return 0.35 * window * partials


def circuit(volts, drive: float, tone_hz: float, at_seconds: np.ndarray) -> np.ndarray:
    """The pedal as three state variables in the time domain, by scipy's implicit Radau method."""
    feedback = 51_000 + 500_000 * drive

    def slope(at, state):
        over_input, over_diodes, out = state
        u = float(volts(at))
        current = (u - over_input) / R1
        leaving = over_diodes / feedback + 2 * SATURATION * np.sinh(over_diodes / THERMAL)
        return [
            current / C1,
            (current - leaving) / C2,
            2 * np.pi * tone_hz * (u + over_diodes - out),
        ]

    solved = integrate.solve_ivp(
        slope,
        (0, at_seconds[-1]),
        [0.0, 0.0, 0.0],
        method="Radau",
        t_eval=at_seconds,
        rtol=1e-7,
        atol=1e-9,
        max_step=5e-5,
    )
    assert solved.success
    return 0.6 * solved.y[2]


@pytest.mark.parametrize(("drive", "tone", "tone_hz"), [(0.0, 0.0, 700.0), (0.8, 1.0, 8000.0)])
def test_the_pedal_is_its_circuit_as_scipy_solves_it(drive, tone, tone_hz):
    frames = 520
    at = np.arange(16 * frames) / (16 * RATE_HZ)
    wet = Overdrive(drive, tone)(chirp_volts(at[::16]), RATE_HZ)
    # The circuit's partials above the Nyquist frequency are taken away as a converter would.
    needed = signal.resample(circuit(chirp_volts, drive, tone_hz, at), frames)
    # It clips: without its diodes the stage would give many volts.
    assert 0.1 < np.abs(needed).max() < 0.6
    error = np.sum((wet - needed) ** 2) / np.sum(needed**2)
    assert error < 1e-4, error


def test_the_solver_is_of_second_order():
    fine_hz = 32 * RATE_HZ
    at = np.arange(round(0.02 * fine_hz)) / fine_hz
    # Slow enough for several steps while the diodes begin to conduct.
    current = 1e-5 * np.sin(2 * np.pi * 100 * at)

    def volt(step: int) -> np.ndarray:
        return np.interp(at, at[::step], solve_clipper(current[::step], fine_hz / step, 200_000.0))[::16]

    reference = volt(1)
    errors = [np.sqrt(np.mean((volt(step) - reference) ** 2)) for step in (8, 4)]
    # (8^2 - 1) / (4^2 - 1) against the solution with step 1; of first order it would be 7/3.
    assert errors[0] / errors[1] == pytest.approx(4.2, abs=0.5)


@pytest.mark.parametrize("frames", [1, 1023, 30_000])
def test_stretches_solved_side_by_side_are_the_signal_solved_in_one(frames):
    rate_hz = 4.0 * RATE_HZ
    current = 2e-4 * np.random.default_rng(1).standard_normal(frames)
    found = solve_clipper(current, rate_hz, 551_000.0)
    # The same formula one sample after the other, each step by bracketing.
    volt = before = 0.0
    capacity = 51e-12 * rate_hz / 2
    for number in range(min(frames, 2500)):
        total = current[number] + capacity * (4 * volt - before)
        low, high = -1.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            flows = middle * (3 * capacity + 1 / 551_000) + 2 * SATURATION * np.sinh(
                middle / (1.752 * 25.85e-3)
            )
            low, high = (middle, high) if flows < total else (low, middle)
        volt, before = low, volt
        assert found[number] == pytest.approx(volt, abs=1e-8), number


def test_knobs_do_what_they_say():
    dry = play_guitar(2.0, RATE_HZ, np.random.default_rng(2))

    def compression_and_treble(drive: float, tone: float) -> tuple[float, float]:
        wet = Overdrive(drive, tone)(dry, RATE_HZ)
        hz, power = signal.welch(wet, RATE_HZ)
        return float(np.std(wet) / np.abs(wet).max()), float(power[hz > 3000].sum() / power.sum())

    assert compression_and_treble(1.0, 0.5)[0] > 1.1 * compression_and_treble(0.0, 0.5)[0]
    assert compression_and_treble(0.5, 1.0)[1] > 2 * compression_and_treble(0.5, 0.0)[1]


def test_the_guitar_is_a_signal_to_learn_from():
    wave = play_guitar(10.0, RATE_HZ, np.random.default_rng(0))
    assert wave.shape == (10 * RATE_HZ,) and np.isfinite(wave).all() and 0.45 < np.abs(wave).max() < 1
    loudness = 20 * np.log10([np.std(part) + 1e-9 for part in np.split(wave, 40)])
    assert np.ptp(loudness) > 15 and -40 < 20 * np.log10(wave.std()) < -12
    np.testing.assert_array_equal(wave, play_guitar(10.0, RATE_HZ, np.random.default_rng(0)))


def test_the_demo_corpus_has_every_setting_and_stays_as_it_is(tmp_path, monkeypatch, capsys):
    def short(folder, **arguments):
        return write_device_pairs(folder, **arguments, seconds=1.5)

    monkeypatch.setattr(demo_corpora, "write_device_pairs", short)
    assert demo_corpora.main(["--data", str(tmp_path), "--kind", "pedal", "--rate", "22050"]) == 0
    corpus = Corpus.open(tmp_path / "pedal", "pedal", 22_050)
    assert [take.knobs for take in corpus.takes[::2]] == [
        {"drive": drive, "tone": tone} for drive in DEMO_DRIVES for tone in DEMO_TONES
    ]
    assert corpus.seconds == pytest.approx(4 * 1.5)
    assert "demo corpus written" in capsys.readouterr().out
    before = (tmp_path / "pedal/dataset.json").stat().st_mtime_ns
    assert demo_corpora.main(["--data", str(tmp_path), "--kind", "pedal", "--rate", "22050"]) == 0
    assert "stays as it is" in capsys.readouterr().out
    assert (tmp_path / "pedal/dataset.json").stat().st_mtime_ns == before
