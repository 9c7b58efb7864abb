"""Whether and how a checkpoint can be gone on from, and weights of another run to start from."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from enhancer.engine.average import AVERAGE
from enhancer.engine.backend import WEIGHTS
from enhancer.engine.checkpoint import Checkpoint
from enhancer.engine.manifest import FROZEN, MANIFEST, DamagedCheckpoint, verify
from enhancer.engine.pointers import BEST, LATEST, read_pointer
from enhancer.engine.weights import read_weights_file
from hparams.errors import UserError

MAX_GLOBAL_BATCH = 1 << 20


def batch_per_rank(record: Mapping[str, Any], world_size: int) -> int:
    """Examples per rank that keep the recorded global batch on `world_size` ranks.

    Raises UserError, naming the numbers of ranks that would do, when it does not divide.
    """
    global_batch = record.get("global_batch")
    if type(global_batch) is not int or not 0 < global_batch <= MAX_GLOBAL_BATCH:
        raise UserError(
            f"the checkpoint states a global batch of {global_batch!r:.40}; needed a whole number up to "
            f"{MAX_GLOBAL_BATCH}. Copy it again from where it is whole"
        )
    if global_batch % world_size:
        fitting = [count for count in range(1, global_batch + 1) if global_batch % count == 0]
        raise UserError(
            f"the run has a global batch of {global_batch} examples, which {world_size} ranks cannot share "
            f"evenly; start {_listed(fitting)} ranks"
        )
    return global_batch // world_size


def check_resume(
    checkpoint: Checkpoint,
    describe: Mapping[str, Any],
    fingerprint: str,
    allow_data_change: bool = False,
    frozen: str = "",
) -> None:
    """Refuse, before anything is lost, to go on where the outcome would not be the same run.

    Hyper-parameters that do not fit, `Run.open` has refused before. `describe` is what `Backend.describe` gives now,
    `fingerprint` that of the data stream, `frozen` what `frozen_digest` gives. Raises UserError.
    """
    name, record = checkpoint.folder.name, checkpoint.record
    # Checkpoints of versions before do not say it.
    if record.get("frozen", frozen) != frozen:
        raise UserError(
            f"{name} was trained with other frozen modules than those in {FROZEN}/: the sha256 of its {MANIFEST} was "
            f"{record['frozen']!s:.64}, now it is {frozen or 'not there'}. Copy the whole run folder again"
        )
    if record.get("backend") != describe["backend"]:
        raise UserError(
            f"{name} was saved by the {record.get('backend')} backend, this is {describe['backend']}; "
            f"{_start_text(record.get('backend'))}, or take its weights into another run by --init-from"
        )
    for key in ("zero_stage", "precision"):
        if record.get(key) != describe[key]:
            raise UserError(
                f"{name} was saved with {key} {record.get(key)}, this run has {describe[key]}; "
                f"set {key} to {record.get(key)}, or take the weights into another run by --init-from"
            )
    if record.get("zero_stage") == 3 and record.get("world_size") != describe["world_size"]:
        raise UserError(
            f"{name} was saved with ZeRO stage 3 on {record.get('world_size')} ranks, which "
            f"split every weight between them; this run has {describe['world_size']}. "
            f"Start {record.get('world_size')} ranks, or take the weights into another run by --init-from"
        )
    if record.get("fingerprint") != fingerprint and not allow_data_change:
        raise UserError(
            f"{name} was trained on corpora with the fingerprint {record.get('fingerprint')}, the ones given now "
            f"have {fingerprint}; give the same corpora, or say --allow-data-change to go on with new ones"
        )


def frozen_digest(run_folder: Path) -> str:
    """sha256 of the manifest of the trained modules that the run works with; empty where it has none."""
    path = run_folder / FROZEN / MANIFEST
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """Weights of module `name` in `path`; no code of the file is executed. Raises UserError.

    `path` is a run folder (its best checkpoint, else its latest), a checkpoint folder or a .safetensors file; of
    averaged weights the average. A checkpoint that is not what its manifest says is refused.
    """
    averaged = AVERAGE.format(name=name)
    if path.is_dir() and (_checkpoint_folder(path) / averaged).is_file():
        return read_weights_file(_weights_file(path, averaged))
    return read_weights_file(_weights_file(path, WEIGHTS.format(name=name)))


def _weights_file(path: Path, file_name: str) -> Path:
    if path.is_file():
        return path
    path = _checkpoint_folder(path)
    if not (path / file_name).is_file():
        raise UserError(
            f"{path}: no {file_name} there; needed a run folder with a checkpoint, a checkpoint folder, "
            "or a .safetensors file"
        )
    try:
        verify(path)
    except DamagedCheckpoint as error:
        raise UserError(
            f"{error}; give another checkpoint folder of that run, or copy this one again"
        ) from error
    return path / file_name


def _checkpoint_folder(path: Path) -> Path:
    """The best checkpoint, else the latest, of the run folder `path`; `path` itself where it is none."""
    try:
        found = (read_pointer(path / "checkpoints", pointer) for pointer in (BEST, LATEST))
        return next((path / "checkpoints" / name for name in found if name), path)
    except DamagedCheckpoint as error:
        raise UserError(f"{error}, or give a checkpoint folder") from error


def _listed(counts: list[int]) -> str:
    words = [str(count) for count in counts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _start_text(backend: Any) -> str:
    if backend == "deepspeed":
        return "start it with `deepspeed launch/train.py`"
    return "start it with `python launch/train.py`, torchrun or `accelerate launch`"
