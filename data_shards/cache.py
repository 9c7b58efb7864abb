"""The cache of this machine for shards of remote corpora: whole files, fetched once, bounded in bytes.

A shard is called by the sha256 that its corpus states, so corpora share equal shards, and a changed one is another
file. It is fetched under a temporary name, checked, flushed and renamed, under a lock of its own: what has a final
name is whole, and processes of a machine do not fetch the same shard twice. Locks are flock's, which the kernel
takes back from a killed process; what such a process left under a temporary name is removed by the next fetch.

    SHA256.tar     a whole shard; its modification time is when it was last opened
    SHA256.tmp     being fetched
    SHA256.lock    empty; held while the shard is fetched
    .lock          empty; held while files are counted, removed and renamed
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import CorpusError, DataError
from data_shards.remote import RemoteError, RemoteFolder
from data_shards.strict_json import rename_durably

FOLDER_VARIABLE = "WAVEWRIGHT_CACHE"
SIZE_VARIABLE = "WAVEWRIGHT_CACHE_GB"
DEFAULT_FOLDER = "~/.cache/wavewright/shards"
DEFAULT_GB = "200"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardCache:
    """The folder, and the most bytes of whole shards in it. Shards being fetched come on top."""

    folder: Path
    max_bytes: int

    @classmethod
    def of_environment(cls) -> ShardCache:
        """The cache that the environment asks for. Raises CorpusError for a size that is none."""
        text = os.environ.get(SIZE_VARIABLE) or DEFAULT_GB
        try:
            size_gb = float(text)
        except ValueError:
            size_gb = math.nan
        if not 0 < size_gb < math.inf:
            raise CorpusError(f"${SIZE_VARIABLE} is {text!r}; needed gigabytes above 0, such as {DEFAULT_GB}")
        folder = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()
        return cls(folder.absolute(), int(size_gb * 1e9))

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock file `name`; gives False when another holds it and `wait` is not set."""
        file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield _has_locked(file, wait)
        finally:
            os.close(file)

    def make_room(self, size: int) -> None:
        """Remove what dead processes left, and the shards longest unused until `size` more bytes fit.

        Call it with `.lock` held. A shard that is removed stays readable for those that have it open.
        """
        for path in self.folder.glob("*.tmp"):
            with self.locked(f"{path.stem}.lock", wait=False) as is_dead:
                if is_dead:
                    path.unlink(missing_ok=True)
        shards = [(path.stat(), path) for path in self.folder.glob("*.tar")]
        total = sum(status.st_size for status, _ in shards)
        for status, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
            if total + size <= self.max_bytes:
                break
            path.unlink()
            total -= status.st_size

    def progress(self) -> set[tuple[str, int]]:
        """Names and sizes of the shards that are being fetched; changes for as long as bytes arrive."""
        found = set()
        for path in self.folder.glob("*.tmp"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_size))
        return found


@dataclass(frozen=True)
class CachedShard:
    """A shard of a remote corpus that is read from the cache. Can be pickled."""

    remote: RemoteFolder
    tar: str
    size: int
    sha256: str
    cache: ShardCache

    def __str__(self) -> str:
        return f"{self.remote.at(self.tar)} (cached as {self._path})"

    @property
    def _path(self) -> Path:
        return self.cache.folder / f"{self.sha256}.tar"

    def open(self) -> int:
        """A file descriptor for reading the whole shard, which is fetched when it is not there.

        Raises: DataError naming the URL when it cannot be fetched, or is not what its corpus says.
        """
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            file = self._open_cached()
            if file is None:
                with self.cache.locked(f"{self.sha256}.lock"):
                    # Another process may have fetched it while this one waited.
                    file = self._open_cached()
                    if file is None:
                        file = self._fetch()
            return file
        except RemoteError as error:
            raise DataError(error.problem, shard=error.url) from error
        except OSError as error:
            raise self._error(
                f"the cache {self.cache.folder} cannot be used: {error}. "
                f"Set ${FOLDER_VARIABLE} to a folder of a local disk"
            ) from error

    def _open_cached(self) -> int | None:
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(file).st_size != self.size:
            os.close(file)
            return None
        os.utime(file)
        return file

    def _fetch(self) -> int:
        """Fetch into the cache; the file descriptor was opened before another process could remove the shard."""
        with self.cache.locked(".lock"):
            self.cache.make_room(self.size)
        free = shutil.disk_usage(self.cache.folder).free
        if free < self.size:
            raise self._error(
                f"needs {self.size / 1e6:.1f} MB in the cache {self.cache.folder}, whose disk has {free / 1e6:.1f} MB "
                f"free. Set ${FOLDER_VARIABLE} to a folder of a larger disk, or ${SIZE_VARIABLE} lower"
            )
        temporary = self._path.with_suffix(".tmp")
        try:
            self.remote.fetch(self.tar, temporary)
            with temporary.open("rb") as stream:
                self._check(stream.fileno())
                os.fsync(stream.fileno())
                with self.cache.locked(".lock"):
                    self.cache.make_room(self.size)
                    rename_durably(temporary, self._path)
                return os.dup(stream.fileno())
        finally:
            temporary.unlink(missing_ok=True)

    def _check(self, file: int) -> None:
        size = os.fstat(file).st_size
        digest = hashlib.sha256()
        for start in range(0, size, CHUNK_BYTES):
            digest.update(os.pread(file, CHUNK_BYTES, start))
        if (size, digest.hexdigest()) != (self.size, self.sha256):
            raise self._error(
                f"was fetched as {size} bytes of sha256 {digest.hexdigest()}, needed {self.size} bytes of "
                f"sha256 {self.sha256}. Run again; if that does not help, copy the shard there again"
            )

    def _error(self, problem: str) -> DataError:
        return DataError(problem, shard=self.remote.at(self.tar))


def _has_locked(file: int, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
