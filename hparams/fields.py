"""Every hyper-parameter as one row: dotted key, type, allowed values, default, meaning.

The rows come from the JSON schema that pydantic derives of the dataclasses, so that error messages, the
documentation table and editors all state the same rules.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from hparams.schema import HParams
from hparams.tasks import DenoiseHParams, TaskHParams

DEFAULT_KIND = DenoiseHParams.name
"""The task of a run that names none."""
_TYPE_WORDS = {"integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class FieldRow:
    """One hyper-parameter in words. `allowed` holds the type and the range."""

    key: str
    allowed: str
    default: Any
    meaning: str


@cache
def adapter() -> TypeAdapter[HParams]:
    """Pydantic's validator of HParams."""
    return TypeAdapter(HParams)


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of HParams as pydantic derives it."""
    return adapter().json_schema()


def flat_values(hp: HParams) -> dict[str, Any]:
    """Values of `hp` by dotted key in the order of declaration, in the types of YAML (see `plain`)."""
    table: dict[str, Any] = {}
    _flatten_values(hp, "", table)
    return table


def kinds() -> dict[str, type]:
    """The dataclass of each task, by the name that `task.name` gives."""
    return {member.name: member for member in get_args(get_args(TaskHParams)[0])}


@cache
def rows(kind: str) -> dict[str, FieldRow]:
    """All rows of a run of task `kind` by dotted key, in the order of declaration."""
    schema = json_schema()
    found: dict[str, FieldRow] = {}
    # Some tasks ask for another training_seconds or warm-up than the default; nothing is checked here.
    defaults = flat_values(HParams()) | {
        f"task.{field.name}": plain(field.default) for field in dataclasses.fields(kinds()[kind])
    }
    _collect(schema, "", schema["$defs"], defaults, found, kind)
    return found


def sections() -> set[str]:
    """Keys that hold other keys, such as `task`."""
    return {key.rpartition(".")[0] for key in rows(DEFAULT_KIND)} - {""}


def _flatten_values(value: Any, prefix: str, table: dict[str, Any]) -> None:
    for field in dataclasses.fields(value):
        child = getattr(value, field.name)
        if dataclasses.is_dataclass(child):
            _flatten_values(child, f"{prefix}{field.name}.", table)
        else:
            table[prefix + field.name] = plain(child)


def plain(value: Any) -> Any:
    """`value` in the types of YAML: paths as text, tuples as lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(child) for child in value]
    return value


def _collect(
    schema: dict[str, Any],
    prefix: str,
    definitions: dict[str, Any],
    defaults: dict[str, Any],
    found: dict[str, FieldRow],
    kind: str,
) -> None:
    for name, prop in schema["properties"].items():
        key = prefix + name
        reference = prop.get("$ref") or prop.get("discriminator", {}).get("mapping", {}).get(kind)
        if reference:
            _collect(definitions[reference.rpartition("/")[2]], f"{key}.", definitions, defaults, found, kind)
        else:
            found[key] = FieldRow(key, allowed_text(prop), defaults[key], prop.get("description", ""))


def allowed_text(prop: dict[str, Any]) -> str:
    """What the JSON schema `prop` allows, in words: `integer > 0`, `one of fp32, bf16`, `path or null`."""
    if "const" in prop:
        return str(prop["const"])
    if "enum" in prop:
        return "one of " + ", ".join(str(value) for value in prop["enum"])
    if "anyOf" in prop:
        return " or ".join(allowed_text(choice) for choice in prop["anyOf"])
    if prop["type"] == "array":
        if "items" in prop:
            return f"list of {allowed_text(prop['items'])}"
        items = prop["prefixItems"]
        return f"list of {len(items)}: " + ", ".join(allowed_text(item) for item in items)
    if prop["type"] == "string":
        # The only pattern of the schema is that of URLs.
        return "path" if prop.get("format") == "path" else "URL" if "pattern" in prop else "text"
    return _TYPE_WORDS[prop["type"]] + _range_text(prop)


def _range_text(prop: dict[str, Any]) -> str:
    bounds = {
        ">=": prop.get("minimum"),
        ">": prop.get("exclusiveMinimum"),
        "<=": prop.get("maximum"),
        "<": prop.get("exclusiveMaximum"),
    }
    given = [f"{sign} {_number_text(bound)}" for sign, bound in bounds.items() if bound is not None]
    return (" " + " and ".join(given)) if given else ""


def _number_text(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else str(bound)
