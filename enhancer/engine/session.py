"""One start of a run, from joining the other ranks to the exit code: fresh, or going on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enhancer.engine import denormals, distributed, launcher
from enhancer.engine.ancestors import Ancestors
from enhancer.engine.average import WeightAverage
from enhancer.engine.backend import Backend
from enhancer.engine.checkpoint import Checkpoint, Checkpoints
from enhancer.engine.copies import Copies, RemoteFolder, fetch_run
from enhancer.engine.fit import fit
from enhancer.engine.job import Job
from enhancer.engine.launcher import Launch
from enhancer.engine.meeting import meeting
from enhancer.engine.milestones import tell_notices
from enhancer.engine.monitor import Monitor
from enhancer.engine.parts import num_parts_of
from enhancer.engine.pulse import BUILDING, Pulse
from enhancer.engine.resume import batch_per_rank, check_resume, frozen_digest, read_weights
from enhancer.engine.retention import Retention
from enhancer.engine.run import Run
from enhancer.engine.session_end import EXIT_FAILED, EXIT_USER, print_error, say, tell_failed, wait_for_writes
from enhancer.engine.state import State
from enhancer.engine.stop import EXIT_INTERRUPTED, LEFT, Stop, listening
from enhancer.engine.task import Remembering, Stream, Task
from enhancer.engine.watch import Watch, watching
from hparams.errors import UserError
from hparams.fields import flat_values
from hparams.schema import HParams

# A signal that a rank's children have met reaches the rank, or its word about it the others, within this.
SIGNAL_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Where a rank stands, for opening its share of the data."""

    rank: int
    world_size: int
    local_world_size: int
    batch_size: int
    """Examples of this rank in one batch, which it may take in parts."""
    run_folder: Path = Path()


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
    ancestors: Ancestors | None = None
    """The launcher's processes when this one began; None: as they are now."""
    copies: RemoteFolder | None = None
    """Where copies of the run are kept, and a run folder without checkpoints is filled from."""


OpenTask = Callable[[HParams, Place], tuple[Task, Stream]]


def train(hp: HParams, options: Options, open_task: OpenTask) -> int:
    """Train or go on training; the exit code. The user's mistakes are one text on rank 0's stderr."""
    launch = launcher.detect()
    ancestors = options.ancestors or Ancestors.of(launch)
    backend_name = options.backend or launch.backend
    try:
        with meeting(launch.local_world_size, hp.hang_timeout_seconds, ancestors):
            machine = _join(backend_name, hp)
        launcher.set_threads(launch)
        say(
            f"{backend_name} backend, {distributed.world_size()} rank(s), {torch.get_num_threads()} thread(s) each"
        )
        with denormals.flushed():
            return _Session(hp, options, open_task, launch, ancestors, backend_name, machine).train()
    except (UserError, OSError) as error:
        say(f"error: {error}")
        return EXIT_USER
    except distributed.RanksLost as error:
        print_error(f"error: {error}")  # Each machine has a log of its own.
        return EXIT_FAILED
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        seen = str(error).splitlines()[0]
        print_error(f"error: another rank was lost while the ranks met. Run again. Seen here: {seen}")
        return EXIT_FAILED


def _join(backend_name: str, hp: HParams) -> Any:
    """Join the other ranks; what the backend is then made on: an Accelerator or a device."""
    if backend_name == "deepspeed":
        from enhancer.engine import deepspeed_machine

        return deepspeed_machine.start()
    from enhancer.engine import accelerate_backend

    return accelerate_backend.start(hp)


@dataclass(frozen=True)
class _Session:
    """A start whose ranks have found each other."""

    hp: HParams
    options: Options
    open_task: OpenTask
    launch: Launch
    ancestors: Ancestors
    backend_name: str
    machine: Any
    """What `_join` gave."""

    def train(self) -> int:
        """Train in the run folder; the exit code. However it ends, `status.json` says so."""
        remote = self.options.copies
        fetch = partial(fetch_run, remote, say=say) if remote else None
        pulse = Pulse()
        with ExitStack() as met:
            met.enter_context(
                meeting(self.launch.local_world_size, self.hp.hang_timeout_seconds, self.ancestors)
            )
            run = Run.open(self.options.run_folder, self.hp, fetch)
            with (
                closing(run),
                listening(run.folder, self.ancestors) as stop,
                ExitStack() as watched,
            ):
                try:
                    watch = watched.enter_context(watching(run, pulse, self.hp, stop))
                except (UserError, OSError) as error:
                    tell_failed(run, str(error), EXIT_USER)
                    run.take_back()
                    raise
                met.close()
                return self._train_in(run, stop, pulse, watch)

    def _train_in(self, run: Run, stop: Stop, pulse: Pulse, watch: Watch) -> int:
        stop.before_leaving = lambda: run.status("preempted", run.step, LEFT, EXIT_INTERRUPTED)
        try:
            with ExitStack() as stack:
                try:
                    job, state = self._prepare(run, stop, pulse, stack)
                except (UserError, OSError):
                    watch.leave_if_stopped()
                    run.take_back()
                    raise
                return fit(job, state).exit_code
        except (UserError, OSError) as error:
            tell_failed(run, str(error), EXIT_USER)
            raise
        except BaseException as error:
            watch.wait_for_cause()
            watch.leave_if_stopped(SIGNAL_SECONDS)
            if distributed.is_lost(error):
                lost = distributed.lost(error, self.hp.comm_timeout_seconds)
                tell_failed(run, str(lost))
                raise lost from error
            tell_failed(run, f"{type(error).__name__}: {error}")
            raise

    def _prepare(self, run: Run, stop: Stop, pulse: Pulse, stack: ExitStack) -> tuple[Job, State]:
        """Everything that training works with, and where it goes on from; `stack` closes the monitor."""
        hp, world_size = self.hp, distributed.world_size()
        checkpoints = self._checkpoints(run, stop)
        stack.push(partial(wait_for_writes, checkpoints))
        checkpoint = checkpoints.latest_valid()
        for text in checkpoints.skipped:
            say(text)
        run.step = checkpoint.state.step if checkpoint else 0
        fresh_size = hp.batch_size_per_gpu * hp.gradient_accumulation_steps
        batch_size = batch_per_rank(checkpoint.record, world_size) if checkpoint else fresh_size
        place = Place(distributed.rank(), world_size, self.launch.local_world_size, batch_size, run.folder)
        say("opening the corpora and building the model")
        pulse.mark(BUILDING, run.step)
        # The same weights on all ranks; what is drawn while training differs between them.
        torch.manual_seed(hp.seed)
        is_fresh = checkpoint is None
        with distributed.waits_limited(hp.comm_timeout_seconds):
            task, stream, backend = distributed.together(lambda: self._open(place, is_fresh=is_fresh))
        torch.manual_seed(hp.seed + place.rank)
        checkpoints.record.update(
            task=task.name,
            global_batch=batch_size * world_size,
            fingerprint=stream.fingerprint,
            hparams=flat_values(hp),
            frozen=frozen_digest(run.folder),
        )
        checkpoints.task_state = task.state() if isinstance(task, Remembering) else {}
        average = _average(hp, task, backend)
        state = self._resume(checkpoints, checkpoint, backend, average, stream.fingerprint)
        monitor = distributed.together(lambda: Monitor.open(run.folder, hp.max_steps, state.step, stop.fail))
        stack.callback(monitor.close)
        _announce(monitor, task, backend, state, checkpoint)
        failure = monitor.files.agreed()
        if failure is not None:
            raise failure
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
            num_parts=num_parts_of(task, hp, batch_size),
            seconds_per_example=self.options.seconds_per_example,
            average=average,
            pulse=pulse,
        )
        return job, state

    def _checkpoints(self, run: Run, stop: Stop) -> Checkpoints:
        hp, remote = self.hp, self.options.copies
        retention = Retention(hp.keep_checkpoints, hp.keep_every_steps)
        copies = None
        if remote is not None and distributed.is_main():
            copies = Copies(remote, run.folder, retention, stop.fail)
        return Checkpoints(
            run.folder,
            retention,
            {},
            is_async=hp.async_checkpoints,
            copies=copies,
            on_failure=stop.fail,
        )

    def _open(self, place: Place, *, is_fresh: bool) -> tuple[Task, Stream, Backend]:
        """The task, this rank's data, and the modules on their device; fresh ones may start from other weights."""
        hp, init_from = self.hp, self.options.init_from
        task, stream = self.open_task(hp, place)
        num_parts = num_parts_of(task, hp, place.batch_size)
        modules = task.build()
        if init_from is not None and is_fresh:
            for name, module in modules.items():
                _load_weights(module, read_weights(init_from, name), init_from)
        groups = {name: task.param_groups(name, module) for name, module in modules.items()}
        if self.backend_name == "deepspeed":
            from enhancer.engine.deepspeed_backend import DeepSpeedBackend

            rows = place.batch_size // num_parts
            backend: Backend = DeepSpeedBackend(self.machine, modules, groups, hp, rows, num_parts)
        else:
            from enhancer.engine.accelerate_backend import AccelerateBackend

            backend = AccelerateBackend(self.machine, modules, groups, hp)
        task.to(backend.device)
        return task, stream, backend

    def _resume(
        self,
        checkpoints: Checkpoints,
        checkpoint: Checkpoint | None,
        backend: Backend,
        average: WeightAverage | None,
        fingerprint: str,
    ) -> State:
        if checkpoint is None:
            return State()
        allow_data_change = self.options.allow_data_change
        frozen = checkpoints.record["frozen"]
        check_resume(checkpoint, backend.describe(), fingerprint, allow_data_change, frozen)
        return distributed.together(lambda: checkpoints.restore(checkpoint, backend, average))


def _average(hp: HParams, task: Task, backend: Backend) -> WeightAverage | None:
    if not hp.ema_decay:
        return None
    if backend.is_sharded:
        raise UserError(
            f"ema_decay is {hp.ema_decay}, but zero_stage 3 splits the weights that it averages; set zero_stage to 2 "
            "or less, or ema_decay to 0"
        )
    return WeightAverage(task.main_module, backend.raw_modules[task.main_module], hp.ema_decay)


def _load_weights(module: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"--init-from {source} holds another model than this run's: {error}") from error


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
    tell_notices(task, monitor, state.step)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    # A parameter that ZeRO 3 has split is empty here and tells its whole size in ds_numel.
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
