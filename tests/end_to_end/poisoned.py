"""Program of a test: a DeepSpeed checkpoint in which file by file is replaced by what executes code if unpickled."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine import deepspeed_machine
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.deepspeed_backend import DeepSpeedBackend
from enhancer.engine.manifest import MANIFEST
from enhancer.engine.retention import Retention
from enhancer.engine.session_end import leave
from enhancer.engine.state import State
from enhancer.engine.stop import Stop
from enhancer.engine.update import StepModules, Update
from hparams.errors import UserError
from tests.end_to_end.payloads import payloads
from tests.end_to_end.test_trust import replace_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--backend")
    options = parser.parse_args()
    device = deepspeed_machine.start()
    task = ToyTask(has_noise=False)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    backend = DeepSpeedBackend(device, modules, groups, toy_hparams(*options.set), batch_size=8)
    update = Update(backend, task.main_module, Stop())
    batch = {key: value.to(device) for key, value in next(ToyStream().from_draw(0)).items()}
    task.step(StepModules(backend.modules, backend.raw_modules), batch, update)
    kept = Checkpoints(options.folder / "kept", Retention(3), {}).save(State(step=1, draws=8), backend)
    names = sorted(json.loads((kept / MANIFEST).read_bytes())["files"])
    restore(options.folder / "kept", backend)
    for name in names:
        for kind, content in payloads(options.folder / "marker").items():
            run = options.folder / "run"
            shutil.copytree(options.folder / "kept", run)
            replace_file(run / "checkpoints" / kept.name / name, content)
            try:
                restore(run, backend)
            except UserError as error:
                assert name in str(error), error
            else:
                raise SystemExit(f"{kind} in {name} was taken")
            shutil.rmtree(run)
    print(f"{len(names)} files were refused")


def restore(run: Path, backend: DeepSpeedBackend) -> None:
    """Go on with the newest checkpoint of `run`."""
    checkpoints = Checkpoints(run, Retention(3), {})
    checkpoint = checkpoints.latest_valid()
    assert checkpoint is not None
    checkpoints.restore(checkpoint, backend)


if __name__ == "__main__":
    main()
    leave(0)
