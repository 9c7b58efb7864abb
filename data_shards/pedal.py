"""Importing dry/wet pairs of a device: checks, alignment and the split in time; the builder then does the rest.

A pair is wrong as a whole or right as a whole, so everything that is wrong ends the build with a `CorpusError`.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_shards.align import Alignment, measure_alignment
from data_shards.build import BuildResult, build_found, check_output, no_report
from data_shards.clipping import clipped_share, pcm_bits
from data_shards.errors import CorpusError
from data_shards.ingest import AudioHeader, RejectedInput, probe, read_channel
from data_shards.options import BuildOptions
from data_shards.pieces import MIN_SECONDS, SILENCE_PEAK
from data_shards.plan import InputItem, Inputs, Report
from data_shards.scan import FoundFile, require_local
from data_shards.takes import DeviceTake, without_lag

VALID_FRACTION = 0.15
DRIFT_WARNING_SAMPLES = 5

_KNOB = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class DevicePair:
    """A dry file, what the device made of it, and where its knobs stood."""

    dry: Path
    wet: Path
    knobs: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.dry.name} -> {self.wet.name}"


@dataclass(frozen=True)
class PedalOptions:
    """How pairs are imported.

    Args:
        align: `auto` measures the lag and takes it out; a number of samples is taken out as given (positive: wet is
            late); `off` takes the files as they are.
        fix_polarity: turn an inverted wet file over. By default polarity stays as recorded.
        valid_seconds: how much of the end of each pair validates; None for `valid_fraction` of it.
        valid_fraction: as a share, in (0, 1).
        test_seconds: how much behind that, at the very end, neither trains nor validates; None for `test_fraction`.
        test_fraction: as a share, in [0, 1).
        channel: the channel to take from files with several, 0 the first; None refuses them.
    """

    align: str | int = "auto"
    fix_polarity: bool = False
    valid_seconds: float | None = None
    valid_fraction: float = VALID_FRACTION
    test_seconds: float | None = None
    test_fraction: float = 0.0
    channel: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.align, str) and self.align not in ("auto", "off"):
            raise CorpusError(f"--align is {self.align!r}; needed auto, off or a number of samples")
        if self.valid_seconds is not None and not 0 < self.valid_seconds < math.inf:
            raise CorpusError(f"--valid-seconds is {self.valid_seconds}; needed a number above 0")
        if not 0 < self.valid_fraction < 1:
            raise CorpusError(f"--valid-fraction is {self.valid_fraction}; needed a number between 0 and 1")
        if self.test_seconds is not None and not 0 < self.test_seconds < math.inf:
            raise CorpusError(f"--test-seconds is {self.test_seconds}; needed a number above 0")
        if not 0 <= self.test_fraction < 1:
            raise CorpusError(f"--test-fraction is {self.test_fraction}; needed a number from 0 to below 1")
        if self.channel is not None and self.channel < 0:
            raise CorpusError(
                f"--channel is {self.channel}; needed 0 for the first channel, 1 for the second"
            )

    def valid_frames(self, frames: int, rate_hz: int) -> int:
        """Frames that validate."""
        seconds = self.valid_seconds
        return round(self.valid_fraction * frames if seconds is None else seconds * rate_hz)

    def test_frames(self, frames: int, rate_hz: int) -> int:
        """Frames of the end that are kept for a test."""
        seconds = self.test_seconds
        return round(self.test_fraction * frames if seconds is None else seconds * rate_hz)


@dataclass(frozen=True)
class ImportedPair:
    """What was found out about a pair. `warnings` are lines to show the user."""

    pair: DevicePair
    take: DeviceTake
    frames: int
    rate_hz: int
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line."""
        take = self.take
        lag = f"{take.lag_samples} samples ({1000 * take.lag_samples / self.rate_hz:.2f} ms)"
        how = {"auto": f"lag {lag} taken out", "given": f"lag {lag} taken out as given", "off": "not aligned"}
        polarity = {0: "polarity unknown", 1: "upright", -1: "inverted, kept as recorded"}[take.polarity]
        if take.polarity < 0 and take.fixed_polarity:
            polarity = "inverted, turned over"
        knobs = "".join(f", {name} {value:g}" for name, value in take.knobs.items())
        train, valid, *test = (frames / self.rate_hz for _, _, frames in take.stretches(self.frames))
        split = f"{train:.2f} s train, the {'next' if test else 'last'} {valid:.2f} s validate"
        if test:
            split += f", the last {test[0]:.2f} s are kept for a test"
        return (
            f"{self.pair.name}{knobs}: {how[take.align]}, {polarity}, confidence {take.confidence:.2f}; "
            f"{split}"
        )


@dataclass(frozen=True)
class PedalBuild:
    """A finished build and what was found out about its pairs."""

    result: BuildResult
    pairs: tuple[ImportedPair, ...]


def build_pedal_corpus(
    pairs: Sequence[DevicePair],
    output: Path | str,
    options: PedalOptions | None = None,
    *,
    report: Report | None = None,
) -> PedalBuild:
    """Build a corpus of kind `pedal` at the rate of its pairs, which must be the same for all of them.

    Raises: CorpusError, naming the pair and what to do, when files cannot be used, do not fit together, or their lag
    cannot be believed.
    """
    options = options or PedalOptions()
    report = report or no_report
    folder = Path(output)
    check_output(folder, "pedal")
    _check_pairs(pairs)
    headers = [_headers(pair, options) for pair in pairs]
    rate_hz = _common_rate(pairs, headers)
    items, imported = [], []
    for number, (pair, (dry, wet)) in enumerate(zip(pairs, headers, strict=True)):
        report("aligning", number, len(pairs))
        found = _import(pair, dry, wet, options)
        imported.append(found)
        items.append(InputItem(_found_file(pair.dry), _found_file(pair.wet), found.take))
    build = BuildOptions("pedal", rate_hz=rate_hz, codec="wav32f", max_reject=0.0, workers=1)
    return PedalBuild(build_found(Inputs(tuple(items), ()), folder, build, report), tuple(imported))


def read_pairs(path: Path) -> list[DevicePair]:
    """The pairs that a CSV file lists: columns `dry` and `wet` (paths from the CSV's folder on), one more per knob.

    Raises: CorpusError naming the line.
    """
    if not path.is_file():
        raise CorpusError(
            f"The list of pairs {path} does not exist. Give a CSV with the columns dry, wet and knobs"
        )
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, restkey="", skipinitialspace=True)
        try:
            columns = [name.strip() for name in reader.fieldnames or []]
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise CorpusError(f"{path} cannot be read as CSV: {error}. Save it as CSV in UTF-8") from error
    if not {"dry", "wet"} <= set(columns) or len(set(columns)) != len(columns):
        raise CorpusError(f"{path} has the columns {columns}; needed dry, wet, and each knob once")
    pairs = []
    for line, row in enumerate(rows, start=2):
        cells = {(name or "").strip(): value for name, value in row.items()}
        if "" in cells or any(cells[name] is None for name in columns):
            raise CorpusError(f"{path} row {line} has not {len(columns)} cells. Give one for each column")
        empty = [name for name in columns if not cells[name].strip()]
        if empty:
            raise CorpusError(f"{path} row {line} has no value for {empty[0]}. Every pair needs every knob")
        knobs = {
            name: knob_value(name, cells[name], f"{path} row {line}")
            for name in columns
            if name not in ("dry", "wet")
        }
        pairs.append(
            DevicePair(path.parent / cells["dry"].strip(), path.parent / cells["wet"].strip(), knobs)
        )
    return pairs


def knob_value(name: str, text: str, place: str) -> float:
    """The number in `text`. Raises CorpusError, starting with `place`, for a bad name or value."""
    if not _KNOB.fullmatch(name):
        raise CorpusError(
            f"{place}: {name!r} is no name for a knob; needed letters, digits, _ and -, such as drive"
        )
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorpusError(f"{place}: knob {name} is {text!r}; needed a number, such as 0.5")
    return value


def _check_pairs(pairs: Sequence[DevicePair]) -> None:
    if not pairs:
        raise CorpusError("No pair given. Give one with --dry IN.wav --wet OUT.wav, or a list with --pairs")
    for pair in pairs:
        for path, flag in ((pair.dry, "--dry"), (pair.wet, "--wet")):
            require_local(path, f"The {flag} file")
            if not path.is_file():
                what = "is a folder; give an audio file" if path.is_dir() else "does not exist"
                raise CorpusError(f"The {flag} file {path} {what}")
        if pair.dry.resolve() == pair.wet.resolve():
            raise CorpusError(f"{pair.dry} is both --dry and --wet. Give the device's recording with --wet")
    names = sorted({name for pair in pairs for name in pair.knobs})
    for pair in pairs:
        missing = [name for name in names if name not in pair.knobs]
        if missing:
            raise CorpusError(
                f"{pair.name} has no value for the knob {missing[0]}, which another pair has. "
                f"Give it with --knob {missing[0]}=VALUE behind its --dry and --wet"
            )
    wet = [pair.wet.resolve() for pair in pairs]
    for path in wet:
        if wet.count(path) > 1:
            raise CorpusError(f"{path} is the --wet file of two pairs. Give each recording once")


def _headers(pair: DevicePair, options: PedalOptions) -> tuple[AudioHeader, AudioHeader]:
    dry, wet = (_probe(path) for path in (pair.dry, pair.wet))
    for path, header in ((pair.dry, dry), (pair.wet, wet)):
        if header.channels > 1 and options.channel is None:
            raise CorpusError(
                f"{path} has {header.channels} channels; a device is learned from one. "
                "Choose one with --channel 0 (the first, or left) or --channel 1"
            )
        if header.channels > 1 and options.channel is not None and options.channel >= header.channels:
            raise CorpusError(
                f"{path} has {header.channels} channels, so --channel {options.channel} is not there; "
                f"the last is --channel {header.channels - 1}"
            )
    if dry.rate_hz != wet.rate_hz:
        raise CorpusError(
            f"{pair.name}: dry is at {dry.rate_hz} Hz and wet at {wet.rate_hz} Hz. "
            "Export both at the rate they were recorded at; resampling one of them would become part of the device"
        )
    if dry.frames != wet.frames:
        raise CorpusError(
            f"{pair.name}: dry has {dry.frames} frames and wet {wet.frames} "
            f"({abs(dry.frames - wet.frames) / dry.rate_hz:.3f} s apart). Cut both to the same start and length"
        )
    return dry, wet


def _probe(path: Path) -> AudioHeader:
    try:
        return probe(_found_file(path))
    except RejectedInput as error:
        raise CorpusError(f"{path}: {error}. Export it again as wav or flac") from error


def _common_rate(pairs: Sequence[DevicePair], headers: Sequence[tuple[AudioHeader, AudioHeader]]) -> int:
    rates = {header.rate_hz: pair for pair, (header, _) in zip(pairs, headers, strict=True)}
    if len(rates) > 1:
        shown = ", ".join(f"{pair.name} at {rate} Hz" for rate, pair in sorted(rates.items()))
        raise CorpusError(f"The pairs have different rates: {shown}. Build a corpus for each rate")
    return next(iter(rates))


def _import(
    pair: DevicePair, dry_header: AudioHeader, wet_header: AudioHeader, options: PedalOptions
) -> ImportedPair:
    rate_hz = dry_header.rate_hz
    channel = options.channel or 0
    try:
        dry = read_channel(os.fspath(pair.dry), dry_header, channel)
        wet = read_channel(os.fspath(pair.wet), wet_header, channel)
    except RejectedInput as error:
        raise CorpusError(f"{pair.name}: {error}. Export both files again") from error
    if len(dry) != len(wet):
        raise CorpusError(
            f"{pair.name}: {len(dry)} frames of dry and {len(wet)} of wet could be decoded, against their headers. "
            "Export both again as wav or flac"
        )
    for name, wave in (("dry", dry), ("wet", wet)):
        _check_sound(wave, f"{pair.name}: the {name} file")
    measured = measure_alignment(dry, wet, rate_hz)
    lag = _chosen_lag(pair, measured, options, len(dry))
    frames = len(dry) - abs(lag)
    clipped = clipped_share(wet, pcm_bits(pair.wet))
    take = DeviceTake(
        wet=pair.wet.name,
        knobs=dict(sorted(pair.knobs.items())),
        align=options.align if isinstance(options.align, str) else "given",
        lag_samples=lag,
        polarity=0 if measured.problem else measured.polarity,
        fixed_polarity=options.fix_polarity,
        confidence=0.0 if measured.problem else measured.confidence,
        clipped_share=clipped,
        channel=channel,
        valid_frames=options.valid_frames(frames, rate_hz),
        test_frames=options.test_frames(frames, rate_hz),
    )
    _check_stretches(pair, without_lag(dry, wet, lag)[1], take, rate_hz)
    return ImportedPair(pair, take, frames, rate_hz, tuple(_warnings(pair, take, measured)))


def _chosen_lag(pair: DevicePair, measured: Alignment, options: PedalOptions, frames: int) -> int:
    if measured.problem and options.align == "auto":
        raise CorpusError(
            f"{pair.name}: {measured.problem}. Check that the files belong together and start together; "
            "if you know the lag, give it with --align N, or take the files as they are with --align off"
        )
    if measured.problem and options.fix_polarity:
        raise CorpusError(
            f"{pair.name}: --fix-polarity needs to know the polarity, but {measured.problem}. "
            "Turn the wet file over yourself, and leave --fix-polarity out"
        )
    if options.align == "auto":
        return measured.lag_samples
    lag = 0 if isinstance(options.align, str) else options.align
    if abs(lag) >= frames:
        raise CorpusError(f"--align is {lag} samples, but {pair.name} has {frames}. Give the lag in samples")
    return lag


def _warnings(pair: DevicePair, take: DeviceTake, measured: Alignment) -> list[str]:
    lines = []
    if take.clipped_share > 0:
        lines.append(
            f"{pair.name}: {100 * take.clipped_share:.2g} % of the wet samples are clipped at full scale; the model "
            "will learn that too. Record at a lower level"
        )
    if measured.problem:
        lines.append(f"{pair.name}: {measured.problem}")
        return lines
    if abs(measured.drift_samples) >= DRIFT_WARNING_SAMPLES:
        lines.append(
            f"{pair.name}: the lag grows by {measured.drift_samples} samples from start to end, as when dry and wet "
            "ran on two clocks. Record both through one interface"
        )
    if take.lag_samples != measured.lag_samples:
        lines.append(
            f"{pair.name}: the lag measured is {measured.lag_samples} samples, taken out are {take.lag_samples}"
        )
    return lines


def _check_sound(wave: np.ndarray, what: str) -> None:
    peak = float(np.max(np.abs(wave), initial=0.0))
    if peak < SILENCE_PEAK:
        level = f"its peak is {20 * math.log10(peak):.0f} dBFS" if peak else "all zeros"
        raise CorpusError(f"{what} is silent: {level}, needed -80 dBFS. Export it again")


def _check_stretches(pair: DevicePair, wet: np.ndarray, take: DeviceTake, rate_hz: int) -> None:
    frames = len(wet)
    flags = "--valid-seconds and --test-seconds" if take.test_frames else "--valid-seconds"
    for side, _, length in take.stretches(frames):
        if length < MIN_SECONDS * rate_hz:
            raise CorpusError(
                f"{pair.name}: {max(length, 0) / rate_hz:.3f} s of {frames / rate_hz:.3f} s are left to "
                f"{side}, needed {MIN_SECONDS} s. Set {flags}, or record more"
            )
    for side, start, length in take.stretches(frames):
        what = f"{pair.name}: the part of the wet file to {side} (see {flags})"
        _check_sound(wet[start : start + length], what)


def _found_file(path: Path) -> FoundFile:
    status = path.stat()
    return FoundFile(os.fspath(path), path.name, path.stem, status.st_size, status.st_mtime_ns)
