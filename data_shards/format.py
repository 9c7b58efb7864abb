"""Bytes of a shard: a plain USTAR tar whose members are `KEY.EXTENSION`, with PCM16 WAV or FLAC inside.

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

KINDS = ("fg", "bg", "rir", "pair")
CODECS = ("wav", "flac")
BLOCK_BYTES = 512
RECORD_BYTES = 10_240
WAV_HEADER_BYTES = 44
# 2000-01-01: tar programs warn about 1970.
MEMBER_MTIME = 946_684_800
MEMBER_MODE = 0o644
FULL_SCALE = 32_768
MAX_MEMBER_BYTES = 2**31 - 1

_WAV = struct.Struct("<4sI4s4sIHHIIHH4sI")
_SHARD_NAME = re.compile(r"(fg|bg|rir|pair)-(\d{6,9})\.tar")


def key_text(key: int) -> str:
    """Name of sample number `key`: eight digits or more, never a dot."""
    return f"{key:08d}"


def shard_name(kind: str, index: int) -> str:
    """File name of shard number `index`."""
    return f"{kind}-{index:06d}.tar"


def is_shard_name(name: str) -> bool:
    """Whether `name` is one that `shard_name` makes: no folder, no `..`."""
    return _SHARD_NAME.fullmatch(name) is not None


def members_of(kind: str, codec: str) -> tuple[str, ...]:
    """Extensions of the members of each sample, in the order in which they lie in the tar."""
    return (f"input.{codec}", f"target.{codec}") if kind == "pair" else (codec,)


def member_name(key: int, member: str) -> str:
    """Name in the tar of member `member` (such as `wav` or `input.wav`) of sample `key`."""
    return f"{key_text(key)}.{member}"


def wav_header(frames: int, rate_hz: int) -> bytes:
    """The 44 bytes before the samples of a mono PCM16 WAV file."""
    data_bytes = 2 * frames
    return _WAV.pack(
        b"RIFF", 36 + data_bytes, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16, b"data", data_bytes
    )


def parse_wav_header(header: bytes) -> tuple[int, int]:
    """(frames, rate_hz) of a 44-byte header as `wav_header` writes it; ValueError on any other."""
    if len(header) < WAV_HEADER_BYTES:
        raise ValueError(f"{len(header)} bytes where a WAV header of {WAV_HEADER_BYTES} was expected")
    fields = _WAV.unpack(header[:WAV_HEADER_BYTES])
    rate_hz, data_bytes = fields[7], fields[12]
    if wav_header(data_bytes // 2, rate_hz) != header[:WAV_HEADER_BYTES]:
        raise ValueError("not the 44-byte header of a mono PCM16 WAV file")
    return data_bytes // 2, rate_hz


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
