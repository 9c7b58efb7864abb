"""One start of a run, from joining the other ranks to the exit code: fresh, or going on where it stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from enhancer.engine import distributed, launcher
from enhancer.engine.backend import Backend
from enhancer.engine.checkpoint import Checkpoint, Checkpoints
from enhancer.engine.fit import fit
from enhancer.engine.job import Job
from enhancer.engine.launcher import Launch
from enhancer.engine.monitor import Monitor
from enhancer.engine.resume import batch_per_rank, check_resume, read_weights
from enhancer.engine.run import Run
from enhancer.engine.state import State
from enhancer.engine.stop import Stop, listening
from enhancer.engine.task import Stream, Task
from hparams.errors import UserError
from hparams.fields import flat_values
from hparams.schema import HParams

EXIT_USER = 2


@dataclass(frozen=True)
class Place:
    """Where a rank stands, for opening its share of the data."""

    rank: int
    world_size: int
    local_world_size: int
    batch_size: int
    """Examples of this rank in one batch."""


@dataclass(frozen=True)
class Options:
    """How to start, beside the hyper-parameters."""

    run_folder: Path
    backend: str | None = None
    """`deepspeed` or `accelerate`; by the launcher when None."""
    init_from: Path | None = None
    """Weights to start a fresh run from: a run folder, a checkpoint folder or a safetensors file."""
    allow_data_change: bool = False
    """Go on with other corpora than the checkpoint was trained on."""
    seconds_per_example: float = 0.0


OpenTask = Callable[[HParams, Place], tuple[Task, Stream]]


def train(hp: HParams, options: Options, open_task: OpenTask) -> int:
    """Train or go on training; the exit code. The user's mistakes are one text on rank 0's stderr."""
    launch = launcher.detect()
    backend_name = options.backend or launch.backend
    try:
        device = _start(backend_name, hp)
        launcher.set_threads(launch)
        say(
            f"{backend_name} backend, {distributed.world_size()} rank(s), {torch.get_num_threads()} thread(s) each"
        )
        return _train_in_folder(hp, options, open_task, launch, backend_name, device)
    except (UserError, OSError) as error:
        say(f"error: {error}")
        return EXIT_USER


def leave(code: int) -> NoReturn:
    """End this process with `code` after a session.

    Without the interpreter's own clean-up: threads of the process group that still run then abort it now and then,
    which launchers take for a failed run. All files are closed by this time.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say(text: str) -> None:
    """One line on rank 0's stderr."""
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)


def _start(backend_name: str, hp: HParams) -> Any:
    if backend_name == "deepspeed":
        from enhancer.engine import deepspeed_machine

        return deepspeed_machine.start()
    from enhancer.engine import accelerate_backend

    return accelerate_backend.start(hp)


def _train_in_folder(
    hp: HParams, options: Options, open_task: OpenTask, launch: Launch, backend_name: str, device: Any
) -> int:
    run = Run.open(options.run_folder, hp)
    with ExitStack() as stack:
        stack.callback(run.close)
        run.clear_stop_file()
        stop = stack.enter_context(listening(run.folder, launch.num_ancestors))
        step = 0
        try:
            job, state = _prepare(hp, options, open_task, launch, backend_name, device, run, stop)
            step = state.step
            with closing(job.monitor):
                return fit(job, state).exit_code
        except (UserError, OSError) as error:
            run.status("failed", step, str(error), exit_code=EXIT_USER)
            raise
        except BaseException as error:
            run.status("failed", step, f"{type(error).__name__}: {error}")
            raise


def _prepare(
    hp: HParams,
    options: Options,
    open_task: OpenTask,
    launch: Launch,
    backend_name: str,
    device: Any,
    run: Run,
    stop: Stop,
) -> tuple[Job, State]:
    """Everything that training works with, and where it goes on from."""
    world_size = distributed.world_size()
    checkpoints = Checkpoints(run.folder, hp.keep_checkpoints, {})
    checkpoint = checkpoints.latest_valid()
    for text in checkpoints.skipped:
        say(text)
    batch_size = batch_per_rank(checkpoint.record, world_size) if checkpoint else hp.batch_size_per_gpu
    place = Place(distributed.rank(), world_size, launch.local_world_size, batch_size)
    say("opening the corpora and building the model")
    # The same weights on all ranks; what is drawn while training differs between them.
    torch.manual_seed(hp.seed)
    task, stream, backend = distributed.together(
        lambda: _open(hp, options, open_task, backend_name, device, place, is_fresh=checkpoint is None)
    )
    torch.manual_seed(hp.seed + place.rank)
    checkpoints.record.update(
        task=task.name,
        global_batch=batch_size * world_size,
        fingerprint=stream.fingerprint,
        hparams=flat_values(hp),
    )
    state = _resume(hp, options, checkpoints, checkpoint, backend, stream.fingerprint)
    monitor = Monitor.open(run.folder, hp.max_steps, state.step)
    _announce(monitor, task, backend, state, checkpoint)
    job = Job(
        hp=hp,
        task=task,
        stream=stream,
        backend=backend,
        run=run,
        checkpoints=checkpoints,
        monitor=monitor,
        stop=stop,
        global_batch=batch_size * world_size,
        seconds_per_example=options.seconds_per_example,
    )
    return job, state


def _open(
    hp: HParams,
    options: Options,
    open_task: OpenTask,
    backend_name: str,
    device: Any,
    place: Place,
    *,
    is_fresh: bool,
) -> tuple[Task, Stream, Backend]:
    task, stream = open_task(hp, place)
    modules = task.build()
    if options.init_from is not None and is_fresh:
        for name, module in modules.items():
            _load_weights(module, read_weights(options.init_from, name), options.init_from)
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    if backend_name == "deepspeed":
        from enhancer.engine.deepspeed_backend import DeepSpeedBackend

        backend: Backend = DeepSpeedBackend(device, modules, groups, hp, place.batch_size)
    else:
        from enhancer.engine.accelerate_backend import AccelerateBackend

        backend = AccelerateBackend(device, modules, groups, hp)
    task.to(backend.device)
    return task, stream, backend


def _load_weights(module: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"--init-from {source} holds another model than this run's: {error}") from error


def _resume(
    hp: HParams,
    options: Options,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    backend: Backend,
    fingerprint: str,
) -> State:
    if checkpoint is None:
        return State()
    check_resume(checkpoint, hp, backend.describe(), fingerprint, options.allow_data_change)
    return checkpoints.restore(checkpoint, backend)


def _announce(
    monitor: Monitor, task: Task, backend: Backend, state: State, checkpoint: Checkpoint | None
) -> None:
    sizes = ", ".join(
        f"{name} {_count(module.parameters()) / 1e6:.3g} M" for name, module in backend.raw_modules.items()
    )
    where = f"going on from {checkpoint.folder.name}" if checkpoint else "fresh run"
    monitor.event(
        state.step, "resumed" if checkpoint else "start", f"{where}: {task.name}, parameters {sizes}"
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    # A parameter that ZeRO 3 has split is empty here and tells its whole size in ds_numel.
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
