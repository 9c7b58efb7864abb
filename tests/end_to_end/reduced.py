"""Program of a test: one step in three parts under a backend of two ranks, with what the ranks exchange of gradients.

    reduced.py FOLDER --backend accelerate --set precision=bf16

Each rank leaves `rankR.json` in FOLDER: how many numbers of tensors as long as a weight were reduced in each part.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine.parts import cut
from enhancer.engine.session_end import leave
from enhancer.engine.stop import Stop
from enhancer.engine.update import Update

NUM_PARTS = 3


def main(folder: Path, backend_name: str, values: list[str]) -> None:
    from enhancer.engine.accelerate_backend import AccelerateBackend, start
    from enhancer.engine.deepspeed_backend import DeepSpeedBackend
    from enhancer.engine.deepspeed_machine import start as start_deepspeed

    hp, task = toy_hparams(*values), ToyTask(is_adversarial=True, is_judge_last=True)
    device: Any = start(hp) if backend_name == "accelerate" else start_deepspeed()
    torch.manual_seed(0)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    counts: list[int] = []
    if backend_name == "accelerate":
        backend: Any = AccelerateBackend(device, modules, groups, hp)

        def hook(_, bucket):  # DDP wants other annotations than mypy knows, or none.
            counts[-1] += bucket.buffer().numel()
            return (
                dist.all_reduce(bucket.buffer().div_(2), async_op=True)
                .get_future()
                .then(lambda done: done.value()[0])
            )

        for module in backend.modules.values():
            module.register_comm_hook(None, hook)
    else:
        backend = DeepSpeedBackend(device, modules, groups, hp, 2, NUM_PARTS)
        for name in ("all_reduce", "reduce"):
            count(name, counts)
    update = Update(backend, "generator", Stop(), num_parts=NUM_PARTS)
    rank = dist.get_rank()
    batch = next(ToyStream(rank, 2, 6).from_draw(0))
    for number, part in enumerate(cut(batch, NUM_PARTS)):
        counts.append(0)
        with update.part(number):
            task.step(update.modules(), part, update)
    numbers = sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
    found = {"reduced": counts, "parameters": numbers, "steps": update.main_steps}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


def count(name: str, counts: list[int]) -> None:
    """Add up the sizes of what `torch.distributed.NAME` reduces from now on, flags and norms left out."""
    plain = getattr(dist, name)

    def counted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if tensor.numel() > 8:
            counts[-1] += tensor.numel()
        return plain(tensor, *arguments, **options)

    setattr(dist, name, counted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default=os.environ.get("REDUCED_BACKEND"))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    main(options.folder, options.backend, options.set)
    leave(0)
