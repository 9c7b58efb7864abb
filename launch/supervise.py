"""Keep a run going: start it again after a preemption or a crash, until it is finished or cannot be.

    python launch/supervise.py deepspeed launch/train.py --hparams base

Judges by `status.json` of the run, not by exit codes of launchers, which lose them. Never starts again after 0, 2 and
70, after a STOP file or Ctrl-C, and when a run fails twice at one step. SIGTERM and SIGINT go to the run, which saves;
exit codes are the run's. Can be the first process of a container, and ends the run when it dies itself.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from enhancer.engine import records
from enhancer.engine.abort import write_abort
from enhancer.engine.manifest import committed
from enhancer.engine.peers import Peers
from enhancer.engine.pulse import HEARTBEATS, Beat, read_beats, this_host
from enhancer.engine.stacks import STACKS, end_hung, inspect
from enhancer.engine.status import EXIT_CODES, STATUS, read_status, write_status
from hparams.errors import UserError
from hparams.load import preset_name
from launch import train
from launch.common import reports_user_errors
from launch.process_tree import ProcessTree
from launch.restarts import EXIT_USER, End, Restarts, lost

POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
# The ranks watch each other; this one acts where none of them does.
_LATER_SECONDS = 10.0


@reports_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; the exit code of the run."""
    options = _parse(arguments)
    folder = options.run_dir or _run_folder(options.command)
    restarts = Restarts(options.max_restarts, options.backoff_seconds, options.max_backoff_seconds)
    return Supervisor(options.command, folder, restarts, options.grace_seconds).run()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="supervise.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="run folder; default: what the command says"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=10,
        metavar="N",
        help="without a new checkpoint between; default 10",
    )
    parser.add_argument(
        "--backoff-seconds",
        type=float,
        default=5,
        metavar="S",
        help="wait before the first restart; default 5",
    )
    parser.add_argument(
        "--max-backoff-seconds",
        type=float,
        default=300,
        metavar="S",
        help="the wait doubles with each restart without a new checkpoint up to this; default 300",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=120,
        metavar="S",
        help="processes that are there so long after SIGTERM, or after their launcher, are killed; default 120",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what trains")
    options = parser.parse_args(arguments)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command:
        raise UserError(
            "no command was given; such as: supervise.py deepspeed launch/train.py --hparams base"
        )
    return options


def _run_folder(command: Sequence[str]) -> Path:
    """The run folder of a command that calls train.py."""
    for place, word in enumerate(command):
        if Path(word).name == "train.py":
            options = train.parse(command[place + 1 :])
            return options.run_dir or Path("runs") / preset_name(options.hparams)
    raise UserError("the command does not call train.py; name the run folder: --run-dir DIR")


class Supervisor:
    """Starts `command`, which trains in `folder`, as often as `restarts` allows."""

    def __init__(
        self, command: Sequence[str], folder: Path, restarts: Restarts, grace_seconds: float
    ) -> None:
        self._command, self._folder, self._restarts = list(command), folder, restarts
        self._grace_seconds = grace_seconds
        self._signals: list[int] = []
        self._is_told = False
        self._hang_text = ""

    def run(self) -> int:
        """Until the run is over, or told to stop; the run's exit code."""
        heard = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            self._restarts.start(self._checkpoint())
            while True:
                end = self._run_once()
                decision = self._restarts.decide(end)
                if self._is_told or decision.is_over:
                    _say(f"stopped at step {end.step}" if self._is_told else decision.text)
                    return end.exit_code
                _say(decision.text)
                if not self._wait(decision.wait_seconds):
                    _say("told to stop while waiting for the next start")
                    return end.exit_code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_told = True
        self._signals.append(signal.SIGTERM if number == signal.SIGHUP else number)

    def _wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._is_told:
            time.sleep(POLL_SECONDS)
        return not self._is_told

    def _run_once(self) -> End:
        """One start to the end of its last process."""
        before, self._hang_text = self._status_text(), ""
        tree = ProcessTree(self._command)
        try:
            self._follow(tree)
        finally:
            tree.kill()
        return self._end(before, tree.returncode)

    def _follow(self, tree: ProcessTree) -> None:
        deadline: float | None = None
        looked, peers = time.monotonic(), None
        while True:
            tree.reap()
            if tree.returncode is not None and not tree.living():
                return
            now = time.monotonic()
            self._pass_on(tree)
            if deadline is None and (self._is_told or tree.returncode is not None):
                deadline = now + self._grace_seconds
            if deadline is not None and now > deadline:
                _say(f"still there {self._grace_seconds:g} s later, so killed")
                return
            if now - looked > _LOOK_SECONDS:
                looked = now
                peers = self._end_frozen(peers, now)
            time.sleep(POLL_SECONDS)

    def _pass_on(self, tree: ProcessTree) -> None:
        """Signals go to the ranks: launchers would give those less time to save than that may take."""
        while self._signals:
            number = self._signals.pop(0)
            living = {process.pid: process for process in tree.living()}
            ranks = [beat.pid for beat in self._beats() if beat.pid in living]
            for pid in ranks:
                living[pid].send_signal(number)
            if not ranks:
                tree.tell_group(number)

    def _beats(self) -> list[Beat]:
        """Of the ranks that live on this machine."""
        beats = read_beats(self._folder / HEARTBEATS)
        return [each for each in beats if each.host == this_host() and inspect(each).status != "gone"]

    def _end_frozen(self, peers: Peers | None, now: float) -> Peers | None:
        """End ranks of this machine that show no sign of life and that no other rank has ended."""
        beats = self._beats()
        if not beats:
            return None
        if peers is None:
            patience = max(beat.hang_seconds for beat in beats) + _LATER_SECONDS
            peers = Peers(patience, None, this_host(), inspect, now)
        verdict = peers.look(beats, now)
        if verdict is not None and verdict.hung:
            self._hang_text = verdict.reason
            _say(verdict.reason)
            write_abort(self._folder / HEARTBEATS, verdict.hung[0].launch, verdict)
            end_hung(verdict.hung, self._folder / STACKS / verdict.hung[0].launch)
        return peers

    def _end(self, before: str | None, returncode: int | None) -> End:
        """How the start ended that found the status `before`."""
        status, checkpoint = read_status(self._folder), self._checkpoint()
        how = f"the command ended with {returncode}"
        if status is None or self._status_text() == before:
            step = 0 if status is None else status["step"]
            if self._is_told:
                return End(
                    "preempted", step, "told to stop before training", EXIT_CODES["preempted"], checkpoint
                )
            if returncode == EXIT_USER:
                return End("failed", step, "its text says what to mend", EXIT_USER, checkpoint)
            return lost(step, checkpoint, f"{how} before training began")
        if status["state"] != "running":
            return End(status["state"], status["step"], status["reason"], status["exit_code"], checkpoint)
        reason = self._hang_text or f"all processes of the run are gone without a word; {how}"
        end = lost(status["step"], checkpoint, reason)
        told = {**status, "state": end.state, "reason": end.reason, "exit_code": end.exit_code}
        write_status(self._folder / STATUS, records.encode(told, indent=1) + "\n", is_durable=True)
        return end

    def _checkpoint(self) -> int:
        found = committed(self._folder / "checkpoints")
        return found[0][0] if found else -1

    def _status_text(self) -> str | None:
        path = self._folder / STATUS
        return path.read_text(encoding="utf-8") if path.exists() else None


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
