"""The list of contents of a checkpoint: what it was, and size and sha256 of every file.

A folder `step-0000500` is a checkpoint when its `manifest.json` verifies. The manifest carries a checksum of
itself, so one changed byte anywhere is seen.
"""

from __future__ import annotations

import hashlib
import json
import re
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
_FOLDER = re.compile(r"step-([0-9]{7,12})")
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
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
        is_same = text == encode(content, indent=1) + "\n"
        if not is_same or content.pop("checksum") != _checksum(content):
            raise DamagedCheckpoint(f"{path} is changed: it does not fit its own checksum")
        if content["format"] != FORMAT:
            raise DamagedCheckpoint(f"{path} has format {content['format']}; this version reads {FORMAT}")
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
        state = State(**content["state"])
        if step_of(folder) not in (None, state.step):
            raise DamagedCheckpoint(f"{path} is of step {state.step}, not of {folder.name}")
        for name in files:
            _require_inside(folder, name)
        return Manifest(state, content["record"], files)
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error
    except DamagedCheckpoint:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} is not a manifest ({error})") from error


def verify(folder: Path) -> Manifest:
    """The manifest of `folder` after every byte was compared with it.

    Raises DamagedCheckpoint naming the first file that is missing, cut, changed, or not inside the folder.
    """
    manifest = read_manifest(folder)
    names = sorted(manifest.files)
    try:
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            entries = list(pool.map(lambda name: _measure(folder / name), names))
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename} cannot be read ({error.strerror})") from error
    for name, entry in zip(names, entries, strict=True):
        size, digest = manifest.files[name]
        if entry[0] != size:
            raise DamagedCheckpoint(f"{folder / name} has {entry[0]} bytes, the manifest says {size}")
        if entry[1] != digest:
            raise DamagedCheckpoint(f"{folder / name} is changed: its sha256 is not that of the manifest")
    return manifest


def _require_inside(folder: Path, name: str) -> None:
    path = folder / name
    steps = [path, *path.parents][: len(Path(name).parts)]
    if Path(name).is_absolute() or ".." in Path(name).parts or any(step.is_symlink() for step in steps):
        raise DamagedCheckpoint(f"{folder / MANIFEST} names {name!r}, which is not a file of the folder")


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
