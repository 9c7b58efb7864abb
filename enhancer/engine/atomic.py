"""Files and folders that appear whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path

TEMPORARY = ".tmp-"
"""Part of every temporary name of this module; what holds it is debris once its writer is dead."""

_counter = itertools.count()


def temporary_name(name: str) -> str:
    """A hidden name that no other writer uses, for what will be renamed to `name`."""
    return f".{name}{TEMPORARY}{os.getpid()}-{next(_counter)}"


def write_bytes(path: Path, data: bytes, is_durable: bool = True) -> None:
    """Replace `path` by `data`. Readers see the old or the new content; on OSError the old one stays.

    `is_durable` waits until the disk has it; without, a power cut may bring the old content back.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if is_durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str, is_durable: bool = True) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"), is_durable)


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename `temporary`, whose files are on the disk already, to `final`.

    A folder that stands there is put aside first and deleted last: it is gone only when the new one stands.
    """
    sync_folder(temporary)
    aside = final.with_name(temporary_name(final.name))
    with contextlib.suppress(FileNotFoundError):
        os.rename(final, aside)
    os.rename(temporary, final)
    sync_folder(final.parent)
    if aside.exists():
        shutil.rmtree(aside)


def remove_folder(folder: Path) -> None:
    """Delete `folder`; it never stands half deleted under its own name. No error if it is not there."""
    doomed = folder.with_name(temporary_name(folder.name))
    try:
        os.rename(folder, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)


def remove_debris(folder: Path) -> None:
    """Delete what dead writers left in `folder`. Only for the one who may write there."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync_file(path: Path) -> None:
    """Wait until the disk has the content of `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`."""
    sync_file(folder)
