"""A sweep: one preset at every point of a grid of values, with several seeds each. Its YAML file is read strictly.

preset: pedal_lstm                # a preset, or the path of a YAML or JSON file, relative to this one
grid:
  task.hidden_size: [8, 16, 32]   # any key of the hyper-parameters with the values it takes
seeds: [0, 1, 2]
set:                              # values that all members share
  max_steps: 2000
metric: esr                       # what the table compares; the task's best metric when not given
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hparams.errors import UserError
from hparams.load import PRESETS_DIR, Override, is_path, preset_names
from hparams.source import Located, parse_override, read_file

SWEEPS_DIR = PRESETS_DIR / "sweeps"
KEYS = ("preset", "grid", "seeds", "set", "metric")
SEED = "seed"
_TABLES = ("grid", "set")
_UNSAFE = re.compile(r"[^\w.=,+-]+")
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Setting:
    """One point of the grid: its values by dotted key, in the order of the file."""

    values: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """Such as `hidden_size=8, max_lr=0.001`; keys without their section where that leaves them apart."""
        return ", ".join(f"{name}={_plain(value)}" for name, value in self.named())

    def named(self) -> list[tuple[str, Any]]:
        """(short key, value) of each swept key."""
        names = short_names([key for key, _ in self.values])
        return [(names[key], value) for key, value in self.values]


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
        """Swept keys that take two numbers or more, and nothing but numbers."""
        columns: dict[str, set[Any]] = {}
        for setting in self.settings:
            for key, value in setting.values:
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
    grid = _grid(table, path)
    seeds = _seeds(table, path)
    shared = {key.removeprefix("set."): located for key, located in table.items() if key.startswith("set.")}
    given = [parse_override(text) for text in overrides]
    for values in (shared, *given):
        _refuse_swept(values, grid)
    metric = _metric(table)
    settings = tuple(
        Setting(tuple(zip(grid, values, strict=True)))
        for values in itertools.product(*(located.value for located in grid.values()))
    )
    members = tuple(
        _member(setting, seed, grid, table["seeds"].where, [shared, *given])
        for seed in seeds
        for setting in settings
    )
    return Sweep(path.stem, preset, settings, seeds, members, metric)


def sweep_names() -> list[str]:
    """Names of the sweeps that come with the package, sorted."""
    return sorted(path.stem for path in SWEEPS_DIR.glob("*.yaml"))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key without its section where that leaves them apart."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def is_number(value: Any) -> bool:
    """Whether `value` is an integer or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
        "grid": "keys of the hyper-parameters with lists of values, such as task.hidden_size: [8, 16]",
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


def _grid(table: Mapping[str, Located], path: Path) -> dict[str, Located]:
    grid = {key.removeprefix("grid."): located for key, located in table.items() if key.startswith("grid.")}
    if not grid:
        raise UserError(f"{path}: grid is missing or empty; needed {_needed('grid')}")
    for key, located in grid.items():
        values = located.value
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{located.where}: grid: {key} is {values!r}; needed a list of the values it takes, such as [8, 16]"
            )
        if any(isinstance(value, dict) for value in values):
            raise UserError(f"{located.where}: grid: {key} has a mapping among its values; sweep its keys")
        texts = [_plain(value) for value in values]
        twice = {text for text in texts if texts.count(text) > 1}
        if twice:
            raise UserError(f"{located.where}: grid: {key} has {min(twice)} twice; remove one")
        if key in (SEED, "task.name"):
            other = "give the seeds below `seeds:`" if key == SEED else "make a sweep for each task"
            raise UserError(f"{located.where}: {key} cannot be swept; {other}")
    return grid


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


def _refuse_swept(values: Mapping[str, Located], grid: Mapping[str, Located]) -> None:
    for key, located in values.items():
        if key == SEED:
            raise UserError(
                f"{located.where}: seed is for each member to have; give the seeds below `seeds:`"
            )
        if key in grid:
            raise UserError(f"{located.where}: {key} is swept ({grid[key].where}); set it there or here")


def _member(
    setting: Setting,
    seed: int,
    grid: Mapping[str, Located],
    seeds_place: str,
    shared: Sequence[Mapping[str, Located]],
) -> Member:
    own = {key: Located(value, grid[key].where) for key, value in setting.values}
    own[SEED] = Located(seed, seeds_place)
    tables = [*shared, own]
    texts = [f"{key}={_yaml(located.value)}" for values in tables for key, located in values.items()]
    return Member(setting, seed, _folder_name(setting, seed), tuple(tables), tuple(texts))


def _folder_name(setting: Setting, seed: int) -> str:
    words = ",".join(f"{name}={_plain(value)}" for name, value in setting.named()) + f",seed={seed}"
    safe = _UNSAFE.sub("_", words)
    if safe == words and len(words) <= _NAME_LENGTH:
        return words
    # What was cut off or replaced may be all that tells two members apart.
    digest = hashlib.sha256(_yaml([list(pair) for pair in setting.values] + [seed]).encode()).hexdigest()[:8]
    return f"{safe[:_NAME_LENGTH]}-{digest}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _yaml(value)


def _yaml(value: Any) -> str:
    """`value` as YAML on one line; JSON is that."""
    return json.dumps(value, ensure_ascii=False)
