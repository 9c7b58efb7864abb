"""The folder of a run: its resolved hyper-parameters, its status, the lock that keeps a second one out."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from enhancer.engine import atomic, distributed, folder_lock, records
from enhancer.engine.folder_lock import FolderTakenError
from enhancer.engine.launcher import started_unix
from enhancer.engine.manifest import DamagedCheckpoint, committed, read_manifest
from enhancer.engine.status import EXIT_CODES, STATUS, STOP, write_status
from hparams.errors import UserError
from hparams.load import difference, dump, load_resolved
from hparams.schema import HParams

HPARAMS = "hparams.yaml"
METRICS = "metrics.jsonl"

# These do not change what is learned. Of the corpora only the place may change: every checkpoint holds their
# fingerprint. max_steps, and on a plateau eval_every, bend the rest of the learning rate, as asked for.
MAY_CHANGE = {
    *("nj", "log_every", "eval_every", "save_every", "data_timeout_seconds", "comm_timeout_seconds"),
    *("hang_timeout_seconds", "stall_timeout_seconds"),
    *("keep_checkpoints", "keep_every_steps", "async_checkpoints", "checkpoint_copy_url"),
    "copy_timeout_seconds",
    *("max_steps", "early_stop_patience", "max_bad_steps", "fg_dir", "bg_dir", "rir_dir", "pair_dir"),
}
# Nor do these where the global batch stays.
BATCH = {"batch_size_per_gpu", "gradient_accumulation_steps"}
Change = tuple[str, Any, Any]


class Run:
    """An opened run folder. Rank 0 writes; the other ranks call the same methods, which do nothing there."""

    def __init__(self, folder: Path, max_steps: int, changes: list[Change] | None) -> None:
        self.folder = folder
        self.changes = changes or []
        """(key, old value, new value) of what this command changed in the run."""
        self._is_new = changes is None
        self.step = 0
        """Steps behind the run, for a status written where training fails."""
        self._max_steps = max_steps
        self._started = _now()
        self._lock: int | None = None

    @classmethod
    def open(cls, folder: Path, hp: HParams, fetch: Callable[[Path], None] | None = None) -> Run:
        """Make or go on in `folder` with `hp`, without the STOP file that ended the run before. Called by all ranks.

        `fetch` may fill a folder without checkpoints from elsewhere; it is called once the folder is locked.

        Raises UserError on all ranks alike: the folder cannot be written, another process trains in it, or it
        holds a run of other hyper-parameters than may change.
        """
        world_size = distributed.world_size()
        lock, changes = distributed.on_main(lambda: _prepare(folder, hp, world_size, fetch))
        run = cls(folder, hp.max_steps, changes)
        run._lock = lock if distributed.is_main() else None
        return run

    def status(
        self,
        state: str,
        step: int,
        reason: str = "",
        exit_code: int | None = None,
        *,
        is_forced: bool = False,
    ) -> None:
        """Replace `status.json`. `state` is running, finished, preempted, diverged or failed.

        `is_forced`: also on another rank than 0, which may be the one that is lost.
        """
        self.step = step
        if not (is_forced or distributed.is_main()):
            return
        content = {
            "state": state,
            "step": step,
            "max_steps": self._max_steps,
            "reason": reason,
            "exit_code": EXIT_CODES.get(state) if exit_code is None else exit_code,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": _now(),
        }
        write_status(self.folder / STATUS, records.encode(content, indent=1) + "\n", state != "running")

    def take_back(self) -> None:
        """Remove `hparams.yaml` where this command wrote the first one and training never began.

        The command that comes next, with the mistake corrected, may have other values.
        """
        if self._is_new and distributed.is_main():
            (self.folder / HPARAMS).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others into the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _prepare(
    folder: Path, hp: HParams, world_size: int, fetch: Callable[[Path], None] | None
) -> tuple[int, list[Change] | None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(folder)
        try:
            atomic.remove_debris(folder)
            if fetch is not None:
                fetch(folder)
            changes = _write_hparams(folder, hp, world_size)
            # Here, where the other ranks still wait: they must not take the old file for a new request.
            _remove_old_request(folder / STOP)
            return lock, changes
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be written ({error.strerror}); "
            "give another --run-dir or make it writable"
        ) from error


def _remove_old_request(stop_file: Path) -> None:
    """Remove a STOP file that is older than this process: a later one is for this start.

    It is put aside first, since it may be written anew between a look at it and its removal. Its time is that of the
    machine that keeps the folder, whose clock may differ from this one's: the lock file beside it tells by how much.
    """
    aside = stop_file.with_name(atomic.temporary_name(STOP))
    with contextlib.suppress(FileNotFoundError):
        os.rename(stop_file, aside)
        os.utime(stop_file.with_name(folder_lock.LOCK))
        ahead_seconds = stop_file.with_name(folder_lock.LOCK).stat().st_mtime - time.time()
        is_old = aside.stat().st_mtime - ahead_seconds < started_unix()
        if is_old:
            aside.unlink()
        else:
            os.replace(aside, stop_file)


def _write_hparams(folder: Path, hp: HParams, world_size: int) -> list[Change] | None:
    """What `hp` changes in the run, None where it is the first in this folder."""
    path = folder / HPARAMS
    if not path.exists():
        if committed(folder / "checkpoints"):
            raise UserError(
                f"{folder} has checkpoints but no {HPARAMS}, so nobody can tell whether this is the same run. "
                f"Put the file back, or give another --run-dir and --init-from {folder}"
            )
        atomic.write_text(path, dump(hp))
        return None
    changes = _accepted_changes(folder, path, hp, world_size)
    if changes:
        records.append(folder / METRICS, [records.encode(_change_record(folder, changes))])
        atomic.write_text(path, dump(hp))
    return changes


def _take_lock(folder: Path) -> int:
    """Descriptor that holds the lock of `folder` for this process. Raises UserError where another has it."""
    try:
        return folder_lock.take(folder)
    except FolderTakenError as taken:
        raise UserError(
            f"another training writes into {folder} ({taken}); "
            f"end it (touch {folder / STOP}) or give another --run-dir"
        ) from taken


def _accepted_changes(folder: Path, path: Path, hp: HParams, world_size: int) -> list[Change]:
    """What `hp` changes in the run, all of it allowed. Raises UserError that shows what is not."""
    changes = difference(load_resolved(path), hp)
    newest = _newest_manifest(folder)
    refused = [change for change in changes if change[0] not in MAY_CHANGE]
    if newest is not None:
        step, global_batch = newest
        if hp.max_steps < step:
            raise UserError(
                f"max_steps is {hp.max_steps}, below the resumed step: {folder} has {step} steps behind it. "
                f"Set max_steps to {step} or more, or start afresh with another --run-dir"
            )
        if hp.batch_size_per_gpu * hp.gradient_accumulation_steps * world_size == global_batch:
            refused = [change for change in refused if change[0] not in BATCH]
    if refused:
        lines = "\n".join(f"  {key}: the run has {was}, the command gives {now}" for key, was, now in refused)
        raise UserError(
            f"{folder} holds a run of other hyper-parameters:\n{lines}\n"
            "Give another --run-dir for a new run, or leave out what differs (--set, --hparams) to go on."
        )
    return changes


def _newest_manifest(folder: Path) -> tuple[int, int | None] | None:
    """(step, global batch) of the newest checkpoint with a readable manifest."""
    for step, checkpoint in committed(folder / "checkpoints"):
        try:
            return step, read_manifest(checkpoint).record.get("global_batch")
        except DamagedCheckpoint:
            continue
    return None


def _change_record(folder: Path, changes: list[Change]) -> dict[str, Any]:
    newest = _newest_manifest(folder)
    return {
        "kind": "event",
        "name": "hparams_changed",
        "step": newest[0] if newest else 0,
        "text": "; ".join(f"{key}: {was} -> {now}" for key, was, now in changes),
        "changes": [{"key": key, "old": was, "new": now} for key, was, now in changes],
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
