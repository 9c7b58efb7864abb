"""The list of contents of a checkpoint: what it was, and size and sha256 of every file.

A folder `step-0000500` is a checkpoint when its `manifest.json` verifies. The manifest carries a checksum of
itself, so one changed byte anywhere is seen.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enhancer.engine import atomic
from enhancer.engine.records import encode
from enhancer.engine.state import State

FORMAT = 1
MANIFEST = "manifest.json"
FROZEN = "frozen"
"""A folder of trained modules that a run works with, which has a manifest as checkpoints have: `enhancer.frozen`."""
MAX_MANIFEST_BYTES = 1 << 26
_FOLDER = re.compile(r"step-([0-9]{7,12})")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 62
_HASH_THREADS = 4
_CHUNK_BYTES = 1 << 20


Entry = tuple[int, str]
"""Size in bytes and sha256 of a file."""


class DamagedCheckpoint(ValueError):
    """A checkpoint folder that is not what its manifest says; the text names the file."""


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`. `files` maps names relative to the folder to (bytes, sha256)."""

    state: State
    record: dict[str, Any]
    files: dict[str, Entry]

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(size for size, _ in self.files.values())


def folder_name(step: int) -> str:
    """`step-0000500` of 500."""
    return f"step-{step:07d}"


def step_of(folder: Path) -> int | None:
    """500 of `step-0000500`; None for any other name."""
    match = _FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def committed(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all published checkpoints in `checkpoints`, the newest first, unverified."""
    if not checkpoints.is_dir():
        return []
    found = [(step_of(path), path) for path in checkpoints.iterdir() if path.is_dir()]
    return sorted(((step, path) for step, path in found if step is not None), reverse=True)


def sync_and_measure(path: Path) -> Entry:
    """Size and sha256 of `path`, which is on the disk when this returns. Raises OSError."""
    atomic.sync_file(path)
    return _measure(path)


def write_manifest(
    folder: Path, state: State, record: Mapping[str, Any], files: Mapping[str, Entry] | None = None
) -> None:
    """Write the manifest of `folder`, durably. Raises OSError.

    `files` are on the disk, as `sync_and_measure` found them; None for all there are. One that is not seen from here is
    an error: its rank writes into a folder of another machine.
    """
    if files is None:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): sync_and_measure(path) for path in paths}
    for name, (size, _) in files.items():
        seen = (folder / name).stat().st_size
        if seen != size:
            raise OSError(f"{folder / name} has {seen} bytes here, its rank wrote {size}")
    content = {
        "format": FORMAT,
        "state": asdict(state),
        "record": dict(record),
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())},
    }
    text = encode({**content, "checksum": _checksum(content)}, indent=1)
    atomic.write_text(folder / MANIFEST, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, itself verified, its files not, but all their places are in the folder.

    Raises DamagedCheckpoint.
    """
    path = folder / MANIFEST
    if folder.is_symlink() and step_of(folder) is not None:
        raise DamagedCheckpoint(f"{folder} is a link; put the folder that it leads to in its place")
    try:
        text = read_inside(folder, MANIFEST, MAX_MANIFEST_BYTES).decode("utf-8")
        content = json.loads(text)
        is_same = text == encode(content, indent=1) + "\n"
        if not is_same or content.pop("checksum") != _checksum(content):
            raise DamagedCheckpoint(f"{path} is changed: it does not fit its own checksum")
        if content["format"] != FORMAT:
            raise DamagedCheckpoint(f"{path} has format {content['format']}; this version reads {FORMAT}")
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
        manifest = Manifest(State(**content["state"]), content["record"], files)
        _check(manifest, path)
    except DamagedCheckpoint:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} is not a manifest ({error})") from error
    if step_of(folder) not in (None, manifest.state.step):
        raise DamagedCheckpoint(f"{path} is of step {manifest.state.step}, not of {folder.name}")
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of `folder` after every byte was compared with it.

    Raises DamagedCheckpoint naming the first file that is missing, cut, changed, or not inside the folder.
    """
    manifest = read_manifest(folder)
    names = sorted(manifest.files)
    for name in names:  # All sizes first: what they find costs nothing.
        _check_size(folder, name, manifest)
    try:
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            digests = list(pool.map(lambda name: _measure(folder / name)[1], names))
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename} cannot be read ({error.strerror})") from error
    for name, digest in zip(names, digests, strict=True):
        _check_digest(folder, name, manifest, digest)
    return manifest


def read_verified(folder: Path, name: str) -> tuple[Manifest, bytes]:
    """The manifest of `folder`, and file `name` as it is listed there. Raises DamagedCheckpoint for any other."""
    manifest = read_manifest(folder)
    if name not in manifest.files:
        raise DamagedCheckpoint(f"{folder / MANIFEST} lists no {name}")
    _check_size(folder, name, manifest)
    data = read_inside(folder, name, manifest.files[name][0])
    _check_digest(folder, name, manifest, hashlib.sha256(data).hexdigest())
    return manifest, data


def _check(manifest: Manifest, path: Path) -> None:
    """Raise for values that no checkpoint has, and for names that lead out of the folder."""
    counts = asdict(manifest.state)
    best = counts.pop("best")
    if not all(type(count) is int and 0 <= count < _MOST for count in counts.values()):
        raise DamagedCheckpoint(f"{path} has a state that no run is in: {counts}")
    if not (best is None or type(best) in (int, float)) or not isinstance(manifest.record, dict):
        raise DamagedCheckpoint(f"{path} has no number as its best value, or no object as its record")
    for name, (size, digest) in manifest.files.items():
        if not _NAME.fullmatch(name):
            raise DamagedCheckpoint(f"{path} names {name!r:.80}, which is not a file of the folder")
        if type(size) is not int or not 0 <= size < _MOST or not _SHA256.fullmatch(digest):
            raise DamagedCheckpoint(f"{path} has no size and sha256 of {name}")


def _check_size(folder: Path, name: str, manifest: Manifest) -> None:
    size, needed = _size_inside(folder, name), manifest.files[name][0]
    if size != needed:
        raise DamagedCheckpoint(f"{folder / name} has {size} bytes, the manifest says {needed}")


def _check_digest(folder: Path, name: str, manifest: Manifest, digest: str) -> None:
    if digest != manifest.files[name][1]:
        raise DamagedCheckpoint(f"{folder / name} is changed: its sha256 is not that of the manifest")


def _size_inside(folder: Path, name: str) -> int:
    """Bytes of a regular file that no link leads to: pipes and devices would never end."""
    path, parts = folder / name, name.split("/")
    try:
        status = [folder.joinpath(*parts[: 1 + depth]).lstat() for depth in range(len(parts))]
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error
    if any(stat.S_ISLNK(each.st_mode) for each in status) or not stat.S_ISREG(status[-1].st_mode):
        raise DamagedCheckpoint(f"{path} is a link or no regular file; copy the whole folder again")
    return status[-1].st_size


def read_inside(folder: Path, name: str, most_bytes: int) -> bytes:
    """The bytes of file `name` of `folder`. Raises DamagedCheckpoint where it is a link, no file, or too long."""
    size = _size_inside(folder, name)
    if size > most_bytes:
        raise DamagedCheckpoint(f"{folder / name} has {size} bytes; at most {most_bytes} were expected")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"{folder / name} cannot be read ({error.strerror})") from error


def _measure(path: Path) -> Entry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(json.loads(encode(content)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
