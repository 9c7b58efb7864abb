"""What the measurements share: demo corpora, runs of the trainer, and a line about the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
OUT = REPOSITORY / "bench" / "out"
LAUNCHERS: dict[str, list[str]] = {
    "accelerate": [sys.executable],
    "deepspeed": [str(Path(sys.executable).parent / "deepspeed")],
}


def describe_machine() -> None:
    """Print date, machine and versions: what a figure is worth nothing without."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "accelerate", "numpy"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    print(
        f"{date}, {platform.machine()}, {cores} cores, Python {platform.python_version()}, {packages}",
        flush=True,
    )


def demo_corpora() -> dict[str, str]:
    """The demo corpora under bench/out, made on the first call, as values for `--set`."""
    from launch.demo_corpora import write_demo_corpora

    data = OUT / "data"
    if not all((data / kind / "dataset.json").is_file() for kind in ("fg", "bg", "rir")):
        write_demo_corpora(data)
    return {f"{kind}_dir": str(data / kind) for kind in ("fg", "bg", "rir")}


def train_command(
    run_dir: Path,
    values: dict[str, Any],
    backend: str = "accelerate",
    num_ranks: int = 1,
    preset: str = "base_small",
) -> list[str]:
    """The command line that trains `preset` with `values`."""
    launcher = list(LAUNCHERS[backend])
    if num_ranks > 1 or backend == "deepspeed":
        port = 20_000 + os.getpid() % 20_000
        if backend == "deepspeed":
            launcher += ["--num_gpus", str(num_ranks), "--master_port", str(port)]
        else:
            torchrun = [
                "-m",
                "torch.distributed.run",
                "--nproc_per_node",
                str(num_ranks),
                "--master_port",
                str(port),
            ]
            launcher += torchrun
    settings = [f"{key}={value}" for key, value in values.items()]
    return [
        *launcher,
        str(REPOSITORY / "launch" / "train.py"),
        "--hparams",
        preset,
        "--run-dir",
        str(run_dir),
        "--set",
        *settings,
    ]


def train(run_dir: Path, values: dict[str, Any], **kind: Any) -> list[dict[str, Any]]:
    """Train to the end in a process of its own; the records of metrics.jsonl. Raises RuntimeError with its output."""
    done = subprocess.run(
        train_command(run_dir, values, **kind), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"training ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return read_metrics(run_dir)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of logged steps."""
    return [record for record in records if record["kind"] == "step"]
