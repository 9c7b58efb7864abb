"""Program of a test: some steps of the toy generator alone, beside a judge and with one frozen weight, under DeepSpeed.

    optimizer_steps.py FOLDER --set optimizer=muon

Leaves in FOLDER the weights of both modules `before` and `after`, as the backend saves them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine import deepspeed_machine
from enhancer.engine.backend import Backend
from enhancer.engine.session_end import leave
from enhancer.engine.snapshot import HostMemory
from enhancer.engine.stop import Stop
from enhancer.engine.update import StepModules, Update
from enhancer.engine.weights import write_file
from hparams.schema import HParams

NUM_STEPS = 4
FROZEN = "0.bias"


class FrozenTask(ToyTask):
    """The toy task with a judge, and with the weight FROZEN of the generator frozen."""

    def __init__(self) -> None:
        super().__init__(is_adversarial=True, has_noise=False)

    def build(self) -> dict[str, torch.nn.Module]:
        modules = super().build()
        modules["generator"].get_parameter(FROZEN).requires_grad_(False)
        return modules


def train_generator(backend: Backend) -> None:
    """NUM_STEPS updates of the generator."""
    update = Update(backend, "generator", Stop())
    modules = StepModules(backend.modules, backend.raw_modules)
    batches = ToyStream().from_draw(0)
    for _ in range(NUM_STEPS):
        update.begin()
        batch = next(batches)
        loss = (modules["generator"](batch["mixture"]) - batch["target"]).square().mean()
        update("generator", loss)
        assert not update.skipped, update.skipped


def save(folder: Path, backend: Backend) -> None:
    """What `backend` puts into a checkpoint."""
    folder.mkdir(parents=True)
    for name, content in backend.capture(HostMemory(backend.device)).items():
        write_file(folder / name, content)


def main(hp: HParams, folder: Path) -> None:
    device = deepspeed_machine.start()
    from enhancer.engine.deepspeed_backend import DeepSpeedBackend

    task = FrozenTask()
    torch.manual_seed(0)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    backend = DeepSpeedBackend(device, modules, groups, hp, batch_size=8)
    save(folder / "before", backend)
    train_generator(backend)
    save(folder / "after", backend)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--backend")
    options = parser.parse_args()
    main(toy_hparams(*options.set), options.folder)
    leave(0)
