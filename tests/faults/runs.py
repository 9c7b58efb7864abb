"""What is trained in a round, by which command, and what must come out: that of a run which nothing has broken."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.engine.toy import main as train_toy
from tests.faults.corpora import build_corpora
from tests.faults.processes import Start

ROOT = Path(__file__).resolve().parents[2]
# Saved and evaluated at steps of their own and at one and the same.
TOY = {
    "batch_size_per_gpu": 4,
    "max_steps": 36,
    "save_every": 4,
    "eval_every": 12,
    "hang_timeout_seconds": 6,
    "keep_checkpoints": 3,
}
DENOISE = {
    "task.width": 1,
    "task.valid_items": 2,
    "task.valid_seconds": 0.5,
    "training_seconds": 0.25,
    "batch_size_per_gpu": 4,
    "max_steps": 12,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 6,
    "save_every": 2,
    "nj": 1,
    "hang_timeout_seconds": 6,
}
STEP_SECONDS = 0.03
# By backend; each is compared with an unbroken run of its own.
VALUES: dict[str, list[dict[str, Any]]] = {
    "deepspeed": [
        {},
        {"zero_stage": 1},
        {"zero_stage": 2, "precision": "bf16"},
        {"zero_stage": 2, "ema_decay": 0.9},
    ],
    "accelerate": [{}, {"ema_decay": 0.9}, {"precision": "bf16"}],
}


@dataclass(frozen=True)
class Case:
    """One kind of run; `values` are those of `--set` beside what the task has anyway."""

    backend: str
    is_denoise: bool
    values: tuple[tuple[str, Any], ...]
    is_async: bool

    @classmethod
    def drawn(cls, choose: random.Random, backend: str, is_denoise: bool) -> Case:
        """A random one."""
        values = {} if is_denoise else choose.choice(VALUES[backend])
        return cls(backend, is_denoise, tuple(values.items()), choose.random() < 0.5)

    @property
    def max_steps(self) -> int:
        """Steps of the whole run."""
        return (DENOISE if self.is_denoise else TOY)["max_steps"]

    @property
    def name(self) -> str:
        """For a report."""
        words = [
            self.backend,
            "denoise" if self.is_denoise else "toy",
            *(f"{key}={value}" for key, value in self.values),
        ]
        return " ".join([*words, "async" if self.is_async else "waiting"])


class Runs:
    """Starts runs in `work`, and keeps the unbroken ones."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._corpora: dict[str, Any] | None = None
        self._whole: dict[tuple[Any, ...], Path] = {}

    def start(self, case: Case, run: Path, *extra: str, is_launched: bool = False) -> Start:
        """Begin `case` in the folder `run`, or go on there, with `extra` arguments."""
        start = Start(run.with_suffix(".log"))
        arguments = [*self._arguments(case, run), *extra]
        if is_launched:
            program = "launch/train.py" if case.is_denoise else "tests/engine/toy.py"
            start.launch(case.backend, [str(ROOT / program), *arguments])
        elif case.is_denoise:
            start.fork_ranks(case.backend, lambda: _denoise(arguments))
        else:
            start.fork_ranks(case.backend, lambda: train_toy(arguments))
        return start

    def whole(self, case: Case) -> Path:
        """The run folder of `case` without any fault; trained once for cases that must have the same numbers."""
        key = (case.backend, case.is_denoise, case.values)
        if key not in self._whole:
            run = self.work / f"whole-{len(self._whole)}" / "run"
            run.parent.mkdir()
            start = self.start(case, run)
            left = start.wait(120)
            if left or set(start.codes.values()) != {0}:
                raise RuntimeError(
                    f"an unbroken run has failed, {left or start.codes}:\n{start.log.read_text()}"
                )
            self._whole[key] = run
        return self._whole[key]

    def _arguments(self, case: Case, run: Path) -> list[str]:
        values = {
            **(DENOISE if case.is_denoise else TOY),
            **dict(case.values),
            "async_checkpoints": case.is_async,
        }
        if not case.is_denoise:
            settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
            return [str(run), *settings, "--step-seconds", str(STEP_SECONDS)]
        if self._corpora is None:
            self._corpora = build_corpora(self.work / "corpora")
        settings = [f"{key}={value}" for key, value in {**values, **self._corpora}.items()]
        return ["--hparams", "base_small", "--run-dir", str(run), "--set", *settings]


def _denoise(arguments: list[str]) -> int:
    from launch.train import main

    os.chdir(ROOT)
    return main(arguments)


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl, the last of which may be torn."""
    found = []
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
            found.append(json.loads(line))
    return found


def checkpoint_folders(run: Path) -> list[Path]:
    """Published checkpoints, the oldest first, whatever is in them."""
    return sorted((run / "checkpoints").glob("step-*"))


def is_whole(folder: Path) -> bool:
    """Whether `folder` is what its manifest says, by other code than that of the engine."""
    try:
        text = (folder / "manifest.json").read_text()
        content = json.loads(text)
        files = content["files"]
        stated = content.pop("checksum")
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return (
            text == json.dumps({**content, "checksum": stated}, indent=1) + "\n"
            and hashlib.sha256(canonical).hexdigest() == stated
            and all(
                hashlib.sha256((folder / name).read_bytes()).hexdigest() == files[name]["sha256"]
                for name in files
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest_whole(run: Path) -> int:
    """Step of the newest whole checkpoint, 0 where there is none."""
    whole = [folder for folder in checkpoint_folders(run) if is_whole(folder)]
    return int(whole[-1].name[5:]) if whole else 0


def differences(run: Path, whole: Path, max_steps: int) -> list[str]:
    """What the finished `run` has other than the unbroken `whole`, in words."""
    found = []
    last = f"checkpoints/step-{max_steps:07d}"
    ours, theirs = (json.loads((folder / last / "manifest.json").read_text()) for folder in (run, whole))
    names = [(folder / "checkpoints" / "BEST").read_text() for folder in (run, whole)]
    if names[0] != names[1]:
        found.append(f"BEST is {names[0]!r}, not {names[1]!r}")
    if ours["state"] != theirs["state"]:
        found.append(f"counters {ours['state']} are not {theirs['state']}")
    if ours["files"].keys() != theirs["files"].keys():
        found.append(f"files {sorted(ours['files'])} are not {sorted(theirs['files'])}")
    for name in ours["files"].keys() & theirs["files"].keys():
        if name.startswith("rng-"):
            is_same = _torch_generator(run / last / name) == _torch_generator(whole / last / name)
        else:
            is_same = (run / last / name).read_bytes() == (whole / last / name).read_bytes()
        if not is_same or not is_whole(run / last):
            found.append(f"{name} of the last checkpoint differs")
    for kind in ("step", "evaluation"):
        ours, theirs = (_timeless(folder, kind) for folder in (run, whole))
        if ours != theirs:
            steps = [[record["step"] for record in each] for each in (ours, theirs)]
            found.append(f"records of the kind {kind} differ; steps {steps[0]} and {steps[1]}")
    return found


def _torch_generator(path: Path) -> list[int]:
    with safe_open(path, framework="pt") as file:  # The generators of Python and numpy begin anywhere.
        return file.get_tensor("cpu").tolist()


def _timeless(run: Path, kind: str) -> list[dict[str, Any]]:
    clock = ("_seconds", "_per_second")
    return [
        {key: value for key, value in record.items() if not key.endswith(clock)}
        for record in steps_of(run)
        if record["kind"] == kind
    ]
