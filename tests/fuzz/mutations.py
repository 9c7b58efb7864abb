"""Spoiled content, each time from a generator of its own: bytes, texts, and JSON that is still JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

_EXTREMES = (
    0,
    1,
    2,
    2**7 - 1,
    2**7,
    2**8 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**33,
    2**63,
    2**64 - 1,
)
_INTEGERS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_DEEP = 20_000
RAW = "@RAW@"
"""Stands in JSON for text that `json.dumps` would not write."""
_RAW_TEXTS = (
    "[" * _DEEP, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "0" + "}" * 3000, "9" * 5000, "1e999", "-1e-999", "NaN",
    "-Infinity", "01", "'x'", '"\\ud800"', '"\\u0000"', "", "tru", "{} {}",
)  # fmt: skip
_VALUES = (
    None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e308, 5e-324, 2**31, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**40,
    10**400, float("inf"), float("nan"), "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/../../b",
    "a\0b", "a\nb", "\ud800", "x" * 70_000, "step-0000001", "fg-000000.tar", "0" * 64, "f" * 64, [], {}, [[]],
    [None], {"": None}, [0] * 3, "\u202e", "${HOME}", "{0.__class__}", "%s%n", "-rf", RAW,
)  # fmt: skip
_YAML = (
    "&a [*a, *a]", "*a", "!!python/object/apply:os.system ['touch owned']", "!!python/name:os.system", "!x", "<<: *a",
    "? a", "- - - -", "|", ">-", "%YAML 9.9", "---", "...", "{", "[", '"', "'", "#", "\t", "1e999", "0x1F", "0o17",
    "1_0", "1:30", ".nan", "-.inf", "~", "yes", "2001-01-01", "'", "\\x00", '"\\UFFFFFFFF"',
    "extends: ../../etc/passwd", "a" * 5000, "9" * 5000, "[" * 2000,
    "{a: " * 2000, "- " * 2000, "\u2028", "\ufeff", "a: {b: {c: {d: 1}}}",
)  # fmt: skip
LAUGHS = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(20)
)


def spoiled_bytes(rng: Random, data: bytes, most: int = 4) -> bytes:
    """`data` after one to `most` changes, half of them near its start, where headers are."""
    if rng.random() < 0.02:
        return rng.choice((b"", b"\0", rng.randbytes(rng.randrange(1, 2000)), bytes(5000), b"\xff" * 5000))
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        rng.choice(_BYTE_CHANGES)(rng, changed)
    return bytes(changed)


def _place(rng: Random, data: bytearray) -> int:
    end = min(len(data), 200) if rng.random() < 0.5 else len(data)
    return rng.randrange(end) if end else 0


def _flip(rng: Random, data: bytearray) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _integer(rng: Random, data: bytearray) -> None:
    form, at = rng.choice(_INTEGERS), _place(rng, data)
    size = struct.calcsize(form)
    data[at : at + size] = struct.pack(form, rng.choice(_EXTREMES) % (1 << 8 * size))


def _cut(rng: Random, data: bytearray) -> None:
    del data[_place(rng, data) :]


def _insert(rng: Random, data: bytearray) -> None:
    at = _place(rng, data)
    data[at:at] = rng.choice(
        (rng.randbytes(rng.randint(1, 64)), bytes(rng.randint(1, 600)), data[: rng.randint(0, 600)])
    )


def _remove(rng: Random, data: bytearray) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 8, 512))]


def _zero(rng: Random, data: bytearray) -> None:
    at = _place(rng, data)
    length = min(rng.choice((1, 4, 16, 512)), len(data) - at)
    data[at : at + length] = rng.choice((b"\0", b"\xff", b"7", b" ")) * length


_BYTE_CHANGES: tuple[Callable[[Random, bytearray], None], ...] = (
    _flip,
    _flip,
    _integer,
    _integer,
    _cut,
    _insert,
    _remove,
    _zero,
)


def spoiled_text(rng: Random, text: str) -> bytes:
    """YAML or another text by lines with one to four changes; now and then its bytes are spoiled too."""
    if rng.random() < 0.01:
        return LAUGHS.encode()
    lines = text.split("\n")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        key, colon, value = lines[at].partition(":")
        lines[at : at + 1] = rng.choice((
            [], [lines[at]] * 2, [f"{key}{colon} {rng.choice(_YAML)}"], [f"{key}{colon} {scalar(rng)}"],
            [f"  {lines[at]}"], [lines[at].lstrip()], [f"{rng.choice(_YAML)}{colon}{value}"],
            [lines[at], rng.choice(lines)],
        ))  # fmt: skip
        lines = lines or [""]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return spoiled_bytes(rng, data, 2) if rng.random() < 0.2 else data


def scalar(rng: Random) -> str:
    """A value as one would write it behind a key."""
    value = rng.choice(_VALUES)
    return value if isinstance(value, str) else json.dumps(value)


def spoiled_json(rng: Random, value: Any) -> bytes:
    """JSON of `value` with one to three values changed, keys removed, added or doubled; now and then spoiled bytes."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        value = _changed(rng, value)
    text = json.dumps(value, indent=rng.choice((None, 1)))
    text = text.replace(json.dumps(RAW), rng.choice(_RAW_TEXTS))
    data = text.encode("utf-8", "surrogatepass")
    return spoiled_bytes(rng, data, 2) if rng.random() < 0.2 else data


def changed_json(rng: Random, value: Any) -> Any:
    """`value` with one to three changes, as Python values that JSON can say."""
    for _ in range(rng.randint(1, 3)):
        value = _changed(rng, json.loads(json.dumps(value)))
    return value


def _changed(rng: Random, value: Any) -> Any:
    """A copy of `value` with one change somewhere in it."""
    children = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    if type(value) in (int, float) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, value * 2, -value, value // 2, value * 1000, value % 7))
    if not children or rng.random() < 0.1:
        return rng.choice(_VALUES)
    key = rng.choice(children)
    copy = value.copy()
    choice = rng.random()
    if choice < 0.7:
        copy[key] = _changed(rng, value[key])
    elif choice < 0.8:
        del copy[key]
    elif isinstance(copy, list):
        copy.insert(rng.randrange(len(copy)), rng.choice((value[key], rng.choice(_VALUES))))
    else:
        copy[str(rng.choice(_VALUES))] = value[key]
    return copy
