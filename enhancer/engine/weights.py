"""Tensors on files without code in them: weights as safetensors, optimiser states as tensors and plain values."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from hparams.errors import UserError


def write_file(path: Path, content: Any) -> None:
    """Write `content` of a checkpoint to `path`: bytes, or what the suffix says. Raises OSError where that fails."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        write_weights(path, content)
    else:
        write_state(path, content)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `weights` to `path` as safetensors on the CPU; floating point values as float32.

    Raises OSError where the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        value = value.float() if value.is_floating_point() else value
        storage = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that lie in one storage; a snapshot's do not, and are not copied again.
        tensors[name] = value.clone() if storage in storages else value
        storages.add(storage)
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Tensors by name of the safetensors file `path`. Raises UserError when it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def write_state(path: Path, state: Any) -> None:
    """Write nested dicts and lists of tensors, numbers and texts to `path`. Raises OSError where that fails."""
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's zip writer reports a full disk so.
        raise OSError(f"{path} could not be written: {error}") from error


def read_state(path: Path) -> Any:
    """What `write_state` wrote, on the CPU; any other object in the file is refused with UserError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds more than tensors: {error}") from error
