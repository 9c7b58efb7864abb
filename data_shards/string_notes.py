"""Importing single notes of a string: pitch, attack, decay and noise floor of each; the builder then does the rest.

A file that holds no single clear note is rejected with its reason, and `max_reject` says how many may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from data_shards.build import BuildResult, build_found, check_inputs, check_output, no_report
from data_shards.clipping import is_clipped, pcm_bits
from data_shards.errors import CorpusError
from data_shards.ingest import AudioHeader, RejectedInput, probe, read_mono
from data_shards.note_analysis import (
    fade_samples,
    find_attack,
    noise_in_octaves,
    reaches,
    second_onset,
    without_silence,
)
from data_shards.note_names import NoteName, read_name
from data_shards.note_options import StringOptions
from data_shards.notes import NoteTake
from data_shards.options import BuildOptions
from data_shards.plan import InputItem, Inputs, Report, find_inputs
from data_shards.scan import FoundFile
from data_shards.sidecar import Reject
from enhancer.signal.decay import (
    OCTAVE_CENTRES_HZ,
    audible_bands,
    octave_levels,
    octave_t60,
    window_samples,
)
from enhancer.signal.pitch import FEWEST_PERIODS, Pitch, cents, estimate_f0

FEWEST_CLARITY = 0.4
"""Of 22 recordings of guitars and basses the least periodic one has 0.58, white noise 0.1."""
MOST_CENTS = 60.0
"""How far a note may sound from what its name says: strings drift, and stretched tunings do not reach this."""
AUDIBLE_DB = 50.0
"""Bands that begin further below the loudest one have no T60: what is there is not the string."""
SILENCE_PEAK = 1e-4


@dataclass(frozen=True)
class ImportedNote:
    """What was found in a file. `warnings` are lines to show the user."""

    source: str
    take: NoteTake
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StringBuild:
    """A finished build, and what was found in its files."""

    result: BuildResult
    notes: tuple[ImportedNote, ...]
    rejects: tuple[Reject, ...]


def build_string_corpus(
    inputs: Sequence[Path | str],
    output: Path | str,
    options: StringOptions | None = None,
    *,
    report: Report | None = None,
) -> StringBuild:
    """Build a corpus of kind `string` from the notes below the folders `inputs`.

    Raises: CorpusError when a folder is missing or holds no audio, or more than `options.max_reject` of its files hold
    no single clear note: with the reasons.
    """
    options = options or StringOptions()
    report = report or no_report
    folder = Path(output)
    sources = [Path(path) for path in inputs]
    check_inputs(sources)
    check_output(folder, "string")
    found = find_inputs(sources, [])
    _check_known(options, found)
    names = {item.file.source: read_name(PurePosixPath(item.file.stem).name) for item in found.items}
    layers = max((name.layer or 0 for name in names.values()), default=0)
    items, notes, rejects = [], [], []
    for number, item in enumerate(found.items):
        report("listening to notes", number, len(found.items))
        try:
            note = import_note(item.file, names[item.file.source], layers, options)
        except RejectedInput as error:
            rejects.append(Reject(item.file.source, str(error)))
            continue
        notes.append(note)
        items.append(InputItem(item.file, take=note.take))
    build = BuildOptions(
        "string", rate_hz=options.rate_hz, codec="wav32f", max_reject=options.max_reject, workers=1
    )
    result = build_found(Inputs(tuple(items), tuple(rejects)), folder, build, report)
    return StringBuild(result, tuple(notes), tuple(rejects))


def _check_known(options: StringOptions, found: Inputs) -> None:
    sources = {item.file.source for item in found.items}
    missing = sorted(set(options.known or {}) - sources)
    if missing:
        raise CorpusError(
            f"The list names {missing[0]}, which is not below --input. Give paths from that folder on, such as "
            f"{min(sources)}"
        )


def import_note(file: FoundFile, name: NoteName, layers: int, options: StringOptions) -> ImportedNote:
    """What there is to know about one file. `layers`: of velocity, in all files.

    Raises: RejectedInput with the reason where it holds no single clear note.
    """
    header = probe(file)
    wave, clipped = _read(file, header, options.rate_hz)
    rate_hz = options.rate_hz
    known = (options.known or {}).get(file.source, {})
    given_hz, source = _given(name, known, options)
    # The attack is noise to a pitch: it is looked for behind it, from a first guess of the period on.
    guess = given_hz or _heard(wave[find_attack(wave, rate_hz, 100.0).end :], rate_hz).f0_hz
    if not guess > 0:
        raise RejectedInput(_unclear(0.0))
    decay = wave[find_attack(wave, rate_hz, guess).end :]
    pitch, given_hz = _pitch(decay, rate_hz, given_hz, source, options)
    attack = find_attack(wave, rate_hz, pitch.f0_hz)
    decay = wave[attack.end :]
    length, end, noise = _end_of_decay(decay, rate_hz, pitch)
    decay = decay[:length]
    _check_single(decay, rate_hz, pitch, attack.end)
    start = attack.end if options.attack == "cut" else attack.onset
    _check_clipping(clipped, start, attack.end + length, options)
    levels = octave_levels(torch.from_numpy(decay[None]), rate_hz)
    noise_db = 10 * np.log10(noise + 1e-20)
    t60, _ = octave_t60(levels, torch.from_numpy(noise_db[None]))
    is_told = (audible_bands(levels, AUDIBLE_DB)[0] > 0) & t60.t60_seconds[0].isfinite()
    layer = None if name.layer is None else name.layer / layers
    take = NoteTake(
        group=name.group(str(PurePosixPath(file.stem).parent).strip(".")) if source == "name" else file.stem,
        f0_hz=round(pitch.f0_hz, 4),
        f0_from=source,
        given_hz=round(given_hz, 4),
        clarity=round(pitch.clarity, 4),
        velocity=known.get("velocity", layer if name.velocity is None else name.velocity),
        position=known.get("position"),
        onset=attack.onset,
        attack_end=attack.end,
        start=start,
        frames=attack.end + length - start,
        end=end,
        attack=options.attack,
        clipped_share=round(float(clipped.mean()), 6),
        t60_seconds=_by_band(t60.t60_seconds[0].tolist(), is_told.tolist()),
        noise_db=_by_band(noise_db.tolist(), [True] * len(noise_db)),
    )
    return ImportedNote(file.source, take, tuple(_warnings(take)))


def _by_band(values: list[float], is_known: list[bool]) -> dict[str, float]:
    columns = zip(OCTAVE_CENTRES_HZ, values, is_known, strict=True)
    return {f"{centre:g}": round(value, 4) for centre, value, known in columns if known}


def _read(file: FoundFile, header: AudioHeader, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """(wave, which samples are clipped), [T] at `rate_hz`; without digital silence at the end."""
    as_recorded = np.concatenate(list(read_mono(file.path, header, header.rate_hz, _no_tick)))
    clipped = is_clipped(as_recorded, pcm_bits(Path(file.path)))
    wave = as_recorded
    if header.rate_hz != rate_hz:
        wave = np.concatenate(list(read_mono(file.path, header, rate_hz, _no_tick)))
        place = np.minimum(np.arange(len(wave)) * header.rate_hz // rate_hz, len(clipped) - 1)
        clipped = clipped[place]
    peak = float(np.max(np.abs(wave), initial=0.0))
    if peak < SILENCE_PEAK:
        raise RejectedInput("silent: no sample above -80 dBFS")
    length = without_silence(wave)
    return wave[:length].astype(np.float64), clipped[:length]


def _given(name: NoteName, known: dict[str, float], options: StringOptions) -> tuple[float | None, str]:
    """(pitch that is said, who says it)."""
    if "f0_hz" in known:
        return known["f0_hz"], "given"
    if options.f0 == "estimate":
        return None, "estimate"
    if not isinstance(options.f0, str):
        return options.f0, "given"
    if name.f0_hz is None:
        raise RejectedInput(
            "its name says no note; name it such as e2_f.wav, or give --f0 estimate, --f0 HZ or --list CSV"
        )
    return name.f0_hz * 2.0 ** (0 if isinstance(options.octave, str) else options.octave), "name"


def _heard(decay: np.ndarray, rate_hz: int, near_hz: float | None = None) -> Pitch:
    return estimate_f0(torch.from_numpy(decay), rate_hz, near_hz)


def _pitch(
    decay: np.ndarray, rate_hz: int, given_hz: float | None, source: str, options: StringOptions
) -> tuple[Pitch, float]:
    """(what is heard, what was said, in the octave that is heard)."""
    free = _heard(decay, rate_hz)
    pitch = free if given_hz is None else _heard(decay, rate_hz, given_hz)
    if (
        given_hz is not None
        and source == "name"
        and options.octave == "auto"
        and free.clarity >= FEWEST_CLARITY
    ):
        octaves = round(math.log2(free.f0_hz / given_hz))
        if octaves and abs(cents(free.f0_hz, given_hz * 2.0**octaves)) <= MOST_CENTS:
            pitch, given_hz = free, given_hz * 2.0**octaves
    clarity = max(pitch.clarity, free.clarity if given_hz is None else 0.0)
    if not pitch.f0_hz > 0 or clarity < FEWEST_CLARITY:
        if free.clarity >= FEWEST_CLARITY and given_hz is not None:
            raise RejectedInput(_disagrees(given_hz, free.f0_hz, source))
        raise RejectedInput(_unclear(max(clarity, free.clarity)))
    given_hz = pitch.f0_hz if given_hz is None else given_hz
    if abs(cents(pitch.f0_hz, given_hz)) > MOST_CENTS:
        raise RejectedInput(_disagrees(given_hz, free.f0_hz, source))
    if pitch.f0_hz > rate_hz / 8:
        raise RejectedInput(
            f"its f0 of {pitch.f0_hz:.0f} Hz lies above an eighth of the rate, {rate_hz / 8:.0f} Hz, where a period is "
            "too few samples for the taps of a loop; leave it out, or build with a higher --rate"
        )
    return pitch, given_hz


def _unclear(clarity: float) -> str:
    return (
        f"no clear pitch: its periods are alike to {max(clarity, 0):.2f} of 1, needed {FEWEST_CLARITY}; give single "
        "plucked notes without noise, chords or effects"
    )


def _disagrees(given_hz: float, heard_hz: float, source: str) -> str:
    says = "its name says" if source == "name" else "it is said to be at"
    return (
        f"{says} {given_hz:.1f} Hz, but it sounds at {heard_hz:.1f} Hz, {cents(heard_hz, given_hz):+.0f} cents from "
        "there; rename it, or take what is heard with --f0 estimate"
    )


def _end_of_decay(decay: np.ndarray, rate_hz: int, pitch: Pitch) -> tuple[int, str, np.ndarray]:
    """(frames of the decay, what ends it, mean square of the noise in each octave band)."""
    fade = fade_samples(decay, rate_hz)
    length, end = len(decay) - fade, "fade" if fade else "file"
    if length < FEWEST_PERIODS * rate_hz / pitch.f0_hz:
        raise RejectedInput(_too_short(length, rate_hz, pitch.f0_hz))
    noise = noise_in_octaves(decay[:length], rate_hz, pitch.f0_hz, pitch.inharmonicity)
    met = reaches(decay[:length], rate_hz, pitch.f0_hz, float(noise.sum()))
    if met is not None:
        length, end = met, "noise"
    if length < max(FEWEST_PERIODS * rate_hz / pitch.f0_hz, 2 * window_samples(rate_hz)):
        raise RejectedInput(_too_short(length, rate_hz, pitch.f0_hz))
    return length, end, noise


def _too_short(length: int, rate_hz: int, f0_hz: float) -> str:
    periods, seconds = length * f0_hz / rate_hz, 2 * window_samples(rate_hz) / rate_hz
    return (
        f"it decays for {length / rate_hz:.2f} s, {periods:.0f} periods, before it ends or meets the noise; needed "
        f"{FEWEST_PERIODS} periods and {seconds:.2f} s. Let the note ring longer"
    )


def _check_single(decay: np.ndarray, rate_hz: int, pitch: Pitch, attack_end: int) -> None:
    """Raises RejectedInput where a second note follows: louder again, or at another pitch."""
    at = second_onset(decay, rate_hz, pitch.f0_hz)
    if at is not None:
        raise RejectedInput(
            f"two notes in a file: a second one begins at {(attack_end + at) / rate_hz:.2f} s; cut it into files of "
            "one note each"
        )
    late = _heard(decay[len(decay) // 2 :], rate_hz)
    if late.clarity < 0.9:
        return
    ratio = late.f0_hz / pitch.f0_hz
    # What is left of a dying note may be one of its partials.
    nearest = float(round(ratio)) if ratio > 1 else 1 / round(1 / ratio)
    if abs(cents(ratio, nearest)) > MOST_CENTS:
        raise RejectedInput(
            f"two notes in a file: it begins at {pitch.f0_hz:.1f} Hz and ends at {late.f0_hz:.1f} Hz; cut it into "
            "files of one note each"
        )


def _check_clipping(clipped: np.ndarray, start: int, end: int, options: StringOptions) -> None:
    """Raises RejectedInput where what is kept is clipped: a string has no ceiling, and the model would learn one."""
    share = float(clipped[start:end].mean())
    if share:
        what = "cut the attack off with --attack cut, or record" if options.attack == "keep" else "record"
        raise RejectedInput(
            f"{100 * share:.2g} % of what is kept of it are clipped at full scale; {what} at a lower level"
        )


def _warnings(take: NoteTake) -> list[str]:
    if not take.clipped_share:
        return []
    return [
        f"its attack is clipped at full scale ({100 * take.clipped_share:.2g} % of the file) and cut off; what is kept "
        "is whole"
    ]


def _no_tick(frames: int) -> None:
    """Nobody waits for a note."""
