"""A sweep: one preset at every point of a grid of values, or in several variants, with several seeds each.

Its YAML file is read strictly.

preset: pedal_lstm                # a preset, or the path of a YAML or JSON file, relative to this one
grid:
  task.hidden_size: [8, 16, 32]   # any key of the hyper-parameters with the values it takes
seeds: [0, 1, 2]
set:                              # values that all members share
  max_steps: 2000
metric: esr                       # what the table compares; the task's best metric when not given

In place of the grid:

variants:                         # names without dots, and what differs from preset and `set`
  base: {}
  small and fast: {task.hidden_size: 8, max_lr: 1e-2}
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hparams.errors import UserError
from hparams.load import PRESETS_DIR, Override, is_path, preset_names
from hparams.source import Located, parse_override, read_file
from hparams.sweep_settings import (
    MOST_MEMBERS,
    NEEDED,
    SEED,
    Setting,
    as_yaml,
    is_number,
    plain,
    read_settings,
)

SWEEPS_DIR = PRESETS_DIR / "sweeps"
KEYS = ("preset", "grid", "variants", "seeds", "set", "metric")
_TABLES = ("grid", "variants", "set")
_UNSAFE = re.compile(r"[^\w.=,+-]+")
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    setting: Setting
    seed: int
    folder_name: str
    """The same in every start of the sweep, also when the grid has grown."""
    overrides: tuple[Override, ...]
    """For `load`, so that errors name the line of the sweep file."""
    set_texts: tuple[str, ...]
    """The same as `key=value` texts, for a command line."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file with the command line's values in it."""

    name: str
    preset: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    members: tuple[Member, ...]
    """Every setting with the first seed, then every setting with the second, ..."""
    metric: str | None

    @property
    def numeric_keys(self) -> list[str]:
        """Keys of the grid that take two numbers or more, and nothing but numbers."""
        columns: dict[str, set[Any]] = {}
        for setting in self.settings:
            # Variants differ in more than one thing.
            for key, value in () if setting.name else setting.values:
                columns.setdefault(key, set()).add(json.dumps(value) if not is_number(value) else value)
        return [key for key, found in columns.items() if len(found) > 1 and all(map(is_number, found))]


def read_sweep(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep in a YAML file, or of a name in `hparams/sweeps`; `overrides` are `key=value` texts over its `set`.

    Raises UserError naming the file and line. That the members' hyper-parameters are valid is for `load` to say.
    """
    path = _find(str(name_or_path))
    table = read_file(path, str(path))
    _refuse_unknown(table)
    preset = _preset(table, path)
    settings = read_settings(table, path)
    seeds = _seeds(table, path)
    shared = {key.removeprefix("set."): located for key, located in table.items() if key.startswith("set.")}
    given = [parse_override(text) for text in overrides]
    for values in (shared, *given):
        _refuse_swept(values, table)
    metric = _metric(table)
    count = len(settings) * len(seeds)
    if count > MOST_MEMBERS:
        raise UserError(
            f"{path}: the sweep has {count} members; at most {MOST_MEMBERS} can be. Sweep fewer keys"
        )
    members = tuple(
        _member(setting, seed, own, table["seeds"].where, [shared, *given])
        for seed in seeds
        for setting, own in settings
    )
    return Sweep(path.stem, preset, tuple(setting for setting, _ in settings), seeds, members, metric)


def sweep_names() -> list[str]:
    """Names of the sweeps that come with the package, sorted."""
    return sorted(path.stem for path in SWEEPS_DIR.glob("*.yaml"))


def _find(text: str) -> Path:
    path = Path(text)
    if path.is_file():
        return path
    names = sweep_names()
    if text in names:
        return SWEEPS_DIR / f"{text}.yaml"
    raise UserError(
        f"{text}: no such file. Give the path of a sweep, or the name of one that is here: {', '.join(names)}"
    )


def _refuse_unknown(table: Mapping[str, Located]) -> None:
    for key, located in table.items():
        head, dot, _ = key.partition(".")
        if head not in KEYS:
            near = difflib.get_close_matches(head[:100], KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(
                f"{located.where}: a sweep has no key {head}{hint} It has {', '.join(KEYS)}; values that all members "
                "share stand below `set:`"
            )
        if dot and head not in _TABLES:
            raise UserError(f"{located.where}: {head} holds {key}; needed {_needed(head)}")
        if not dot and head in _TABLES and located.value not in ({}, None):
            raise UserError(f"{located.where}: {head} is {located.value!r}; needed {_needed(head)}")


def _needed(key: str) -> str:
    return {
        "preset": f"a preset ({', '.join(preset_names())}) or the path of a YAML or JSON file",
        **NEEDED,
        "seeds": "a list of whole numbers, such as [0, 1, 2]",
        "set": "keys of the hyper-parameters with one value each, such as max_steps: 2000",
        "metric": "the name of a metric of the task, such as esr",
    }[key]


def _preset(table: Mapping[str, Located], path: Path) -> str:
    if "preset" not in table:
        raise UserError(f"{path}: preset is missing; needed {_needed('preset')}")
    located = table["preset"]
    text = located.value
    if not isinstance(text, str):
        raise UserError(f"{located.where}: preset is {text!r}; needed {_needed('preset')}")
    if is_path(text):
        # As with `extends`, and absolute, since members may be started from elsewhere.
        return str((path.parent / text).resolve())
    return text


def _seeds(table: Mapping[str, Located], path: Path) -> tuple[int, ...]:
    if "seeds" not in table:
        raise UserError(f"{path}: seeds is missing; needed {_needed('seeds')}")
    located = table["seeds"]
    seeds = located.value
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(isinstance(seed, int) and is_number(seed) for seed in seeds)
    ):
        raise UserError(f"{located.where}: seeds is {seeds!r}; needed {_needed('seeds')}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{located.where}: seeds is {seeds}, where one stands twice; remove it")
    return tuple(seeds)


def _metric(table: Mapping[str, Located]) -> str | None:
    if "metric" not in table:
        return None
    located = table["metric"]
    if not isinstance(located.value, str):
        raise UserError(f"{located.where}: metric is {located.value!r}; needed {_needed('metric')}")
    return located.value


def _refuse_swept(values: Mapping[str, Located], table: Mapping[str, Located]) -> None:
    for key, located in values.items():
        if key == SEED:
            raise UserError(
                f"{located.where}: seed is for each member to have; give the seeds below `seeds:`"
            )
        swept = table.get(f"grid.{key}")
        if swept is not None:
            raise UserError(f"{located.where}: {key} is swept ({swept.where}); set it there or here")


def _member(
    setting: Setting,
    seed: int,
    values: Mapping[str, Located],
    seeds_place: str,
    shared: Sequence[Mapping[str, Located]],
) -> Member:
    # A variant may differ from `set` and from the command line; the last one counts.
    tables = [*shared, {**values, SEED: Located(seed, seeds_place)}]
    texts = [f"{key}={as_yaml(located.value)}" for table in tables for key, located in table.items()]
    return Member(setting, seed, _folder_name(setting, seed), tuple(tables), tuple(texts))


def _folder_name(setting: Setting, seed: int) -> str:
    words = ",".join(f"{name}={plain(value)}" for name, value in setting.named()) + f",seed={seed}"
    safe = _UNSAFE.sub("_", words)
    if safe == words and len(words) <= _NAME_LENGTH:
        return words
    # What was cut off or replaced may be all that tells two members apart.
    digest = hashlib.sha256(as_yaml([list(pair) for pair in setting.values] + [seed]).encode()).hexdigest()[
        :8
    ]
    return f"{safe[:_NAME_LENGTH]}-{digest}"
