"""Copies of a run's checkpoints at a URL, complete when their manifest is there, and the way back from them.

URL/hparams.yaml, metrics.jsonl
URL/checkpoints/step-0000500/   the files of a checkpoint; manifest.json is sent last
URL/checkpoints/LATEST, BEST
URL/frozen/                     the trained modules that a run works with, where it has some; their manifest.json last
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from enhancer.engine import atomic
from enhancer.engine.background import Background
from enhancer.engine.manifest import (
    FROZEN,
    MANIFEST,
    DamagedCheckpoint,
    committed,
    read_manifest,
    step_of,
    verify,
)
from enhancer.engine.pointers import BEST, LATEST, read_pointer, write_pointer
from enhancer.engine.retention import Retention
from enhancer.engine.run import HPARAMS, METRICS
from hparams.errors import UserError

CHECKPOINTS = "checkpoints"


class CopyError(UserError):
    """The copy of a checkpoint is refused or cannot be used. Failures of the protocol are the remote folder's own."""


class RemoteFolder(Protocol):
    """Files below a URL; every method raises UserError that names it. `data_shards.remote` has one of fsspec."""

    @property
    def url(self) -> str: ...

    def names(self, folder: str) -> list[str]:
        """Names of files and folders directly in `folder`, none where it does not exist."""

    def read(self, names: list[str]) -> list[bytes]:
        """The whole content of each file."""

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file, None where the server does not tell."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy file `name` to `target`."""

    def send(self, source: Path, name: str) -> None:
        """Copy `source` to file `name`, whose folder need not exist."""

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it."""


class Copies:
    """Keeps at `remote` what LATEST and BEST of the run in `folder` name, one file at a time beside training.

    Where checkpoints come faster than they can be sent, those between are left out. For rank 0.

    Args:
        on_failure: called when a copy has failed; `finish` then raises.
    """

    def __init__(
        self, remote: RemoteFolder, folder: Path, retention: Retention, on_failure: Callable[[str], None]
    ) -> None:
        self._remote = remote
        self._run = folder
        self._folder = folder / CHECKPOINTS
        self._retention = retention
        self._sender = Background("copies", on_failure)
        self._lock = threading.Lock()
        self._is_behind = False
        self._is_sending = False
        self._in_use: set[str] = set()
        self._amended: Counter[str] = Counter()
        self._sent: dict[str, int] = {}
        """How often a checkpoint that was sent had been amended by then."""

    def update(self, amended: str = "") -> None:
        """LATEST or BEST has changed, or the manifest of the checkpoint `amended`."""
        with self._lock:
            if amended:
                self._amended[amended] += 1
            self._is_behind = True
            if self._is_sending:
                return
            self._is_sending = True
        self._sender.finish()
        self._sender.start(self._send_all)

    def in_use(self) -> set[str]:
        """Names of the checkpoints that are being sent: they must stay."""
        with self._lock:
            return set(self._in_use)

    def is_done(self, wait_seconds: float) -> bool:
        """Whether all is sent, or has failed, after `wait_seconds` at most."""
        return self._sender.is_done(wait_seconds)

    def finish(self) -> None:
        """Wait until all is sent. Raises UserError where that failed."""
        self._sender.finish()

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._is_behind:
                    self._is_sending, self._in_use = False, set()
                    return
                self._is_behind = False
                latest, best = (self._pointed(name) for name in (LATEST, BEST))
                self._in_use = {latest, best} - {""}
            for name in dict.fromkeys((latest, best)):
                if name:
                    self._send(name)
            for pointer, name in ((LATEST, latest), (BEST, best)):
                if name:
                    self._remote.send(self._folder / pointer, f"{CHECKPOINTS}/{pointer}")
            self._remove_old({latest, best})

    def _pointed(self, pointer: str) -> str:
        try:
            return read_pointer(self._folder, pointer)
        except DamagedCheckpoint as error:
            raise CopyError(
                f"what {pointer} names cannot be copied to {self._remote.url}: {error}"
            ) from error

    def _send(self, name: str) -> None:
        """Send the checkpoint `name`, its manifest last, unless it is there."""
        num_amended = self._amended[name]
        if self._sent.get(name) == num_amended:
            return
        for file in (HPARAMS, METRICS):
            if (self._run / file).exists():
                self._remote.send(self._run / file, file)
        if FROZEN not in self._sent and (self._run / FROZEN).is_dir():
            self._send_folder(self._run / FROZEN, FROZEN)
            self._sent[FROZEN] = 0
        self._send_folder(self._folder / name, f"{CHECKPOINTS}/{name}")
        self._sent[name] = num_amended

    def _send_folder(self, folder: Path, place: str) -> None:
        """Send the files that the manifest of `folder` lists, itself last, unless they are there."""
        try:
            manifest = read_manifest(folder)
        except DamagedCheckpoint as error:
            raise CopyError(f"{folder.name} cannot be copied to {self._remote.url}: {error}") from error
        own = (folder / MANIFEST).read_bytes()
        other = self._manifest_there(place)
        if other is None or _files_of(other) != _files_of(own):
            if other is not None:  # Of a run that went another way from the checkpoint before.
                self._remote.remove(f"{place}/{MANIFEST}")
            for file in manifest.files:
                self._remote.send(folder / file, f"{place}/{file}")
            self._require_sizes(place, {file: size for file, (size, _) in manifest.files.items()})
        if other != own:
            self._remote.send(folder / MANIFEST, f"{place}/{MANIFEST}")

    def _manifest_there(self, place: str) -> bytes | None:
        if MANIFEST not in self._remote.names(place):
            return None
        return self._remote.read([f"{place}/{MANIFEST}"])[0]

    def _require_sizes(self, place: str, sizes: dict[str, int]) -> None:
        found = self._remote.sizes([f"{place}/{file}" for file in sizes])
        for (file, size), other in zip(sizes.items(), found, strict=True):
            if other not in (None, size):
                raise CopyError(
                    f"{self._remote.url}/{place}/{file} has {other} bytes after {size} were sent; see that nothing "
                    "else writes there, and run again"
                )

    def _remove_old(self, in_use: set[str]) -> None:
        names = {step: name for name in self._remote.names(CHECKPOINTS) if (step := step_of(Path(name)))}
        kept = self._retention.kept(names)
        for step, name in names.items():
            if step not in kept and name not in in_use:
                if MANIFEST in self._remote.names(f"{CHECKPOINTS}/{name}"):
                    self._remote.remove(f"{CHECKPOINTS}/{name}/{MANIFEST}")
                self._remote.remove(f"{CHECKPOINTS}/{name}")
                self._sent.pop(name, None)


def _files_of(manifest: bytes) -> Any:
    """What `manifest` says of the files, or nothing where it is cut."""
    try:
        return json.loads(manifest)["files"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def fetch_run(remote: RemoteFolder, folder: Path, say: Callable[[str], None]) -> None:
    """Fill the run `folder`, where it has no checkpoint, from `remote`: hyper-parameters, metrics, the newest whole
    checkpoint, and the best.

    Raises UserError where all copies are damaged or cannot be had. What is fetched appears whole or not at all.
    """
    checkpoints = folder / CHECKPOINTS
    if committed(checkpoints):
        return
    found = [(step, name) for name in remote.names(CHECKPOINTS) if (step := step_of(Path(name)))]
    if not found:
        return
    checkpoints.mkdir(parents=True, exist_ok=True)
    atomic.remove_debris(checkpoints)
    present = remote.names("")
    for file in (HPARAMS, METRICS):
        if file in present and not (folder / file).exists():
            atomic.write_bytes(folder / file, remote.read([file])[0])
    # One that is here is of a start that failed: the checkpoints there were trained with that one.
    if MANIFEST in remote.names(FROZEN) and not _fetch_first(remote, folder, [FROZEN], say, ""):
        raise CopyError(
            f"{remote.url}/{FROZEN}, which the run works with, is not whole; bring a whole copy there, or set "
            "checkpoint_copy_url to another place for a fresh run"
        )
    newest = _fetch_first(remote, checkpoints, [name for _, name in sorted(found, reverse=True)], say)
    if newest is None:
        raise CopyError(
            f"{remote.url} has no whole checkpoint. Set checkpoint_copy_url to another place for a fresh run, or "
            "bring a whole copy there"
        )
    if BEST in remote.names(CHECKPOINTS):
        best = Path(remote.read([f"{CHECKPOINTS}/{BEST}"])[0].decode("utf-8", "replace").strip()).name
        is_other = best != newest and step_of(Path(best)) is not None
        if best == newest or (is_other and _fetch_first(remote, checkpoints, [best], say)):
            write_pointer(checkpoints, BEST, best)
    write_pointer(checkpoints, LATEST, newest)


def _fetch_first(
    remote: RemoteFolder, folder: Path, names: list[str], say: Callable[[str], None], below: str = CHECKPOINTS
) -> str | None:
    """Name of the first of `names`, folders `below` the URL, that is whole, now in `folder`; None when none is."""
    for name in names:
        temporary = folder / atomic.temporary_name(name)
        try:
            temporary.mkdir()
            _fetch(remote, f"{below}/{name}" if below else name, temporary)
            atomic.publish_folder(temporary, folder / name)
        except DamagedCheckpoint as error:
            say(f"the copy of {name} at {remote.url} is refused: {error}")
        else:
            say(f"{name} fetched from {remote.url}")
            return name
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return None


def _fetch(remote: RemoteFolder, place: str, folder: Path) -> None:
    """The files of the copy at `place` into `folder`, on the disk.

    Raises DamagedCheckpoint where they are not whole.
    """
    name = Path(place).name
    present = remote.names(place)
    if MANIFEST not in present:
        raise DamagedCheckpoint(f"it has no {MANIFEST}, so it was not sent to the end")
    remote.fetch(f"{place}/{MANIFEST}", folder / MANIFEST)
    manifest = read_manifest(folder)
    if manifest.state.step != (step_of(Path(name)) or 0):
        raise DamagedCheckpoint(f"its {MANIFEST} is of step {manifest.state.step}")
    free = shutil.disk_usage(folder).free
    if free < manifest.total_bytes:
        raise CopyError(
            f"{name} at {remote.url} needs {manifest.total_bytes / 1e6:.1f} MB, the disk of {folder.parent} has "
            f"{free / 1e6:.1f} MB free. Make room or give another --run-dir"
        )
    for file in manifest.files:
        if Path(file).parts[0] not in present:
            raise DamagedCheckpoint(f"{file} is missing")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        remote.fetch(f"{place}/{file}", folder / file)
        atomic.sync_file(folder / file)
    verify(folder)
