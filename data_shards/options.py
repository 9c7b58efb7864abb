"""Options of a build, and which of them make the bytes of a shard."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from data_shards.dataset import hash_texts
from data_shards.errors import CorpusError
from data_shards.format import CODECS, FLOAT_KINDS, KINDS, MAX_SEGMENT_SECONDS
from data_shards.shifts import ShiftOptions
from data_shards.sidecar import MAX_RATE_HZ
from data_shards.strict_json import VERSION

# Raise when the same input would give other samples, so that finished shards are built again.
NUMERICS = 1
MIN_RATE_HZ = 4_000


@dataclass(frozen=True)
class BuildOptions:
    """How a corpus is built.

    Args:
        kind: fg, bg, rir, pair, pedal, string or pitch.
        rate_hz: sample rate of the corpus.
        codec: wav (PCM16, read without decoding) or flac (about half the bytes); wav32f (32-bit float) for pedals and
            strings.
        segment_seconds: longer recordings are cut into equal parts of at most this length.
        shard_mb: size at which a shard is full, 1e6 bytes, estimated before building.
        group_by: `file` (each recording) or `folder` (each speaker's folder) stays together in the split.
        max_reject: largest share of input files that may be rejected.
        workers: processes; None for one per CPU core. The bytes do not depend on it.
        shift: of kind pitch, how its pairs are made.
    """

    kind: str
    rate_hz: int = 44_100
    codec: str = "wav"
    segment_seconds: float = 30.0
    shard_mb: float = 256.0
    group_by: str = "file"
    max_reject: float = 0.1
    workers: int | None = None
    shift: ShiftOptions = field(default_factory=ShiftOptions)

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("codec", CODECS), ("group_by", ("file", "folder"))):
            if getattr(self, name) not in allowed:
                raise CorpusError(f"{name} is {getattr(self, name)!r}; needed one of {', '.join(allowed)}")
        if (self.kind in FLOAT_KINDS) != (self.codec == "wav32f"):
            raise CorpusError(
                f"codec is {self.codec!r} for kind {self.kind}; {' and '.join(FLOAT_KINDS)} take wav32f, and no other "
                "kind does"
            )
        ranges = {
            "rate_hz": (MIN_RATE_HZ, MAX_RATE_HZ),
            "segment_seconds": (1.0, MAX_SEGMENT_SECONDS),
            "shard_mb": (0.01, 100_000.0),
            "max_reject": (0.0, 1.0),
            "workers": (1, 4096),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag = "--rate" if name == "rate_hz" else f"--{name.replace('_', '-')}"
                raise CorpusError(f"{flag} is {value}; needed a number from {low} to {high}")

    @property
    def segment_frames(self) -> int:
        """Longest segment, in frames."""
        return round(self.segment_seconds * self.rate_hz)

    @property
    def num_workers(self) -> int:
        """Processes to use; by default the CPU cores this process may run on."""
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def shard_hash(self) -> str:
        """Hash of all that makes the bytes of a shard besides its input files."""
        values = (NUMERICS, VERSION, self.kind, self.rate_hz, self.codec, self.segment_frames, self.group_by)
        texts = [str(value) for value in values]
        return hash_texts([*texts, self.shift.as_text()] if self.kind == "pitch" else texts)

    @property
    def corpus_hash(self) -> str:
        """Hash of all that makes the corpus besides its input files."""
        return hash_texts([self.shard_hash, str(self.shard_mb)])
