"""Checkpoints that appear whole or not at all, list their contents, and restore exactly or refuse.

    RUN/checkpoints/step-0000500/   manifest.json, the backend's files, NAME.average.safetensors where weights
                                are averaged, rng-rank00000.safetensors per rank
                    LATEST, BEST    the name of one of the folders

All ranks write into a folder of a temporary name. When every rank says that its files are written, rank 0
lists and syncs them, and renames the folder. `LATEST` is a hint for people: resuming looks at the folders.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from enhancer.engine import atomic, distributed, host_rng, rng
from enhancer.engine.average import WeightAverage
from enhancer.engine.backend import Backend
from enhancer.engine.manifest import (
    DamagedCheckpoint,
    Manifest,
    committed,
    folder_name,
    read_manifest,
    verify,
    write_manifest,
)
from enhancer.engine.pointers import BEST, LATEST, read_pointer, write_pointer
from enhancer.engine.state import State
from enhancer.engine.versions import versions
from enhancer.engine.weights import read_weights_file
from hparams.errors import UserError

_RNG_FILE = "rng-rank{rank:05d}.safetensors"
# What torch, DeepSpeed and the random generators raise for tensors of other names, types and shapes.
_OF_OTHER_MODULES = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError)


class SaveError(UserError):
    """A checkpoint could not be written, such as for a full disk. The ones before it are untouched."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `record` has global_batch, world_size, zero_stage, backend and more."""

    folder: Path
    state: State
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of the run in `folder`: the newest `keep` of them, and the best.

    `record` holds the facts that every checkpoint states beside those of the backend; JSON values only.
    """

    def __init__(self, folder: Path, keep: int, record: Mapping[str, Any]) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep
        self.record = {"versions": versions() if distributed.is_main() else {}, **record}
        self.skipped: list[str] = []
        """What was wrong with the newer checkpoints that `latest_valid` passed over."""

    def save(
        self, state: State, backend: Backend, average: WeightAverage | None = None, is_best: bool = False
    ) -> Path:
        """Publish `state`, all that `backend` has and the `average` as a new checkpoint; its folder. Called by all
        ranks.

        A whole checkpoint of the same step is left as it is, for there is no moment to replace it at which a
        kill would lose nothing. Raises SaveError on all ranks alike when one of them cannot write; nothing of
        the attempt stays.
        """
        final = self.folder / folder_name(state.step)
        temporary = distributed.on_main(lambda: self._prepare(final))
        if temporary is not None:
            problems = [
                text for text in distributed.all_gather(self._write(temporary, backend, average)) if text
            ]
            record = {**self.record, **backend.describe()}
            distributed.on_main(lambda: self._publish(temporary, final, state, record, problems))
        distributed.on_main(lambda: self._point(final, is_best))
        return final

    def latest_valid(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte verifies, None in a fresh run. Called by all ranks.

        Removes what dead saves left. Damaged ones are named in `skipped`; UserError when all are damaged.
        """
        checkpoint, self.skipped = distributed.on_main(self._scan)
        return checkpoint

    def restore(
        self, checkpoint: Checkpoint, backend: Backend, average: WeightAverage | None = None
    ) -> State:
        """Put `checkpoint` into `backend`, the `average` and the random generators; the state to go on from.

        Called by all ranks. At another world size every rank goes on with the generators of rank 0. No code
        of the files is executed. Raises UserError where they are whole, but not those of this run's modules.
        """
        same_size = checkpoint.record.get("world_size") == distributed.world_size()
        name = _RNG_FILE.format(rank=distributed.rank() if same_size else 0)
        try:
            backend.load(checkpoint.folder)
            if average is not None:
                average.load(checkpoint.folder, checkpoint.state.step)
            states = read_weights_file(checkpoint.folder / name)
            rng.restore(states)
            host_rng.restore(states)
        except UserError:
            raise
        except _OF_OTHER_MODULES as error:
            raise UserError(
                f"{checkpoint.folder} does not hold what this run's modules need: {type(error).__name__}: {error}. "
                "Give another --run-dir, or restore the folder from a backup"
            ) from error
        return checkpoint.state

    def _prepare(self, final: Path) -> Path | None:
        """An empty temporary folder for `final`; None when `final` is there and whole.

        A damaged `final` was passed over at the start and training has come by its step again: it is replaced.
        """
        if final.is_dir() and _is_whole(final):
            return None
        temporary = self.folder / atomic.temporary_name(final.name)
        try:
            temporary.mkdir(parents=True)
            self._require_space()
        except OSError as error:
            raise self._save_error(final, temporary, [str(error)]) from error
        return temporary

    def _require_space(self) -> None:
        """The next checkpoint is about as large as the last; find out before writing a part of it."""
        for _, folder in committed(self.folder):
            try:
                needed = read_manifest(folder).total_bytes
            except DamagedCheckpoint:
                continue
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(
                    f"the disk has {free / 1e6:.1f} MB free, a checkpoint needs {needed / 1e6:.1f} MB"
                )
            return

    def _write(self, temporary: Path, backend: Backend, average: WeightAverage | None) -> str:
        """This rank's files; what went wrong, or nothing."""
        try:
            backend.save(temporary)
            if average is not None and distributed.is_main():
                average.save(temporary)
            states = {**rng.capture(), **host_rng.capture()}
            name = _RNG_FILE.format(rank=distributed.rank())
            atomic.write_bytes(temporary / name, safetensors.torch.save(states))
        except (OSError, UserError) as error:
            return f"rank {distributed.rank()}: {error}"
        return ""

    def _publish(
        self, temporary: Path, final: Path, state: State, record: Mapping[str, Any], problems: list[str]
    ) -> None:
        if problems:
            raise self._save_error(final, temporary, problems)
        try:
            write_manifest(temporary, state, record)
            atomic.publish_folder(temporary, final)
        except OSError as error:
            raise self._save_error(final, temporary, [str(error)]) from error

    def _save_error(self, final: Path, temporary: Path, problems: list[str]) -> SaveError:
        shutil.rmtree(temporary, ignore_errors=True)
        last = next((folder.name for _, folder in committed(self.folder)), None)
        kept = f"The last checkpoint, {last}, is untouched" if last else "There is no checkpoint before it"
        return SaveError(
            f"{final} could not be written: {'; '.join(problems)}. {kept}. "
            "Make room or mend the folder and run the same command again to go on."
        )

    def _point(self, final: Path, is_best: bool) -> None:
        try:
            if is_best:
                write_pointer(self.folder, BEST, final.name)
            write_pointer(self.folder, LATEST, final.name)
            self._remove_old(final)
        except OSError as error:
            raise SaveError(
                f"{final} is written, but {self.folder} cannot be kept up to date: {error}. "
                "Make room or mend the folder and run the same command again to go on."
            ) from error

    def _remove_old(self, final: Path) -> None:
        try:
            protected = read_pointer(self.folder, BEST)
        except DamagedCheckpoint:
            return  # Nobody knows which one is the best, so none is removed until there is a new one.
        folders = [folder for _, folder in committed(self.folder)]
        # Newer ones are damaged and were passed over at the start; they must not count as kept.
        for folder in folders[folders.index(final) + self.keep :]:
            if folder.name != protected:
                atomic.remove_folder(folder)

    def _scan(self) -> tuple[Checkpoint | None, list[str]]:
        if self.folder.is_dir():
            atomic.remove_debris(self.folder)
        skipped: list[str] = []
        for _, folder in committed(self.folder):
            try:
                manifest: Manifest = verify(folder)
            except DamagedCheckpoint as error:
                skipped.append(f"checkpoint {folder.name} is refused: {error}")
                continue
            if skipped:
                skipped.append(f"going on from {folder.name}, the newest that is whole")
            return Checkpoint(folder, manifest.state, manifest.record), skipped
        if skipped:
            raise UserError(
                f"{self.folder} has no whole checkpoint: {'; '.join(skipped)}. "
                "Restore one from a backup, or start afresh with another --run-dir."
            )
        return None, skipped


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except DamagedCheckpoint:
        return False
    return True
