"""A thread in each rank that shows signs of life, looks for those of others, and ends a run that would hang.

Rank 0 watches all ranks, all watch rank 0. A request to stop that one has heard is handed on to all. Who finds that a
rank is gone, frozen or stuck writes `abort.json` beside the heartbeats, which every rank sees within a second: all dump
their stacks and leave, whatever their main threads do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

import psutil

from enhancer.engine import distributed
from enhancer.engine.abort import read_abort, write_abort
from enhancer.engine.build_lock import BuildLocks, release_held_lock
from enhancer.engine.peers import Peers, Verdict
from enhancer.engine.pulse import (
    BEAT_SECONDS,
    ENDED,
    HEARTBEATS,
    PREPARING,
    Beat,
    BeatFile,
    Pulse,
    read_beats,
    this_host,
)
from enhancer.engine.run import Run
from enhancer.engine.stacks import (
    STACKS,
    StackFile,
    end_hung,
    inspect,
    kill_children,
    kill_left_by,
)
from enhancer.engine.status import EXIT_CODES
from enhancer.engine.stop import Stop
from hparams.errors import UserError
from hparams.schema import HParams

# Long enough to say what went wrong, and shorter than launchers wait.
_LEAVE_SECONDS = 10.0
# A run that is asked to stop before its first step has so long to find out by itself. Then whatever it waits for, such
# as a compiler or a store, is ended with it: there is nothing to save.
_PREPARING_SECONDS = 8.0
EXIT_USER = 2


class Watch:
    """The watching thread of this rank in the start `launch` of `run`."""

    def __init__(self, run: Run, pulse: Pulse, hp: HParams, stop: Stop, launch: str) -> None:
        self._run, self._pulse, self._stop = run, pulse, stop
        self._stop_heard: float | None = None
        self._rank = distributed.rank()
        self._folder = run.folder / HEARTBEATS
        self._stacks_folder = run.folder / STACKS / launch
        self._file = BeatFile(self._folder, self._rank)
        self._stacks = StackFile(self._stacks_folder, self._rank)
        created, self._hang_seconds = psutil.Process().create_time(), hp.hang_timeout_seconds
        self._beat = Beat(launch, self._rank, this_host(), os.getpid(), created, self._hang_seconds)
        stall_seconds = hp.stall_timeout_seconds if self._rank == 0 else None
        self._peers = Peers(self._hang_seconds, stall_seconds, this_host(), inspect, time.monotonic())
        self._main_thread = threading.main_thread().ident or 0
        self._locks = BuildLocks(self._main_thread, self._hang_seconds)
        self._is_explaining = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._show()  # Whoever has met this rank can see from now on whether it is gone.

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self, end: str) -> None:
        """Watch no more; `end` is what the others see: `ended` or what this rank failed with."""
        self._done.set()
        if self._thread.ident is not None:  # It may not have been started.
            self._thread.join()
        self._show(end)
        self._file.close()
        self._stacks.close()
        if end == ENDED:
            with contextlib.suppress(OSError):  # The last rank to leave takes the folders with it.
                (self._folder / f"rank{self._rank:05d}.json").unlink()
                self._folder.rmdir()
        with contextlib.suppress(OSError):
            self._stacks_folder.rmdir()
            self._stacks_folder.parent.rmdir()

    def leave_if_stopped(self, patience_seconds: float = 0.0) -> None:
        """End this process, and the others, where the run is asked to stop before its first step, or will be soon.

        For an error of that time: launchers tell everything that a rank has started, too, and a compiler may then fail
        before the rank has heard.
        """
        deadline = time.monotonic() + patience_seconds
        while self._pulse.phase in PREPARING and not self._stop.reason and time.monotonic() < deadline:
            time.sleep(BEAT_SECONDS / 10)
        if self._is_stopped_early():
            self._end(self._stopped())

    def wait_for_cause(self) -> None:
        """Return when no other rank is the cause of an error that this one has met.

        Where one is, the process ends here, with that as its reason: the first rank that dies is what matters, not the
        connections that others then lose.
        """
        if distributed.world_size() == 1:
            return
        since = time.monotonic()
        self._is_explaining = True
        while time.monotonic() < since + self._hang_seconds + 3 * BEAT_SECONDS:
            time.sleep(BEAT_SECONDS / 4)
            if time.monotonic() > since + 2 * BEAT_SECONDS and self._peers.have_all_moved(
                self._others(), since
            ):
                return

    def _watch(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            self._show()
            verdict = read_abort(self._folder, self._beat.launch) or self._judge()
            if verdict is not None:
                self._end(verdict)

    def _show(self, end: str = "") -> None:
        pulse = self._pulse
        count = self._beat.count + 1
        self._beat = replace(
            self._beat,
            count=count,
            phase=pulse.phase,
            step=pulse.step,
            marks=pulse.marks,
            stop=self._stop.reason,
            end=end,
        )
        # A rank that cannot write shows no sign of life, and that is what the others then say.
        with contextlib.suppress(OSError):
            self._file.write(self._beat)

    def _others(self) -> list[Beat]:
        ranks = None if self._rank == 0 or self._is_explaining else [0]
        beats = read_beats(self._folder, ranks)
        return [beat for beat in beats if beat.launch == self._beat.launch and beat.rank != self._rank]

    def _judge(self) -> Verdict | None:
        now = time.monotonic()
        lock = self._locks.stale(now)
        if lock is not None:
            reason = (
                f"building an extension waits for {lock}, which no process holds: a build was killed there. "
                "Remove that file and run again"
            )
            return Verdict(reason, EXIT_USER)
        others = self._others()
        for beat in others:
            if beat.stop:
                self._stop.request(beat.stop)
        return self._peers.look([*others, self._beat], now) or self._stopped_early(now)

    def _stopped_early(self, now: float) -> Verdict | None:
        """The end of a start that was asked to stop some time ago and still prepares the first step."""
        if not self._is_stopped_early():
            return None
        self._stop_heard = self._stop_heard or now
        return self._stopped() if now - self._stop_heard > _PREPARING_SECONDS else None

    def _is_stopped_early(self) -> bool:
        return bool(self._stop.reason) and self._pulse.phase in PREPARING

    def _stopped(self) -> Verdict:
        text = f"{self._stop.reason}, while {self._pulse.phase}: nothing was to be saved"
        return Verdict(text, EXIT_CODES["preempted"])

    def _end(self, found: Verdict) -> NoReturn:
        """End this process with the first verdict that any rank has come to, also where it cannot be told."""
        is_first = write_abort(self._folder, self._beat.launch, found)
        verdict = read_abort(self._folder, self._beat.launch) or found
        # On a thread of its own, which may fail, or wait for a disk that does not answer.
        last = threading.Thread(
            target=self._clear_up, args=(verdict,), kwargs={"is_first": is_first}, daemon=True
        )
        last.start()
        last.join(_LEAVE_SECONDS)
        os._exit(verdict.exit_code)

    def _clear_up(self, verdict: Verdict, *, is_first: bool) -> None:
        """Dump the stacks, end the ranks that hang and what this one and those that are gone started, and say why."""
        is_preempted = verdict.exit_code == EXIT_CODES["preempted"]
        if not is_preempted:
            self._stacks.dump()
        hung = [beat for beat in verdict.hung if beat.host == self._beat.host and beat.rank != self._rank]
        if hung and self._is_first_here(verdict):
            end_hung(hung, self._stacks_folder)
        kill_children()
        release_held_lock(self._main_thread)
        gone = [beat for beat in self._others() if beat.host == self._beat.host and not beat.end]
        kill_left_by([beat for beat in gone if inspect(beat).status == "gone"])
        if is_first:
            text = f"error: {verdict.reason}\nstacks of the ranks: {self._stacks_folder}\n"
            if is_preempted:
                text = f"stopped: {verdict.reason}\n"
            with contextlib.suppress(OSError):  # The log may be on a full disk; status.json says it, too.
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        if is_first or self._rank == 0:
            state = "preempted" if is_preempted else "failed"
            self._run.status(state, self._pulse.step, verdict.reason, verdict.exit_code, is_forced=True)
        self._show(ENDED)

    def _is_first_here(self, verdict: Verdict) -> bool:
        """Whether this rank is to end those of this machine that hang: no lower one is there that does not.

        One that hung itself and was woken ends nobody: all that were woken with it are as well as it is, and leave.
        """
        hung = {beat.rank for beat in verdict.hung}
        if self._rank in hung:
            return False
        here = [beat for beat in read_beats(self._folder) if beat.host == self._beat.host]
        living = [beat.rank for beat in here if beat.rank not in hung and inspect(beat).status != "gone"]
        return self._rank == min([*living, self._rank])


@contextmanager
def watching(run: Run, pulse: Pulse, hp: HParams, stop: Stop) -> Iterator[Watch]:
    """A `Watch` for as long as this rank works on `run`. Called by all ranks.

    An error that is not the user's to mend gives the other ranks time to say that one of them was its cause.
    """
    launch = distributed.on_main(lambda: _fresh_folder(run.folder / HEARTBEATS))
    watch = _opened(run, pulse, hp, stop, launch)
    watch.start()
    end = ENDED
    try:
        yield watch
    except (UserError, OSError):
        raise
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"
        if distributed.world_size() > 1:
            # The interpreter's clean-up waits for threads that may wait for ranks that are gone.
            timer = threading.Timer(_LEAVE_SECONDS, os._exit, [EXIT_CODES["failed"]])
            timer.daemon = True
            timer.start()
        raise
    finally:
        watch.stop(end)


def _opened(run: Run, pulse: Pulse, hp: HParams, stop: Stop, launch: str) -> Watch:
    """The `Watch` of this rank. Raises UserError on every rank where one cannot have its own."""
    opened = []

    def open_watch() -> None:
        try:
            opened.append(Watch(run, pulse, hp, stop, launch))
        except OSError as error:
            raise UserError(
                f"rank {distributed.rank()} cannot write {error.filename} ({error.strerror}), by which the ranks watch "
                "each other; make room or mend the folder of the run, then run again"
            ) from error

    try:
        distributed.together(open_watch)
    except UserError:
        for watch in opened:
            watch.stop(ENDED)
        raise
    return opened[0]


def _fresh_folder(folder: Path) -> str:
    """An empty `folder`, and a name for this start of the run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
