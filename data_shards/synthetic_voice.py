"""Speech-like voices: a glottal source with a pitch contour through moving formants, fricatives, rhythm and
pauses.

Not words, but what a denoiser must tell from noise: harmonics that glide, formants that move between
vowels, hissing and bursting consonants, phrases that decline and pause. numpy only.

Sources: Fant, "Acoustic theory of speech production" (1960), for source and filter; Rosenberg, "Effect of
glottal pulse shape on the quality of natural vowels" (1971), for the pulse; vowel formants after Peterson
and Barney, "Control methods used in a study of the vowels" (1952); Klatt, "Software for a cascade/parallel
formant synthesizer" (1980), for the bandwidths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# F1, F2, F3 in Hz of a medium vocal tract; F4 is put at 3.5 kHz.
VOWELS_HZ = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    dtype=np.float64,
)
FOURTH_FORMANT_HZ = 3500.0
FORMANT_BANDWIDTHS_HZ = (70.0, 90.0, 130.0, 200.0)
# Lower edge and width in Hz of hisses such as s, sh, f, and x.
HISSES_HZ = ((4500.0, 5500.0), (2200.0, 3500.0), (1500.0, 9000.0), (1200.0, 1800.0))
FRAME_SAMPLES = 512


@dataclass(frozen=True)
class Speaker:
    """What stays the same in one voice."""

    pitch_hz: float
    tract_scale: float
    """Formant frequencies relative to the table: above 1 for a shorter vocal tract."""
    syllables_per_second: float
    breathiness: float
    """Share of noise in the voiced source."""


@dataclass(frozen=True)
class _Score:
    """Control values per frame of FRAME_SAMPLES."""

    pitch_hz: np.ndarray
    voicing: np.ndarray
    hiss: np.ndarray
    hiss_kind: np.ndarray
    formants_hz: np.ndarray


def random_speaker(rng: np.random.Generator) -> Speaker:
    """A speaker somewhere between a low, long-tracted and a high, short-tracted voice."""
    height = rng.random()
    return Speaker(
        pitch_hz=float(90 * 2 ** (1.35 * height + rng.normal(0, 0.08))),
        tract_scale=float(0.88 + 0.32 * height + rng.normal(0, 0.02)),
        syllables_per_second=float(rng.uniform(3.2, 5.5)),
        breathiness=float(rng.uniform(0.01, 0.06)),
    )


def speak(speaker: Speaker, seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """`seconds` of phrases with pauses by `speaker`: float64 of shape [T], peak 1."""
    num_samples = round(seconds * rate_hz)
    num_frames = num_samples // FRAME_SAMPLES + 2
    score = _write_score(speaker, num_frames, rate_hz, rng)
    frames_at = np.arange(num_frames) * FRAME_SAMPLES
    at = np.arange(num_frames * FRAME_SAMPLES)
    pitch_hz = np.interp(at, frames_at, score.pitch_hz) * (
        1 + 0.004 * _slow_noise(len(at), rate_hz, 30.0, rng)
    )
    voicing = np.interp(at, frames_at, score.voicing)
    source = _glottal_source(pitch_hz, rate_hz) + speaker.breathiness * rng.standard_normal(len(at))
    voiced = _filter_frames(source * voicing, _formant_response(score.formants_hz, rate_hz))
    hiss = np.interp(at, frames_at, score.hiss) * rng.standard_normal(len(at))
    hissed = _filter_frames(hiss, _hiss_response(score.hiss_kind, rate_hz))
    wave = voiced / _peak(voiced) + 0.35 * hissed / _peak(hissed)
    return wave[:num_samples] / _peak(wave[:num_samples])


def _write_score(speaker: Speaker, num_frames: int, rate_hz: int, rng: np.random.Generator) -> _Score:
    """Phrases of syllables; each syllable an optional consonant and a vowel, the pitch falling over the
    phrase.
    """
    frames_per_second = rate_hz / FRAME_SAMPLES
    table = np.column_stack([VOWELS_HZ, np.full(len(VOWELS_HZ), FOURTH_FORMANT_HZ)]) * speaker.tract_scale
    pitch = np.full(num_frames, speaker.pitch_hz)
    voicing, hiss = np.zeros(num_frames), np.zeros(num_frames)
    hiss_kind = np.zeros(num_frames, dtype=np.int64)
    formants = np.repeat(table[[4]], num_frames, axis=0)
    place = int(rng.uniform(0.05, 0.4) * frames_per_second)
    while place < num_frames:
        num_syllables = int(rng.integers(3, 11))
        for syllable in range(num_syllables):
            length = int(frames_per_second / speaker.syllables_per_second * rng.uniform(0.65, 1.5))
            onset = int(length * rng.uniform(0.15, 0.4)) if rng.random() < 0.75 else 0
            vowel = slice(place + onset, min(place + length, num_frames))
            if onset:
                _write_consonant(hiss, hiss_kind, place, onset, rng)
            shape = np.sin(
                np.pi * (np.arange(max(vowel.stop - vowel.start, 0)) + 0.5) / max(length - onset, 1)
            )
            voicing[vowel] = rng.uniform(0.5, 1.0) * np.sqrt(np.clip(shape, 0, 1))
            formants[place:] = table[rng.integers(len(table))]
            declination = 1.12 - 0.3 * syllable / num_syllables
            pitch[place:] = speaker.pitch_hz * declination * 2 ** rng.normal(0, 0.12)
            place += length
        place += int(rng.uniform(0.2, 0.9) * frames_per_second)
    glide = np.hanning(9)[1:-1] / np.hanning(9).sum()
    intonation = np.hanning(25)[1:-1] / np.hanning(25).sum()
    return _Score(
        pitch_hz=_smooth(pitch, intonation),
        voicing=voicing,
        hiss=hiss,
        hiss_kind=hiss_kind,
        formants_hz=np.column_stack([_smooth(track, glide) for track in formants.T]),
    )


def _write_consonant(
    hiss: np.ndarray, hiss_kind: np.ndarray, place: int, onset: int, rng: np.random.Generator
) -> None:
    """A hiss over the whole onset, or a stop: silence and a burst of one frame."""
    burst = rng.random() < 0.4
    start = place + onset - 1 if burst else place
    hiss[start : place + onset] = rng.uniform(0.5, 1.0)
    hiss_kind[place : place + onset] = rng.integers(len(HISSES_HZ))


def _smooth(track: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    half = len(kernel) // 2
    return np.convolve(np.pad(track, half, mode="edge"), kernel, mode="valid")


def _peak(wave: np.ndarray) -> float:
    return max(float(np.abs(wave).max(initial=0.0)), 1e-9)


def _slow_noise(num_samples: int, rate_hz: int, cutoff_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Random values of unit variance at 2*cutoff_hz, joined by lines."""
    knots = int(num_samples / rate_hz * 2 * cutoff_hz) + 2
    return np.interp(np.arange(num_samples), np.linspace(0, num_samples, knots), rng.standard_normal(knots))


def _glottal_source(pitch_hz: np.ndarray, rate_hz: int) -> np.ndarray:
    """Derivative of Rosenberg's glottal flow: opening 40 % and closing 16 % of the period, then closed."""
    phase = np.cumsum(pitch_hz / rate_hz) % 1.0
    opening, closing = 0.40, 0.16
    rising = np.sin(np.pi * phase / opening) / opening
    falling = -np.sin(np.pi / 2 * (phase - opening) / closing) / closing
    return np.where(phase < opening, rising, np.where(phase < opening + closing, falling, 0.0)) / 4


def _formant_response(formants_hz: np.ndarray, rate_hz: int) -> np.ndarray:
    """Complex response [N, F] of a cascade of two-pole resonators, each with gain 1 at 0 Hz."""
    # exp(-j w) at the bins of the zero-padded transform of _filter_frames.
    delay = np.exp(-1j * np.pi * np.arange(2 * FRAME_SAMPLES + 1) / (2 * FRAME_SAMPLES)).astype(np.complex64)
    response = np.ones((len(formants_hz), len(delay)), dtype=np.complex64)
    for centre_hz, bandwidth_hz in zip(formants_hz.T, FORMANT_BANDWIDTHS_HZ, strict=True):
        radius = np.exp(-np.pi * bandwidth_hz / rate_hz)
        # A formant above the band (low sample rates) would alias; it is kept just under it.
        angle = 2 * np.pi * np.minimum(centre_hz, 0.45 * rate_hz) / rate_hz
        first = (-2 * radius * np.cos(angle)).astype(np.float32)[:, None]
        second = np.float32(radius**2)
        response *= (1 + first + second) / (1 + delay * (first + second * delay))
    return response


def _hiss_response(kinds: np.ndarray, rate_hz: int) -> np.ndarray:
    """Magnitude response [N, F] of the band of each frame's hiss."""
    bins_hz = np.arange(2 * FRAME_SAMPLES + 1) * rate_hz / (4 * FRAME_SAMPLES)
    edges = [(bins_hz - low) / (0.25 * width) for low, width in HISSES_HZ]
    bands = np.array([np.exp(-0.5 * np.maximum(-edge, edge - 4).clip(0) ** 2) for edge in edges])
    return bands[kinds].astype(np.float32)


def _filter_frames(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Filter each frame by its own response: half-overlapping Hann frames, zero-padded twofold,
    overlap-added.

    `wave` [N * FRAME_SAMPLES], `response` [N, 2 * FRAME_SAMPLES + 1]; frame n is centred on sample n *
    FRAME_SAMPLES.
    """
    window_samples, fft_samples = 2 * FRAME_SAMPLES, 4 * FRAME_SAMPLES
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
    padded = np.pad(wave, (FRAME_SAMPLES, FRAME_SAMPLES))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_samples)[::FRAME_SAMPLES][
        : len(response)
    ]
    filtered = np.fft.irfft(np.fft.rfft(frames * window, fft_samples) * response, fft_samples)
    blocks = filtered.reshape(len(response), 4, FRAME_SAMPLES)
    output = np.zeros((len(response) + 3, FRAME_SAMPLES))
    for part in range(4):
        output[part : part + len(response)] += blocks[:, part]
    return output[1 : 1 + len(wave) // FRAME_SAMPLES].reshape(-1)
