"""Tensors on files that cannot hold code: everything is safetensors, and nothing is pickled.

Weights are named tensors. The state of an optimiser, nested dicts and lists of tensors and plain values, is written as
its tensors, with the rest as JSON in the file's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hparams.errors import UserError

_STATE = "state"
_BAD_STATE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def write_file(path: Path, content: Any) -> None:
    """Write `content` of a checkpoint to `path`: bytes, or what the suffix says. Raises OSError where that fails."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        write_weights(path, content)
    else:
        write_state(path, content)


def write_weights(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `weights` to `path` as safetensors on the CPU, with `metadata`; floating point values as float32.

    Raises OSError where the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        value = value.float() if value.is_floating_point() else value
        storage = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that lie in one storage; a snapshot's do not, and are not copied again.
        tensors[name] = value.clone() if storage in storages else value
        storages.add(storage)
    _write(path, tensors, dict(metadata or {}) or None)


def read_described(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name of the safetensors file `path`, and its metadata. Raises UserError as `read_weights_file`."""
    return _read(path)


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Tensors by name of the safetensors file `path`. Raises UserError when it is none, or there is none."""
    return _read(path)[0]


def parse_weights(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors by name of the content `data` of the safetensors file `path`. Raises UserError when it is none."""
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, *_BAD_STATE) as error:
        raise _no_safetensors(path, error) from error


def write_state(path: Path, state: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers and texts to `path`. Raises OSError where that fails."""
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_described(state, tensors, set()), separators=(",", ":"), allow_nan=False)
    _write(path, tensors, {_STATE: described})


def read_state(path: Path) -> Any:
    """What `write_state` wrote, on the CPU. Raises UserError for any other file."""
    tensors, metadata = _read(path)
    try:
        return _restored(json.loads(metadata[_STATE]), tensors)
    except _BAD_STATE as error:
        raise UserError(f"{path} is damaged, or holds no state of an optimiser: {error}") from error


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Copied to where torch's own tensors begin: in the file they lie anywhere, and products round by that.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy the whole folder again") from error
    except (SafetensorError, *_BAD_STATE) as error:
        raise _no_safetensors(path, error) from error


def _no_safetensors(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole safetensors file: {error}")


def _described(value: Any, tensors: dict[str, Tensor], storages: set[int]) -> Any:
    """`value` as JSON; its tensors go into `tensors`, each with a storage of its own, under the names that it has."""
    if isinstance(value, Tensor):
        tensor, name = value.detach().cpu().contiguous(), str(len(tensors))
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
        return {"tensor": name}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, dict):
        if not all(type(key) in (int, str) for key in value):
            raise TypeError(f"a state has the keys {list(value)[:5]}; only numbers and texts can be written")
        return {"dict": [[key, _described(item, tensors, storages)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        items = [_described(item, tensors, storages) for item in value]
        return items if type(value) is list else {"tuple": items}
    raise TypeError(f"a state holds {type(value).__name__}; only tensors and plain values can be written")


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_restored(item, tensors) for item in content)
    if kind == "dict":
        return {key: _restored(item, tensors) for key, item in content}
    raise ValueError(f"a value of the kind {kind!r:.40} is not known")
