"""Run folders: checkpoints, also with a manifest that was signed again, pointers, status and metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator

from enhancer.engine.accelerate_backend import AccelerateBackend
from enhancer.engine.average import WeightAverage
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.manifest import MANIFEST, _checksum
from enhancer.engine.monitor import Monitor
from enhancer.engine.records import encode
from enhancer.engine.resume import batch_per_rank, check_resume, read_weights
from enhancer.engine.retention import Retention
from enhancer.engine.run import METRICS
from enhancer.engine.state import State
from enhancer.engine.status import STATUS, read_status
from enhancer.inference import load_run
from enhancer.report.page import Content, document
from enhancer.report.record import read_runs
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.load import dump, load
from hparams.schema import HParams
from tests.fuzz.mutations import changed_json, spoiled_bytes, spoiled_json
from tests.fuzz.target import Read, Target

HP = load("pedal_lstm", ["task.hidden_size=4", "ema_decay=0.9", "zero_stage=0"])
MODULE = "device"
STEP = "step-0000003"
_POINTERS = (
    "step-0000003\n",
    "..",
    "../..",
    "/etc",
    "step-0000003/..",
    "step-9999999",
    "a\0b",
    "a\nb",
    "x" * 9999,
    "",
)


def modules_of(hp: HParams) -> tuple[AccelerateBackend, WeightAverage]:
    """A fresh backend of the model of `hp`, and the average of its weights."""
    torch.manual_seed(0)
    task = TASKS[hp.task.name](hp)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    backend = AccelerateBackend(Accelerator(cpu=True), modules, groups, hp)
    return backend, WeightAverage(task.main_module, modules[task.main_module], hp.ema_decay)


def make_run(folder: Path) -> Path:
    """A run with one checkpoint behind an optimiser step, status and metrics."""
    folder.mkdir()
    backend, average = modules_of(HP)
    for name, module in backend.modules.items():
        loss = sum(parameter.square().sum() for parameter in module.parameters())
        backend.backward(name, loss)
        backend.step(name, loss.detach())
    record = {"task": "pedal", "global_batch": 16, "fingerprint": "corpora", "hparams": {}, "versions": {}}
    Checkpoints(folder, Retention(3), record).save(
        State(step=3, draws=48, best=0.5, best_step=3), backend, average, is_best=True
    )
    (folder / "hparams.yaml").write_text(dump(HP))
    status = {
        "state": "finished",
        "step": 3,
        "max_steps": 3,
        "reason": "",
        "exit_code": 0,
        "pid": 1,
        "host": "h",
    }
    (folder / STATUS).write_text(json.dumps({**status, "started": "2026-01-01", "updated": "2026-01-01"}))
    monitor = Monitor.open(folder, max_steps=3, from_step=0)
    monitor.event(0, "start", "fresh run")
    for step in (1, 2, 3):
        monitor.log(step, {"loss": 1 / step, "draws": 16 * step, "learning_rate": 1e-3})
    monitor._append("evaluation", 3, {"summary": {"esr": {"mean": 0.5, "low": 0.4, "high": 0.6}},
                                      "rows": [{"item": 0, "esr": 0.5}, {"item": 1, "esr": 0.4}]})  # fmt: skip
    monitor.close()
    return folder


def sign(folder: Path, content: Any) -> None:
    """Write the manifest `content` of the checkpoint in `folder` with the checksum that it needs."""
    if isinstance(content, dict):
        content.pop("checksum", None)
        content["checksum"] = _checksum(content)
    (folder / MANIFEST).write_bytes((encode(content, indent=1) + "\n").encode("utf-8", "surrogatepass"))


def use(run: Path) -> None:
    """Go on with the run, as far as its checkpoint goes, and use its weights."""
    backend, average = modules_of(HP)
    checkpoints = Checkpoints(run, Retention(3), {})
    checkpoint = checkpoints.latest_valid()
    if checkpoint is not None:
        batch_per_rank(checkpoint.record, 1)
        check_resume(checkpoint, backend.describe(), "corpora")
        checkpoints.restore(checkpoint, backend, average)
    load_run(run)
    read_weights(run, MODULE)


def _copied(folder: Path) -> tuple[Path, Any]:
    kept, run = make_run(folder / "kept"), folder / "run"

    def copy() -> Path:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(kept, run)
        return run / "checkpoints" / STEP

    return run, copy


def _manifests(folder: Path) -> Read:
    run, copy = _copied(folder)

    def read(rng: Random) -> None:
        checkpoint = copy()
        content = json.loads((checkpoint / MANIFEST).read_bytes())
        if rng.random() < 0.3:
            (checkpoint / MANIFEST).write_bytes(spoiled_json(rng, content))
        else:
            sign(checkpoint, changed_json(rng, content))
        use(run)

    return read


def _checkpoint_files(folder: Path) -> Read:
    """Any file of a checkpoint, with a manifest that fits it."""
    from enhancer.engine.manifest import _measure

    run, copy = _copied(folder)

    def read(rng: Random) -> None:
        checkpoint = copy()
        content = json.loads((checkpoint / MANIFEST).read_bytes())
        path = checkpoint / rng.choice(sorted(content["files"]))
        path.write_bytes(spoiled_safetensors(rng, path.read_bytes()))
        size, digest = _measure(path)
        content["files"][path.name] = {"bytes": size, "sha256": digest}
        sign(checkpoint, content)
        use(run)

    return read


def spoiled_safetensors(rng: Random, data: bytes) -> bytes:
    """The bytes of a safetensors file changed anywhere, or its header and the state within by their values."""
    if rng.random() < 0.4:
        return spoiled_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    state = header.get("__metadata__", {}).get("state")
    if state is not None and rng.random() < 0.6:
        header["__metadata__"]["state"] = spoiled_json(rng, json.loads(state)).decode(
            "utf-8", "surrogateescape"
        )
    else:
        header = changed_json(rng, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _safetensors(folder: Path) -> Read:
    kept = make_run(folder / "kept") / "checkpoints" / STEP / f"{MODULE}.safetensors"
    path = folder / "weights.safetensors"

    def read(rng: Random) -> None:
        path.write_bytes(spoiled_safetensors(rng, kept.read_bytes()))
        read_weights(path, MODULE)

    return read


def _pointers(folder: Path) -> Read:
    run, copy = _copied(folder)

    def read(rng: Random) -> None:
        checkpoints = copy().parent
        for pointer in ("BEST", "LATEST"):
            data = rng.choice(_POINTERS).encode()
            (checkpoints / pointer).write_bytes(spoiled_bytes(rng, data) if rng.random() < 0.5 else data)
        load_run(run)
        read_weights(run, MODULE)

    return read


def _statuses(folder: Path) -> Read:
    run, copy = _copied(folder)

    def read(rng: Random) -> None:
        copy()
        path = run / STATUS
        path.write_bytes(spoiled_json(rng, json.loads(path.read_bytes())))
        read_status(run)
        document(Content(read_runs([run])))

    return read


def _metrics(folder: Path) -> Read:
    run, copy = _copied(folder)

    def read(rng: Random) -> None:
        copy()
        path = run / METRICS
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = spoiled_json(rng, json.loads(lines[at])).replace(b"\n", b" ")
        path.write_bytes(b"\n".join(lines) + rng.choice((b"\n", b"\n", b"", b'\n{"kind"', b"\n\n")))
        document(Content(read_runs([run])))
        Monitor.open(run, max_steps=3, from_step=2).close()

    return read


_ERRORS = (UserError,)
TARGETS = {
    "manifest": Target(_manifests, _ERRORS),
    "checkpoint": Target(_checkpoint_files, _ERRORS),
    "safetensors": Target(_safetensors, _ERRORS),
    "pointer": Target(_pointers, _ERRORS),
    "status": Target(_statuses, _ERRORS, 0.5),
    "metrics": Target(_metrics, _ERRORS, 0.5),
}
