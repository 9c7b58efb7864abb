"""A simulated overdrive pedal and the guitar that is played into it. numpy only.

The pedal is an operational amplifier with a pair of diodes in its feedback loop and a tone control behind it, the
circuit of many overdrives. Its nonlinear differential equation is solved, not replaced by a curve:

    C dv/dt = i - v/R - 2 Is sinh(v / (n Vt)),   i = u through R1 and C1 in series,   out = lowpass(u + v)

with u the input, v the voltage over the diodes, and R growing with the drive knob.

Source: Yeh, Abel and Smith, "Simplified, physically-informed models of distortion and overdrive guitar effects
pedals" (DAFx 2007), for the circuit, its equation and its values.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from data_shards.synthetic_notes import pluck

INPUT_OHM, INPUT_FARAD = 4_700.0, 47e-9
FEEDBACK_FARAD = 51e-12
FEEDBACK_OHM, DRIVE_OHM = 51_000.0, 500_000.0
SATURATION_AMPERE, THERMAL_VOLT = 2.52e-9, 1.752 * 25.85e-3
TONE_RANGE_HZ = (700.0, 8_000.0)
OUTPUT_GAIN = 0.6
OVERSAMPLING = 4
# Time constants after which a stretch that began at rest is where it would be anyway (exp(-30) = 1e-13).
SETTLING = 30.0
_MAX_ROWS, _ROW_SAMPLES = 4096, 1024
_MAX_NEWTON_STEPS = 60
_NEWTON_VOLT = 1e-10

OPEN_STRINGS_HZ = (82.41, 110.0, 146.83, 196.0, 246.94, 329.63)
PICKUP_HZ, PICKUP_Q = 3_500.0, 1.2
HISS_DB = -85.0
DEMO_DRIVES, DEMO_TONES = (0.2, 0.8), (0.3, 0.8)
DEMO_SECONDS = 20.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Overdrive:
    """The pedal with its two knobs, each 0..1."""

    drive: float
    tone: float

    @property
    def feedback_ohm(self) -> float:
        """Resistance over the diodes."""
        return FEEDBACK_OHM + self.drive * DRIVE_OHM

    @property
    def tone_hz(self) -> float:
        """Corner of the one-pole low-pass behind the amplifier."""
        low, high = TONE_RANGE_HZ
        return low * (high / low) ** self.tone

    def __call__(self, dry: np.ndarray, rate_hz: int, oversampling: int = OVERSAMPLING) -> np.ndarray:
        """What comes out: float64 [frames] for `dry` in volts, [frames].

        The equation is solved at `oversampling` times the rate. The linear parts are exact: the responses of the
        analogue circuit, applied to the spectrum.
        """
        samples = 1 << (len(dry) + rate_hz // 10).bit_length()
        # The spectrum of the input with zeros above its band is the input at the higher rate.
        fine = samples * oversampling
        s = 2j * np.pi * np.fft.rfftfreq(fine, 1 / (rate_hz * oversampling))
        spectrum = np.zeros(fine // 2 + 1, complex)
        spectrum[: samples // 2] = oversampling * np.fft.rfft(dry, samples)[:-1]
        through_input = s * INPUT_FARAD / (1 + s * INPUT_OHM * INPUT_FARAD)
        current = np.fft.irfft(spectrum * through_input, fine)
        volt = solve_clipper(current, rate_hz * oversampling, self.feedback_ohm)
        spectrum += np.fft.rfft(volt)
        spectrum *= OUTPUT_GAIN / (1 + s / (2 * np.pi * self.tone_hz))
        return np.fft.irfft(spectrum[: samples // 2 + 1] / oversampling, samples)[: len(dry)]


def solve_clipper(current: np.ndarray, rate_hz: float, feedback_ohm: float) -> np.ndarray:
    """Voltage over the diodes for a current in ampere: float64 [N] for [N], from rest.

    The second-order backward differentiation formula (the trapezoidal rule would ring where the diodes conduct),
    each step solved by Newton's method. The circuit forgets within SETTLING time constants, so stretches of the
    signal are solved side by side, each from so much earlier.
    """
    settle = int(np.ceil(SETTLING * feedback_ohm * FEEDBACK_FARAD * rate_hz))
    rows = int(np.clip(len(current) // _ROW_SAMPLES, 1, _MAX_ROWS))
    length = -(-len(current) // rows)
    padded = np.concatenate([np.zeros(settle), current, np.zeros(rows * length - len(current))])
    # Step by step over all rows: [settle + length, rows].
    steps = np.stack([padded[row * length : row * length + settle + length] for row in range(rows)], axis=1)
    capacity = FEEDBACK_FARAD * rate_hz / 2
    conductance = 3 * capacity + 1 / feedback_ohm
    volt, before = np.zeros(rows), np.zeros(rows)
    solved = np.empty((length, rows))
    for number, flowing in enumerate(steps):
        volt, before = _solve_step(flowing + capacity * (4 * volt - before), conductance), volt
        if number >= settle:
            solved[number - settle] = volt
    return solved.T.reshape(-1)[: len(current)]


def _solve_step(total: np.ndarray, conductance: float) -> np.ndarray:
    """v with conductance * v + 2 Is sinh(v / nVt) = total, [rows].

    Each of the two terms alone bounds |v|. From the nearer bound Newton's method comes monotonically, as the left
    side is convex for v > 0 and odd.
    """
    volt = np.abs(total) / conductance
    np.minimum(volt, THERMAL_VOLT * np.arcsinh(np.abs(total) / (2 * SATURATION_AMPERE)), out=volt)
    for _ in range(_MAX_NEWTON_STEPS):
        growth = np.exp(volt / THERMAL_VOLT)
        diodes = SATURATION_AMPERE * (growth - 1 / growth)
        slope = conductance + SATURATION_AMPERE / THERMAL_VOLT * (growth + 1 / growth)
        step = (conductance * volt + diodes - np.abs(total)) / slope
        volt -= step
        if np.abs(step).max() < _NEWTON_VOLT:
            return np.copysign(volt, total)
    raise FloatingPointError(f"Newton's method did not settle within {_MAX_NEWTON_STEPS} steps")


def play_guitar(seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Riffs as a guitar gives them to a pedal: single notes, power chords, muted chugs and rests, soft and hard.

    float64 [frames] in volts, peak 0.5 to 0.95; the pickup's resonance above 3 kHz and some hiss.
    """
    frames = round(seconds * rate_hz)
    wave = np.zeros(frames)
    place = int(rng.uniform(0.02, 0.2) * rate_hz)
    while place < frames:
        root_hz = float(rng.choice(OPEN_STRINGS_HZ)) * 2 ** (int(rng.integers(0, 13)) / 12)
        kind = rng.choice(["note", "note", "chord", "mute", "rest"])
        length = int(rng.choice([0.125, 0.25, 0.25, 0.5, 1.0]) * rate_hz)
        if kind != "rest":
            ratios = (1.0, 1.4983, 2.0) if kind == "chord" else (1.0,)
            ring = length // 2 if kind == "mute" else length + int(rng.uniform(0.05, 0.6) * rate_hz)
            bright = 0.1 if kind == "mute" else float(rng.random())
            level = 10 ** (rng.uniform(-15, 0) / 20) / len(ratios)
            for ratio in ratios:
                note = level * pluck(root_hz * ratio, ring, rate_hz, bright, rng)
                end = min(place + ring, frames)
                wave[place:end] += note[: end - place]
        place += length
    wave = _pickup(wave, rate_hz)
    wave *= rng.uniform(0.5, 0.95) / np.abs(wave).max()
    return wave + 10 ** (HISS_DB / 20) * rng.standard_normal(frames)


def _pickup(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """The second-order low-pass that coil and cable are."""
    samples = 1 << (len(wave) + rate_hz // 10).bit_length()
    ratio = 1j * np.fft.rfftfreq(samples, 1 / rate_hz) / PICKUP_HZ
    return np.fft.irfft(np.fft.rfft(wave, samples) / (1 + ratio / PICKUP_Q + ratio**2), samples)[: len(wave)]


def write_device_pairs(
    folder: Path,
    *,
    seed: int = 0,
    rate_hz: int = 44_100,
    seconds: float = DEMO_SECONDS,
    report: Report = print,
) -> Path:
    """Write a dry and a wet file (32-bit float WAV) for each setting of the knobs, and the list of them.

    Returns the list, a CSV that `data_shards.pedal.read_pairs` reads. `report` is called with a line for each pair.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[object, ...]] = [("dry", "wet", "drive", "tone")]
    for number, (drive, tone) in enumerate(product(DEMO_DRIVES, DEMO_TONES)):
        report(f"playing {seconds:g} s of guitar into a simulated overdrive, drive {drive:g}, tone {tone:g}")
        dry = play_guitar(seconds, rate_hz, np.random.default_rng([seed, 6, number])).astype(np.float32)
        names = (f"dry-{number}.wav", f"wet-{number}.wav")
        for name, wave in zip(names, (dry, Overdrive(drive, tone)(dry, rate_hz)), strict=True):
            soundfile.write(folder / name, wave.astype(np.float32), rate_hz, subtype="FLOAT")
        lines.append((*names, drive, tone))
    path = folder / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(lines)
    return path
