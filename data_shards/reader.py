"""Reads crops of samples out of the shards of a corpus: one `pread` of just the bytes of the crop.

What is checked, and when:

- Every read: that all bytes came. The first read of a member: that the 44-byte WAV header (for FLAC: the
  stream's own header) is there and gives the frames and rate of the sidecar. Both cost microseconds.
- `whole`, a crop that covers a whole member, any FLAC read, and every crop of a `Reader(verify=True)`: the
  crc32 of the member, once per member and reader. Validation and the room responses are read in this way.
- A byte flipped inside the samples of a WAV is therefore not seen by the partial reads of training, since the
  sidecar's checksum is over the whole member; `python launch/build_shards.py verify FOLDER` reads every byte.

Files are opened when first needed (a shard of a remote corpus is then fetched, see `data_shards.cache`), and
`pread` uses no file position: a forked process may share them, and a pickled reader starts with none. A Reader
is for one thread.
"""

from __future__ import annotations

import io
import os
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np

from data_shards.cache import CachedShard
from data_shards.corpus import Corpus
from data_shards.errors import DataError
from data_shards.format import WAV_HEADER_BYTES, frame_bytes, member_name, member_of, parse_wav_header

MAX_OPEN_FILES = 64


class Reader:
    """Crops of the samples of `corpus` as int16, or as float32 when its codec is wav32f.

    Args:
        corpus: an opened corpus.
        verify: check the crc32 of each member when it is first read, at the price of reading all of it.
        max_open_files: shards held open; the one longest unused is closed for another.
    """

    def __init__(self, corpus: Corpus, *, verify: bool = False, max_open_files: int = MAX_OPEN_FILES) -> None:
        self.corpus = corpus
        self.verify = verify
        self.max_open_files = max_open_files
        self._files: OrderedDict[int, int] = OrderedDict()
        self._frame_bytes = frame_bytes(corpus.codec)
        self._dtype = "<f4" if corpus.codec == "wav32f" else "<i2"
        # Per member and row: 1 once the header was checked, 2 once every byte was.
        self._checked = {member: bytearray(len(corpus)) for member in corpus.members}

    def __getstate__(self) -> dict[str, Any]:
        return {"corpus": self.corpus, "verify": self.verify, "max_open_files": self.max_open_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["corpus"], verify=state["verify"], max_open_files=state["max_open_files"]
        )

    def crop(self, row: int, start: int, frames: int, member: str | None = None) -> np.ndarray:
        """`frames` samples from `start` of sample `row`: int16 (wav32f: float32) of shape [frames], read-only.

        `member` is `input` or `target` for pairs and not given for other kinds.
        Raises: DataError naming shard, member and byte when the shard is cut, damaged or gone.
        """
        total = self.corpus.frames.item(row)
        assert start >= 0 and frames > 0 and start + frames <= total, f"{start}+{frames} of {total} frames"
        name = self._column(member)
        if self._frame_bytes is None:
            return self._decode_flac(row, start, frames, name)
        state = self._checked[name]
        if state[row] < 2 and (self.verify or frames == total):
            data = self._checked_member(row, name)
            first = WAV_HEADER_BYTES + self._frame_bytes * start
            return np.frombuffer(data, self._dtype, frames, first)
        if state[row] < 1:
            self._check_wav_header(row, name, self._read(row, name, 0, WAV_HEADER_BYTES))
            state[row] = 1
        first, size = WAV_HEADER_BYTES + self._frame_bytes * start, self._frame_bytes * frames
        return np.frombuffer(self._read(row, name, first, size), self._dtype)

    def whole(self, row: int, member: str | None = None) -> np.ndarray:
        """All of sample `row`, its checksum checked: int16 (wav32f: float32) of shape [frames]."""
        return self.crop(row, 0, self.corpus.frames.item(row), member)

    def close(self) -> None:
        """Close the shards; they are opened again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _column(self, member: str | None) -> str:
        return member_of(self.corpus.codec, member)

    def _checked_member(self, row: int, name: str) -> bytes:
        """All bytes of a member; header and crc32 checked."""
        table = self.corpus.members[name]
        data = self._read(row, name, 0, table.size.item(row))
        if self._frame_bytes is not None:
            self._check_wav_header(row, name, data[:WAV_HEADER_BYTES])
        if self._checked[name][row] < 2:
            found, needed = zlib.crc32(data), table.crc32.item(row)
            if found != needed:
                raise self._damage(
                    f"the member's crc32 is {found:08x}, the sidecar says {needed:08x}: its bytes changed. "
                    "Copy the shard again, or delete it and its .json and run its build again",
                    row,
                    name,
                )
            self._checked[name][row] = 2
        return data

    def _check_wav_header(self, row: int, name: str, header: bytes) -> None:
        needed = (self.corpus.frames.item(row), self.corpus.rate_hz)
        try:
            found = parse_wav_header(header, self.corpus.codec)
        except ValueError as error:
            raise self._damage(f"{error}; needed {needed[0]} frames at {needed[1]} Hz", row, name) from error
        if found != needed:
            raise self._damage(
                f"the WAV header says {found[0]} frames at {found[1]} Hz, the sidecar {needed[0]} at {needed[1]} Hz",
                row,
                name,
            )

    def _decode_flac(self, row: int, start: int, frames: int, name: str) -> np.ndarray:
        import soundfile

        data = self._checked_member(row, name)
        needed = (self.corpus.frames.item(row), self.corpus.rate_hz)
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                found = (file.frames, file.samplerate)
                if found == needed:
                    file.seek(start)
                    wave = file.read(frames, dtype="int16")
        except soundfile.LibsndfileError as error:
            raise self._damage(f"FLAC does not decode: {error}", row, name) from error
        if found != needed or len(wave) != frames:
            raise self._damage(
                f"FLAC of {found[0]} frames at {found[1]} Hz, the sidecar says {needed[0]} at {needed[1]} Hz",
                row,
                name,
            )
        return wave

    def _read(self, row: int, name: str, start: int, count: int) -> bytes:
        """`count` bytes from byte `start` of a member."""
        offset = self.corpus.members[name].offset.item(row) + start
        try:
            data = os.pread(self._file(self.corpus.shard.item(row)), count, offset)
        except OSError as error:
            raise self._damage(f"cannot be read: {error.strerror}", row, name, start) from error
        if len(data) != count:
            raise self._damage(
                f"{len(data)} bytes where {count} were needed: the shard is cut short. "
                "Copy it again, or run its build again",
                row,
                name,
                start,
            )
        return data

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is not None:
            self._files.move_to_end(shard)
            return file
        if len(self._files) >= self.max_open_files:
            os.close(self._files.popitem(last=False)[1])
        place = self.corpus.shards[shard]
        file = place.open() if isinstance(place, CachedShard) else os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        self._files[shard] = file
        return file

    def _damage(self, problem: str, row: int, name: str, start: int = 0) -> DataError:
        return DataError(
            problem,
            shard=str(self.corpus.shards[self.corpus.shard.item(row)]),
            member=member_name(self.corpus.key.item(row), name),
            offset=self.corpus.members[name].offset.item(row) + start,
        )
