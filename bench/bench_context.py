"""Peak memory of training the task `context` at its longest window on a minute of audio.

    python -m bench.bench_context [--context 440] [--seconds 60] [--steps 30]

A real `launch/train.py --hparams pedal_context` in a process of its own: some steps, then one evaluation of the
preset's 25,000 windows. Prints the most memory that process ever held, and what a table of all windows would take by
itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.common import OUT, REPOSITORY, describe_machine, train_command

LIMIT_GIB = 1.0
RATE_HZ = 44_100
GIB = 2**30
# A corpus of one minute, in a process of its own, whose memory does not count: importing it measures the lag.
MAKE_CORPUS = """
import sys
from pathlib import Path
import numpy as np
import soundfile
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
folder, rate_hz, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
dry = (0.2 * np.random.default_rng(0).standard_normal(round(seconds * rate_hz))).astype(np.float32)
soundfile.write(folder / "dry.wav", dry, rate_hz, "FLOAT")
soundfile.write(folder / "wet.wav", 0.8 * np.tanh(4 * dry), rate_hz, "FLOAT")
build_pedal_corpus([DevicePair(folder / "dry.wav", folder / "wet.wav")], folder / "pair", PedalOptions(align="off"))
"""


def main() -> int:
    """Print the peak; exit code 1 when it is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--context", type=int, default=440, help="samples of a window")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the recording")
    parser.add_argument("--steps", type=int, default=30, help="training steps before the evaluation")
    options = parser.parse_args()
    describe_machine()
    run_dir = OUT / "context"
    values = {
        "pair_dir": corpus(options.seconds),
        "task.context_samples": options.context,
        "max_steps": options.steps,
        "eval_every": options.steps,
        "save_every": options.steps,
    }
    shutil.rmtree(run_dir, ignore_errors=True)
    peak_gib = peak_bytes(train_command(run_dir, values, preset="pedal_context")) / GIB
    samples = round(options.seconds * RATE_HZ)
    table_gib = 4 * options.context * (samples - options.context + 1) / GIB
    print(f"all windows of {options.context} in {options.seconds:g} s as a table: {table_gib:.2f} GiB")
    print(f"peak memory of training and evaluation: {peak_gib:.2f} GiB (below {LIMIT_GIB:g} wanted)")
    return 0 if peak_gib < LIMIT_GIB else 1


def corpus(seconds: float) -> Path:
    """A pair of that length under bench/out, at 44.1 kHz."""
    folder = OUT / f"context-{seconds:g}s"
    if not (folder / "pair" / "dataset.json").is_file():
        command = [sys.executable, "-c", MAKE_CORPUS, str(folder), str(RATE_HZ), str(seconds)]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    return folder / "pair"


def peak_bytes(command: list[str]) -> int:
    """The most memory that the process of `command` held. Exits with its text where it fails."""
    with (OUT / "context.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"training ended with {process.returncode}:\n{log.read()[-4000:]}")
    # Kilobytes on Linux, bytes on macOS.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
