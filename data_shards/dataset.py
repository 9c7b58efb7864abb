"""`dataset.json`: which shards a corpus has, and the fingerprint that checkpoints store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.format import CODECS, KINDS
from data_shards.sidecar import MAX_RATE_HZ, Sidecar
from data_shards.strict_json import (
    VERSION,
    JsonObject,
    dump,
    parse_object,
    publish,
    take_shard_name,
    take_version,
)

DATASET_FORMAT = "wavewright-corpus"
DATASET_NAME = "dataset.json"


@dataclass(frozen=True)
class ShardInfo:
    """A line of `dataset.json`. The two last are sha256 of the sidecar's bytes and of its `split_texts`."""

    tar: str
    num_samples: int
    frames: int
    size: int
    sha256: str
    sidecar_sha256: str
    groups_sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`: what the corpus is and which shards it has.

    `options_hash` and `inputs_hash` are those of the whole build: when they are equal there is nothing to do.
    """

    kind: str
    rate_hz: int
    codec: str
    options_hash: str
    inputs_hash: str
    num_files: int
    num_rejected_files: int
    clipped: int
    shards: tuple[ShardInfo, ...]

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def frames(self) -> int:
        """Frames in all shards, at the corpus rate."""
        return sum(shard.frames for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, rate, and the audio and groups of all shards: equal data and splits, equal text."""
        lines = [DATASET_FORMAT, self.kind, str(self.rate_hz)]
        lines += [f"{shard.sha256} {shard.groups_sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shard_info(sidecar: Sidecar, data: bytes) -> ShardInfo:
    """The line of `dataset.json` for a sidecar whose JSON text is `data`."""
    return ShardInfo(
        tar=sidecar.tar,
        num_samples=len(sidecar),
        frames=sum(sidecar.frames),
        size=sidecar.size,
        sha256=sidecar.sha256,
        sidecar_sha256=hashlib.sha256(data).hexdigest(),
        groups_sha256=hash_texts(sidecar.split_texts),
    )


def hash_texts(texts: Sequence[str]) -> str:
    """sha256 over strings, each preceded by its length."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def write_dataset(folder: Path, info: DatasetInfo) -> None:
    """Publish `dataset.json`."""
    shards = [
        {
            "tar": shard.tar,
            "num_samples": shard.num_samples,
            "frames": shard.frames,
            "bytes": shard.size,
            "sha256": shard.sha256,
            "sidecar_sha256": shard.sidecar_sha256,
            "groups_sha256": shard.groups_sha256,
        }
        for shard in info.shards
    ]
    data = dump(
        {
            "format": DATASET_FORMAT,
            "version": VERSION,
            "kind": info.kind,
            "rate_hz": info.rate_hz,
            "codec": info.codec,
            "fingerprint": info.fingerprint,
            "options_hash": info.options_hash,
            "inputs_hash": info.inputs_hash,
            "num_samples": info.num_samples,
            "frames": info.frames,
            "num_files": info.num_files,
            "num_rejected_files": info.num_rejected_files,
            "clipped": info.clipped,
            "shards": shards,
        }
    )
    publish(folder / DATASET_NAME, data)


def parse_dataset(data: bytes, place: str) -> DatasetInfo:
    """The corpus description in `data`; CorpusError, starting with `place`, when it is not whole."""
    obj = parse_object(data, place)
    take_version(obj, DATASET_FORMAT)
    info = DatasetInfo(
        kind=obj.text("kind", KINDS),
        rate_hz=obj.integer("rate_hz", 1, MAX_RATE_HZ),
        codec=obj.text("codec", CODECS),
        options_hash=obj.sha256("options_hash"),
        inputs_hash=obj.sha256("inputs_hash"),
        num_files=obj.integer("num_files"),
        num_rejected_files=obj.integer("num_rejected_files"),
        clipped=obj.integer("clipped"),
        shards=tuple(_shard_info(item) for item in obj.list_of_objects("shards")),
    )
    names = [shard.tar for shard in info.shards]
    if len(set(names)) != len(names):
        raise obj.error("lists a shard twice")
    for key, found in (("num_samples", info.num_samples), ("frames", info.frames)):
        if obj.integer(key) != found:
            raise obj.error(f"has a `{key}` that is not the sum over its shards")
    if obj.sha256("fingerprint") != info.fingerprint:
        raise obj.error("has a `fingerprint` that does not fit its shards")
    obj.done()
    return info


def _shard_info(obj: JsonObject) -> ShardInfo:
    info = ShardInfo(
        tar=take_shard_name(obj, "tar"),
        num_samples=obj.integer("num_samples"),
        frames=obj.integer("frames"),
        size=obj.integer("bytes", 1),
        sha256=obj.sha256("sha256"),
        sidecar_sha256=obj.sha256("sidecar_sha256"),
        groups_sha256=obj.sha256("groups_sha256"),
    )
    obj.done()
    return info
