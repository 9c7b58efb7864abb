"""Ranks that are forked from a process which has imported what they need: one starts in a tenth of the time.

For tests of numbers. Those of stops, hangs and launchers start processes as users do (`ranks`): the
command line and the environment of a forked process, seen from outside, are those of the process it was forked from.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ranks import TIMEOUT_SECONDS, TOY, Ended, environment, variables

MODULES = {
    "accelerate": ("torch._dynamo", "accelerate", "enhancer.engine.session"),
    "deepspeed": ("torch._dynamo", "deepspeed", "enhancer.engine.session"),
}


def forked_ranks(
    backend: str, num_ranks: int, run: Path, *arguments: str, program: Path = TOY
) -> list[Ended]:
    """As `ranks.run_ranks`, by forks."""
    server = _server(backend)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(num_ranks)]
        words = [str(run), *arguments, *(["--backend", backend] if num_ranks == 1 else [])]
        ranks = [
            {
                "words": [str(program), *words],
                "environment": environment(**values),
                "output": str(output),
            }
            for values, output in zip(variables(backend, num_ranks, server.pid), outputs, strict=True)
        ]
        codes = _ask(server, ranks, outputs)
        return [
            Ended(code, output.read_text(errors="replace"))
            for code, output in zip(codes, outputs, strict=True)
        ]


@functools.cache
def _server(backend: str) -> subprocess.Popen[str]:
    """The process that ranks of `backend` are forked from; it ends with this one."""
    server = subprocess.Popen(
        [sys.executable, __file__, *MODULES[backend]],
        env=environment(DS_ACCELERATOR="cpu"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    if server.poll() is not None:
        return
    for process in [*psutil.Process(server.pid).children(recursive=True), server]:
        process.kill()
    server.communicate()


def _ask(server: subprocess.Popen[str], ranks: list[dict[str, Any]], outputs: list[Path]) -> list[int]:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(ranks) + "\n")
    server.stdin.flush()
    # The first request waits for the imports, too.
    is_answered, _, _ = select.select([server.stdout], [], [], TIMEOUT_SECONDS)
    line = server.stdout.readline() if is_answered else ""
    if not line:
        _server.cache_clear()
        _end(server)
        words = "\n".join(output.read_text(errors="replace") for output in outputs if output.exists())
        raise AssertionError(f"no end after {TIMEOUT_SECONDS} s, or none at all:\n{words}")
    return json.loads(line)


def serve(modules: list[str]) -> None:
    """Fork the ranks of each line of stdin, and answer with their exit codes when all have ended."""
    for module in modules:
        importlib.import_module(module)
    # A fork has none of the other threads, and all of the locks that they held.
    assert len(os.listdir("/proc/self/task")) == 1
    while line := sys.stdin.readline():
        pids = [os.fork() or _become(rank) for rank in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def _become(rank: dict[str, Any]) -> int:
    """Run the program of `rank` as `python PROGRAM WORDS` does. Does not return."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(rank["output"], os.O_WRONLY | os.O_CREAT)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(rank["environment"])
        random.seed()
        np.random.seed()
        sys.argv = rank["words"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if sys.exc_info()[1] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
