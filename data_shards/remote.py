"""Files of a corpus, or copies of a run, that lie at a URL, by any protocol that fsspec knows.

Nothing is tried twice here, beyond what the protocol's own package does; whatever it raises becomes one text
that names the URL. fsspec is imported at the first use: loader workers of local corpora start without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_shards.errors import CorpusError

# Requests under way at once where the protocol's package allows it.
MAX_REQUESTS = 16
HTTP_STALL_SECONDS = 60.0
_T = TypeVar("_T")


class RemoteError(CorpusError):
    """A file at `url` could not be had; `problem` says why and what to do, without the URL."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"{url} {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.problem)


class RemoteMissing(RemoteError):
    """There is no such file."""


@dataclass(frozen=True)
class RemoteFolder:
    """The files below `url`. Every method raises RemoteError."""

    url: str

    def at(self, name: str) -> str:
        """The URL of file `name`."""
        return f"{self.url.rstrip('/')}/{name}"

    def read(self, names: list[str]) -> list[bytes]:
        """The whole content of each file, in order."""
        return self._each(names, lambda system, path: system.cat_file(path))

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file, in order; None where the server does not tell."""
        return self._each(names, lambda system, path: system.size(path))

    def fetch(self, name: str, target: Path) -> None:
        """Copy file `name` to `target`, which is not flushed to the disk, and may be left cut by an error."""
        system, root = self._connect()
        with _told(self.at(name)):
            system.get_file(_join(root, name), str(target))

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders directly in `folder` ("": the whole), none where it does not exist."""
        system, root = self._connect()
        with _told(self.at(folder)):
            system.invalidate_cache()
            try:
                paths = system.ls(_join(root, folder).rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def send(self, source: Path, name: str) -> None:
        """Copy the file `source` to file `name`, whose folder need not exist. An error may leave it cut."""
        system, root = self._connect()
        path = _join(root, name)
        with _told(self.at(name), "written"):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.put_file(str(source), path)

    def remove(self, name: str) -> None:
        """Delete file `name`, or the folder with all that is in it."""
        system, root = self._connect()
        with _told(self.at(name), "removed"):
            system.rm(_join(root, name), recursive=True)

    def _each(self, names: list[str], get: Callable[[Any, str], _T]) -> list[_T]:
        from concurrent.futures import ThreadPoolExecutor

        system, root = self._connect()

        def one(name: str) -> _T:
            with _told(self.at(name)):
                return get(system, _join(root, name))

        # Protocols that are not asynchronous may hold one connection that threads cannot share.
        executor = ThreadPoolExecutor(MAX_REQUESTS if system.async_impl else 1)
        try:
            return list(executor.map(one, names))
        finally:
            executor.shutdown(cancel_futures=True)

    def _connect(self) -> tuple[Any, str]:
        """fsspec's file system of the protocol, and the path of the folder in it."""
        from fsspec.core import url_to_fs

        if "::" in self.url:
            # A chain may name another program's index of files, whose templates older versions of fsspec execute.
            raise RemoteError(
                self.url, "is a chain of URLs, which is not allowed. Give the one where the corpus lies"
            )
        try:
            system, root = url_to_fs(self.url, **_options(self.url))
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or error.name or "of the protocol"
            raise RemoteError(
                self.url,
                f"needs the Python package {missing}, which cannot be imported ({error}). "
                f"Install it, such as by `pip install {missing}`, or use a folder of a disk",
            ) from error
        except Exception as error:
            raise RemoteError(
                self.url, f"cannot be used: {error}. Check the URL, or use a folder of a disk"
            ) from error
        return system, root


def _options(url: str) -> dict[str, Any]:
    """What fsspec's file system for `url` is made with, beside the user's configuration of fsspec."""
    scheme = url.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout
    from fsspec.config import conf

    # aiohttp ends any transfer after five minutes; what counts is that bytes arrive.
    timeout = ClientTimeout(total=None, sock_connect=HTTP_STALL_SECONDS, sock_read=HTTP_STALL_SECONDS)
    return {"client_kwargs": {"timeout": timeout, **conf.get(scheme, {}).get("client_kwargs", {})}}


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"


@contextmanager
def _told(url: str, verb: str = "read") -> Iterator[None]:
    """Any error of a protocol's package as RemoteError: they share no class but Exception."""
    try:
        yield
    except FileNotFoundError as error:
        raise RemoteMissing(
            url, "is missing. Check the URL, or copy it again from where it is whole"
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise RemoteError(
            url, f"cannot be {verb}: {text}. Check the URL, the network and the access rights, and run again"
        ) from error
