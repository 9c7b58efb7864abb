"""What each kind makes of its input files: the pieces that become samples of a shard.

fg and bg: mono segments. pair: input and target cut alike. rir: each channel from its direct path on. pedal: dry
and wet, the latency taken out, in two stretches: training, then validation. string: one note.
pitch: segments, each shifted and shifted back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_shards.format import FULL_SCALE
from data_shards.ingest import (
    AudioHeader,
    RejectedInput,
    cut,
    cut_with_margin,
    quantise,
    read_blocks,
    read_channel,
    read_mono,
    segment_lengths,
)
from data_shards.notes import NoteTake
from data_shards.options import BuildOptions
from data_shards.plan import PlannedFile
from data_shards.shift_pairs import PairFailed, drawn_shift, margin_frames, shifted_pair
from data_shards.shifters import require_engine
from data_shards.shifts import ShiftTake
from data_shards.takes import DeviceTake

SILENCE_PEAK = 1e-4
MIN_SECONDS = 0.05
RIR_SECONDS = 1.0
RIR_FADE_SECONDS = 0.01
MAX_RIR_FILE_SECONDS = 60.0

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Piece:
    """One sample to be: int16 (pedal, string: float32) [frames] per member. `name` tells it from its siblings.

    `side` takes the place of the file's group where parts of one recording go to different sides of the split.
    `take` is what was found out about this piece alone.
    """

    name: str
    start: int
    waves: tuple[np.ndarray, ...]
    clipped: int
    side: str | None = None
    take: ShiftTake | None = None


@dataclass(frozen=True)
class Dropped:
    """A part of a file that gives no sample."""

    name: str
    reason: str


def pieces_of(planned: PlannedFile, options: BuildOptions, tick: Tick) -> Iterator[Piece | Dropped]:
    """The pieces of one input. Raises RejectedInput, at any moment, when the whole file is to be rejected."""
    if options.kind == "rir":
        return _rir_channels(planned, options, tick)
    if isinstance(planned.take, NoteTake):
        return _note(planned, planned.take, options, tick)
    if isinstance(planned.take, DeviceTake):
        return _pedal_stretches(planned, planned.take, options, tick)
    if options.kind == "pitch":
        return _shifted(planned, options, tick)
    if planned.target is not None:
        return _pair_segments(planned, options, tick)
    return _segments(planned, options, tick)


def _segments(planned: PlannedFile, options: BuildOptions, tick: Tick) -> Iterator[Piece | Dropped]:
    lengths = _planned_lengths(planned.header.frames_at(options.rate_hz), options)
    blocks = read_mono(planned.file.path, planned.header, options.rate_hz, tick)
    start, kept = 0, 0
    for wave in cut(blocks, lengths):
        name = _span(start, len(wave), options.rate_hz)
        if _peak(wave) < SILENCE_PEAK:
            yield Dropped(name, _silence(wave))
        else:
            kept += 1
            samples, clipped = quantise(wave)
            yield Piece(name, start, (samples,), clipped)
        start += len(wave)
    if not kept:
        raise RejectedInput("silent: no sample above -80 dBFS")


def _pair_segments(planned: PlannedFile, options: BuildOptions, tick: Tick) -> Iterator[Piece | Dropped]:
    assert planned.target is not None and planned.target_header is not None
    totals = [header.frames_at(options.rate_hz) for header in (planned.header, planned.target_header)]
    if abs(totals[0] - totals[1]) > 1:
        raise RejectedInput(
            f"input has {totals[0]} frames and target {planned.target.source} has {totals[1]} "
            f"at {options.rate_hz} Hz; a pair must be equally long"
        )
    lengths = _planned_lengths(min(totals), options)
    sides = zip(
        cut(read_mono(planned.file.path, planned.header, options.rate_hz, tick), lengths),
        cut(read_mono(planned.target.path, planned.target_header, options.rate_hz, tick), lengths),
        strict=True,
    )
    start, kept, target_peak = 0, 0, 0.0
    for heard, wanted in sides:
        # The last parts may differ by the frame that rounding gave one of them.
        frames = min(len(heard), len(wanted))
        name = _span(start, frames, options.rate_hz)
        target_peak = max(target_peak, _peak(wanted))
        if _peak(heard[:frames]) < SILENCE_PEAK:
            yield Dropped(name, _silence(heard))
        else:
            kept += 1
            quantised = [quantise(wave[:frames]) for wave in (heard, wanted)]
            waves = (quantised[0][0], quantised[1][0])
            yield Piece(name, start, waves, quantised[0][1] + quantised[1][1])
        start += frames
    if not kept:
        raise RejectedInput("input is silent: no sample above -80 dBFS")
    if target_peak < SILENCE_PEAK:
        raise RejectedInput(f"target {planned.target.source} is silent: no sample above -80 dBFS")


def _pedal_stretches(
    planned: PlannedFile, take: DeviceTake, options: BuildOptions, tick: Tick
) -> Iterator[Piece]:
    assert planned.target is not None and planned.target_header is not None
    sides = []
    for file, header in ((planned.file, planned.header), (planned.target, planned.target_header)):
        sides.append(read_channel(file.path, header, take.channel))
        tick(len(sides[-1]))
    dry, wet = take.apply(*sides)
    for side, start, frames in take.stretches(len(dry)):
        waves = (dry[start : start + frames], wet[start : start + frames])
        yield Piece(_span(start, frames, options.rate_hz), start, waves, clipped=0, side=side)


def _note(planned: PlannedFile, take: NoteTake, options: BuildOptions, tick: Tick) -> Iterator[Piece]:
    wave = np.concatenate(list(read_mono(planned.file.path, planned.header, options.rate_hz, tick)))
    kept = wave[take.start : take.start + take.frames]
    yield Piece(_span(take.start, take.frames, options.rate_hz), take.start, (kept,), clipped=0)


def _shifted(planned: PlannedFile, options: BuildOptions, tick: Tick) -> Iterator[Piece | Dropped]:
    rate_hz, shift = options.rate_hz, options.shift
    total = planned.header.frames_at(rate_hz)
    lengths = _planned_lengths(total, options)
    window, name = max((require_engine(name).window_seconds, name) for name in shift.engines)
    if total < window * rate_hz:
        raise RejectedInput(
            f"too short: {total / rate_hz:.3f} s, shorter than the window of {name}, {window:g} s"
        )
    margin = margin_frames(rate_hz)
    blocks = read_mono(planned.file.path, planned.header, rate_hz, tick)
    kept, first_problem = 0, ""
    for start, wave in cut_with_margin(blocks, lengths, margin):
        span = _span(start, len(wave) - 2 * margin, rate_hz)
        if _peak(wave[margin:-margin]) < SILENCE_PEAK:
            yield Dropped(span, _silence(wave[margin:-margin]))
            continue
        for copy in range(shift.copies):
            drawn = drawn_shift(shift, planned.file.source, start, copy)
            tick(0)
            try:
                pair = shifted_pair(wave, drawn, rate_hz)
            except PairFailed as error:
                first_problem = first_problem or str(error)
                yield Dropped(f"{span}, {drawn.engine} {drawn.semitones:+d}", str(error))
                continue
            kept += 1
            sides = [quantise(side) for side in (pair.input, pair.target)]
            yield Piece(span, start, (sides[0][0], sides[1][0]), sides[0][1] + sides[1][1], take=pair.take)
    if not kept:
        raise RejectedInput(f"no pair of it could be made: {first_problem or 'it is silent'}")


def _rir_channels(planned: PlannedFile, options: BuildOptions, tick: Tick) -> Iterator[Piece | Dropped]:
    header = planned.header
    if header.frames > MAX_RIR_FILE_SECONDS * header.rate_hz:
        raise RejectedInput(
            f"{header.frames / header.rate_hz:.0f} s long: a recording, not an impulse response"
        )
    channels = np.concatenate(list(read_blocks(planned.file.path, header))).T
    kept = 0
    for number, channel in enumerate(channels):
        tick(header.frames_at(options.rate_hz) if number == 0 else 0)
        response = _at_rate(channel, header, options.rate_hz)
        name = f"channel {number}"
        if len(response) == 0 or _peak(response) < SILENCE_PEAK:
            yield Dropped(name, _silence(response))
        else:
            kept += 1
            start, samples = direct_path_first(response, options.rate_hz)
            yield Piece(name, start, (samples,), 0)
    if not kept:
        raise RejectedInput("silent: no sample above -80 dBFS")


def direct_path_first(response: np.ndarray, rate_hz: int) -> tuple[int, np.ndarray]:
    """(place of the direct path, int16 response that starts there, at most one second of it).

    The direct path is argmax |h|. It becomes 32767 at sample 0: the response is scaled, and turned over if
    that sample is negative. The last 10 ms (or half of a shorter one) fade out with a raised cosine.
    """
    start = int(np.argmax(np.abs(response)))
    kept = response[start : start + round(RIR_SECONDS * rate_hz)].astype(np.float64)
    fade = min(round(RIR_FADE_SECONDS * rate_hz), len(kept) // 2)
    if fade:
        kept[-fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / fade)
    return start, np.rint(kept / kept[0] * (FULL_SCALE - 1)).astype(np.int16)


def _at_rate(channel: np.ndarray, header: AudioHeader, rate_hz: int) -> np.ndarray:
    import soxr

    if header.rate_hz == rate_hz:
        return channel
    return soxr.resample(np.ascontiguousarray(channel), header.rate_hz, rate_hz, quality="HQ")


def _planned_lengths(total: int, options: BuildOptions) -> list[int]:
    if total < MIN_SECONDS * options.rate_hz:
        raise RejectedInput(f"too short: {total / options.rate_hz:.3f} s, needed {MIN_SECONDS} s")
    return segment_lengths(total, options.segment_frames)


def _peak(wave: np.ndarray) -> float:
    return float(np.max(np.abs(wave), initial=0.0))


def _silence(wave: np.ndarray) -> str:
    peak = _peak(wave)
    level = f"peak {20 * np.log10(peak):.0f} dBFS" if peak else "all zeros"
    return f"silent: {level}, needed -80 dBFS"


def _span(start: int, frames: int, rate_hz: int) -> str:
    return f"{start / rate_hz:.2f}-{(start + frames) / rate_hz:.2f} s"
