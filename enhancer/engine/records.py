"""Records as strict JSON, one a line: what is not finite becomes null, for JSON has no NaN."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from enhancer.engine import atomic
from hparams.errors import UserError


def encode(value: Any, indent: int | None = None) -> str:
    """Strict JSON of `value`; NaN and infinities, at any depth, are written as null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def append(path: Path, lines: Sequence[str]) -> None:
    """Add `lines`, records that were encoded, to the end of `path`: all of them, or none with an OSError.

    A torn last line, of a writer that was killed within it, is cut off before.
    """
    rest = "".join(line + "\n" for line in lines).encode("utf-8")
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size and _last_byte(file) != b"\n":
            size = path.read_bytes().rfind(b"\n") + 1
            file.truncate(size)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)  # A torn line would spoil the one that comes after it.
            raise


def _last_byte(file: FileIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1) or b""


def read(path: Path) -> list[dict[str, Any]]:
    """All records of `path`, none when it does not exist. A torn last line is left out.

    Raises UserError naming any other line that is no JSON object.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # The last piece has no line end: a writer was killed within the line.
            if number == len(lines):
                break
            raise UserError(f"{path}:{number} is not JSON; remove that line") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number} is no JSON object; remove that line")
        records.append(record)
    return records


def drop(path: Path, is_unwanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite `path` without the records that are unwanted and without a torn last line."""
    if path.exists():
        kept = [record for record in read(path) if not is_unwanted(record)]
        atomic.write_text(path, "".join(encode(record) + "\n" for record in kept))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return value
