"""YAML text as a flat table of dotted keys, each with the place it was written at; and strict JSON.

Scalars are read by the YAML 1.2 core rules, because those of YAML 1.1 surprise: there `1e-3` is a string,
`yes` a truth value, `010` is eight and `1:30` is ninety. Digits may be grouped by underscores. Anchors,
aliases and tags are refused: a preset has no use for them, and they are where YAML gets dangerous.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hparams.errors import UserError

_INTEGER = re.compile(r"[-+]?[0-9](_?[0-9])*")
_FLOAT = re.compile(r"[-+]?(\.[0-9](_?[0-9])*|[0-9](_?[0-9])*(\.([0-9](_?[0-9])*)?)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# No path or name may hold these; lone surrogates are no Unicode text at all.
_UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}


@dataclass(frozen=True)
class Located:
    """A value and where it was written: `file:line` or `--set`."""

    value: Any
    where: str


class _Loader(yaml.BaseLoader):
    """PyYAML's loader that constructs nothing but text, without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent) or getattr(self.peek_event(), "anchor", None):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases (& and *) are not allowed", mark
            )
        return super().compose_node(parent, index)


def read_file(path: Path, name: str) -> dict[str, Located]:
    """Flat table of the YAML file at `path`; `name` stands for it in messages. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from error
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read ({error.strerror}); give a readable YAML file or a preset name"
        ) from error
    return parse(text, name)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file at `path`; `name` stands for it in messages. Raises UserError."""
    try:
        content = json.loads(
            path.read_bytes().decode("utf-8-sig"),
            object_pairs_hook=_without_doubles,
            parse_constant=_no_number,
        )
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); give a readable JSON file") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name}:{error.lineno}: not valid JSON: {error.msg}; correct the text there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: cannot be read as JSON: {error}; correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: the file must be a JSON object, {{...}}")
    return content


def parse(text: str, name: str) -> dict[str, Located]:
    """Flat table of YAML `text`: `{"task.width": Located(4, "name:3")}`.

    Raises UserError naming `name` and the line.
    """
    node = _compose(text, name)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{_place(name, node)}: the file must be a mapping of `key: value` lines")
    table: dict[str, Located] = {}
    _flatten(node, "", name, table)
    return table


def parse_override(text: str) -> dict[str, Located]:
    """Flat table of one `key=value`; the value is a YAML scalar, list or mapping.

    Raises UserError naming --set.
    """
    key, equals, value_text = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {text}: needed key=value, such as --set max_lr=1e-3 or --set task.width=4")
    name = f"--set {text if len(text) <= 80 else text[:77] + '...'}"
    node = _compose(value_text, name)
    table: dict[str, Located] = {}
    if node is None:
        table[key] = Located(None, "--set")
    elif isinstance(node, yaml.MappingNode) and node.value:
        _flatten(node, f"{key}.", name, table)
    else:
        table[key] = Located(_construct(node, name), "--set")
    return {found: Located(located.value, "--set") for found, located in table.items()}


def resolve_plain(text: str) -> Any:
    """Value of the unquoted scalar `text`: None, bool, int, float or the text itself.

    Raises ValueError for an integer of more digits than Python reads.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITY.fullmatch(text):
        return float(f"{match[1]}inf")
    if text in (".nan", ".NaN", ".NAN"):
        return float("nan")
    return text


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} is given twice")
    if any(_UNUSABLE.search(text) for pair in pairs for text in pair if isinstance(text, str)):
        raise ValueError("a text holds a control character")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        place = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        raise UserError(f"{place}: not valid YAML: {error.problem}; correct the text there") from error
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{name}: not valid YAML: character {error.position} ({error.character!r:.20}) is not allowed; "
            "remove it"
        ) from error
    except (RecursionError, ValueError, OverflowError) as error:
        # PyYAML lets these through for very deep nesting and for escapes beyond Unicode.
        raise UserError(f"{name}: not valid YAML: {error}; simplify the text") from error


def _place(name: str, node: yaml.Node) -> str:
    return name if name.startswith("--set") else f"{name}:{node.start_mark.line + 1}"


def _flatten(node: yaml.MappingNode, prefix: str, name: str, table: dict[str, Located]) -> None:
    _refuse_tag(node, name)
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{_place(name, key_node)}: a key must be a plain word")
        key = prefix + key_node.value
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            _flatten(value_node, f"{key}.", name, table)
            continue
        if _UNUSABLE.search(key):
            raise UserError(
                f"{_place(name, key_node)}: the key {key!r:.80} holds a control character; remove it"
            )
        if key in table:
            raise UserError(
                f"{_place(name, key_node)}: key {key} is given twice, first at {table[key].where}; remove one"
            )
        table[key] = Located(_construct(value_node, name), _place(name, key_node))


def _construct(node: yaml.Node, name: str) -> Any:
    _refuse_tag(node, name)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, name) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key.value: _construct(value, name) for key, value in node.value if key.id == "scalar"}
    if _UNUSABLE.search(node.value):
        raise UserError(f"{_place(name, node)}: {node.value!r:.80} holds a control character; remove it")
    if getattr(node, "style", None) is not None:  # quoted
        return node.value
    try:
        return resolve_plain(node.value)
    except ValueError as error:
        raise UserError(f"{_place(name, node)}: a number of {len(node.value)} digits; shorten it") from error


def _refuse_tag(node: yaml.Node, name: str) -> None:
    if node.tag not in _PLAIN_TAGS:
        raise UserError(f"{_place(name, node)}: the tag {node.tag} is not allowed; write the value plainly")
