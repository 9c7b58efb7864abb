"""Plucked strings by the Karplus-Strong algorithm, whose pitch and decay are known in closed form.

K. Karplus, A. Strong, "Digital synthesis of plucked-string and drum timbres" (1983); with the extensions of D. Jaffe,
J. Smith, "Extensions of the Karplus-Strong plucked-string algorithm" (1983): a loop of a delay of whole samples, an
allpass filter for the rest of the period, a gain and a one-pole low-pass filter.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_shards.plan import Report

PEAK_DB = (-24.0, -2.0)
"""Peaks of the softest and the hardest pluck, dBFS."""
CUTOFF_PERIODS = (3.0, 60.0)
"""Cutoff of the filter of the softest and the hardest pluck, as multiples of f0."""
WRAP_DB = 120.0
"""How far what lies beyond the end of a tone is pushed down before it folds back onto its start."""
RENDERED_DB = 80.0
F0_RANGE_HZ = (41.203, 1318.51)
T60_RANGE_SECONDS = (0.5, 8.0)
LONGEST_SECONDS = 8.6
NUM_NOTES = 200
CSV_NAME = "notes.csv"
TRUTH_NAME = "truth.csv"
NAMES = ("c", "db", "d", "eb", "e", "f", "gb", "g", "ab", "a", "bb", "b")


@dataclass(frozen=True)
class KarplusString:
    """One pluck of one string, and its loop G(z) = gain * low-pass * allpass * z**-delay.

    Args:
        f0_hz: its first partial; exactly, as the loop delays it by one period.
        t60_seconds: time in which that falls by 60 dB.
        rate_hz: sample rate.
        damping: share of that loss which is the low-pass filter's, in (0, 1): partial k loses about
            1 + damping * (k**2 - 1) times as much as the first. What is left is lost at all frequencies alike.
        position: where it is plucked, as a share of its length, in (0, 1).
        velocity: how hard, 0 to 1: louder and brighter.
        excitation: `noise`, a burst of one period; or `pluck`, one impulse.
        seed: of the noise.

    Raises: ValueError for a string that this loop cannot be.
    """

    f0_hz: float
    t60_seconds: float
    rate_hz: int = 44_100
    damping: float = 0.02
    position: float = 0.2
    velocity: float = 0.7
    excitation: str = "noise"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.f0_hz <= self.rate_hz / 8:
            raise ValueError(f"f0_hz is {self.f0_hz}; needed a value above 0 and up to rate / 8")
        if not self.t60_seconds > 0:
            raise ValueError(f"t60_seconds is {self.t60_seconds}; needed a value above 0")
        if not (0 < self.damping < 1 and 0 < self.position < 1 and 0 <= self.velocity <= 1):
            raise ValueError(
                f"damping {self.damping} and position {self.position} must lie between 0 and 1, "
                f"and velocity {self.velocity} from 0 to 1"
            )
        if self.excitation not in ("noise", "pluck"):
            raise ValueError(f"excitation is {self.excitation!r}; needed noise or pluck")

    @property
    def period(self) -> float:
        """Samples."""
        return self.rate_hz / self.f0_hz

    @property
    def loop_gain_at_f0(self) -> float:
        """|G| at f0: what is left after each period."""
        return float(10 ** (-3 / (self.f0_hz * self.t60_seconds)))

    @cached_property
    def gain(self) -> float:
        """The factor in the loop that is the same at all frequencies."""
        return float(self.loop_gain_at_f0 ** (1 - self.damping))

    @cached_property
    def pole(self) -> float:
        """a of the low-pass filter (1 - a) / (1 - a z^-1), which has |H| = loop_gain_at_f0 ** damping at f0."""
        power = self.loop_gain_at_f0 ** (2 * self.damping)
        middle = 1 - power * math.cos(self._omega)
        return (middle - math.sqrt(middle**2 - (1 - power) ** 2)) / (1 - power)

    @property
    def _omega(self) -> float:
        return 2 * math.pi * self.f0_hz / self.rate_hz

    @property
    def _rest(self) -> float:
        """Samples of delay at f0 that the allpass filter and the whole samples have to share."""
        low_pass = (1 - self.pole) / (1 - self.pole * cmath.exp(-1j * self._omega))
        return self.period + cmath.phase(low_pass) / self._omega

    @cached_property
    def delay(self) -> int:
        """Whole samples; the allpass filter delays by half a sample to one and a half."""
        return math.floor(self._rest - 0.5)

    @cached_property
    def allpass(self) -> float:
        """c of (c + z^-1) / (1 + c z^-1) with the phase delay at f0 that is left (Jaffe and Smith, equation 16)."""
        left = self._rest - self.delay
        return math.sin((1 - left) * self._omega / 2) / math.sin((1 + left) * self._omega / 2)

    def loop_at(self, z: np.ndarray) -> np.ndarray:
        """G(z), complex, for complex z."""
        back = 1 / z
        low_pass = (1 - self.pole) / (1 - self.pole * back)
        allpass = (self.allpass + back) / (1 + self.allpass * back)
        return self.gain * low_pass * allpass * back**self.delay

    def t60_at(self, hz: float) -> float:
        """T60 in seconds of a partial at `hz`: it loses |G(hz)| in each period that the loop has there."""
        omega = 2 * math.pi * hz / self.rate_hz
        low_pass = (1 - self.pole) / (1 - self.pole * cmath.exp(-1j * omega))
        back = cmath.exp(-1j * omega)
        allpass = (self.allpass + back) / (1 + self.allpass * back)
        samples = self.delay - (cmath.phase(low_pass) + cmath.phase(allpass)) / omega
        return -3 * samples / self.rate_hz / math.log10(self.gain * abs(low_pass))

    def render(self, seconds: float) -> np.ndarray:
        """The tone, float64 [T], without DC, its peak by velocity in PEAK_DB.

        Computed as a whole: its spectrum, excitation / (1 - G), is taken on a circle outside the unit circle, on which
        what lies beyond the end is WRAP_DB quieter when it folds back.
        """
        count = round(seconds * self.rate_hz)
        size = 1 << math.ceil(math.log2(max(count, 4 * self.period) * 1.05))
        radius = 10 ** (WRAP_DB / 20 / size)
        weight = radius ** np.arange(size)
        z = radius * np.exp(2j * np.pi * np.arange(size // 2 + 1) / size)
        excitation = np.zeros(size)
        burst = self._excitation()
        excitation[: len(burst)] = burst
        spectrum = np.fft.rfft(excitation / weight) * self._hammer_at(z) / (1 - self.loop_at(z))
        wave = (np.fft.irfft(spectrum, size) * weight)[:count]
        low, high = PEAK_DB
        return wave * (10 ** ((low + (high - low) * self.velocity) / 20) / np.max(np.abs(wave)))

    def _hammer_at(self, z: np.ndarray) -> np.ndarray:
        """Two equal one-pole low-pass filters, higher for a harder pluck."""
        low, high = CUTOFF_PERIODS
        cutoff_hz = min(self.f0_hz * low * (high / low) ** self.velocity, 0.45 * self.rate_hz)
        pole = math.exp(-2 * math.pi * cutoff_hz / self.rate_hz)
        return ((1 - pole) / (1 - pole / z)) ** 2

    def _excitation(self) -> np.ndarray:
        """A burst minus itself a share `position` of a period later: no partial with a node there, and no DC."""
        length = max(round(self.period), 2)
        burst = np.zeros(length)
        if self.excitation == "noise":
            burst = np.random.default_rng((self.seed, 0x4B53)).standard_normal(length)
        else:
            burst[0] = 1.0
        later = min(max(round(self.position * self.period), 1), length)
        return np.pad(burst, (0, later)) - np.pad(burst, (later, 0))


def draw_string(seed: int, number: int, rate_hz: int = 44_100) -> KarplusString:
    """String `number` of `seed`: pitch evenly from E1 to E6, T60 evenly in its logarithm, all else at random."""
    random = np.random.default_rng((seed, number, 0x5374))
    pitch, decay, damping, position, velocity = random.random(5)
    low, high = F0_RANGE_HZ
    shortest, longest = T60_RANGE_SECONDS
    return KarplusString(
        f0_hz=float(low * (high / low) ** pitch),
        t60_seconds=float(shortest * (longest / shortest) ** decay),
        rate_hz=rate_hz,
        damping=float(0.003 * (0.08 / 0.003) ** damping),
        position=float(0.05 + 0.45 * position),
        velocity=float(velocity),
        excitation="noise" if number % 2 else "pluck",
        seed=number,
    )


def note_seconds(string: KarplusString) -> float:
    """Until the first partial has fallen by RENDERED_DB, between one second and LONGEST_SECONDS."""
    return min(max(string.t60_seconds * RENDERED_DB / 60, 1.0), LONGEST_SECONDS)


def write_string_notes(
    folder: Path, *, seed: int, rate_hz: int, report: Report, num_notes: int = NUM_NOTES
) -> None:
    """Write notes as 32-bit float wav, CSV_NAME with what is known of each, and TRUTH_NAME with their T60."""
    import soundfile

    folder.mkdir(parents=True)
    lines, truth = ["file,f0_hz,velocity,position"], ["file,t60_seconds,damping,excitation"]
    for number in range(num_notes):
        report("plucking strings", number, num_notes)
        string = draw_string(seed, number, rate_hz)
        name = f"ks{number:04d}-{name_of_pitch(string.f0_hz)}.wav"
        soundfile.write(folder / name, string.render(note_seconds(string)), rate_hz, subtype="FLOAT")
        lines.append(f"{name},{string.f0_hz:.6f},{string.velocity:.4f},{string.position:.4f}")
        truth.append(f"{name},{string.t60_seconds:.6f},{string.damping:.6f},{string.excitation}")
    (folder / CSV_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / TRUTH_NAME).write_text("\n".join(truth) + "\n", encoding="utf-8")


def name_of_pitch(f0_hz: float) -> str:
    """The note nearest to `f0_hz`, such as `eb3`; a4 is 440 Hz."""
    number = round(69 + 12 * math.log2(f0_hz / 440))
    return f"{NAMES[number % 12]}{number // 12 - 1}"
