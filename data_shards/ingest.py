"""Decoding audio files in blocks: header check, mean mixdown, resampling without seams, quantising.

Nothing here holds a whole recording in memory, save for impulse responses (see `data_shards.pieces`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_shards.format import FULL_SCALE
from data_shards.scan import FoundFile
from data_shards.sidecar import MAX_FLOAT_LEVEL

BLOCK_FRAMES = 1 << 16
MIN_SOURCE_HZ, MAX_SOURCE_HZ = 1_000, 768_000
# More than this is libsndfile's way of saying that the header does not know (346 days at 44.1 kHz).
MAX_FRAMES = 1 << 40
# FLAC packs 65,535 frames of silence into 11 bytes, Vorbis 2,048 into one; what promises more is damaged.
MAX_FRAMES_PER_BYTE = 8192
# An MP3's length comes from its frame count; its encoder may pad by two MPEG frames.
MP3_SLACK_FRAMES = 2 * 1152
# Sizes that a program writing to a pipe puts where it cannot know the length.
OPEN_ENDED_BYTES = 0x7FFF_0000

_CUT = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


class RejectedInput(ValueError):
    """An input file cannot go into the corpus; the text is the reason, as `rejects.jsonl` shows it."""


@dataclass(frozen=True)
class AudioHeader:
    """Length and shape of an audio file, from its header."""

    frames: int
    rate_hz: int
    channels: int

    def frames_at(self, rate_hz: int) -> int:
        """Frames after resampling to `rate_hz`, as soxr rounds them."""
        return (2 * self.frames * rate_hz + self.rate_hz) // (2 * self.rate_hz)


def probe(file: FoundFile) -> AudioHeader:
    """The header of `file`. Raises RejectedInput when there is none, or it promises what is not there."""
    import soundfile

    if file.size < 0:
        raise RejectedInput("broken link, or the file went away")
    if file.size == 0:
        raise RejectedInput("empty file (0 bytes)")
    try:
        with soundfile.SoundFile(os.fsencode(file.path)) as opened:
            header = AudioHeader(opened.frames, opened.samplerate, opened.channels)
            info = opened.extra_info
    except (soundfile.LibsndfileError, OSError) as error:
        raise RejectedInput(f"cannot be decoded: {_reason(error)}") from error
    if header.frames > MAX_FRAMES:
        raise RejectedInput("its header does not say how long it is; encode it again")
    if header.frames > MAX_FRAMES_PER_BYTE * file.size:
        raise RejectedInput(
            f"its header promises {header.frames} frames, which {file.size} bytes cannot hold"
        )
    cut = _CUT.search(info)
    if cut and int(cut[2]) < int(cut[1]) < OPEN_ENDED_BYTES:
        raise RejectedInput(f"cut off: its header promises {cut[1]} bytes of audio, {cut[2]} are there")
    if header.frames == 0:
        raise RejectedInput("zero length")
    if not MIN_SOURCE_HZ <= header.rate_hz <= MAX_SOURCE_HZ:
        raise RejectedInput(f"implausible sample rate of {header.rate_hz} Hz")
    return header


def read_blocks(path: str, header: AudioHeader) -> Iterator[np.ndarray]:
    """Decoded blocks, float32 [frames, channels]. Raises RejectedInput on NaN, inf, samples above
    MAX_FLOAT_LEVEL, a broken or cut file."""
    import soundfile

    seen = 0
    try:
        with soundfile.SoundFile(os.fsencode(path)) as opened:
            slack = MP3_SLACK_FRAMES if opened.format == "MP3" or "MPEG" in opened.subtype else 0
            while len(block := opened.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                is_sound = np.abs(block) <= MAX_FLOAT_LEVEL  # NaN is not.
                if not is_sound.all():
                    where = seen + int(np.argmin(is_sound.all(axis=1)))
                    what = "NaN or infinite" if not np.isfinite(block).all() else "absurdly large"
                    raise RejectedInput(f"{what} sample at frame {where}")
                seen += len(block)
                yield block
    except (soundfile.LibsndfileError, OSError) as error:
        raise RejectedInput(f"cannot be decoded after frame {seen}: {_reason(error)}") from error
    if seen < header.frames - slack:
        raise RejectedInput(f"cut off: its header promises {header.frames} frames, {seen} could be decoded")


def read_mono(
    path: str, header: AudioHeader, rate_hz: int, tick: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Blocks of the mean over channels at `rate_hz`, float32 [frames].

    Resampling is soxr HQ over the whole stream: joined, the blocks equal the file resampled at once.
    `tick` is called with the frames of each block.
    """
    mixed = (block.mean(axis=1, dtype=np.float32) for block in read_blocks(path, header))
    for block in mixed if header.rate_hz == rate_hz else _resampled(mixed, header.rate_hz, rate_hz):
        tick(len(block))
        yield block


def read_channel(path: str, header: AudioHeader, channel: int) -> np.ndarray:
    """Channel `channel` (0 is the first; a mono file has only that one) as it is in the file, float32 [frames].

    PCM of 8, 16 and 24 bits and 32-bit float come out exactly; 32-bit PCM and 64-bit float are rounded to float32.
    """
    at = channel if header.channels > 1 else 0
    return np.concatenate([block[:, at] for block in read_blocks(path, header)])


def _resampled(blocks: Iterator[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    import soxr

    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def segment_lengths(total: int, longest: int) -> list[int]:
    """Lengths of the fewest nearly equal parts of `total` frames that are no longer than `longest`.

    Equal parts leave no stump at the end that would be too short to train on.
    """
    count = max(1, -(-total // longest))
    edges = [part * total // count for part in range(count + 1)]
    return [after - before for before, after in pairwise(edges)]


def cut(blocks: Iterator[np.ndarray], lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """Join blocks and cut them into `lengths`; the last part takes all that is left."""
    held: list[np.ndarray] = [np.zeros(0, np.float32)]
    for number, length in enumerate(lengths):
        is_last = number == len(lengths) - 1
        have = sum(map(len, held))
        while is_last or have < length:
            block = next(blocks, None)
            if block is None:
                break
            held.append(block)
            have += len(block)
        joined = np.concatenate(held)
        yield joined if is_last else joined[:length]
        held = [joined[length:]]


def cut_with_margin(
    blocks: Iterator[np.ndarray], lengths: Sequence[int], margin: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(first frame, part) of the parts of `lengths`, each with `margin` frames before and after it.

    What lies before the start and behind the end is silence. All parts have the length that was planned.
    """
    held, held_from, end = np.zeros(margin, np.float32), -margin, sum(lengths)
    start = 0
    for length in lengths:
        wanted = start + length + margin
        parts, have = [held], held_from + len(held)
        while have < wanted:
            block = next(blocks, None)
            if block is None:
                block = np.zeros(wanted - have, np.float32)
            # A header may promise a frame less than there is.
            block = block[: max(end - have, 0)] if have < end else np.zeros(wanted - have, np.float32)
            parts.append(block)
            have += len(block)
        held = np.concatenate(parts)
        yield start, held[start - margin - held_from : wanted - held_from]
        start += length
        drop = start - margin - held_from
        held, held_from = held[drop:], held_from + drop


def quantise(wave: np.ndarray) -> tuple[np.ndarray, int]:
    """(int16, number of samples beyond full scale). Rounds half to even; int16 / 32768 comes back exactly."""
    scaled = np.rint(wave * np.float32(FULL_SCALE))
    clipped = int(np.count_nonzero(np.abs(scaled) > FULL_SCALE))
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16), clipped


def _reason(error: BaseException) -> str:
    # libsndfile's text starts with the path, which the reject names already.
    text = str(error)
    return text.split("': ", 1)[-1] if text.startswith("Error opening") else text
