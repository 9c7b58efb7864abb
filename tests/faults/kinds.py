"""The faults: what each does to a run that is under way or has ended, and how the run may end by it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.processes import Start, send
from tests.faults.runs import checkpoint_folders

Ending = tuple[str, int | None]
"""State and exit code of `status.json`."""
PREEMPTED, LOST, USER = ("preempted", 75), ("failed", 71), ("failed", 2)


@dataclass
class Live:
    """A run under way that is to be broken."""

    start: Start
    run: Path
    choose: random.Random
    text: str = ""
    """What was done to it."""
    excused: list[int] = field(default_factory=list)
    """Processes whose exit code the fault itself has decided."""

    def kill(self, pid: int | None, what: str, number: int = signal.SIGKILL) -> None:
        """Send a signal, and note it."""
        if pid is None:
            self.text += f"no {what} to send a signal to; "
            return
        if number in (signal.SIGKILL, signal.SIGSTOP):
            self.excused.append(pid)
        self.text += f"{signal.Signals(number).name} to {what} {pid}; "
        send(pid, number)

    def any_of(self, find: Callable[[], list[int]]) -> int | None:
        """One of what `find` finds, as soon as it finds any; None where the start ends before."""
        while not (found := find()) and self.start.has_children():
            time.sleep(0.02)
        return self.choose.choice(found) if found else None


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    `strike` breaks a run under way; `damage` what it has left behind on the disk, told as text. `endings` are those of
    `status.json` that docs/operations.md promises once the run has begun to train.
    """

    strike: Callable[[Live], None]
    endings: tuple[Ending, ...]
    reason: str = ""
    """Regular expression of the reason in `status.json`."""
    damage: Callable[[Path, random.Random], str] | None = None
    needs: str = ""
    """`launcher`, `deepspeed` (its launcher), `denoise` (its loader workers) or `disk` (a small one)."""
    moments: tuple[str, ...] = ("start", "step", "save")
    is_lasting: bool = False
    """Whether a run that has not begun to train when it comes must not come to its end."""


def _kill_rank(live: Live) -> None:
    live.kill(live.any_of(live.start.rank_pids), "rank")


def _kill_all(live: Live) -> None:
    for pid in [live.start.launcher.pid] if live.start.launcher else []:
        live.kill(pid, "launcher")
    for process in live.start.living():
        live.kill(process.pid, "process")


def _kill_launcher(live: Live) -> None:
    assert live.start.launcher is not None
    live.kill(live.start.launcher.pid, "launcher")


def _kill_launch_process(live: Live) -> None:
    live.kill(live.any_of(live.start.launch_processes), "launch.py")


def _term_launcher(live: Live) -> None:
    assert live.start.launcher is not None
    live.kill(live.start.launcher.pid, "launcher", signal.SIGTERM)


def _kill_worker(live: Live) -> None:
    live.kill(live.any_of(live.start.workers), "loader worker")


def _term_rank(live: Live) -> None:
    live.kill(live.any_of(live.start.rank_pids), "rank", signal.SIGTERM)


def _interrupt(live: Live) -> None:
    for pid in live.start.rank_pids():
        live.kill(pid, "rank", signal.SIGINT)


def _touch_stop(live: Live) -> None:
    live.run.mkdir(exist_ok=True)
    (live.run / "STOP").touch()
    live.text += "STOP file; "


def _freeze_rank(live: Live) -> None:
    live.kill(live.any_of(live.start.rank_pids), "rank", signal.SIGSTOP)


def _fill_disk(live: Live) -> None:
    ballast, left = live.run.parent / "ballast", live.choose.randrange(0, 1_500_000, 4096)
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            status = os.statvfs(live.run.parent)
            free = status.f_bavail * status.f_frsize - left
            if free <= 0:
                break
            file.write(bytes(min(free, 1 << 16)))
            file.flush()
    live.text += f"disk full but for {left} bytes; "


def empty_disk(run: Path) -> None:
    """Undo what `disk` has filled."""
    (run.parent / "ballast").unlink(missing_ok=True)


def _one_file(folder: Path, choose: random.Random) -> Path:
    return choose.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def _flip(path: Path, choose: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place = choose.randrange(len(data))
    data[place] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
    return f"bit flipped in byte {place} of {path.parent.name}/{path.name}"


def _truncate(path: Path, choose: random.Random) -> str:
    size = choose.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.parent.name}/{path.name} cut to {size} bytes"


def _newest_or_older(run: Path, choose: random.Random) -> Path | None:
    """A checkpoint beside which there is another one; the newest more often than not."""
    folders = checkpoint_folders(run)
    if len(folders) < 2:
        return None
    return folders[-1] if choose.random() < 0.7 else choose.choice(folders[:-1])


def _damaging(what: str) -> Callable[[Path, random.Random], str]:
    def damage(run: Path, choose: random.Random) -> str:
        folder = _newest_or_older(run, choose)
        if folder is None:
            return "fewer than two checkpoints, so none is damaged"
        if what == "manifest":
            return choose.choice([_flip, _truncate])(folder / "manifest.json", choose)
        if what == "missing":
            path = _one_file(folder, choose)
            path.unlink()
            return f"{folder.name}/{path.name} removed"
        return {"flip": _flip, "truncate": _truncate}[what](_one_file(folder, choose), choose)

    return damage


def _damage_pointer(run: Path, choose: random.Random) -> str:
    pointers = [run / "checkpoints" / name for name in ("LATEST", "BEST")]
    there = [path for path in pointers if path.exists()]
    return choose.choice([_flip, _truncate])(choose.choice(there), choose) if there else "no pointer yet"


def _leave_debris(run: Path, choose: random.Random) -> str:
    """What writers that were killed leave: temporary folders and files, of this and other names."""
    run.mkdir(exist_ok=True)
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    step = choose.randrange(1, 40)
    folder = checkpoints / f".step-{step:07d}.tmp-{choose.randrange(10**5)}-0"
    folder.mkdir(exist_ok=True)
    (folder / "generator.safetensors").write_bytes(choose.randbytes(100))
    (checkpoints / ".LATEST.tmp-1-1").write_text(f"step-{step:07d}")
    (run / ".status.json.tmp-1-0").write_text("{")
    (run / ".hparams.yaml.tmp-1-0").write_text("max_steps: 3")
    (run / ".metrics.jsonl.tmp-1-2").write_text("")
    if (run / "metrics.jsonl").exists():
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "step", "st')
    return "temporary folders and files, and a torn line"


def _cut_status(run: Path, choose: random.Random) -> str:
    path = run / "status.json"
    return choose.choice([_flip, _truncate])(path, choose) if path.exists() else "no status.json yet"


_STOPPED = (PREEMPTED,)
_ANY = (PREEMPTED, LOST, ("running", None))


def _damaged(damage: Callable[[Path, random.Random], str]) -> Fault:
    return Fault(_kill_all, _ANY, damage=damage, moments=("step", "save"))


FAULTS: dict[str, Fault] = {
    "kill a rank": Fault(_kill_rank, (LOST,), "is gone"),
    "kill a rank under a launcher": Fault(_kill_rank, (LOST,), "is gone", needs="launcher"),
    "kill all": Fault(_kill_all, _ANY),
    "kill all under a launcher": Fault(_kill_all, _ANY, needs="launcher"),
    "kill the launcher": Fault(
        _kill_launcher, _STOPPED, "launcher is gone", needs="launcher", is_lasting=True
    ),
    "kill launch.py": Fault(
        _kill_launch_process, _STOPPED, "launcher is gone", needs="deepspeed", is_lasting=True
    ),
    "SIGTERM to the launcher": Fault(
        _term_launcher, _STOPPED, "launcher is gone|SIGTERM", needs="launcher", is_lasting=True
    ),
    "kill a loader worker": Fault(_kill_worker, (USER,), "loader worker", needs="denoise", moments=("step",)),
    "SIGTERM to a rank": Fault(_term_rank, _STOPPED, "SIGTERM", moments=("step", "save")),
    "SIGINT to the ranks": Fault(_interrupt, _STOPPED, "SIGINT", moments=("step", "save")),
    "STOP file": Fault(_touch_stop, _STOPPED, "STOP", is_lasting=True),
    "freeze a rank": Fault(_freeze_rank, (LOST,), "no sign of life", moments=("step", "save")),
    "fill the disk": Fault(_fill_disk, (USER,), "room|written", needs="disk", moments=("step", "save")),
    "cut a file of a checkpoint": _damaged(_damaging("truncate")),
    "flip a bit of a checkpoint": _damaged(_damaging("flip")),
    "damage a manifest": _damaged(_damaging("manifest")),
    "remove a file of a checkpoint": _damaged(_damaging("missing")),
    "damage LATEST or BEST": _damaged(_damage_pointer),
    "damage status.json": _damaged(_cut_status),
    "leftovers of dead writers": _damaged(_leave_debris),
}


def wait_for_moment(moment: str, live: Live, max_steps: int, steps_before: int) -> None:
    """Return at a random moment: some time after the start, at some step, or while a checkpoint is written."""
    choose, start = live.choose, live.start
    deadline = time.monotonic() + 60
    if moment == "start":
        delay = choose.uniform(0, 2.5 if start.launcher is None else 14)
        live.text += f"after {delay:.2f} s: "
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and start.has_children():
            time.sleep(0.02)
        return
    step = choose.randrange(steps_before, max_steps)
    live.text += f"at a {moment} from step {step}: "
    metrics, checkpoints = live.run / "metrics.jsonl", live.run / "checkpoints"
    wanted = f'"step": {step + 1},'.encode()
    while time.monotonic() < deadline:
        if not start.has_children():
            return
        if metrics.exists() and wanted in metrics.read_bytes():
            break
        time.sleep(0.005)
    if moment == "step":
        time.sleep(choose.uniform(0, 0.05))
        return
    while time.monotonic() < deadline:
        if not start.has_children():
            return
        if checkpoints.exists() and any(name.startswith(".step-") for name in os.listdir(checkpoints)):
            break
        time.sleep(0.0005)
    time.sleep(choose.choice([0.0, choose.uniform(0, 0.01)]))
