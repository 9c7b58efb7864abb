"""Records as strict JSON, one a line: what is not finite becomes null, for JSON has no NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from enhancer.engine import atomic
from hparams.errors import UserError


def encode(value: Any, indent: int | None = None) -> str:
    """Strict JSON of `value`; NaN and infinities, at any depth, are written as null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add `record` as the last line of `path`. Raises UserError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(encode(record) + "\n")
    except OSError as error:
        raise UserError(
            f"{path}: a line cannot be written ({error.strerror}); make room or mend the disk, then run again"
        ) from error


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
