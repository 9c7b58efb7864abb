"""What rank 0 does with the folders of checkpoints: room, names, pointers, and which are removed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enhancer.engine import atomic
from enhancer.engine.copies import Copies
from enhancer.engine.manifest import (
    DamagedCheckpoint,
    Entry,
    committed,
    folder_name,
    read_manifest,
    step_of,
    verify,
    write_manifest,
)
from enhancer.engine.pointers import BEST, LATEST, read_pointer, write_pointer
from enhancer.engine.retention import Retention
from enhancer.engine.state import State
from hparams.errors import UserError

# Headers, manifest and folders, beside the tensors.
_SMALL_FILES_BYTES = 1 << 20


class SaveError(UserError):
    """A checkpoint could not be written, such as for a full disk. The ones before it are untouched."""


@dataclass(frozen=True)
class Publisher:
    """Makes folders of `folder` checkpoints, and keeps those of `retention`, the best, and what `copies` still need.

    `prepare`, `require_room` and `publish` raise SaveError, after which nothing of the attempt stays.
    """

    folder: Path
    retention: Retention
    copies: Copies | None

    def prepare(self, final: Path, *, is_known: bool) -> Path | None:
        """An empty temporary folder for `final`; None when `final` is there and whole, or `is_known` to be.

        A damaged `final` was passed over at the start and training has come by its step again: it is replaced.
        """
        if final.is_dir() and (is_known or _is_whole(final)):
            return None
        temporary = self.folder / atomic.temporary_name(final.name)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise self.error(final, temporary, [str(error)]) from error
        return temporary

    def require_room(self, final: Path, temporary: Path, needed: list[tuple[int, str]]) -> None:
        """Find out before anything is written: `needed` has bytes and a problem, or none, of each rank."""
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(needed) if problem]
        num_bytes = sum(size for size, _ in needed) + _SMALL_FILES_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            problems.append(
                f"the disk has {free / 1e6:.1f} MB free, the checkpoint needs {num_bytes / 1e6:.1f} MB"
            )
        if problems:
            raise self.error(final, temporary, problems)

    def publish(
        self,
        final: Path,
        temporary: Path,
        state: State,
        record: Mapping[str, Any],
        written: list[tuple[dict[str, Entry], str]],
    ) -> None:
        """Make `temporary` the checkpoint `final`; `written` has the files and a problem, or none, of each rank."""
        problems = [problem for _, problem in written if problem]
        if problems:
            raise self.error(final, temporary, problems)
        files = {name: entry for entries, _ in written for name, entry in entries.items()}
        try:
            write_manifest(temporary, state, record, files)
            atomic.publish_folder(temporary, final)
        except OSError as error:
            raise self.error(final, temporary, [str(error)]) from error

    def amend(self, final: Path, state: State) -> None:
        """Write down in `final`, a whole checkpoint of `state.step`, what evaluations have come to since it was saved.

        Before BEST moves: what the manifest says of the best, `mend_best` brings about after a kill between the two.
        Raises SaveError, after which `final` is as it was.
        """
        try:
            manifest = read_manifest(final)
            amended = manifest.state.evaluated_as(state)
            if amended == manifest.state:
                return
            write_manifest(final, amended, manifest.record, manifest.files)
        except (OSError, DamagedCheckpoint) as error:
            raise SaveError(
                f"{final} is saved, but the evaluation after it cannot be written down there: {error}. "
                "Make room or mend the folder and run the same command again to evaluate again."
            ) from error
        if self.copies is not None:
            self.copies.update(amended=final.name)

    def mend_best(self, state: State) -> None:
        """Name the best of `state`, that of a checkpoint, where BEST does not. Raises OSError.

        But for a later one up to `state` that is there: it was better in an evaluation of which the manifest was not
        told, as none was before there was `amend`.
        """
        best = folder_name(state.best_step)
        if state.best is None or not (self.folder / best).is_dir():
            return
        try:
            found = read_pointer(self.folder, BEST)
        except DamagedCheckpoint:
            found = ""
        is_later = state.best_step < (step_of(Path(found)) or 0) <= state.step
        if found != best and not (is_later and (self.folder / found).is_dir()):
            write_pointer(self.folder, BEST, best)

    def point(self, final: Path, *, is_best: bool) -> None:
        """Name `final` the latest, and the best where it `is_best`, and remove what is not kept. Raises SaveError."""
        try:
            if is_best:
                write_pointer(self.folder, BEST, final.name)
            write_pointer(self.folder, LATEST, final.name)
            if self.copies is not None:
                self.copies.update()
            self._remove_old(final)
        except OSError as error:
            raise SaveError(
                f"{final} is written, but {self.folder} cannot be kept up to date: {error}. "
                "Make room or mend the folder and run the same command again to go on."
            ) from error

    def error(self, final: Path, temporary: Path, problems: list[str]) -> SaveError:
        """Of `final`, with nothing left of the attempt in `temporary`."""
        shutil.rmtree(temporary, ignore_errors=True)
        last = next((folder.name for _, folder in committed(self.folder)), None)
        kept = f"The last checkpoint, {last}, is untouched" if last else "There is no checkpoint before it"
        return SaveError(
            f"{final} could not be written: {'; '.join(problems)}. {kept}. "
            "Make room (a lower keep_checkpoints keeps fewer) or mend the folder, and run the same command again to "
            "go on."
        )

    def _remove_old(self, final: Path) -> None:
        try:
            in_use = {read_pointer(self.folder, BEST)} | (self.copies.in_use() if self.copies else set())
        except DamagedCheckpoint:
            return  # Nobody knows which one is the best, so none is removed until there is a new one.
        folders = committed(self.folder)
        # Newer ones are damaged and were passed over at the start; they must not count as kept.
        steps = [step for step, _ in folders if step <= (step_of(final) or 0)]
        kept = self.retention.kept(steps)
        for step, folder in folders:
            if step in steps and step not in kept and folder.name not in in_use:
                atomic.remove_folder(folder)


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except DamagedCheckpoint:
        return False
    return True
