"""Judges from their heartbeats whether the ranks of a run are alive and come further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enhancer.engine.pulse import COPYING, ENDED, Beat
from enhancer.engine.status import EXIT_CODES, EXIT_LOST


@dataclass(frozen=True)
class Process:
    """What the system says about a process of this machine."""

    status: str
    """As psutil calls it: `running`, `sleeping`, `stopped`, ..., `gone`."""
    cpu_seconds: float


@dataclass(frozen=True)
class Verdict:
    """Why the run must end."""

    reason: str
    exit_code: int
    hung: tuple[Beat, ...] = ()
    """Ranks that do not answer: their stacks are asked for and they are killed."""


class Peers:
    """Judges beats by when they were seen to change.

    Args:
        hang_seconds: how long a rank may give no sign of life.
        stall_seconds: how long all ranks together may come no further; None: somebody else judges that.
        host: of this process; only of processes here more can be known than they say themselves.
        inspect: what the system says about a process of this machine.
        now: seconds on this process's clock.
    """

    def __init__(
        self,
        hang_seconds: float,
        stall_seconds: float | None,
        host: str,
        inspect: Callable[[Beat], Process],
        now: float,
    ) -> None:
        self._hang_seconds, self._stall_seconds = hang_seconds, stall_seconds
        self._host, self._inspect = host, inspect
        self._looked = self._progressed = now
        self._seen: dict[int, tuple[object, float]] = {}
        """What was last seen of each rank, and since when."""
        self._marks: dict[int, int] = {}

    def look(self, beats: Sequence[Beat], now: float) -> Verdict | None:
        """What the beats say at the time `now`; call it about once a second.

        After a gap longer than that this process itself stood still (a machine asleep, a stalled disk, Ctrl-Z), and so
        may all others have: everybody gets the whole time again.
        """
        if now - self._looked > self._hang_seconds / 3:
            self._seen.clear()
            self._progressed = now
        self._looked = now
        hung, failed = [], []
        for beat in beats:
            if beat.end:
                failed += [beat] if beat.end != ENDED else []
                continue
            process = self._inspect(beat) if beat.host == self._host else None
            if process and process.status == "gone":
                reason = f"{beat.place} is gone: it was killed or crashed in {beat.doing}"
                return Verdict(f"{reason}. Was memory short? Run again to go on", EXIT_LOST)
            if self._still_seconds(beat, process, now) > self._hang_seconds:
                hung.append((beat, process))
        # After those that are gone, whose connections others then lose.
        if failed:
            return Verdict(f"{failed[0].place} failed: {failed[0].end}", EXIT_CODES["failed"])
        if hung:
            return Verdict(self._hung_text(hung), EXIT_LOST, tuple(beat for beat, _ in hung))
        return self._stalled(beats, now)

    def have_all_moved(self, beats: Sequence[Beat], since: float) -> bool:
        """Whether every rank has ended or was seen to change after the time `since`."""
        return all(beat.end or self._seen.get(beat.rank, (None, -1.0))[1] > since for beat in beats)

    def _still_seconds(self, beat: Beat, process: Process | None, now: float) -> float:
        """How long `beat` has not changed. A process here that computes is alive, though it cannot come to beat."""
        sign = (beat.count, process and round(process.cpu_seconds, 1))
        seen = self._seen.get(beat.rank)
        if seen is None or seen[0] != sign:
            seen = self._seen[beat.rank] = (sign, now)
        return now - seen[1]

    def _hung_text(self, hung: Sequence[tuple[Beat, Process | None]]) -> str:
        texts = [
            f"{beat.place} has given no sign of life for {self._hang_seconds:g} s (hang_timeout_seconds), last in "
            f"{beat.doing}" + (f"; the system says that it is {process.status}" if process else "")
            for beat, process in hung
        ]
        return "; ".join(texts) + ". Run again to go on"

    def _stalled(self, beats: Sequence[Beat], now: float) -> Verdict | None:
        marks = {beat.rank: beat.marks for beat in beats if not beat.end}
        if marks != self._marks or any(beat.phase == COPYING for beat in beats):
            self._marks, self._progressed = marks, now
        if self._stall_seconds is None or now - self._progressed <= self._stall_seconds:
            return None
        doing = ", ".join(f"rank {beat.rank} in {beat.doing}" for beat in beats if not beat.end)
        reason = (
            f"no rank came further for {self._stall_seconds:g} s (stall_timeout_seconds): {doing}. The stacks tell "
            "where each waits; run again to go on, with a higher stall_timeout_seconds where that is how long it takes"
        )
        return Verdict(reason, EXIT_LOST)
