"""The trained runs that a run of stage 2 starts from: checked, and copied into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hparams.enhance import EnhanceHParams
from hparams.errors import UserError
from hparams.restore import RestoreHParams

if TYPE_CHECKING:
    from enhancer.frozen import FrozenModule
    from hparams.schema import HParams

# What makes a mel spectrogram: stage 1 hears no other.
MEL_FIELDS = ("wav_rate", "n_fft", "win_size", "hop_size", "num_mels", "stft_magnitude_min", "preemphasis")
HOW_TO_TRAIN = {
    "stage1": "python launch/train.py --hparams enhancer_stage1_small",
    "denoiser": "python launch/train.py --hparams base_small",
}


def frozen_constants(hp: HParams, run_folder: Path, is_writer: bool) -> dict[str, Any]:
    """The modules that a run of `hp` in `run_folder` works with, by name; none for most tasks.

    Those in its folder are what its checkpoints were trained with. Until it has a checkpoint, they are taken anew from
    the runs that `hp` names, and the `is_writer` copies them. Raises UserError where they are not there, not finished
    or of another kind, and OSError.
    """
    from enhancer.engine.manifest import committed
    from enhancer.frozen import frozen_hparams, read_frozen, require_frozen, sources_of, write_frozen

    sources = sources_of(hp)
    if not sources:
        return {}
    if committed(run_folder / "checkpoints"):
        require_frozen(run_folder, hp)
        modules: dict[str, Any] = read_frozen(run_folder, hp)
        for name, own in frozen_hparams(run_folder, hp).items():
            _require_alike(name, sources[name], own, hp)
        return modules
    taken = {name: _taken(name, run, hp) for name, run in sources.items()}
    if is_writer:
        write_frozen(run_folder, taken)
    return {name: frozen.module for name, frozen in taken.items()}


def _taken(name: str, run: Path, hp: HParams) -> FrozenModule:
    """The best module of the finished run `run`. Raises UserError."""
    from enhancer.engine.session_end import say
    from enhancer.engine.status import read_status
    from enhancer.frozen import FrozenModule
    from enhancer.inference import load_run
    from hparams.load import load_resolved

    key = f"task.{name}_run"
    if not (run / "hparams.yaml").is_file():
        found = "holds no hparams.yaml" if run.is_dir() else "is a file" if run.is_file() else "is not there"
        raise UserError(
            f"{key} is {run}, which {found}; needed the folder of a finished run. Train one with "
            f"`{HOW_TO_TRAIN[name]}`, or give --set {key}=FOLDER"
        )
    own = load_resolved(run / "hparams.yaml")
    _require_alike(name, run, own, hp)
    status = read_status(run)
    if status is None or status["state"] != "finished":
        found = "has no status.json" if status is None else f"is {status['state']} at step {status['step']}"
        raise UserError(
            f"{key} {run} is not finished: it {found} of {own.max_steps}. Go on with it by the command that began it; "
            "to end it where it is, give that command --set max_steps=STEP with the last step it has saved"
        )
    trained = load_run(run)
    for note in trained.notes:
        say(f"{key} {run}: {note}")
    say(f"{key}: {trained.checkpoint.name} of {run}")
    return FrozenModule(trained.hp, trained.module, str(run), trained.checkpoint.name)


def _require_alike(name: str, run: Path, own: HParams, hp: HParams) -> None:
    """Raises UserError where the run is of another task, or hears other audio than this one."""
    from enhancer.frozen import SOURCE_TASKS

    key = f"task.{name}_run"
    if own.task.name != SOURCE_TASKS[name]:
        raise UserError(
            f"{key} {run} is a run of task {own.task.name}; needed one of task {SOURCE_TASKS[name]}"
        )
    if name == "denoiser":
        if own.wav_rate != hp.wav_rate:
            raise UserError(
                f"{key} {run} was trained at {own.wav_rate} Hz, but wav_rate is {hp.wav_rate}; train a denoiser at "
                f"this rate: --hparams base_small --set wav_rate={hp.wav_rate}"
            )
        if own.hop_size != hp.hop_size:
            # Chunks end where frames of both end: the least common multiple of the two would be seconds.
            raise UserError(
                f"{key} {run} has hop_size {own.hop_size}, but hop_size of this run is {hp.hop_size}; train a denoiser "
                f"with this one: --hparams base_small --set hop_size={hp.hop_size}"
            )
        return
    differing = [field for field in MEL_FIELDS if getattr(own, field) != getattr(hp, field)]
    if differing:
        lines = "\n".join(
            f"  {field}: stage 1 has {getattr(own, field)}, this run {getattr(hp, field)}"
            for field in differing
        )
        values = " ".join(f"{field}={getattr(own, field)}" for field in differing)
        raise UserError(
            f"{key} {run} has another mel spectrogram than this run:\n{lines}\n"
            f"Take that of stage 1: --set {values}, or train another stage 1"
        )
    assert isinstance(own.task, EnhanceHParams) and isinstance(hp.task, RestoreHParams)
    found, needed = own.task.num_latents, hp.task.num_latents
    if found != needed:
        raise UserError(
            f"{key} {run} has {found} latents of a frame, but task.num_latents is {needed}; give --set "
            f"task.num_latents={found}"
        )
