"""Program of a test: one step of a generator and its judge, and what is held of each kind before, in and after it.

    memory_steps.py FILE --backend deepspeed --set zero_stage=1

Rank 0 leaves in FILE, as JSON, the bytes of all tensors that live after the backends were made (`made`), with the
gradients of both modules (`gradients`), and after the first step (`stepped`).
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch
from torch import nn
from toy import toy_hparams

from enhancer.engine import distributed
from enhancer.engine.backend import Backend
from enhancer.engine.session_end import leave

WIDTH = 61
NAMES = ("generator", "judge")


def modules() -> dict[str, nn.Module]:
    """Two modules whose sizes divide by nothing."""
    return {
        "generator": nn.Sequential(nn.Linear(WIDTH, 300), nn.Tanh(), nn.Linear(300, WIDTH)),
        "judge": nn.Sequential(nn.Linear(WIDTH, 101), nn.Tanh(), nn.Linear(101, 1, bias=False)),
    }


def live_bytes() -> int:
    """Bytes of the storages of all tensors that anything in Python holds, and of their gradients."""
    gc.collect()
    sizes = {}
    found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    for tensor in [*found, *(each.grad for each in found if each.is_leaf and each.grad is not None)]:
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--backend", choices=["accelerate", "deepspeed"], default=None)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    hp = toy_hparams(*options.set)
    before = live_bytes()
    own = modules()
    groups = {name: [{"params": list(module.parameters())}] for name, module in own.items()}
    if options.backend == "accelerate":
        from enhancer.engine import accelerate_backend

        backend: Backend = accelerate_backend.AccelerateBackend(accelerate_backend.start(hp), own, groups, hp)
    else:
        from enhancer.engine import deepspeed_machine
        from enhancer.engine.deepspeed_backend import DeepSpeedBackend

        backend = DeepSpeedBackend(deepspeed_machine.start(), own, groups, hp, 8)
    found = {"made": live_bytes() - before}
    losses = {name: backend.modules[name](torch.ones(8, WIDTH)).square().mean() for name in NAMES}
    for name, loss in losses.items():
        backend.backward(name, loss)
    del loss
    losses.clear()
    found["gradients"] = live_bytes() - before
    for name in NAMES:
        backend.step(name, torch.ones(()))
    found["stepped"] = live_bytes() - before
    if distributed.rank() == 0:
        options.file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave(0)
