"""Checkpoints that appear whole or not at all, list their contents, and restore exactly or refuse.

    RUN/checkpoints/step-0000500/   manifest.json, the backend's files, NAME.average.safetensors where weights
                                are averaged, task.state where the task goes on from tensors of its own,
                                rng-rank00000.safetensors per rank
                    LATEST, BEST    the name of one of the folders

All ranks copy what they have to host memory and write it into a folder of a temporary name, beside training where that
is asked for. When every rank says that its files are on the disk, rank 0 lists them and renames the folder. `LATEST` is
a hint for people: resuming looks at the folders.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from enhancer.engine import atomic, distributed, host_rng, rng
from enhancer.engine.average import WeightAverage
from enhancer.engine.backend import Backend
from enhancer.engine.background import Background
from enhancer.engine.copies import Copies
from enhancer.engine.manifest import (
    DamagedCheckpoint,
    Entry,
    Manifest,
    committed,
    folder_name,
    sync_and_measure,
    verify,
)
from enhancer.engine.pointers import LATEST, write_pointer
from enhancer.engine.publisher import Publisher
from enhancer.engine.retention import Retention
from enhancer.engine.snapshot import Files, HostMemory
from enhancer.engine.state import State
from enhancer.engine.versions import versions
from enhancer.engine.weights import read_state, read_weights_file, write_file
from hparams.errors import UserError

_TASK_FILE = "task.state"
_RNG_FILE = "rng-rank{rank:05d}.safetensors"
# Ranks that wait for a write ask each other this often whether all are done.
_TURN_SECONDS = 0.2
# What torch, DeepSpeed and the random generators raise for tensors of other names, types and shapes.
_OF_OTHER_MODULES = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `record` has global_batch, world_size, zero_stage, backend and more."""

    folder: Path
    state: State
    record: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was published, and what it cost."""

    step: int
    folder: Path
    blocked_seconds: float
    """How long training stood still for it."""
    write_seconds: float
    """From the snapshot to the published checkpoint, beside training or not."""


@dataclass(frozen=True)
class _Snapshot:
    """What this rank will write, as it was at one moment."""

    state: State
    record: dict[str, Any]
    files: Files
    is_best: bool
    final: Path
    temporary: Path


class Checkpoints:
    """The checkpoints of the run in `folder`: those of `retention`, and the best.

    Args:
        folder: of the run.
        retention: which are kept.
        record: facts that every checkpoint states beside those of the backend; JSON values only.
        is_async: `save` returns when the snapshot is taken, whose memory is kept; the rest is done beside training.
        copies: where else they are kept, on rank 0.
        on_failure: called as soon as a write beside training or a copy has failed; `save` or `finish` then raise.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention,
        record: Mapping[str, Any],
        *,
        is_async: bool = False,
        copies: Copies | None = None,
        on_failure: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder / "checkpoints"
        self.record = {"versions": versions() if distributed.is_main() else {}, **record}
        self.task_state: Mapping[str, Tensor] = {}
        """Tensors of the task that every checkpoint holds and `restore` fills, the same on every rank."""
        self.skipped: list[str] = []
        """What was wrong with the newer checkpoints that `latest_valid` passed over."""
        self.saved: deque[Saved] = deque()
        """What was published since somebody took it out of here, on rank 0."""
        self._publisher = Publisher(self.folder, retention, copies)
        self._copies = copies
        self._line = distributed.second_line() if is_async else None
        self._writer = Background("checkpoint", on_failure) if is_async else None
        self._memory: HostMemory | None = None
        self._last: Path | None = None
        """The checkpoint that `save` began last, which may still be under way, or that was restored."""

    def save(
        self,
        state: State,
        backend: Backend,
        average: WeightAverage | None = None,
        *,
        is_best: bool = False,
        is_waiting: bool = False,
    ) -> Path:
        """Publish `state`, all that `backend` has and the `average` as a new checkpoint; its folder. Called by all
        ranks.

        Beside training that has only begun then, unless `is_waiting`; the save before is waited for. The files of a
        whole checkpoint of the same step are left as they are, for there is no moment to replace them at which a kill
        would lose nothing; its manifest is told what evaluations have come to since.
        Raises SaveError on all ranks alike when one of them cannot write, now or since the save before; nothing of the
        attempt stays.
        """
        started = time.perf_counter()
        final = self.folder / folder_name(state.step)
        is_last = self._last == final
        if is_best or not is_last:
            self.finish_together()
            temporary = distributed.on_main(lambda: self._publisher.prepare(final, is_known=is_last))
            if temporary is None:
                distributed.on_main(lambda: self._publisher.amend(final, state))
                distributed.on_main(lambda: self._publisher.point(final, is_best=is_best))
            else:
                files = self._capture(final, temporary, backend, average)
                record = {**self.record, **backend.describe()}
                snapshot = _Snapshot(state, record, files, is_best, final, temporary)
                if self._writer is None:
                    self._commit(snapshot, started, is_beside=False)
                else:
                    commit = partial(self._commit, snapshot, started, is_beside=not is_waiting)
                    self._writer.start(commit, is_urgent=is_waiting)
            self._last = final
        if is_waiting:
            self.finish_together()
        return final

    def amend(self, state: State) -> None:
        """Write down what evaluations have come to in `state`, where the checkpoint of its step was the last to be
        saved or restored. Called by all ranks; raises SaveError on all alike.
        """
        final = self.folder / folder_name(state.step)
        if self._last == final:
            self.finish_together()
            distributed.on_main(lambda: self._publisher.amend(final, state))

    def finish(self) -> None:
        """Wait for the save that is under way. Raises its SaveError, on all ranks alike.

        Says nothing to other ranks, so that one which fails by itself can end what the others wait for.
        """
        if self._writer is None:
            return
        try:
            self._writer.finish()
        except BaseException:
            self._last = None
            raise

    def finish_together(self) -> None:
        """`finish`, called by all ranks. The write may take its time, but a rank that is lost meanwhile is noticed."""
        while self._writer is not None and not distributed.all_agree(self._writer.is_done(_TURN_SECONDS)):
            continue
        self.finish()

    def finish_copies(self, most_seconds: float) -> bool:
        """`finish_together`, and wait until the last checkpoint is copied; False where it is not after `most_seconds`.

        Raises CopyError on all ranks alike.
        """
        self.finish_together()
        deadline = time.monotonic() + most_seconds
        is_copied = is_late = False
        while not (is_copied or is_late):
            # Ranks without copies must hear something now and then: comm_timeout_seconds is for those that are lost.
            is_copied = self._copies is None or self._copies.is_done(_TURN_SECONDS)
            is_copied, is_late = distributed.broadcast((is_copied, time.monotonic() > deadline))
        if is_copied:
            distributed.on_main(lambda: self._copies.finish() if self._copies else None)
        return is_copied

    def latest_valid(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte verifies, None in a fresh run. Called by all ranks.

        Removes what dead saves left. Damaged ones are named in `skipped`; UserError when all are damaged.
        """
        checkpoint, self.skipped = distributed.on_main(self._scan)
        return checkpoint

    def restore(
        self, checkpoint: Checkpoint, backend: Backend, average: WeightAverage | None = None
    ) -> State:
        """Put `checkpoint` into `backend`, the `average` and the random generators; the state to go on from.

        Called by all ranks. A rank that there was not when it was saved gets generators of its own, made from those of
        rank 0. No code of the files is executed. Raises UserError where they are whole, but not those of this run's
        modules.
        """
        rank = distributed.rank()
        own = checkpoint.folder / _RNG_FILE.format(rank=rank)
        path = own if own.exists() else checkpoint.folder / _RNG_FILE.format(rank=0)
        try:
            backend.load(checkpoint.folder)
            if average is not None:
                average.load(checkpoint.folder, checkpoint.state.step)
            if self.task_state:
                _fill(self.task_state, read_state(checkpoint.folder / _TASK_FILE))
            states = read_weights_file(path)
            rng.restore(states)
            host_rng.restore(states)
            if path != own:
                rng.branch(rank)
        except UserError:
            raise
        except _OF_OTHER_MODULES as error:
            raise UserError(
                f"{checkpoint.folder} does not hold what this run's modules need: {type(error).__name__}: {error}. "
                "Give another --run-dir, or restore the folder from a backup"
            ) from error
        self._last = self.folder / checkpoint.folder.name
        # A kill may have come between the checkpoint and what points to it, and newer ones may be damaged.
        if distributed.is_main():
            self._publisher.mend_best(checkpoint.state)
        if self._copies is not None:
            write_pointer(self.folder, LATEST, checkpoint.folder.name)
            self._copies.update()
        return checkpoint.state

    def _capture(
        self, final: Path, temporary: Path, backend: Backend, average: WeightAverage | None
    ) -> Files:
        """What this rank will write, copied to the host. Raises SaveError on all ranks alike when there is no room."""
        memory = self._memory or HostMemory(backend.device)
        memory.begin()
        files = backend.capture(memory)
        if average is not None and distributed.is_main():
            files |= average.capture(memory)
        if self.task_state and distributed.is_main():
            files[_TASK_FILE] = memory.state(dict(self.task_state))
        memory.wait()
        if self._writer is not None:
            self._memory = memory
        generators = {**rng.capture(), **host_rng.capture()}
        files[_RNG_FILE.format(rank=distributed.rank())] = safetensors.torch.save(generators)
        needed = distributed.all_gather((memory.num_bytes, memory.problem))
        distributed.on_main(lambda: self._publisher.require_room(final, temporary, needed))
        return files

    def _commit(self, snapshot: _Snapshot, started: float, *, is_beside: bool) -> None:
        """Write, agree, publish, `is_beside` training or while it waits; `save` was called at the time `started`."""
        captured = time.perf_counter()
        final, temporary = snapshot.final, snapshot.temporary
        written = distributed.all_gather(_write(temporary, snapshot.files), self._line)
        distributed.on_main(
            lambda: self._publisher.publish(final, temporary, snapshot.state, snapshot.record, written),
            self._line,
        )
        distributed.on_main(lambda: self._publisher.point(final, is_best=snapshot.is_best), self._line)
        done = time.perf_counter()
        if distributed.is_main():
            blocked_seconds = (captured if is_beside else done) - started
            self.saved.append(Saved(snapshot.state.step, final, blocked_seconds, done - captured))

    def _scan(self) -> tuple[Checkpoint | None, list[str]]:
        if self.folder.is_dir():
            atomic.remove_debris(self.folder)
        skipped: list[str] = []
        for _, folder in committed(self.folder):
            try:
                manifest: Manifest = verify(folder)
            except DamagedCheckpoint as error:
                skipped.append(f"checkpoint {folder.name} is refused: {error}")
                continue
            atomic.remove_debris(folder)  # Of a manifest that was being amended.
            if skipped:
                skipped.append(f"going on from {folder.name}, the newest that is whole")
            return Checkpoint(folder, manifest.state, manifest.record), skipped
        if skipped:
            raise UserError(
                f"{self.folder} has no whole checkpoint: {'; '.join(skipped)}. "
                "Restore one from a backup, or start afresh with another --run-dir."
            )
        return None, skipped


def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Put `values` of the same names, types and shapes into `tensors`. Raises ValueError for any others."""
    forms = [
        {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in each.items()}
        for each in (tensors, values)
    ]
    if forms[0] != forms[1]:
        raise ValueError(f"{_TASK_FILE} holds {forms[1]}; needed {forms[0]}")
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _write(folder: Path, files: Files) -> tuple[dict[str, Entry], str]:
    """Size and sha256 of this rank's files, and what went wrong, or nothing."""
    entries = {}
    try:
        for name, content in files.items():
            write_file(folder / name, content)
            entries[name] = sync_and_measure(folder / name)
    except OSError as error:
        return {}, f"rank {distributed.rank()}: {error}"
    return entries, ""
