"""Program of a test: a few steps of both toy modules in bf16 under DeepSpeed, started on each rank like `toy.py`.

    bf16_weights.py FOLDER --set zero_stage=2

Leaves in FOLDER, as safetensors, the weights that were `given`, those the backend saved before (`fresh`) and after
(`trained`) the steps, and the ones it trains with, as they are (`live`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine import deepspeed_machine, distributed
from enhancer.engine.deepspeed_backend import DeepSpeedBackend
from enhancer.engine.session_end import leave
from enhancer.engine.snapshot import HostMemory
from enhancer.engine.stop import Stop
from enhancer.engine.update import StepModules, Update
from enhancer.engine.weights import write_file

NUM_STEPS = 5


def write(folder: Path, modules: dict[str, torch.nn.Module]) -> None:
    """Whole weights as they are; called by all ranks, written by rank 0."""
    import deepspeed  # After the start, which chooses its accelerator.

    for name, module in modules.items():
        with deepspeed.zero.GatheredParameters(list(module.parameters())):
            weights = {key: value.detach().clone() for key, value in module.state_dict().items()}
        if distributed.is_main():
            save_file(weights, folder / f"{name}.safetensors")


def save(folder: Path, backend: DeepSpeedBackend) -> None:
    """What `backend` puts into a checkpoint."""
    for name, content in backend.capture(HostMemory(backend.device)).items():
        write_file(folder / name, content)
    distributed.barrier()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--backend")
    options = parser.parse_args()
    folders = {name: options.folder / name for name in ("given", "fresh", "trained", "live")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    device = deepspeed_machine.start()
    hp = toy_hparams("precision=bf16", *options.set)
    task = ToyTask(is_adversarial=True, has_noise=False)
    torch.manual_seed(0)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    write(folders["given"], modules)
    backend = DeepSpeedBackend(device, modules, groups, hp, batch_size=8)
    save(folders["fresh"], backend)
    update = Update(backend, task.main_module, Stop())
    step_modules = StepModules(backend.modules, backend.raw_modules)
    batches = ToyStream(distributed.rank(), distributed.world_size()).from_draw(0)
    for _ in range(NUM_STEPS):
        update.begin()
        batch = {key: value.to(device) for key, value in next(batches).items()}
        task.step(step_modules, batch, update)
        assert not update.skipped, update.skipped
    save(folders["trained"], backend)
    write(folders["live"], modules)
    distributed.barrier()


if __name__ == "__main__":
    main()
    leave(0)
