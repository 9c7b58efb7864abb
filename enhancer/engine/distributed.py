"""What ranks say to each other. Every function is a no-op or the identity in a run of one process.

Only small things pass here: flags, texts, rows of an evaluation. Gradients are the backend's business. Objects
are pickled between ranks of one job, never read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hparams.errors import UserError

T = TypeVar("T")

# Machines may start minutes apart, and rank 0 alone checks checksums of large files while the others wait for it.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)

# What gloo, and the store that ranks meet at, say of another rank that is gone, or of one that they hear nothing of.
_LOST = (
    *("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("Connection refused", "connectFullMesh failed", "Failed to recv", "failed to recv"),
)


class RanksLost(RuntimeError):
    """Another rank is gone or cannot be reached; the text says what was seen from here."""


def is_running() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def waits_limited(seconds: float) -> Iterator[None]:
    """After it, a collective of the run or of a group that was made inside it fails when it takes `seconds`."""
    from torch.distributed import distributed_c10d

    groups = distributed_c10d._world.pg_map
    before = set(groups)
    yield
    if not is_running():
        return
    for group in {dist.group.WORLD, *(set(groups) - before)}:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def is_lost(error: BaseException | None) -> bool:
    """Whether `error` of a collective says that another rank is gone or cannot be reached."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


def lost(error: BaseException, seconds: float) -> RanksLost:
    """What `error`, of which `is_lost` holds, means for a run whose waits are limited to `seconds`."""
    first_line = str(error).splitlines()[0]
    return RanksLost(
        f"rank {rank()} has lost another rank: its process or machine is gone, or the network between them, or it kept "
        f"this one waiting for longer than comm_timeout_seconds={seconds:g}. The same command goes on from the last "
        f"checkpoint. Seen here: {first_line}"
    )


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
