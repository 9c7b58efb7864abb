"""One round: start, break, go on, compare."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.kinds import FAULTS, Fault, Live, empty_disk, wait_for_moment
from tests.faults.processes import END_SECONDS, Start
from tests.faults.runs import Case, Runs, checkpoint_folders, differences, is_whole, newest_whole, steps_of

FINISH_SECONDS = 150.0
DISK = "size=8m"
SECOND_FAULT = 0.25
DENOISE_SHARE = 0.02
BEFORE_TRAINING = "before training"
_FINISHED = ("finished", 0)


@dataclass
class Report:
    """What a round did and found."""

    number: int
    kinds: list[str]
    case: str
    story: list[str] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)
    """How the run ended by each of the faults."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kind_of(number: int, seed: str, kinds: Sequence[str]) -> str:
    """The fault of round `number`: all `kinds` in turn, shuffled anew each time through."""
    turn, place = divmod(number, len(kinds))
    return random.Random(f"{seed}/turn {turn}").sample(list(kinds), len(kinds))[place]


def play(number: int, seed: str, runs: Runs, kinds: Sequence[str]) -> Report:
    """Round `number` of `seed`, of the faults `kinds`."""
    started, choose = time.monotonic(), random.Random(f"{seed}/{number}")
    chosen = [kind_of(number, seed, kinds)]
    fault = FAULTS[chosen[0]]
    backend = "deepspeed" if fault.needs == "deepspeed" or number % 2 == 0 else "accelerate"
    case = Case.drawn(choose, backend, fault.needs == "denoise" or choose.random() < DENOISE_SHARE)
    if choose.random() < SECOND_FAULT:
        chosen.append(choose.choice([name for name in kinds if FAULTS[name].needs in ("", fault.needs)]))
    report = Report(number, chosen, case.name)
    folder = runs.work / f"round-{number}"
    folder.mkdir()
    whole = runs.whole(case)
    with _small_disk(folder, is_wanted=any(FAULTS[each].needs == "disk" for each in chosen)):
        run = folder / "run"
        try:
            for each in chosen:
                if newest_whole(run) == case.max_steps:
                    break  # The fault before came after the end.
                _break(runs, case, run, FAULTS[each], choose, report)
            _finish(runs, case, run, whole, report)
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            report.problems.append(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        finally:
            log = run.with_suffix(".log")
            if report.problems and log.exists():
                report.story.append("... " + log.read_text(errors="replace")[-6000:])
    shutil.rmtree(folder)
    report.seconds = time.monotonic() - started
    return report


def _break(runs: Runs, case: Case, run: Path, fault: Fault, choose: random.Random, report: Report) -> None:
    """One start of `run` that `fault` ends, and what is to be true after it."""
    before, steps_before = _status_text(run), newest_whole(run)
    start = runs.start(case, run, is_launched=fault.needs in ("launcher", "deepspeed"))
    live = Live(start, run, choose)
    moment = choose.choice(fault.moments)
    try:
        if moment != "start":
            _wait_for_training(run, before, start)  # Records of steps may be those of the start before.
        wait_for_moment(moment, live, case.max_steps, steps_before)
        had_begun = _status_text(run) != before
        fault.strike(live)
        left = start.wait(END_SECONDS)
    finally:
        start.kill()
        empty_disk(run)
    report.problems += [f"process {each} was there {END_SECONDS:g} s after the fault" for each in left]
    report.story.append(live.text)
    ending = _judge_ending(run, fault, live, before, had_begun, report)
    report.endings.append(ending)
    # Before training the records are still those of the start before, whose checkpoints a fault may have damaged since.
    told = [record["step"] for record in steps_of(run) if record.get("name") == "saved"]
    expected = steps_before if ending == BEFORE_TRAINING else max(told, default=0)
    if newest_whole(run) < expected:
        report.problems.append(f"step {expected} was saved, {newest_whole(run)} is the newest whole one")
    if fault.damage is not None:
        report.story.append(fault.damage(run, choose))


def _wait_for_training(run: Path, before: str, start: Start) -> None:
    """Return when `status.json` is another than `before`, or nothing is left of the start, or a minute is over."""
    deadline = time.monotonic() + 60
    while _status_text(run) == before and start.has_children() and time.monotonic() < deadline:
        time.sleep(0.005)


def _judge_ending(run: Path, fault: Fault, live: Live, before: str, had_begun: bool, report: Report) -> str:
    """How the start ended, in a word; what is not as promised goes into `report`."""
    text = _status_text(run)
    codes = {pid: code for pid, code in live.start.codes.items() if pid not in live.excused}
    if text == before:
        # Nothing was trained: there is no status of this start, and no rank may say that all is well.
        bad = [code for code in codes.values() if code == 0 and live.start.launcher is None]
        if had_begun or bad:
            report.problems.append(f"no status was written, exit codes {codes}")
        return BEFORE_TRAINING
    status: dict[str, Any] = json.loads(text)
    ending = (status["state"], status["exit_code"])
    allowed = (*fault.endings, _FINISHED)
    if ending == _FINISHED and status["step"] != status["max_steps"]:
        report.problems.append(f"finished at step {status['step']}")
    if ending not in allowed:
        report.problems.append(f"status {ending} {status['reason']!r}; expected one of {allowed}")
    elif ending in fault.endings and fault.reason and not re.search(fault.reason, status["reason"]):
        report.problems.append(f"reason {status['reason']!r}; expected {fault.reason!r}")
    if ending == _FINISHED and not had_begun and fault.is_lasting:
        report.problems.append("trained to the end although the fault came before the first step")
    if live.start.launcher is None and status["state"] != "running":
        # A frozen rank that was woken for its stacks is killed; others end with what status.json says.
        wrong = [code for code in codes.values() if code != status["exit_code"]]
        if wrong:
            report.problems.append(f"exit codes {codes} are not {status['exit_code']}")
    return status["state"] if ending[1] in (0, None, 75) else f"{status['state']} {ending[1]}"


def _finish(runs: Runs, case: Case, run: Path, whole: Path, report: Report) -> None:
    """The same command again, to the end, which must be that of `whole`."""
    expected, had_run = newest_whole(run), bool(checkpoint_folders(run))
    start = runs.start(case, run)
    try:
        left = start.wait(FINISH_SECONDS)
    finally:
        start.kill()
    if left or set(start.codes.values()) != {0}:
        report.problems.append(f"going on has failed: exit codes {start.codes}, still there {left}")
        return
    status = json.loads(_status_text(run))
    if (status["state"], status["exit_code"], status["step"]) != (*_FINISHED, case.max_steps):
        report.problems.append(f"status after the end: {status}")
    gone_on = [record for record in steps_of(run) if record.get("name") == "resumed"]
    if had_run and (not gone_on or gone_on[-1]["step"] != expected):
        report.problems.append(f"went on from {gone_on[-1:]}, not from step {expected}, the newest whole one")
    report.problems += differences(run, whole, case.max_steps)
    report.problems += [f"{path.name} is left" for path in sorted(run.rglob(".*.tmp-*"))]
    report.problems += [f"{path.name} is left" for path in run.glob("heartbeats")]
    damaged = [path.name for path in checkpoint_folders(run) if not is_whole(path)]
    report.story.append(f"went on from {expected}" + (f"; damaged and kept: {damaged}" if damaged else ""))


def _status_text(run: Path) -> str:
    path = run / "status.json"
    return path.read_text(errors="replace") if path.exists() else ""


def can_mount() -> bool:
    """Whether this process may make a file system for a round."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _small_disk(Path(folder), is_wanted=True):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def _small_disk(folder: Path, *, is_wanted: bool) -> Iterator[None]:
    """A file system of its own in `folder`, which takes the rights of root."""
    if not is_wanted:
        yield
        return
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", DISK, "faults", str(folder)], check=True, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
