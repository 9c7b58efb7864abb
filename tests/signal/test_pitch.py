"""Pitch of plucked notes: against tones whose frequency is known in closed form, and real ones whose note is known."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import soundfile
import torch

from data_shards.synthetic_string import KarplusString
from enhancer.signal.pitch import cents, estimate_f0

RATE_HZ = 44_100


def partials(frequencies, amplitudes, seconds=1.0, t60=2.0):
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phases = np.random.default_rng(0).uniform(0, 6, len(frequencies))
    waves = [
        a * np.sin(2 * np.pi * f * time + p) for f, a, p in zip(frequencies, amplitudes, phases, strict=True)
    ]
    return torch.from_numpy(sum(waves) * 10 ** (-3 * time / t60))


@pytest.mark.parametrize(
    "f0_hz", [30.3, 41.2, 55.7, 82.41, 110.9, 196.3, 329.6, 523.7, 880.2, 1318.5, 1399.0]
)
@pytest.mark.parametrize("near", [True, False])
def test_a_karplus_strong_tone_is_heard_within_a_cent(f0_hz, near):
    string = KarplusString(f0_hz, 2.0, damping=0.01, position=0.3)
    wave = torch.from_numpy(string.render(1.5))[2205:]
    pitch = estimate_f0(wave, RATE_HZ, 1.02 * f0_hz if near else None)
    assert abs(cents(pitch.f0_hz, f0_hz)) < 1, pitch
    assert pitch.clarity > 0.9


@pytest.mark.parametrize("stiffness", [1e-5, 1e-4, 1e-3])
def test_a_stiff_string_gives_its_first_partial_and_its_stiffness(stiffness):
    number = np.arange(1, 16)
    frequencies = 98.0 * number * np.sqrt(1 + stiffness * number**2)
    pitch = estimate_f0(partials(frequencies, 1 / number), RATE_HZ)
    assert abs(cents(pitch.f0_hz, frequencies[0])) < 1
    assert pitch.inharmonicity == pytest.approx(stiffness, rel=0.1)


def test_a_missing_fundamental_is_found_from_the_other_partials():
    number = np.arange(2, 12)
    pitch = estimate_f0(partials(61.0 * number, 1 / number), RATE_HZ)
    assert abs(cents(pitch.f0_hz, 61.0)) < 1


def test_noise_is_not_clear_and_silence_has_no_pitch(random):
    assert estimate_f0(torch.randn(RATE_HZ, generator=random), RATE_HZ).clarity < 0.3
    assert math.isnan(estimate_f0(torch.zeros(RATE_HZ), RATE_HZ).f0_hz)


def test_noise_beside_a_tone_costs_less_than_two_cents(random):
    string = KarplusString(146.83, 3.0)
    wave = torch.from_numpy(string.render(1.2))
    noisy = wave + 0.01 * wave.abs().max() * torch.randn(wave.shape, generator=random, dtype=torch.float64)
    assert abs(cents(estimate_f0(noisy, RATE_HZ).f0_hz, 146.83)) < 2


def test_cents_are_their_definition():
    assert cents(880.0, 440.0) == pytest.approx(1200)
    assert cents(440 * 2 ** (1 / 12), 440.0) == pytest.approx(100)
    assert math.isnan(cents(0.0, 440.0))


# Instruments are not in tune: of the 22 notes the furthest, growlybass e2, is 26.5 cents above its note.
def test_recorded_strings_sound_near_their_notes(shared_audio):
    with (shared_audio / "MANIFEST.csv").open() as stream:
        notes = {
            row["file"]: float(row["f0_hz"]) for row in csv.DictReader(stream) if row["kind"] == "string"
        }
    apart = {}
    for name, f0_hz in notes.items():
        wave, rate_hz = soundfile.read(shared_audio / name)
        pitch = estimate_f0(torch.from_numpy(wave[rate_hz // 20 :]), rate_hz)
        apart[name] = cents(pitch.f0_hz, f0_hz)
    assert len(apart) == 22
    assert max(map(abs, apart.values())) < 27, apart
    assert sum(abs(value) < 10 for value in apart.values()) >= 19, apart
