"""A folder that one process at a time works in, by a lock file in it that says who does.

Locks are the kernel's, which takes them back from a process that died.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP}


class FolderTakenError(Exception):
    """Another process works in the folder; the text is who: `process 4711 on elsewhere since ...`."""


def take(folder: Path) -> int:
    """Descriptor that keeps `folder` to this process until it is closed. Raises FolderTakenError, or OSError.

    Some cluster file systems have no locks; there two processes at once are the user's to avoid.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{this_process()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def holder(folder: Path) -> str | None:
    """Who works in `folder`; None where nobody does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor)
    except FolderTakenError as taken:
        return str(taken)
    finally:
        os.close(descriptor)
    return None


def this_process() -> str:
    """This process in words, with the time."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {now}"


def _lock(descriptor: int) -> None:
    try:
        # Of the process, not of the open file: children that outlive a killed one do not keep it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise FolderTakenError(owner or "process unknown") from error
        if error.errno not in _NO_LOCKS:
            raise
