"""A rank's batch as equal parts that go through the modules one after another, where all of it would not fit.

The draws of a batch, and with them the global batch, stay what they are: only how many rows are held at once changes.
Parts are equal, for the mean over them to be the mean over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from enhancer.engine.task import Batch, Divisible, Task
from hparams.errors import UserError
from hparams.schema import HParams


def num_equal_parts(num_rows: int, most_rows: int) -> int:
    """The smallest number of equal parts of `num_rows` that have no more than `most_rows` each."""
    fewest = -(-num_rows // most_rows)
    return next(count for count in range(fewest, num_rows + 1) if num_rows % count == 0)


def num_parts_of(task: Task, hp: HParams, num_rows: int) -> int:
    """In how many parts `task` takes a batch of `num_rows` of one rank; 1 where a step cannot be taken in parts.

    Raises UserError where parts are asked for by `hp` that the task does not take.
    """
    if isinstance(task, Divisible) and task.takes_parts:
        return num_equal_parts(num_rows, hp.batch_size_per_gpu)
    if hp.gradient_accumulation_steps > 1:
        raise UserError(
            f"gradient_accumulation_steps is {hp.gradient_accumulation_steps}, but a step of task {task.name} with "
            "these values cannot be taken in parts: it updates a module several times a batch, or remembers something "
            "of each batch. Set gradient_accumulation_steps to 1, and batch_size_per_gpu to all examples of a rank"
        )
    return 1


def cut(batch: Batch, num_parts: int) -> list[Batch]:
    """`batch` as `num_parts` batches of equally many rows, in order; their tensors are views."""
    if num_parts == 1:
        return [batch]
    pieces = {key: value.tensor_split(num_parts) for key, value in batch.items()}
    return [{key: piece[part] for key, piece in pieces.items()} for part in range(num_parts)]


def mean_over_parts(metrics: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric over the parts of a batch; some may be told by the last part alone."""
    if len(metrics) == 1:
        return metrics[0]
    return {
        name: torch.stack([part[name].detach().float() for part in metrics if name in part]).mean(0)
        for name in metrics[-1]
    }
