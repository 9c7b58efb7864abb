"""Strict loading of hyper-parameters from presets, YAML files and `--set`, and writing them back.

What is wrong is said all at once, with the key, the file and line, the nearest valid key and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hparams import agam
from hparams.errors import UserError
from hparams.fields import DEFAULT_KIND, FieldRow, adapter, flat_values, kinds, rows, sections
from hparams.schema import HParams
from hparams.source import Located, parse, parse_override, read_file, resolve_plain

PRESETS_DIR = Path(__file__).resolve().parent
EXTENDS = "extends"
Rules = Mapping[str, FieldRow]
Override = str | Mapping[str, Located]
"""`key=value`, or a table of values that another file gives and errors name by their place there."""


def load(
    name_or_path: str | Path, overrides: Sequence[Override] = (), recordings: agam.Recordings | None = None
) -> HParams:
    """HParams of a preset (`base`) or a YAML file (`my/run.yaml`), then each of `overrides`.

    A file may start from another by `extends: NAME_OR_PATH`, a path being relative to the file that says it.
    A JSON file is a configuration of Automated-GuitarAmpModelling, whose epochs need `recordings` (see `hparams.agam`).
    Raises UserError that lists everything found wrong.
    """
    return _validate(_read(name_or_path, overrides, recordings))


def peek(name_or_path: str | Path, overrides: Sequence[Override], keys: Sequence[str]) -> list[Any]:
    """What `load` would find for each of `keys`, None for one that nobody gives; no value is checked.

    Raises UserError where something cannot be read.
    """
    table = _read(name_or_path, overrides, None)
    return [table[key].value if key in table else None for key in keys]


def converted(name_or_path: str | Path, recordings: agam.Recordings | None = None) -> agam.Conversion | None:
    """What became of a configuration of Automated-GuitarAmpModelling; None for any other. Raises UserError."""
    path, name = _find(name_or_path, Path())
    if path.suffix != agam.SUFFIX:
        return None
    base = {key: row.default for key, row in rows("pedal").items()}
    base |= {key: located.value for key, located in _read(agam.BASE, (), None).items()}
    return agam.convert(path, name, base, recordings)


def _read(
    name_or_path: str | Path, overrides: Sequence[Override], recordings: agam.Recordings | None
) -> dict[str, Located]:
    if old := converted(name_or_path, recordings):
        tables = [*_chain(*_find(agam.BASE, Path())), old.table]
    else:
        tables = _chain(*_find(name_or_path, Path()))
    return _merge_all(
        [*tables, *(parse_override(each) if isinstance(each, str) else each for each in overrides)]
    )


def loads(text: str, name: str = "hparams") -> HParams:
    """HParams of YAML `text`, as `dump` writes it; `name` stands for it in messages. Raises UserError."""
    return _validate(parse(text, name))


def dump(hp: HParams) -> str:
    """YAML of all values of `hp`; `loads` of it gives an equal HParams."""
    nested = _nest(flat_values(hp))
    return yaml.dump(nested, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def difference(old: HParams, new: HParams) -> list[tuple[str, Any, Any]]:
    """(key, value in old, value in new) of every key whose value differs; None stands for a key one lacks."""
    before, after = flat_values(old), flat_values(new)
    keys = list(dict.fromkeys([*before, *after]))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def preset_name(name_or_path: str | Path) -> str:
    """The word for a preset or file: `base` for `base`, `base.yaml` and `some/folder/base.yaml`."""
    text = str(name_or_path)
    return Path(text).stem if is_path(text) else text


def preset_names() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `resolve_plain` would read as something else; small lists stay on one line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(resolve_plain(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


def is_path(text: str) -> bool:
    """Whether a preset is given as the path of a file, not by its name."""
    return "/" in text or "\\" in text or text.endswith((".yaml", ".yml", agam.SUFFIX))


def _find(name_or_path: str | Path, folder: Path) -> tuple[Path, str]:
    """The file meant and its name in messages; a relative path is taken from `folder`."""
    text = str(name_or_path)
    presets = preset_names()
    if isinstance(name_or_path, Path) or is_path(text):
        path = folder / text
        if path.is_file():
            return path, str(path)
        hint = f"; the preset of that name is --hparams {path.stem}" if path.stem in presets else ""
        raise UserError(
            f"{path}: no such file{hint}. Give a preset ({', '.join(presets)}) or a path to a YAML or JSON file"
        )
    if text in presets:
        return PRESETS_DIR / f"{text}.yaml", f"hparams/{text}.yaml"
    near = _nearest(text, presets)
    raise UserError(
        f"no preset is called {text!r}{near} Presets: {', '.join(presets)}; "
        f"a file of your own is given by its path, such as ./{text or 'mine'}.yaml"
    )


def _chain(path: Path, name: str) -> list[dict[str, Located]]:
    """Tables of `path` and all it extends, the furthest ancestor first."""
    tables: list[dict[str, Located]] = []
    visited: list[Path] = []
    while True:
        table = read_file(path, name)
        visited.append(path.resolve())
        parent = table.pop(EXTENDS, None)
        tables.insert(0, table)
        if parent is None:
            return tables
        if not isinstance(parent.value, str):
            raise UserError(
                f"{parent.where}: extends must be a preset name or a path, found {parent.value!r}"
            )
        try:
            path, name = _find(parent.value, path.parent)
        except UserError as error:
            raise UserError(f"{parent.where}: extends: {error}") from error
        if path.suffix == agam.SUFFIX:
            raise UserError(
                f"{parent.where}: extends: {name} is a configuration of Automated-GuitarAmpModelling, which depends on "
                f"the recordings and cannot be extended. Give it by --hparams {name} with --set; or write its values "
                f"to a file by --hparams {name} --set pair_dir=... --print-config > NAME.yaml, and extend that"
            )
        if path.resolve() in visited:
            raise UserError(
                f"{parent.where}: extends: {parent.value} leads back to {name}; "
                "remove one `extends` line of the circle"
            )


def _merge_all(tables: Iterable[Mapping[str, Located]]) -> dict[str, Located]:
    """Later tables win, key by key; a section whose `name` (its kind) changes starts afresh."""
    merged: dict[str, Located] = {}
    for table in tables:
        for section in sections():
            kind, before = table.get(f"{section}.name"), merged.get(f"{section}.name")
            if kind and before and kind.value != before.value:
                merged = {key: value for key, value in merged.items() if not key.startswith(f"{section}.")}
        merged.update(table)
    return merged


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        folder = nested
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[last] = value
    return nested


def _validate(table: Mapping[str, Located]) -> HParams:
    named = table["task.name"].value if "task.name" in table else DEFAULT_KIND
    kind = named if isinstance(named, str) and named in kinds() else DEFAULT_KIND
    rules = rows(kind)
    problems = [
        _unknown_text(key, located, rules)
        for key, located in table.items()
        if key not in rules and not (key in sections() and located.value == {})
    ]
    known = {key: located for key, located in table.items() if key in rules}
    if named != kind:
        problems.append(
            f"{table['task.name'].where}: task.name is {_shown(named)}; needed one of {', '.join(kinds())}"
        )
    nested = _nest(
        {"task.name": kind, **{key: located.value for key, located in known.items() if key != "task.name"}}
    )
    try:
        # JSON mode is what gives strictness with lists as tuples and text as paths.
        hp = adapter().validate_json(json.dumps(nested), strict=True)
    except ValidationError as error:
        problems += _translate(error, known, rules)
    else:
        problems += _coercions(hp, known, rules)
    if problems:
        count = f"{len(problems)} things are wrong:\n  " if len(problems) > 1 else ""
        raise UserError("hparams: " + count + "\n  ".join(dict.fromkeys(problems)))
    return hp


def _unknown_text(key: str, located: Located, rules: Rules) -> str:
    if key in sections():
        inner = ", ".join(row.rpartition(".")[2] for row in rules if row.startswith(f"{key}."))
        return f"{located.where}: {key} is {_shown(located.value)}; needed a mapping with keys of {inner}"
    if key == EXTENDS:
        return f"{located.where}: extends stands in preset files only; choose the preset by --hparams"
    row = _nearest_key(key, rules)
    near = (
        f"; did you mean {row}? It is {_rule_text(row, rules)}" if row else "; docs/hparams.md lists all keys"
    )
    owners = [name for name in kinds() if key in rows(name)]
    if owners:
        near = f"; task {rules['task.name'].default} has none, task {' and '.join(owners)} has"
    return f"{located.where}: there is no key {_clip(key)}{near}"


def _nearest_key(key: str, rules: Rules) -> str | None:
    close = difflib.get_close_matches(key[:100], rules, n=1, cutoff=0.6)
    if close:
        return close[0]
    # A key of a section given without it (`width` for `task.width`) or in the wrong one.
    leaf = key.rpartition(".")[2]
    return next((row for row in rules if row.rpartition(".")[2] == leaf), None)


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word[:100], words, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _rule_text(key: str, rules: Rules) -> str:
    row = rules[key]
    return f"{row.allowed}, by default {_shown(row.default)}"


def _coercions(hp: HParams, known: Mapping[str, Located], rules: Rules) -> list[str]:
    """Pydantic compares literals by ==, which lets `true` and `1.0` pass for 1."""
    values = flat_values(hp)
    return [
        f"{located.where}: {key} is {_shown(located.value)}; needed {_rule_text(key, rules)}"
        for key, located in known.items()
        if isinstance(located.value, (bool, float)) and type(values[key]) is not type(located.value)
    ]


def _translate(error: ValidationError, known: Mapping[str, Located], rules: Rules) -> list[str]:
    texts: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key = _key_of(problem["loc"], rules)
        if key is not None:
            where = known[key].where if key in known else "hparams"
            found = _shown(known[key].value) if key in known else "missing"
            texts.setdefault(key, f"{where}: {key} is {found}; needed {_rule_text(key, rules)}")
        elif problem["type"] == "value_error":
            rule = str(problem["ctx"]["error"])
            texts[rule] = f"{_wheres_of(rule, known)}{rule}"
        else:
            texts[problem["type"]] = f"the values cannot be read as text: {problem['msg']}"
    return list(texts.values())


def _key_of(location: Sequence[str | int], rules: Rules) -> str | None:
    """The dotted key of pydantic's location, which also has list places and names of union members."""
    words = [str(part) for part in location]
    for row in rules:
        parts = iter(words)
        if all(part in parts for part in row.split(".")):
            return row
    return None


def _wheres_of(rule: str, known: Mapping[str, Located]) -> str:
    """Where the keys that the text of a rule names were given: `a.yaml:3, --set: `."""
    words = re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)?", rule)
    places = dict.fromkeys(known[word].where for word in words if word in known)
    return ", ".join(places) + ": " if places else ""


def _shown(value: Any) -> str:
    """`value` as one would write it in YAML, with its type where that may be the mistake."""
    if isinstance(value, str):
        return f"text {_clip(value)!r}" if isinstance(resolve_plain(value), (int, float)) else _clip(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f".{value}" if value > 0 or value != value else f"-.{-value}"
    return _clip(str(value))


def _clip(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
