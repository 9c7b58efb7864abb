"""Bytes of a shard: a plain USTAR tar whose members are `KEY.EXTENSION`, with WAV or FLAC inside.

Everything that could differ between two builds (times, owners, modes) is fixed, so equal samples give equal
bytes. docs/shards.md describes the format for other programs.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO

KINDS = ("fg", "bg", "rir", "pair", "pedal", "string", "pitch")
# wav: PCM16. wav32f: 32-bit float WAV, for FLOAT_KINDS alone. flac: 16 bits.
CODECS = ("wav", "flac", "wav32f")
# Kinds whose samples are an input and a target.
PAIRED_KINDS = ("pair", "pedal", "pitch")
# Kinds whose quiet ends count.
FLOAT_KINDS = ("pedal", "string")
BLOCK_BYTES = 512
RECORD_BYTES = 10_240
WAV_HEADER_BYTES = 44
# 2000-01-01: tar programs warn about 1970.
MEMBER_MTIME = 946_684_800
MEMBER_MODE = 0o644
FULL_SCALE = 32_768
MAX_MEMBER_BYTES = 2**31 - 1
MAX_SEGMENT_SECONDS = 600.0

_WAV = struct.Struct("<4sI4s4sIHHIIHH4sI")
_SHARD_NAME = re.compile(rf"({'|'.join(KINDS)})-(\d{{6,9}})\.tar")
_EXTENSIONS = {"wav": "wav", "flac": "flac", "wav32f": "wav"}
# WAV format tag (1: PCM, 3: IEEE float) and bytes of a frame.
_WAV_LAYOUTS = {"wav": (1, 2), "wav32f": (3, 4)}


def key_text(key: int) -> str:
    """Name of sample number `key`: eight digits or more, never a dot."""
    return f"{key:08d}"


def shard_name(kind: str, index: int) -> str:
    """File name of shard number `index`."""
    return f"{kind}-{index:06d}.tar"


def is_shard_name(name: str) -> bool:
    """Whether `name` is one that `shard_name` makes: no folder, no `..`."""
    return _SHARD_NAME.fullmatch(name) is not None


def member_of(codec: str, side: str | None = None) -> str:
    """Extension of the member for `side` (`input` or `target`); None where a sample has one member only."""
    extension = _EXTENSIONS[codec]
    return extension if side is None else f"{side}.{extension}"


def members_of(kind: str, codec: str) -> tuple[str, ...]:
    """Extensions of the members of each sample, in the order in which they lie in the tar."""
    sides = ("input", "target") if kind in PAIRED_KINDS else (None,)
    return tuple(member_of(codec, side) for side in sides)


def frame_bytes(codec: str) -> int | None:
    """Bytes of one frame behind the WAV header; None for a codec that is no WAV."""
    return _WAV_LAYOUTS[codec][1] if codec in _WAV_LAYOUTS else None


def member_name(key: int, member: str) -> str:
    """Name in the tar of member `member` (such as `wav` or `input.wav`) of sample `key`."""
    return f"{key_text(key)}.{member}"


def wav_header(frames: int, rate_hz: int, codec: str = "wav") -> bytes:
    """The 44 bytes before the samples of a mono WAV file: PCM16, or 32-bit float for codec wav32f."""
    tag, width = _WAV_LAYOUTS[codec]
    size = width * frames
    return _WAV.pack(
        b"RIFF",
        36 + size,
        b"WAVE",
        b"fmt ",
        16,
        tag,
        1,
        rate_hz,
        width * rate_hz,
        width,
        8 * width,
        b"data",
        size,
    )


def parse_wav_header(header: bytes, codec: str = "wav") -> tuple[int, int]:
    """(frames, rate_hz) of a 44-byte header as `wav_header` writes it; ValueError on any other."""
    if len(header) < WAV_HEADER_BYTES:
        raise ValueError(f"{len(header)} bytes where a WAV header of {WAV_HEADER_BYTES} was expected")
    fields = _WAV.unpack(header[:WAV_HEADER_BYTES])
    rate_hz, frames = fields[7], fields[12] // _WAV_LAYOUTS[codec][1]
    byte_rate = _WAV_LAYOUTS[codec][1] * rate_hz
    if byte_rate >= 2**32 or wav_header(frames, rate_hz, codec) != header[:WAV_HEADER_BYTES]:
        what = "PCM16" if codec == "wav" else "32-bit float"
        raise ValueError(f"not the 44-byte header of a mono {what} WAV file")
    return frames, rate_hz


def member_header(name: str, size: int) -> bytes:
    """The USTAR block before a member of `size` bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = MEMBER_MTIME
    info.mode = MEMBER_MODE
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(size: int, unit: int = BLOCK_BYTES) -> int:
    """`size` rounded up to whole units."""
    return -(-size // unit) * unit


@dataclass(frozen=True)
class Mark:
    """A place in a half-written tar to go back to."""

    position: int
    digest: Any


class TarWriter:
    """Writes members one after another and hashes on the way; can take back what followed a mark."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the offset of its data in the tar."""
        self._write(member_header(name, len(data)))
        offset = self.position
        self._write(data)
        self._write(bytes(padded(len(data)) - len(data)))
        return offset

    def mark(self) -> Mark:
        """The present end, for `rollback`."""
        return Mark(self.position, self._digest.copy())

    def rollback(self, mark: Mark) -> None:
        """Take back everything written after `mark`."""
        self._stream.seek(mark.position)
        self._stream.truncate()
        self.position = mark.position
        self._digest = mark.digest.copy()

    def finish(self) -> str:
        """Write the end of the archive; returns the sha256 of all bytes."""
        self._write(bytes(padded(self.position + 2 * BLOCK_BYTES, RECORD_BYTES) - self.position))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.position += len(data)
