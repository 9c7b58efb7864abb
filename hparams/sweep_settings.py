"""The settings of a sweep: every point of a grid of values, or named variants of a preset."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hparams.errors import UserError
from hparams.source import Located

SEED = "seed"
MOST_MEMBERS = 10_000
NEEDED = {
    "grid": "keys of the hyper-parameters with lists of values, such as task.hidden_size: [8, 16]",
    "variants": "names without dots, each with keys of the hyper-parameters, such as wide: {task.width: 8}",
}


@dataclass(frozen=True)
class Setting:
    """What sets some members apart: values by dotted key, in the order of the file."""

    values: tuple[tuple[str, Any], ...]
    name: str = ""
    """Of a variant; a point of a grid has none."""

    @property
    def label(self) -> str:
        """A variant's name, or such as `hidden_size=8, max_lr=0.001`."""
        return self.name or ", ".join(f"{name}={plain(value)}" for name, value in self.named())

    @property
    def words(self) -> str:
        """Its values as `hidden_size=8, max_lr=0.001`; keys without their section where that leaves them apart."""
        names = short_names([key for key, _ in self.values])
        return ", ".join(f"{names[key]}={plain(value)}" for key, value in self.values)

    def named(self) -> list[tuple[str, Any]]:
        """(short key, value) of each swept key, as the columns of a table; of a variant its name."""
        if self.name:
            return [("variant", self.name)]
        names = short_names([key for key, _ in self.values])
        return [(names[key], value) for key, value in self.values]


def read_settings(table: Mapping[str, Located], path: Path) -> list[tuple[Setting, dict[str, Located]]]:
    """Every setting of a sweep file with where its values stand. Raises UserError naming file and line."""
    grid, variants = (
        {key.removeprefix(f"{head}."): found for key, found in table.items() if key.startswith(f"{head}.")}
        for head in ("grid", "variants")
    )
    if grid and variants:
        where = next(iter(variants.values())).where
        raise UserError(f"{where}: variants stand beside a grid; give one of the two")
    if variants:
        return _variants(variants)
    if not grid:
        raise UserError(
            f"{path}: grid is missing or empty; needed {NEEDED['grid']}, or variants: {NEEDED['variants']}"
        )
    _check_grid(grid)
    count = math.prod(len(located.value) for located in grid.values())
    if count > MOST_MEMBERS:
        raise UserError(
            f"{path}: the sweep has {count:.3g} settings; at most {MOST_MEMBERS} members can be. Sweep fewer keys"
        )
    points = itertools.product(*(located.value for located in grid.values()))
    return [
        (
            Setting(tuple(zip(grid, point, strict=True))),
            {key: Located(value, grid[key].where) for key, value in zip(grid, point, strict=True)},
        )
        for point in points
    ]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key without its section where that leaves them apart."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def is_number(value: Any) -> bool:
    """Whether `value` is an integer or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def plain(value: Any) -> str:
    """`value` as YAML on one line, texts without quotes."""
    return value if isinstance(value, str) else as_yaml(value)


def as_yaml(value: Any) -> str:
    """`value` as YAML on one line; JSON is that."""
    return json.dumps(value, ensure_ascii=False)


def _check_grid(grid: Mapping[str, Located]) -> None:
    for key, located in grid.items():
        values = located.value
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{located.where}: grid: {key} is {values!r}; needed a list of the values it takes, such as [8, 16]"
            )
        if any(isinstance(value, dict) for value in values):
            raise UserError(f"{located.where}: grid: {key} has a mapping among its values; sweep its keys")
        texts = [plain(value) for value in values]
        twice = {text for text in texts if texts.count(text) > 1}
        if twice:
            raise UserError(f"{located.where}: grid: {key} has {min(twice)} twice; remove one")
        _refuse_fixed(key, located)


def _variants(table: Mapping[str, Located]) -> list[tuple[Setting, dict[str, Located]]]:
    """The variants, from keys such as `wide.task.width`."""
    found: dict[str, dict[str, Located]] = {}
    for text, located in table.items():
        name, dot, key = text.partition(".")
        if not name.strip() or (not dot and located.value not in ({}, None)):
            raise UserError(
                f"{located.where}: variants: {name} is {located.value!r}; needed {NEEDED['variants']}"
            )
        values = found.setdefault(name, {})
        if dot:
            _refuse_fixed(key, located)
            values[key] = located
    settings = [
        Setting(tuple((key, located.value) for key, located in values.items()), name)
        for name, values in found.items()
    ]
    names: dict[str, str] = {}
    for setting in settings:
        words = as_yaml(dict(sorted(setting.values)))
        if words in names:
            raise UserError(
                f"variants: {names[words]} and {setting.name} have the same values; remove one of them"
            )
        names[words] = setting.name
    return list(zip(settings, found.values(), strict=True))


def _refuse_fixed(key: str, located: Located) -> None:
    if key in (SEED, "task.name"):
        other = "give the seeds below `seeds:`" if key == SEED else "make a sweep for each task"
        raise UserError(f"{located.where}: {key} cannot be swept; {other}")
