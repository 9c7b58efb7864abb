"""Finding the audio files below a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_shards.errors import CorpusError

AUDIO_EXTENSIONS = (
    ".wav", ".wave", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc",
)  # fmt: skip

# What pathlib leaves of `s3://bucket/fg`. Two letters at least: `C:/` is a folder elsewhere.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)")


@dataclass(frozen=True)
class FoundFile:
    """An audio file. `source` is what the corpus calls it, `stem` its relative path without the extension.

    size and mtime_ns are -1 for a link that leads nowhere.
    """

    path: str
    source: str
    stem: str
    size: int
    mtime_ns: int


def require_local(folder: Path, what: str) -> None:
    """Raise CorpusError when `folder` was given as a URL; `what` starts the text."""
    url = _URL.fullmatch(str(folder))
    if url and not folder.exists():
        raise CorpusError(
            f"{what} {url['scheme']}://{url['rest']} is a URL, but only folders of this machine can be used. "
            "Copy it to a disk or mount it, and give that folder"
        )


def first_audio_file(folder: Path) -> Path | None:
    """Some audio file below `folder`, or None. Folders that may not be read are passed over."""
    return next(_walk(folder), None)


def _walk(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Audio files below `folder`. Links are followed, each folder once; hidden names are passed over."""
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            # macOS leaves `._NAME.wav` beside NAME.wav, which is no audio.
            if not name.startswith(".") and name.lower().endswith(AUDIO_EXTENSIONS):
                yield Path(where) / name


def find_audio(folder: Path, label: str = "") -> list[FoundFile]:
    """Audio files below `folder`, sorted by source. `label` is put before their sources.

    Raises: OSError for a folder that may not be read, whose files would otherwise be missing unnoticed.
    """
    found = []
    for path in _walk(folder, _raise):
        # A name that is no UTF-8 must still be printable and go into JSON.
        relative = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        stem = str(PurePosixPath(relative).with_suffix(""))
        source = f"{label}/{relative}" if label else relative
        try:
            status = path.stat()
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:
            size = mtime_ns = -1
        found.append(FoundFile(os.fspath(path), source, stem, size, mtime_ns))
    return sorted(found, key=lambda file: file.source)


def _raise(error: OSError) -> None:
    raise error
