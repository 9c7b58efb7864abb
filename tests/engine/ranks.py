"""Starts sessions of the toy task in processes of their own: bare ranks, or a launcher and all that it starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from enhancer.engine.launcher import PARENT_VARIABLE

TOY = Path(__file__).with_name("toy.py")
TIMEOUT_SECONDS = 120
SCRIPTS = Path(sys.executable).parent


@dataclass
class Ended:
    """Exit code and all output of a process that has ended."""

    code: int
    text: str


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**values: str) -> dict[str, str]:
    """The environment of a started process: none of a launcher's variables but `values`, one thread."""
    launcher = {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "CROSS_RANK",
        "CROSS_SIZE",
        "LOCAL_SIZE",
        "DS_ACCELERATOR",
    }
    kept = {key: value for key, value in os.environ.items() if key not in launcher}
    path = f"{SCRIPTS}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "OMP_NUM_THREADS": "1", "PATH": path, **values}


def variables(backend: str, num_ranks: int, parent_pid: int) -> list[dict[str, str]]:
    """What the launcher of `backend` would set for each of its ranks, which `parent_pid` starts."""
    if num_ranks == 1:
        return [{}]
    if backend == "deepspeed":
        alike = {PARENT_VARIABLE: str(parent_pid)}
        alike |= {"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": str(num_ranks)}
    else:
        alike = {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": str(num_ranks)}
    alike |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**alike, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def start_ranks(
    backend: str, num_ranks: int, run: Path, *arguments: str, program: Path = TOY, output: Sequence[Any] = ()
) -> list[subprocess.Popen[str]]:
    """`num_ranks` bare ranks of one toy session, started as the launcher of `backend` starts them.

    `output` has where the words of each rank go, None for a pipe, as all of them do without it.
    """
    processes = []
    for rank, values in enumerate(variables(backend, num_ranks, os.getpid())):
        command = [sys.executable, str(program), str(run), *arguments]
        if num_ranks == 1:
            command += ["--backend", backend]
        processes.append(
            subprocess.Popen(
                command,
                env=environment(**values),
                stdout=(output[rank] if output else None) or subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    return processes


def run_ranks(backend: str, num_ranks: int, run: Path, *arguments: str, program: Path = TOY) -> list[Ended]:
    """`start_ranks` to the end."""
    return [wait(process) for process in start_ranks(backend, num_ranks, run, *arguments, program=program)]


def start_launcher(command: list[str], run: Path, *arguments: str) -> subprocess.Popen[str]:
    """A toy session under a launcher, in a process group of its own."""
    return subprocess.Popen(
        [str(SCRIPTS / command[0]), *command[1:], str(TOY), str(run), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait(process: subprocess.Popen[str]) -> Ended:
    """The end of `process`; its whole group is killed when it takes too long."""
    try:
        text, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        raise AssertionError(f"still running after {TIMEOUT_SECONDS} s:\n{text}") from None
    return Ended(process.returncode, text or "")


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Return when `condition()` holds; fail, naming `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def alive(run: Path) -> list[int]:
    """Processes whose command line names the run folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(run) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def status(run: Path) -> dict[str, Any]:
    """status.json of a run."""
    return json.loads((run / "status.json").read_text())


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Records of metrics.jsonl of one kind, without what depends on the clock."""
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == kind:
            timed = ("_seconds", "_per_second")
            found.append({key: value for key, value in record.items() if not key.endswith(timed)})
    return found


def column(run: Path, name: str) -> list[float]:
    """One value of every logged step."""
    return [record[name] for record in records(run, "step")]
