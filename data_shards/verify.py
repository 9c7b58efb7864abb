"""Reading every byte of a corpus and naming what is damaged.

The sidecar fixes each byte of a tar but the audio itself, and has a checksum of that. So damage is found whatever
it hits: a header, the audio, the padding, the end of the archive.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_shards.corpus import read_dataset, read_shard_sidecar, require_inside
from data_shards.dataset import DatasetInfo, ShardInfo
from data_shards.errors import CorpusError
from data_shards.format import BLOCK_BYTES, is_shard_name, member_header, member_name, padded
from data_shards.plan import Report
from data_shards.sidecar import Sidecar, sidecar_path

CHUNK_BYTES = 1 << 20

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong. `member` and `offset` (byte in the tar) are None where none can be told."""

    shard: str
    member: str | None
    offset: int | None
    problem: str

    def __str__(self) -> str:
        member = "" if self.member is None else f" member {self.member}"
        offset = "" if self.offset is None else f" byte {self.offset}"
        return f"{self.shard}{member}{offset}: {self.problem}"


@dataclass(frozen=True)
class _Part:
    """A run of bytes that the tar must hold next: `expected` as they are, or audio told by its checksum.

    None is longer than the longest member, since all of it is read at once.
    """

    member: str | None
    what: str
    size: int
    expected: bytes | None
    crc32: int = 0


def verify_corpus(folder: Path | str, report: Report | None = None) -> list[Damage]:
    """Every damage in `folder`, in the order of its shards; an empty list when each byte is as it was built.

    `report` is called with ("verifying", bytes done, bytes in all).

    Raises:
        CorpusError: `folder` is no finished corpus, or its `dataset.json` cannot be read.
    """
    folder = Path(folder)
    info = read_dataset(folder)
    done, total = 0, sum(shard.size for shard in info.shards)
    found: list[Damage] = []
    for shard in info.shards:

        def tick(size: int, before: int = done) -> None:
            if report is not None:
                report("verifying", before + size, total)

        found += _verify_shard(folder, info, shard, tick)
        done += shard.size
    listed = {shard.tar for shard in info.shards}
    for entry in sorted(folder.iterdir()):
        if is_shard_name(entry.name) and entry.name not in listed:
            found.append(Damage(entry.name, None, None, "is not in dataset.json; remove it"))
    return found


def _verify_shard(folder: Path, info: DatasetInfo, shard: ShardInfo, tick: Tick) -> Iterator[Damage]:
    try:
        sidecar = read_shard_sidecar(folder, info, shard)
    except CorpusError as error:
        sidecar = None
        sidecar_file = sidecar_path(folder / shard.tar)
        yield Damage(sidecar_file.name, None, None, str(error).removeprefix(f"{sidecar_file} "))
    path = folder / shard.tar
    if not path.is_file():
        yield Damage(shard.tar, None, None, "is missing")
        return
    require_inside(folder, path)
    with path.open("rb") as stream:
        checked = _Checked(stream, path.stat().st_size, tick)
        found = [] if sidecar is None else list(checked.compare(shard.tar, _parts(sidecar)))
        checked.drain()
    yield from found
    if checked.position > shard.size:
        yield Damage(shard.tar, None, shard.size, f"has {checked.position} bytes, needed {shard.size}")
    elif checked.position < shard.size and not found:
        yield Damage(
            shard.tar, None, checked.position, f"is cut at {checked.position} bytes, needed {shard.size}"
        )
    elif not found and checked.digest.hexdigest() != shard.sha256:
        yield Damage(shard.tar, None, None, "has another sha256 than dataset.json says")


def _parts(sidecar: Sidecar) -> Iterator[_Part]:
    position = 0
    for index, key in enumerate(sidecar.key):
        for extension, columns in sidecar.members.items():
            name, size = member_name(key, extension), columns.size[index]
            yield _Part(name, "tar header", BLOCK_BYTES, member_header(name, size))
            yield _Part(name, "audio", size, None, columns.crc32[index])
            yield _Part(name, "padding", padded(size) - size, bytes(padded(size) - size))
            position += BLOCK_BYTES + padded(size)
    for start in range(position, sidecar.size, CHUNK_BYTES):
        rest = min(CHUNK_BYTES, sidecar.size - start)
        yield _Part(None, "end of the archive", rest, bytes(rest))


class _Checked:
    """A stream that is hashed while it is compared, from its start to its end."""

    def __init__(self, stream: BinaryIO, size: int, tick: Tick) -> None:
        self._stream = stream
        self._size = size
        self._tick = tick
        self.digest = hashlib.sha256()
        self.position = 0

    def compare(self, shard: str, parts: Iterator[_Part]) -> Iterator[Damage]:
        """Compare with `parts` one by one; stops where the file ends too early."""
        for part in parts:
            start = self.position
            data = self._read(part.size)
            if len(data) < part.size:
                yield Damage(shard, part.member, self.position, f"the file ends here, inside the {part.what}")
                return
            if part.expected is None:
                if zlib.crc32(data) != part.crc32:
                    yield Damage(shard, part.member, start, _audio_problem(part, data, start))
            elif data != part.expected:
                at = next(i for i in range(part.size) if data[i] != part.expected[i])
                problem = f"{part.what} has byte {data[at]:#04x}, needed {part.expected[at]:#04x}"
                yield Damage(shard, part.member, start + at, problem)

    def drain(self) -> None:
        """Read and hash what is left."""
        while self._read(CHUNK_BYTES):
            pass

    def _read(self, size: int) -> bytes:
        # Memory is set aside for what is asked for, be it there or not.
        data = self._stream.read(min(size, max(self._size - self.position, 1)))
        self.digest.update(data)
        self.position += len(data)
        self._tick(self.position)
        return data


def _audio_problem(part: _Part, data: bytes, start: int) -> str:
    where = f"bytes {start} to {start + part.size - 1}"
    return f"audio ({where}) has checksum {zlib.crc32(data):08x}, needed {part.crc32:08x}"
