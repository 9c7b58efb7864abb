"""The sidecar `NAME.tar.json` beside each shard.

A sidecar is published after its tar, so that its existence means "this shard is finished". Samples are stored
as columns: parsing and checking 1e5 of them takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_shards.format import (
    BLOCK_BYTES,
    CODECS,
    KINDS,
    MAX_MEMBER_BYTES,
    MAX_SEGMENT_SECONDS,
    WAV_HEADER_BYTES,
    frame_bytes,
    members_of,
    padded,
)
from data_shards.strict_json import VERSION, JsonObject, dump, parse_object, take_shard_name, take_version
from data_shards.takes import TAKE_PARSERS, Take

SIDECAR_FORMAT = "wavewright-shard"
MAX_RATE_HZ = 1_000_000
# Of 32-bit float audio, whose level may pass full scale; far more is another unit or a broken file.
MAX_FLOAT_LEVEL = 1e6
# What a few bytes of FLAC unpack to has no other bound; the last segment of a recording may be a little longer.
MAX_FLAC_SECONDS = MAX_SEGMENT_SECONDS + 1


@dataclass(frozen=True)
class MemberEntry:
    """One member: offset of its data in the tar, bytes, zlib.crc32 of them, peak and RMS re full scale.

    Peak and RMS are at most 1, save in 32-bit float members (`pedal`, `string`).
    """

    offset: int
    size: int
    crc32: int
    peak: float
    rms: float


@dataclass(frozen=True)
class SampleEntry:
    """One sample: where it came from and where it lies. `start` and `frames` are at the corpus rate.

    `take` is there for kinds `pedal`, `string` and `pitch` only.
    """

    key: int
    source: str
    group: str
    start: int
    frames: int
    source_rate_hz: int
    source_channels: int
    members: dict[str, MemberEntry]
    take: Take | None = None


@dataclass(frozen=True)
class Reject:
    """An input, or a segment or channel of it (`piece`), that is not in the corpus."""

    source: str
    reason: str
    piece: str | None = None

    def as_json(self) -> dict[str, Any]:
        """One line of `rejects.jsonl`."""
        return {"source": self.source, "piece": self.piece, "reason": self.reason}


@dataclass(frozen=True)
class MemberColumns:
    """The fields of `MemberEntry`, each a list over the samples of a shard."""

    offset: list[int]
    size: list[int]
    crc32: list[int]
    peak: list[float]
    rms: list[float]


@dataclass(frozen=True)
class Sidecar:
    """What is known about one shard. The lists run over its samples, in the order of the tar."""

    kind: str
    rate_hz: int
    codec: str
    tar: str
    size: int
    sha256: str
    options_hash: str
    inputs_hash: str
    num_files: int
    clipped: int
    rejects: tuple[Reject, ...]
    key: list[int]
    source: list[str]
    group: list[str]
    start: list[int]
    frames: list[int]
    source_rate_hz: list[int]
    source_channels: list[int]
    members: dict[str, MemberColumns]
    take: list[Take]
    """Empty for all kinds but `pedal`, `string` and `pitch`."""

    def __len__(self) -> int:
        return len(self.key)

    @property
    def split_texts(self) -> list[str]:
        """What beside the audio decides what is trained on: the groups, and the takes."""
        return self.group + [take.as_text() for take in self.take]

    def sample(self, index: int) -> SampleEntry:
        """Sample number `index` of the shard."""
        members = {
            name: MemberEntry(
                columns.offset[index],
                columns.size[index],
                columns.crc32[index],
                columns.peak[index],
                columns.rms[index],
            )
            for name, columns in self.members.items()
        }
        return SampleEntry(
            self.key[index],
            self.source[index],
            self.group[index],
            self.start[index],
            self.frames[index],
            self.source_rate_hz[index],
            self.source_channels[index],
            members,
            self.take[index] if self.take else None,
        )


def columns_of(samples: Sequence[SampleEntry], members: Sequence[str]) -> dict[str, Any]:
    """The sample columns of `Sidecar`, as keyword arguments."""
    fields = ("key", "source", "group", "start", "frames", "source_rate_hz", "source_channels")
    columns: dict[str, Any] = {name: [getattr(sample, name) for sample in samples] for name in fields}
    columns["take"] = [sample.take for sample in samples if sample.take is not None]
    columns["members"] = {
        member: MemberColumns(
            **{
                name: [getattr(sample.members[member], name) for sample in samples]
                for name in ("offset", "size", "crc32", "peak", "rms")
            }
        )
        for member in members
    }
    return columns


def sidecar_path(tar: Path) -> Path:
    """Where the sidecar of `tar` lies."""
    return tar.with_name(f"{tar.name}.json")


def sidecar_bytes(sidecar: Sidecar) -> bytes:
    """The JSON text of `sidecar`."""
    members = {
        name: {
            "offset": columns.offset,
            "bytes": columns.size,
            "crc32": columns.crc32,
            "peak": columns.peak,
            "rms": columns.rms,
        }
        for name, columns in sidecar.members.items()
    }
    return dump(
        {
            "format": SIDECAR_FORMAT,
            "version": VERSION,
            "kind": sidecar.kind,
            "rate_hz": sidecar.rate_hz,
            "codec": sidecar.codec,
            "tar": sidecar.tar,
            "bytes": sidecar.size,
            "sha256": sidecar.sha256,
            "options_hash": sidecar.options_hash,
            "inputs_hash": sidecar.inputs_hash,
            "num_files": sidecar.num_files,
            "clipped": sidecar.clipped,
            "rejects": [reject.as_json() for reject in sidecar.rejects],
            "num_samples": len(sidecar),
            "key": sidecar.key,
            "source": sidecar.source,
            "group": sidecar.group,
            "start": sidecar.start,
            "frames": sidecar.frames,
            "source_rate_hz": sidecar.source_rate_hz,
            "source_channels": sidecar.source_channels,
            "members": members,
        }
        | ({"take": [take.as_json() for take in sidecar.take]} if sidecar.kind in TAKE_PARSERS else {})
    )


def parse_sidecar(data: bytes, place: str) -> Sidecar:
    """The sidecar in `data`; CorpusError, starting with `place`, when it is not whole and consistent."""
    obj = parse_object(data, place)
    take_version(obj, SIDECAR_FORMAT)
    kind = obj.text("kind", KINDS)
    codec = obj.text("codec", CODECS)
    count = obj.integer("num_samples")
    member_objects = obj.object("members")
    highest = MAX_FLOAT_LEVEL if codec == "wav32f" else 1.0
    members = {
        name: _member_columns(member_objects.object(name), count, highest) for name in members_of(kind, codec)
    }
    member_objects.done()
    sidecar = Sidecar(
        kind=kind,
        rate_hz=obj.integer("rate_hz", 1, MAX_RATE_HZ),
        codec=codec,
        tar=take_shard_name(obj, "tar"),
        size=obj.integer("bytes", 1),
        sha256=obj.sha256("sha256"),
        options_hash=obj.sha256("options_hash"),
        inputs_hash=obj.sha256("inputs_hash"),
        num_files=obj.integer("num_files"),
        clipped=obj.integer("clipped"),
        rejects=tuple(_reject(item) for item in obj.list_of_objects("rejects")),
        key=obj.integers("key", count),
        source=obj.texts("source", count),
        group=obj.texts("group", count),
        start=obj.integers("start", count),
        frames=obj.integers("frames", count, low=1),
        source_rate_hz=obj.integers("source_rate_hz", count, low=1),
        source_channels=obj.integers("source_channels", count, low=1),
        members=members,
        take=[TAKE_PARSERS[kind](item) for item in obj.list_of_objects("take")]
        if kind in TAKE_PARSERS
        else [],
    )
    obj.done()
    if kind in TAKE_PARSERS and len(sidecar.take) != count:
        raise obj.error(f"has {len(sidecar.take)} values in `take`; needed {count}")
    _check_layout(sidecar, obj)
    return sidecar


def _member_columns(obj: JsonObject, count: int, highest_level: float) -> MemberColumns:
    columns = MemberColumns(
        offset=obj.integers("offset", count),
        size=obj.integers("bytes", count, low=1, high=MAX_MEMBER_BYTES),
        crc32=obj.integers("crc32", count, high=2**32 - 1),
        peak=obj.levels("peak", count, highest_level),
        rms=obj.levels("rms", count, highest_level),
    )
    obj.done()
    return columns


def _check_layout(sidecar: Sidecar, obj: JsonObject) -> None:
    """Keys rise, members follow one another inside the tar, and a WAV is as long as its frames say."""
    if any(after <= before for before, after in pairwise(sidecar.key)):
        raise obj.error("has keys that do not rise")
    position, width = 0, frame_bytes(sidecar.codec)
    for index, frames in enumerate(sidecar.frames):
        for columns in sidecar.members.values():
            position += BLOCK_BYTES
            if columns.offset[index] != position:
                raise obj.error(f"puts a member of sample {index} at {columns.offset[index]}, not {position}")
            if width is not None and columns.size[index] != WAV_HEADER_BYTES + width * frames:
                raise obj.error(f"gives sample {index} {columns.size[index]} bytes for {frames} frames")
            position += padded(columns.size[index])
        if width is None and frames > MAX_FLAC_SECONDS * sidecar.rate_hz:
            raise obj.error(f"gives sample {index} {frames} frames; the builder makes them shorter")
    if sidecar.size < position + 2 * BLOCK_BYTES:
        raise obj.error(f"says the tar has {sidecar.size} bytes, but its members need {position}")


def _reject(obj: JsonObject) -> Reject:
    reject = Reject(obj.text("source"), obj.text("reason"), obj.optional_text("piece"))
    obj.done()
    return reject
