"""Optimiser states of ZeRO 1 and 2, put together from the ranks that saved them and parted again for other ones.

DeepSpeed lays all weights of a parameter group behind each other, fills that up to a multiple of twice the ranks, and
gives each rank an equal part: of the float32 weights and of every state of their size. What fills up is at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hparams.errors import UserError

_WEIGHTS = "single_partition_of_fp32_groups"
"""The part of each group, without what fills it up."""
_PADDINGS = "group_paddings"
_BASE = "base_optimizer_state"


def parted_again(saved: Iterable[Mapping[str, Any]], own: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The state of `rank` now, from those that all ranks have `saved`, in rank order, of which one at a time is held.

    Args:
        own: of the fresh optimiser of `rank`, for the sizes of its parts.

    Raises UserError where the states are of fewer or more weights than this run has.
    """
    parts = [
        _Part(len(weights), padding, rank)
        for weights, padding in zip(own[_WEIGHTS], own[_PADDINGS], strict=True)
    ]
    first: Mapping[str, Any] = {}
    for state in saved:
        first = first or state
        for group, part in enumerate(parts):
            part.take(_vectors(state, group), len(state[_WEIGHTS][group]))
    base = first[_BASE]
    states = dict(base["state"])
    for group, part in enumerate(parts):
        key = _key(base, group)
        if key in states:
            vectors = {name: part.vector(name) for name in part.names if name != _WEIGHTS}
            states[key] = {**states[key], **vectors}
    weights = [part.vector(_WEIGHTS)[: part.length] for part in parts]
    return {**own, **_shared(first), _BASE: {**base, "state": states}, _WEIGHTS: weights}


class _Part:
    """What is wanted of one group: `length` values from their place in the whole, and `padding` zeros."""

    def __init__(self, length: int, padding: int, rank: int) -> None:
        self.length = length
        self._size = length + padding
        self._first = rank * self._size
        self._offset = 0
        self._vectors: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """Of the vectors that there are."""
        return list(self._vectors)

    def take(self, vectors: Mapping[str, Tensor], length: int) -> None:
        """Copy what is wanted from the next saved part, which is `length` long."""
        first, last = max(self._offset, self._first), min(self._offset + length, self._first + self.length)
        for name, vector in vectors.items():
            kept = self._vectors.setdefault(name, torch.zeros(self._size, dtype=vector.dtype))
            if first < last:
                kept[first - self._first : last - self._first] = vector[
                    first - self._offset : last - self._offset
                ]
        self._offset += length

    def vector(self, name: str) -> Tensor:
        """What was taken under `name`."""
        needed = self._first + self.length
        is_short = self.length > 0 and self._offset < needed
        is_long = self.length < self._size and self._offset > needed  # Nothing may come where zeros fill up.
        if is_short or is_long:
            raise UserError(
                f"the optimiser was saved for {self._offset} weights of a group, this run's modules have other ones; "
                "give another --run-dir, or take the weights by --init-from"
            )
        return self._vectors[name]


def _vectors(state: Mapping[str, Any], group: int) -> dict[str, Tensor]:
    """The weights of `group` and the states that have a value for each of them."""
    weights = state[_WEIGHTS][group]
    size = len(weights) + state[_PADDINGS][group]
    base = state[_BASE]
    states = base["state"].get(_key(base, group), {})
    found = {
        name: value for name, value in states.items() if isinstance(value, Tensor) and value.shape == (size,)
    }
    return {_WEIGHTS: weights, **found}


def _key(base: Mapping[str, Any], group: int) -> Any:
    """Of the one flat parameter of `group` among the states."""
    return base["param_groups"][group]["params"][0]


def _shared(first: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same on every rank and belongs to the run, not to how it is parted."""
    return {
        key: first[key]
        for key in ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
        if key in first
    }
