"""A run on this machine, or on several that ssh reaches: node.py on each, watched from here to the end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from hparams.errors import UserError
from launch.submit_plan import NODE, Training

LOCAL = "127.0.0.1"
POLL_SECONDS = 0.5
_HOST = re.compile(r"(?P<name>[^\s-]\S*)(?:\s+slots=(?P<slots>\d+))?")


def run_here(training: Training, *, is_dry: bool) -> int:
    """Train on this machine; the exit code of the run. With `is_dry` print the command."""
    words = training.node_words(sys.executable, NODE, 0, LOCAL)
    if is_dry:
        print(shlex.join(words))
        return 0
    # It hands signals on to its ranks and ends with the run's own code.
    os.execv(sys.executable, words)


def read_hostfile(path: Path) -> tuple[list[str], int]:
    """Names of the machines and processes on each, from a file as DeepSpeed's: a line `NAME slots=N` a machine.

    Raises UserError where it cannot be read so, or where the numbers differ: a run has as many ranks everywhere.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--hostfile {path} cannot be read: {error.strerror}") from error
    names: list[str] = []
    slots: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _HOST.fullmatch(text)
        if found is None or int(found["slots"] or 1) < 1:
            raise UserError(f"{path}:{number}: {text!r}; needed NAME slots=N, such as node1 slots=8")
        if found["name"] in names:
            raise UserError(
                f"{path}:{number}: {found['name']} is there twice; give it one line with all its slots"
            )
        names.append(found["name"])
        slots.setdefault(int(found["slots"] or 1), found["name"])
    if not names:
        raise UserError(f"{path} names no machine; needed a line NAME slots=N for each")
    if len(slots) > 1:
        texts = ", ".join(f"{count} on {name}" for count, name in slots.items())
        raise UserError(f"{path}: slots differ ({texts}); a run has as many ranks on each machine")
    return names, next(iter(slots))


def run_on_hosts(
    training: Training,
    hosts: Sequence[str],
    *,
    remote_shell: str,
    python: str,
    folder: Path,
    master_addr: str | None,
    is_dry: bool,
) -> int:
    """Train on `hosts`, in `folder` of each, which they share; the exit code of the run.

    `remote_shell` is called as ssh is: HOST COMMAND. Ctrl-C has the run save and end. With `is_dry` print the commands.
    """
    node = folder / "launch" / NODE.name
    first = master_addr or hosts[0].rpartition("@")[2]
    commands = []
    for number, host in enumerate(hosts):
        words = training.node_words(python, node, number, first)
        words.insert(words.index("--"), "--stop-at-eof")
        remote = f"cd {shlex.quote(str(folder))} && exec {shlex.join(words)}"
        commands.append([*shlex.split(remote_shell), host, remote])
    if is_dry:
        print("\n".join(shlex.join(command) for command in commands))
        return 0
    return _Watch(hosts).run(commands)


class _Watch:
    """The commands of all machines, side by side. The end of their standard inputs tells them to stop."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._processes: list[subprocess.Popen[bytes]] = []
        self._tellers: list[threading.Thread] = []
        self._was_told = False

    def run(self, commands: Sequence[Sequence[str]]) -> int:
        """Run `commands` to their end, printing their lines after their hosts' names; the exit code of the first."""
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            for host, command in zip(self._hosts, commands, strict=True):
                self._start(host, command)
            # A machine that fails while the others still look for it would leave them waiting for long.
            while any(process.poll() is None for process in self._processes):
                if self._was_told or any(process.poll() for process in self._processes):
                    self._tell_all()
                time.sleep(POLL_SECONDS)
        finally:
            self._tell_all()
            for number, handler in before.items():
                signal.signal(number, handler)
        for teller in self._tellers:
            teller.join()
        for host, process in zip(self._hosts, self._processes, strict=True):
            if process.returncode:
                print(f"{host} ended with {process.returncode}", file=sys.stderr)
        # The first machine writes the run folder, so its code is the run's.
        return self._processes[0].returncode if self._processes[0].returncode >= 0 else 1

    def _start(self, host: str, command: Sequence[str]) -> None:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C of the terminal is ours to hand on.
            )
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run: {error.strerror}") from error
        self._processes.append(process)
        teller = threading.Thread(target=_tell, args=(process.stdout, host), daemon=True)
        teller.start()
        self._tellers.append(teller)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._was_told:
            os.write(2, b"stopping: the run saves first\n")
        self._was_told = True

    def _tell_all(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()


def _tell(stream: IO[bytes] | None, host: str) -> None:
    assert stream is not None
    for line in stream:
        print(f"{host}: {line.decode('utf-8', 'replace').rstrip()}", flush=True)
