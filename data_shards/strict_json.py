"""Strict reading of JSON that another program or a broken disk may have touched, and publishing whole files.

Every way in which the text can be wrong ends in `CorpusError` with the file and the key.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_shards.errors import CorpusError
from data_shards.format import is_shard_name

MAX_INTEGER = 2**62
VERSION = 1


class JsonObject:
    """One JSON object whose keys must all be taken, each with its type. `place` starts every error text."""

    def __init__(self, value: Any, place: str) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise self.error(f"is {_shown(value)}, not an object")
        self._rest = dict(value)

    def error(self, problem: str) -> CorpusError:
        """A CorpusError about this object."""
        return CorpusError(
            f"{self.place} {problem}. Rebuild the corpus, or copy it again from where it is whole"
        )

    def _take(self, key: str) -> Any:
        if key not in self._rest:
            raise self.error(f"has no `{key}`")
        return self._rest.pop(key)

    def text(self, key: str, allowed: Iterable[str] | None = None) -> str:
        """A string, one of `allowed` when given."""
        value = self._take(key)
        if type(value) is not str or (allowed is not None and value not in allowed):
            needed = "a string" if allowed is None else " or ".join(f"`{name}`" for name in allowed)
            raise self.error(f"has `{key}` {_shown(value)}; needed {needed}")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string or null."""
        value = self._take(key)
        if value is not None and type(value) is not str:
            raise self.error(f"has `{key}` {_shown(value)}; needed a string or null")
        return value

    def sha256(self, key: str) -> str:
        """A string of 64 hexadecimal digits."""
        value = self.text(key)
        if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise self.error(f"has `{key}` {_shown(value)}; needed 64 hexadecimal digits")
        return value

    def has(self, key: str) -> bool:
        """Whether there is a value under `key`, for keys that may be left out."""
        return key in self._rest

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """An integer in [low, high]."""
        value = self._take(key)
        if type(value) is not int or not low <= value <= high:
            raise self.error(f"has `{key}` {_shown(value)}; needed an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number in [low, high]."""
        value = self._take(key)
        if type(value) not in (int, float) or not (math.isfinite(value) and low <= value <= high):
            raise self.error(f"has `{key}` {_shown(value)}; needed a finite number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str) -> dict[str, float]:
        """An object of finite numbers by name."""
        value = self._take(key)
        if not isinstance(value, dict) or not all(
            type(number) in (int, float) and math.isfinite(number) for number in value.values()
        ):
            raise self.error(f"has `{key}` {_shown(value)}; needed an object of finite numbers")
        return {name: float(number) for name, number in value.items()}

    def list_of_objects(self, key: str) -> list[JsonObject]:
        """A list of objects."""
        values = self._list(key)
        return [JsonObject(value, f"{self.place} `{key}` number {at}") for at, value in enumerate(values)]

    def object(self, key: str) -> JsonObject:
        """A nested object."""
        return JsonObject(self._take(key), f"{self.place} `{key}`")

    def texts(self, key: str, length: int) -> list[str]:
        """A list of `length` strings."""
        return self._column(key, length, {str}, "strings")

    def integers(self, key: str, length: int, low: int = 0, high: int = MAX_INTEGER) -> list[int]:
        """A list of `length` integers in [low, high]."""
        values = self._column(key, length, {int}, "integers")
        if values and not (low <= min(values) and max(values) <= high):
            raise self.error(f"has a number outside [{low}, {high}] in `{key}`")
        return values

    def levels(self, key: str, length: int, high: float = 1.0) -> list[float]:
        """A list of `length` numbers in [0, high]."""
        values = self._column(key, length, {int, float}, "numbers")
        if values and not (all(map(math.isfinite, values)) and min(values) >= 0 and max(values) <= high):
            raise self.error(f"has a number outside [0, {high:g}] in `{key}`")
        return values

    def done(self) -> None:
        """Raise when a key was not taken."""
        if self._rest:
            raise self.error(f"has the unknown key `{next(iter(self._rest))}`")

    def _list(self, key: str) -> list[Any]:
        value = self._take(key)
        if type(value) is not list:
            raise self.error(f"has `{key}` {_shown(value)}; needed a list")
        return value

    def _column(self, key: str, length: int, types: set[type], what: str) -> list[Any]:
        values = self._list(key)
        if len(values) != length:
            raise self.error(f"has {len(values)} values in `{key}`; needed {length}")
        # One set of types per column is checked at C speed; a corpus may hold 1e6 samples.
        if not set(map(type, values)) <= types:
            raise self.error(f"has something else than {what} in `{key}`")
        return values


def parse_object(data: bytes, place: str) -> JsonObject:
    """The JSON object in `data`. Raises CorpusError when it is none; NaN and repeated keys are errors too."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        # JSONDecodeError and UnicodeDecodeError are ValueErrors; RecursionError is a thousand brackets.
        raise CorpusError(
            f"{place} is no valid JSON: {error}. Rebuild the corpus, or copy it again from where it is whole"
        ) from error
    return JsonObject(value, place)


def take_version(obj: JsonObject, name: str) -> None:
    """Check the keys `format` and `version`."""
    obj.text("format", (name,))
    version = obj.integer("version")
    if version != VERSION:
        raise CorpusError(
            f"{obj.place} has format version {version}; this program reads version {VERSION}. "
            "Rebuild the corpus with this program, or use the one that built it"
        )


def take_shard_name(obj: JsonObject, key: str) -> str:
    """Take a shard's file name; a path that leaves the folder is an error."""
    name = obj.text(key)
    if not is_shard_name(name):
        raise obj.error(
            f"has `{key}` {name[:60]!r}; needed a shard's name such as fg-000000.tar, without a folder"
        )
    return name


def dump(value: dict[str, Any]) -> bytes:
    """Compact JSON with one top-level key a line, equal for equal values."""
    lines = [f"{json.dumps(key)}: {json.dumps(part, separators=(',', ':'))}" for key, part in value.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def publish(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    rename_durably(temporary, path)


def rename_durably(temporary: Path, path: Path) -> None:
    """Rename a file that was fsynced, and fsync the folder so that the name survives too."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
