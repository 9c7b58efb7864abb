"""How notes of strings are imported, and what a list says of them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import CorpusError
from data_shards.notes import ATTACK_MODES

_CSV_COLUMNS = ("file", "f0_hz", "velocity", "position")


@dataclass(frozen=True)
class StringOptions:
    """How notes are imported.

    Args:
        f0: `from-name`, `estimate`, or a number of Hz for all files. It says which note it is; the exact pitch is
            measured.
        octave: octaves to add to what names say; `auto`: as many as the sound says.
        attack: `cut` keeps the decay only, `keep` all from the onset on.
        rate_hz: sample rate of the corpus.
        max_reject: largest share of files that may be unusable.
        known: by source, what a list says of files; see `read_note_list`.
    """

    f0: str | float = "from-name"
    octave: str | int = "auto"
    attack: str = "cut"
    rate_hz: int = 44_100
    max_reject: float = 0.1
    known: dict[str, dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.f0, str) and self.f0 not in ("from-name", "estimate"):
            raise CorpusError(
                f"--f0 is {self.f0!r}; needed from-name, estimate or a number of Hz such as 82.4"
            )
        if not isinstance(self.f0, str) and not 0 < self.f0 < math.inf:
            raise CorpusError(f"--f0 is {self.f0} Hz; needed a number above 0, such as 82.4")
        if isinstance(self.octave, str) and self.octave != "auto":
            raise CorpusError(f"--octave is {self.octave!r}; needed auto or a whole number such as -1")
        if self.attack not in ATTACK_MODES:
            raise CorpusError(f"--attack is {self.attack!r}; needed {' or '.join(ATTACK_MODES)}")


def read_note_list(path: Path) -> dict[str, dict[str, float]]:
    """What a CSV file says of notes, by the path of each from the --input folder on.

    Columns: `file` and any of f0_hz, velocity and position (0..1); a cell may be empty.
    Raises: CorpusError naming the line.
    """
    if not path.is_file():
        raise CorpusError(
            f"The list {path} does not exist. Give a CSV with the columns {', '.join(_CSV_COLUMNS)}"
        )
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, restkey="", skipinitialspace=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        if "file" not in columns or not set(columns) <= set(_CSV_COLUMNS):
            raise CorpusError(f"{path} has the columns {columns}; needed file and any of {_CSV_COLUMNS[1:]}")
        known = {}
        for line, row in enumerate(reader, start=2):
            cells = {(name or "").strip(): (text or "").strip() for name, text in row.items()}
            source = cells.pop("file")
            known[source] = {
                name: _cell(name, text, f"{path} row {line}") for name, text in cells.items() if text
            }
    return known


def _cell(name: str, text: str, place: str) -> float:
    high = math.inf if name == "f0_hz" else 1.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= high or value == math.inf or (name == "f0_hz" and not value):
        needed = "a number of Hz above 0" if name == "f0_hz" else "a number from 0 to 1"
        raise CorpusError(f"{place}: {name} is {text!r}; needed {needed}, or nothing")
    return value
