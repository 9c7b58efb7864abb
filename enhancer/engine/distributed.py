"""What ranks say to each other. Every function is a no-op or the identity in a run of one process.

Only small things pass here: flags, texts, rows of an evaluation. Gradients are the backend's business. Objects
are pickled between ranks of one job, never read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hparams.errors import UserError

T = TypeVar("T")

# Rank 0 alone draws figures and checks checksums of large files while the others wait for it.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def is_running() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Place of this process among all, 0 in a run of one."""
    return dist.get_rank() if is_running() else 0


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if is_running() else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that writes what exists once."""
    return rank() == 0


def barrier() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        all_max([0])


def all_max(values: Sequence[int]) -> list[int]:
    """Largest of each value over the ranks: one small all-reduce. Flags are agreed with it."""
    if world_size() == 1:
        return list(values)
    flags = torch.tensor(values, dtype=torch.int32, device=_device())
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [int(value) for value in flags.tolist()]


def all_agree(is_ok: bool) -> bool:
    """True where every rank says True."""
    return all_max([int(not is_ok)])[0] == 0


def all_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value over the ranks."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64 if _device().type != "mps" else torch.float32)
    total = total.to(_device())
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return [float(value) for value in (total / world_size()).tolist()]


def second_line() -> Any:
    """A line between the same ranks for one other thread of each, on which they speak in an order of their own.

    Called by all ranks; the `line` of the functions below. None in a run of one process.
    """
    return dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if world_size() > 1 else None


def all_gather(value: T, line: Any = None) -> list[T]:
    """The value of every rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=line)
    return values


def broadcast(value: T, line: Any = None) -> T:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, group=line)
    return values[0]


def on_main(function: Callable[[], T], line: Any = None) -> T:
    """Result of `function` run on rank 0, on every rank. Its UserError or OSError is raised on every rank alike."""
    error: UserError | OSError | None = None
    result: Any = None
    if is_main():
        try:
            result = function()
        except (UserError, OSError) as raised:
            error = raised
    result, error = broadcast((result, error), line)
    if error is not None:
        raise error
    return result


def _device() -> torch.device:
    """Where collectives of the running backend want their tensors."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def together(function: Callable[[], T]) -> T:
    """Result of `function`, run on every rank. When it fails on any with ValueError or OSError, all raise UserError.

    The text is the first failing rank's, so that rank 0 can print it and no rank waits for one that is gone.
    """
    failure = ""
    error: ValueError | OSError | None = None
    result: Any = None
    try:
        result = function()
    except (ValueError, OSError) as raised:
        error, failure = raised, str(raised) or type(raised).__name__
    failures = [text for text in all_gather(failure) if text]
    if failures:
        raise UserError(failures[0]) from error
    return result
