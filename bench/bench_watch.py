"""What the watch of the ranks costs: processor time of its thread in rank 0, which looks at every rank once a second.

    python -m bench.bench_watch [--ranks 1 2 8 64] [--seconds 10]

The other ranks are files of signs of life, all of this machine, which is the dear case: what the system says of each
process is asked for too. As the thread holds the interpreter meanwhile, that time is what training can lose to it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from bench.common import describe_machine
from enhancer.engine.pulse import HEARTBEATS, BeatFile, Pulse
from enhancer.engine.run import Run
from enhancer.engine.stop import Stop
from enhancer.engine.watch import watching
from hparams.load import load

LIMIT = 0.01


def thread_seconds() -> float:
    """Processor time of the watching thread so far."""
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "watch")
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


def share(num_ranks: int, seconds: float) -> float:
    """Share of a processor that the watch of `num_ranks` takes."""
    hp = load("base_small", [])
    with tempfile.TemporaryDirectory() as scratch:
        run = Run.open(Path(scratch) / "run", hp)
        with watching(run, Pulse(), hp, Stop()) as watch:
            for rank in range(1, num_ranks):
                BeatFile(run.folder / HEARTBEATS, rank).write(
                    replace(watch._beat, rank=rank, pid=os.getpid())
                )
            time.sleep(1.0)
            before, started = thread_seconds(), time.monotonic()
            time.sleep(seconds)
            taken = (thread_seconds() - before) / (time.monotonic() - started)
        run.close()
    return taken


def main() -> int:
    """Print the shares; exit code 1 when that of two ranks is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    describe_machine()
    shares = {count: share(count, options.seconds) for count in options.ranks}
    for count, taken in shares.items():
        print(f"{count:3d} rank(s) watched: {taken:.3%} of a processor")
    return 0 if shares.get(2, 0.0) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
