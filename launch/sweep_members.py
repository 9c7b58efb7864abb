"""The members of a sweep as runs: their hyper-parameters, their folders, and how far each has come."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from enhancer.engine.run import HPARAMS, MAY_CHANGE
from enhancer.engine.status import read_status
from hparams.errors import UserError
from hparams.load import Override, difference, load_resolved
from hparams.schema import HParams
from hparams.sweep import Member, Sweep

TRAIN = Path(__file__).resolve().with_name("train.py")
LOG = "train.log"
FINISHED, DIVERGED, FAILED, PREEMPTED, WAITING = "finished", "diverged", "failed", "preempted", "not started"
Load = Callable[[str, Sequence[Override]], HParams]


@dataclass(frozen=True)
class Planned:
    """A member with its validated hyper-parameters and its run folder."""

    member: Member
    hp: HParams
    folder: Path
    command: tuple[str, ...]
    """What trains it, and goes on with it."""

    @property
    def label(self) -> str:
        """Such as `hidden_size=8, seed=0`."""
        return f"{self.member.setting.label}, seed={self.member.seed}"


@dataclass(frozen=True)
class Progress:
    """How far a run has come, by its `status.json`."""

    state: str
    """finished, diverged, failed, preempted, running (which a killed one stays) or not started."""
    step: int
    reason: str

    @property
    def is_over(self) -> bool:
        """Whether starting it again would change nothing: a divergence is the same each time."""
        return self.state in (FINISHED, DIVERGED)


def plan(sweep: Sweep, output: Path, load_member: Load) -> list[Planned]:
    """Every member with hyper-parameters and folder, in the order of the sweep.

    `load_member` gives the hyper-parameters of a preset with overrides. Raises UserError listing all that is wrong with
    any of them, and which members; also where a folder holds a run of other hyper-parameters.
    """
    planned: list[Planned] = []
    problems: dict[str, list[str]] = {}
    for member in sweep.members:
        name = member.folder_name
        try:
            each = _planned(sweep.preset, member, output, load_member)
            _require_same(each)
        except UserError as error:
            problems.setdefault(str(error).removeprefix("hparams: "), []).append(name)
            continue
        planned.append(each)
    if problems:
        texts = [f"{_named(names)}: {text}" for text, names in problems.items()]
        raise UserError("no member was started.\n  " + "\n  ".join(texts))
    return planned


def progress_of(planned: Planned) -> Progress:
    """How far the run has come. Raises UserError where its status cannot be read."""
    status = read_status(planned.folder)
    if status is None:
        return Progress(WAITING, 0, "")
    state = status["state"]
    if state == FINISHED and load_resolved(planned.folder / HPARAMS).max_steps != planned.hp.max_steps:
        return Progress(PREEMPTED, status["step"], f"now to go on to step {planned.hp.max_steps}")
    return Progress(state, status["step"], status["reason"])


def _planned(preset: str, member: Member, output: Path, load_member: Load) -> Planned:
    hp = load_member(preset, member.overrides)
    folder = output / member.folder_name
    words = [str(TRAIN), "--hparams", preset, "--run-dir", str(folder), "--set", *member.set_texts]
    return Planned(member, hp, folder, (sys.executable, *words))


def _require_same(planned: Planned) -> None:
    """Raises UserError where the folder holds a run that this one cannot go on with, as training itself would."""
    path = planned.folder / HPARAMS
    if not path.is_file():
        return
    changes = [
        change for change in difference(load_resolved(path), planned.hp) if change[0] not in MAY_CHANGE
    ]
    if changes:
        lines = "; ".join(f"{key}: the run has {was}, the sweep gives {now}" for key, was, now in changes)
        raise UserError(f"its folder holds a run of other hyper-parameters ({lines}); give another --output")


def failure_reason(progress: Progress, exit_code: int, log: str) -> str:
    """Why a start of a run failed: what its status says, else (it may never have got that far) the end of its log."""
    if progress.state in (FAILED, DIVERGED):
        return progress.reason
    ending = f"ended with {exit_code}" if exit_code >= 0 else f"ended by {signal.Signals(-exit_code).name}"
    _, found, error = log.rpartition("error: ")
    lines = (error if found else log).strip().splitlines()
    return f"{ending}: {' '.join(lines) if found else lines[-1]}" if lines else ending


def _named(names: list[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"member {names[0]}{others}"
