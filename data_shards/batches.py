"""Fills the arrays of a batch from a recipe; the same code in the main process and in loader workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_shards.errors import DataError
from data_shards.mix import NUMBERS, WAVES


class Settings(Protocol):
    """Lengths that every recipe has."""

    @property
    def crop_samples(self) -> int: ...
    @property
    def valid_samples(self) -> int: ...
    @property
    def valid_items(self) -> int: ...


class Recipe(Protocol):
    """What makes examples: pure functions of their number. Can be pickled, and then has no open files."""

    waves: tuple[str, ...]
    """Names of the int16 waveforms of an example."""
    numbers: dict[str, str]
    """Its other values, name -> numpy type."""

    @property
    def settings(self) -> Settings: ...
    @property
    def sources(self) -> dict[str, Any]: ...
    def example(self, draw: int) -> dict[str, Any]: ...
    def valid_item(self, item: int) -> dict[str, Any]: ...
    def valid_sources(self, item: int) -> dict[str, str]: ...
    def close(self) -> None: ...


Arrays = dict[str, np.ndarray]
Field = tuple[str, np.dtype, tuple[int, ...]]
_ALIGN_BYTES = 64


@dataclass(frozen=True)
class BatchPlan:
    """Which draws this rank's batches are made of, and their shape.

    Batch `step` of a rank holds draws first_draw + step * world_size * batch_size + rank * batch_size + row.
    """

    first_draw: int
    rank: int
    world_size: int
    batch_size: int
    frames: int
    waves: tuple[str, ...] = WAVES
    numbers: tuple[tuple[str, str], ...] = tuple(NUMBERS.items())

    def draws(self, step: int) -> range:
        """Draw numbers of the rows of batch `step`."""
        start = self.first_draw + (step * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)

    def fields(self) -> list[Field]:
        """Name, type and shape of each array of a training batch."""
        fields: list[Field] = [("draw", np.dtype("int64"), (self.batch_size,))]
        fields += [(name, np.dtype("int16"), (self.batch_size, self.frames)) for name in self.waves]
        fields += [(name, np.dtype(kind), (self.batch_size,)) for name, kind in self.numbers]
        return fields

    @property
    def slot_bytes(self) -> int:
        """Bytes of one batch in shared memory."""
        return sum(_padded(dtype.itemsize * int(np.prod(shape))) for _, dtype, shape in self.fields())

    def arrays(self, buffer: memoryview, slot: int) -> Arrays:
        """The arrays of batch place `slot` in `buffer`, without a copy."""
        offset = slot * self.slot_bytes
        views = {}
        for name, dtype, shape in self.fields():
            count = int(np.prod(shape))
            views[name] = np.frombuffer(buffer, dtype, count, offset).reshape(shape)
            offset += _padded(dtype.itemsize * count)
        return views

    def empty(self) -> Arrays:
        """Fresh arrays for one batch."""
        return {name: np.empty(shape, dtype) for name, dtype, shape in self.fields()}


def fill_training(arrays: Arrays, recipe: Recipe, plan: BatchPlan, step: int) -> None:
    """Write batch `step` into `arrays`. Raises: DataError with the draw and the rank."""
    for row, draw in enumerate(plan.draws(step)):
        try:
            example = recipe.example(draw)
        except DataError as error:
            raise error.at(draw=draw, rank=plan.rank) from error
        arrays["draw"][row] = draw
        for name, value in example.items():
            arrays[name][row] = value


def validation_arrays(recipe: Recipe, plan: BatchPlan, step: int, num_items: int) -> Arrays:
    """Batch `step` of this rank's share of the list; rows past its end repeat item 0 with `item` -1."""
    arrays = plan.empty()
    arrays["item"] = arrays.pop("draw")
    for row, item in enumerate(plan.draws(step)):
        try:
            example = recipe.valid_item(item if item < num_items else 0)
        except DataError as error:
            raise error.at(rank=plan.rank) from error
        arrays["item"][row] = item if item < num_items else -1
        for name, value in example.items():
            arrays[name][row] = value
    return arrays


def _padded(size: int) -> int:
    return -(-size // _ALIGN_BYTES) * _ALIGN_BYTES
