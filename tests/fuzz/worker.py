"""Reads inputs in this process, under limits: `python -m tests.fuzz.worker '[["sidecar", 0, 100]]' SEED`.

Told on stdout, a line each: `TARGET NUMBER` before an input is read, and the outcome after it. An input that takes too
long kills the process, one that needs too much memory meets MemoryError.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

MOST_SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
DEFECT = os.environ.get("FUZZ_DEFECT")
"""What input 3 does instead, for tests of this program."""
_DEFECTS = {
    "crash": os.abort,
    "hang": lambda: time.sleep(99),
    "memory": lambda: bytearray(1 << 33),
    "error": lambda: {}["missing"],
}
MOST_BYTES = 1 << 30
"""Address space beyond what the process had when the target was prepared."""

WARM_UP = 10


def main() -> None:
    """The command line."""
    from tests.fuzz.targets import TARGETS

    jobs, seed = json.loads(sys.argv[1]), sys.argv[2]
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What commands print is no part of this.
    warnings.simplefilter("error")
    for name, first, count in jobs:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            target = TARGETS[name]
            read = target.prepare(Path(folder))
            # What is imported at its first use gets its memory before there is a limit.
            for number in range(WARM_UP):
                _outcome(read, target.errors, Random(f"warm:{name}:{number}"))
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MOST_BYTES, resource.RLIM_INFINITY))
            for number in range(first, first + count):
                print(name, number, file=told)
                reads = (lambda rng: _DEFECTS[DEFECT]()) if DEFECT and number == 3 else read
                print(_outcome(reads, target.errors, Random(f"{seed}:{name}:{number}")), file=told)


def _outcome(read, errors: tuple[type[Exception], ...], rng: Random) -> str:
    """`read`, the name of a right error, or `WRONG` with a traceback on one line."""
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        read(rng)
    except errors as error:
        return type(error).__name__
    except BaseException:  # noqa: BLE001 - whatever else comes is what is looked for
        return "WRONG " + json.dumps(traceback.format_exc()[-3000:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
