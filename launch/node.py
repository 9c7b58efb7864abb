"""One machine's part of a run over several: starts `deepspeed` there, hands on the wish to stop, waits for every rank.

    python launch/node.py --num-nodes 2 --ranks-per-node 8 --node-rank 0 --master-addr HOST -- --hparams base

The same on every machine with its own --node-rank; what follows `--` is train.py's. No ssh between the machines. The
`deepspeed` command dies of SIGTERM without a word to its ranks and loses exit codes: this one ends when the last rank
has, with the code that `status.json` names. It can be the first process of a container.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from enhancer.engine.launcher import node_environment, visible_devices
from hparams.errors import UserError
from launch.common import reports_user_errors

TRAIN = Path(__file__).resolve().with_name("train.py")
STATUS = "status.json"  # As in enhancer.engine.run, whose import of torch would cost this process seconds and memory.
DEFAULT_PORT = 29500
DEFAULT_GRACE_SECONDS = 120.0
POLL_SECONDS = 0.2
EXIT_PREEMPTED = 75


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Run this machine's ranks to their end; the exit code of the run."""
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    options, train = parser().parse_args(words[:end]), words[end + 1 :]
    if not 0 <= options.node_rank < options.num_nodes:
        raise UserError(
            f"--node-rank is {options.node_rank}; needed 0 to {options.num_nodes - 1}, one number a machine"
        )
    run_folder = _run_folder(train)
    with tempfile.TemporaryDirectory(prefix="wavewright-") as scratch:
        words = [*_deepspeed(options, Path(scratch) / "hostfile"), str(TRAIN), *train]
        environment = {**os.environ, **node_environment(options.interface)}
        ranks = Ranks(words, environment, options.grace_seconds)
        if options.stop_at_eof:
            threading.Thread(target=_tell_at_eof, args=(ranks,), daemon=True).start()
        return ranks.run(run_folder)


def parser() -> argparse.ArgumentParser:
    """The options of one machine; the rest belongs to train.py."""
    made = argparse.ArgumentParser(
        prog="node.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--num-nodes", type=int, default=1, metavar="N", help="machines of the run; default 1")
    made.add_argument(
        "--ranks-per-node", type=int, default=1, metavar="N", help="processes a machine, one a GPU; default 1"
    )
    made.add_argument("--node-rank", type=int, default=0, metavar="K", help="place of this machine, from 0")
    made.add_argument(
        "--master-addr", default="127.0.0.1", metavar="HOST", help="address of machine 0; default 127.0.0.1"
    )
    made.add_argument("--master-port", type=int, default=DEFAULT_PORT, metavar="PORT", help="default 29500")
    made.add_argument("--interface", metavar="NAME", help="network interface for gloo and NCCL, such as eth0")
    made.add_argument(
        "--grace-seconds",
        type=float,
        default=DEFAULT_GRACE_SECONDS,
        metavar="SECONDS",
        help="ranks that have not saved and ended so long after they were told to are killed; default 120",
    )
    made.add_argument(
        "--stop-at-eof",
        action="store_true",
        help="save and end when the standard input ends, as it does when the ssh that started this is gone",
    )
    return made


class Ranks:
    """The `deepspeed` command with all it starts, in a session of its own, so that no signal meant for us hits it."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], grace_seconds: float) -> None:
        self._words, self._environment = list(words), environment
        self._grace_seconds = grace_seconds
        self._was_told = False
        self._told_ranks: set[int] = set()

    def run(self, run_folder: Path) -> int:
        """Start, wait for the end of every process, and tell how the run in `run_folder` ended."""
        before = {number: signal.signal(number, self.tell) for number in (signal.SIGTERM, signal.SIGINT)}
        status_before = _read(run_folder / STATUS)
        try:
            process = subprocess.Popen(
                self._words, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
            self._wait(process)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._exit_code(_read(run_folder / STATUS), status_before, process.returncode)

    def tell(self, *_: object) -> None:
        """Have the ranks save and end. A signal handler, too."""
        self._was_told = True

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline: float | None = None
        while process.poll() is None or _session(process.pid):
            if self._was_told:
                self._tell_ranks(process.pid)
            if deadline is None and (self._was_told or process.poll() is not None):
                deadline = time.monotonic() + self._grace_seconds
            if deadline is not None and time.monotonic() > deadline:
                print(
                    f"still there after {self._grace_seconds:g} s, so killed: "
                    f"{', '.join(str(each.pid) for each in _session(process.pid))}",
                    file=sys.stderr,
                    flush=True,
                )
                for each in _session(process.pid):
                    each.kill()
                process.wait()
                return
            time.sleep(POLL_SECONDS)

    def _tell_ranks(self, session: int) -> None:
        """SIGTERM to each rank once, also to those that start after the signal. They agree on it across machines."""
        for rank in _ranks(_session(session)):
            if rank.pid not in self._told_ranks:
                self._told_ranks.add(rank.pid)
                rank.terminate()

    def _exit_code(self, status: bytes | None, status_before: bytes | None, launcher_code: int) -> int:
        """Of the run where this start of it has said so in its `status`, else as far as can be told from here."""
        if status is not None and status != status_before:
            content = json.loads(status)
            if content["state"] != "running":
                return int(content["exit_code"])
        if self._was_told:
            return EXIT_PREEMPTED  # Told before anything was trained: the same command goes on.
        # The launcher ends with 0 where it was killed itself.
        return launcher_code if launcher_code > 0 else 1


def _tell_at_eof(ranks: Ranks) -> None:
    while os.read(0, 4096):
        pass
    ranks.tell()


def _deepspeed(options: argparse.Namespace, hostfile: Path) -> list[str]:
    """The words of `deepspeed` on this machine; writes the `hostfile` they name.

    The hosts' names are only keys there: every machine is told its own number and the address of the first.
    """
    devices = visible_devices() or list(range(options.ranks_per_node))
    if len(devices) != options.ranks_per_node:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES shows {len(devices)} devices, but --ranks-per-node is {options.ranks_per_node}; "
            "make them the same"
        )
    # What launch.py gives its ranks are the numbers in the list below, whatever was visible before.
    slots = max(devices) + 1
    names = [f"node-{number}" for number in range(options.num_nodes)]
    hostfile.write_text("".join(f"{name} slots={slots}\n" for name in names))
    ids = ",".join(str(device) for device in devices)
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"),
        *("--hostfile", str(hostfile), "--include", "@".join(f"{name}:{ids}" for name in names)),
        *("--no_ssh", "--node_rank", str(options.node_rank)),
        *("--master_addr", options.master_addr, "--master_port", str(options.master_port)),
    ]


def _run_folder(train: Sequence[str]) -> Path:
    from hparams.load import preset_name
    from launch.train import parse

    options = parse(train)
    return options.run_dir or Path("runs") / preset_name(options.hparams)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _session(leader: int) -> list[psutil.Process]:
    """Every living process of the session of `leader`, orphans included."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def _ranks(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that run train.py for a rank: not the launcher, and not a loader worker, whose parent is one of them."""
    running = {}
    for process in processes:
        try:
            words = process.cmdline()
            if str(TRAIN) in words and any(word.startswith("--local_rank") for word in words):
                running[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    parents = {}
    for pid, process in running.items():
        try:
            parents[pid] = process.ppid()
        except psutil.NoSuchProcess:
            continue
    return [running[pid] for pid, parent in parents.items() if parent not in running]


if __name__ == "__main__":
    sys.exit(main())
