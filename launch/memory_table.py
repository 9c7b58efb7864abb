"""`train.py --print-memory`: what a step will take on each GPU, as a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hparams.errors import UserError

if TYPE_CHECKING:
    from enhancer.engine.forecast import Forecast
    from hparams.schema import HParams

MIB = 1 << 20


def print_memory(hp: HParams, backend: str, world_size: int, run_folder: Path) -> int:
    """Print the forecast of `hp` in `run_folder` on `backend` with `world_size` GPUs; the exit code."""
    import torch

    from enhancer.engine.forecast import forecast
    from enhancer.tasks import TASKS
    from launch.codec_weights import listening_constants
    from launch.frozen_runs import frozen_constants

    torch.manual_seed(hp.seed)
    try:
        frozen = frozen_constants(hp, run_folder, is_writer=False)
        task = TASKS[hp.task.name](hp, {**listening_constants(hp), **frozen})
        found = forecast(hp, task, backend, world_size, frozen.values())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(hp, found, backend, world_size)))
    return 0


def table(hp: HParams, found: Forecast, backend: str, world_size: int) -> list[str]:
    """The lines of the table, in MiB."""
    names = list(found.modules)
    lines = [
        f"memory of each of {world_size} GPU(s): {backend}, ZeRO {hp.zero_stage}, {hp.precision}, {hp.optimizer}, "
        f"{found.rows} x {hp.example_seconds:.4g} s at once",
        _line("MiB", [*names, "all"]),
    ]
    for label, key in (
        ("weights", "weights"),
        ("fp32 masters", "masters"),
        ("optimiser states", "states"),
        ("moving average", "average"),
        ("copies of gradients", "copies"),
    ):
        values = [getattr(found.modules[name], key) for name in names]
        if any(values):
            lines.append(_line(label, [*map(_mib, values), _mib(sum(values))]))
    held = [found.modules[name].steady for name in names]
    lines.append(_line("held all the time", [*map(_mib, held), _mib(sum(held))]))
    for label, values in (
        ("gradients", [found.modules[name].gradients for name in names]),
        ("buffers for gradients", [found.modules[name].buffers for name in names]),
        ("activations", [found.activations.get(name, 0) for name in names]),
    ):
        if any(values):
            lines.append(_line(label, [*map(_mib, values), ""]))
    if found.frozen:
        lines.append(_line("frozen modules", [*[""] * len(names), _mib(found.frozen)]))
    updates = [found.update(name) for name in names]
    lines.append(_line("while it is updated", [*map(_mib, updates), f"{_mib(max(updates))} at most"]))
    lines.append(f"sum: {found.total / (1 << 30):.2f} GiB, and what kernels take while they run")
    return lines


def _line(label: str, values: list[str]) -> str:
    return f"{label:<24}" + "".join(f"{value:>16}" for value in values).rstrip()


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"
