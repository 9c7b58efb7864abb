"""Finds out that a build of a torch extension waits for a lock that nobody holds: torch itself would wait for ever.

`torch.utils.cpp_extension` keeps a file `lock` beside a build for as long as it lasts. A killed build leaves it behind.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
from torch.utils.file_baton import FileBaton

# On a file system of several machines the builder may be elsewhere; no build takes longer.
_SHARED_BUILD_SECONDS = 1800.0
_SHARED = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "glusterfs",
    "9p",
    "fuse",
    "virtiofs",
    "afs",
)


class BuildLocks:
    """Looks at what the thread `thread_id` waits for.

    Args:
        patience_seconds: how long a lock must be seen without a holder.
    """

    def __init__(self, thread_id: int, patience_seconds: float) -> None:
        self._thread_id, self._patience_seconds = thread_id, patience_seconds
        self._waited: tuple[Path, float] | None = None

    def stale(self, now: float) -> Path | None:
        """The lock that is waited for in vain, if one is; call it about once a second."""
        path = waited_lock(self._thread_id)
        if path is None or is_held(path):
            self._waited = None
            return None
        if self._waited is None or self._waited[0] != path:
            self._waited = (path, now)
        return path if now - self._waited[1] > self._patience_seconds else None


def waited_lock(thread_id: int) -> Path | None:
    """The lock file that the thread waits for inside torch, if it does."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        if frame.f_code.co_name == "wait" and frame.f_code.co_filename.endswith("file_baton.py"):
            return Path(frame.f_locals["self"].lock_file_path)
        frame = frame.f_back
    return None


def release_held_lock(thread_id: int) -> None:
    """Remove the lock that the thread holds for a build, if it does. For a process that is about to end: no other start
    then waits for what nobody builds."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        baton = frame.f_locals.get("baton")
        if isinstance(baton, FileBaton) and baton.fd is not None:
            Path(baton.lock_file_path).unlink(missing_ok=True)
        frame = frame.f_back


def is_held(path: Path) -> bool:
    """Whether a process of this machine has `path` open; where other machines may have, whether it is young."""
    for process in psutil.process_iter():
        try:
            if any(Path(file.path) == path.resolve() for file in process.open_files()):
                return True
        except (psutil.Error, OSError):
            continue  # Of another user, or gone since.
    if not _is_shared(path):
        return False
    try:
        return time.time() - path.stat().st_mtime < _SHARED_BUILD_SECONDS
    except FileNotFoundError:
        return True  # Released just now.


def _is_shared(path: Path) -> bool:
    above = {str(parent) for parent in path.resolve().parents}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in above]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype.lower().startswith(_SHARED)
