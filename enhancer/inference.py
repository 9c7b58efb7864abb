"""Use a trained run on audio: load it without the training engine, and run it over recordings of any length.

A run needs only `hparams.yaml` and the safetensors of one checkpoint. Long recordings are cut into chunks that carry
the model's whole context on both sides and are cross-faded, so the output is that of one pass over the whole recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.bundle import read_bundle
from enhancer.engine.manifest import DamagedCheckpoint, committed, read_verified
from enhancer.engine.pointers import BEST, LATEST, read_pointer
from enhancer.engine.weights import parse_weights
from enhancer.frozen import built, read_frozen
from enhancer.signal.levels import db_to_gain
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.load import load_resolved
from hparams.schema import HParams

CHUNK_SECONDS = 30.0
SILENT_RMS = 1e-5
PIECE_SAMPLES = 1 << 15
"""Samples that a stateful model hears at a time: a context model may take seconds for them."""


@dataclass(frozen=True)
class TrainedRun:
    """A model ready for use: `module` maps [B, T] at `hp.wav_rate` Hz to [B, T] and is in eval mode.

    That of a `restore` run is a part of such a one: `task.restorer` makes the whole.
    """

    hp: HParams
    task: Any
    module: nn.Module
    checkpoint: Path
    step: int
    notes: tuple[str, ...] = ()
    """Lines to show the user: which damaged checkpoints were passed over."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Trained modules that the task works with, for another task of the same values."""


def load_run(run_dir: Path, device: torch.device | str = "cpu", checkpoint: Path | None = None) -> TrainedRun:
    """The trained model in `run_dir`, with the weights of `checkpoint`, or else of its best checkpoint.

    `run_dir` may be a file that `enhancer.bundle` wrote, which has weights of one checkpoint.

    The weights are used only where they are, byte for byte, what the checkpoint's manifest says. In place of a best
    checkpoint that is damaged, or was never judged, comes the latest that is whole. Reads hparams.yaml, manifest.json
    and safetensors only; nothing that is read can execute code. Raises UserError naming what is missing or damaged.
    """
    if run_dir.is_file():
        return _load_bundle(run_dir, device)
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder {run_dir}; give the --run-dir of a training run")
    hparams_file = run_dir / "hparams.yaml"
    if not hparams_file.is_file():
        raise UserError(
            f"{run_dir} holds no hparams.yaml, so it is not a run folder; give the --run-dir of a training run"
        )
    hp = load_resolved(hparams_file)
    constants: dict[str, Any] = {**read_frozen(run_dir, hp)}
    task = TASKS[hp.task.name](hp, constants)
    task.to(torch.device(device))
    file_name = f"{task.main_module}{'.average' if hp.ema_decay else ''}.safetensors"
    notes: list[str] = []
    if checkpoint is None:
        folder, weights, notes = _first_whole(run_dir, file_name)
    else:
        folder, weights = checkpoint, _read_weights(checkpoint, file_name)
    module = built(task, parse_weights(weights.data, folder / file_name), folder / file_name, hparams_file)
    return TrainedRun(hp, task, module.to(device).eval(), folder, weights.step, tuple(notes), constants)


def _load_bundle(path: Path, device: torch.device | str) -> TrainedRun:
    bundle = read_bundle(path)
    constants: dict[str, Any] = {**bundle.modules}
    task = TASKS[bundle.hp.task.name](bundle.hp, constants)
    task.to(torch.device(device))
    module = built(task, bundle.weights, path, Path("its metadata")).to(device).eval()
    return TrainedRun(bundle.hp, task, module, Path(bundle.checkpoint), bundle.step, constants=constants)


@dataclass(frozen=True)
class _Weights:
    data: bytes
    step: int


def _first_whole(run_dir: Path, file_name: str) -> tuple[Path, _Weights, list[str]]:
    """The checkpoint to use with its weights, and what is to be said of those that were passed over."""
    folders, notes = _in_order_of_preference(run_dir / "checkpoints")
    for folder in folders:
        try:
            weights = _read_weights(folder, file_name)
        except UserError as error:
            notes.append(f"checkpoint {folder.name} is refused: {error}")
            continue
        if notes:
            notes.append(f"using {folder.name} in its place")
        return folder, weights, notes
    if notes:
        raise UserError(f"{run_dir} has no whole checkpoint: {'; '.join(notes)}")
    raise UserError(
        f"{run_dir} has no finished checkpoint; train until the first one is saved (save_every steps)"
    )


def _in_order_of_preference(checkpoints: Path) -> tuple[list[Path], list[str]]:
    """The best checkpoint, the latest, then all from the newest to the oldest; and what is wrong with the pointers."""
    there = [folder.name for _, folder in committed(checkpoints)]
    named, notes = [], []
    for pointer in (BEST, LATEST):
        try:
            named.append(read_pointer(checkpoints, pointer))
        except DamagedCheckpoint as error:
            notes.append(str(error))
    first = [name for name in named if name in there]
    return [checkpoints / name for name in dict.fromkeys([*first, *there])], notes


def _read_weights(folder: Path, file_name: str) -> _Weights:
    """The bytes of a file of a checkpoint. Raises UserError where they are not those that its manifest lists."""
    try:
        manifest, data = read_verified(folder, file_name)
    except DamagedCheckpoint as error:
        raise UserError(f"{error}; copy the whole checkpoint folder again") from error
    return _Weights(data, manifest.state.step)


class StatefulModel:
    """Runs a causal model that carries a state over streams of audio: any blocks give what one call would.

    `knobs`: [K], the same for all channels; every channel has its own state.
    """

    def __init__(self, module: nn.Module, knobs: Tensor, device: torch.device | str = "cpu") -> None:
        self.module = module
        self.device = device
        self.knobs = knobs.to(device)

    @torch.no_grad()
    def stream(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks [C, T_i] of a recording -> blocks [C, T_j] of the model's output, of the same total length."""
        state = None
        for block in blocks:
            for piece in block.split(PIECE_SAMPLES, dim=-1):
                if piece.shape[-1]:  # Resampling may give an empty block.
                    knobs = self.knobs.expand(len(piece), -1)
                    estimate, state = self.module(piece.to(self.device), knobs, state)
                    yield estimate.float().cpu()


def gain_into_range(rms: float, range_db: tuple[float, float]) -> float:
    """One gain for a whole recording that brings its RMS into the range of levels the model was trained on.

    1 inside the range and for silence: recordings keep their dynamics, and noise floors are not blown up.
    """
    if rms < SILENT_RMS:
        return 1.0
    low, high = (float(db_to_gain(torch.tensor(level_db))) for level_db in range_db)
    return min(max(rms, low), high) / rms


class ChunkedModel:
    """Runs a model with `context_samples` and `stride_samples` over streams of audio, in bounded memory.

    One with a true `hears_place` is also told which sample of the recording a chunk begins at.
    """

    def __init__(
        self,
        module: nn.Module,
        rate_hz: int,
        chunk_seconds: float = CHUNK_SECONDS,
        device: torch.device | str = "cpu",
    ) -> None:
        if chunk_seconds <= 0:
            raise ValueError(f"chunk_seconds is {chunk_seconds}; needed a length above 0")
        self.module = module
        self.device = device
        self._hears_place = bool(getattr(module, "hears_place", False))
        self.stride_samples = int(module.stride_samples)  # type: ignore[arg-type]
        strides = -(-int(module.context_samples) // self.stride_samples)  # type: ignore[arg-type]
        self.context_samples = strides * self.stride_samples
        self.fade_samples = self.stride_samples
        # Two fades and something between them.
        chunk_strides = max(3, round(chunk_seconds * rate_hz / self.stride_samples))
        self.chunk_samples = chunk_strides * self.stride_samples
        self.fade_in = (torch.arange(self.fade_samples) + 0.5) / self.fade_samples

    @torch.no_grad()
    def stream(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks [C, T_i] of a recording -> blocks [C, T_j] of the model's output, of the same total length."""
        held: Tensor | None = None
        tail: Tensor | None = None
        start = 0  # of `held` in the recording; a multiple of the stride
        position = 0  # first sample not yet put out; a multiple of the stride
        advance = self.chunk_samples - self.fade_samples
        needed = self.chunk_samples + self.context_samples
        for block in blocks:
            held = block if held is None else torch.cat([held, block], dim=-1)
            # Strictly more than needed: the last chunk of a recording must end where the recording ends.
            while start + held.shape[-1] > position + needed:
                window = held[:, : position + needed - start]
                chunk = self._run(window, start)[:, position - start :][:, : self.chunk_samples]
                done, tail = self._join(tail, chunk, last=False)
                yield done
                position += advance
                drop = max(0, position - self.context_samples - start)
                held, start = held[:, drop:], start + drop
        if held is not None and start + held.shape[-1] > position:
            chunk = self._run(held, start)[:, position - start :]
            done, _ = self._join(tail, chunk, last=True)
            yield done

    def whole(self, wave: Tensor) -> Tensor:
        """The model's output for a recording [C, T] in memory, computed in chunks: [C, T]."""
        return torch.cat(list(self.stream([wave])), dim=-1) if wave.shape[-1] else wave

    def _run(self, window: Tensor, start: int) -> Tensor:
        place = (start,) if self._hears_place else ()
        return self.module(window.to(self.device), *place).float().cpu()

    def _join(self, tail: Tensor | None, chunk: Tensor, last: bool) -> tuple[Tensor, Tensor | None]:
        """Cross-fade the end of the chunk before into this one; returns what is finished, and the new end."""
        if tail is not None:
            length = min(self.fade_samples, chunk.shape[-1])
            fade = self.fade_in[:length]
            head = tail[:, :length] * (1 - fade) + chunk[:, :length] * fade
            chunk = torch.cat([head, chunk[:, length:]], dim=-1)
        if last:
            return chunk, None
        return chunk[:, : -self.fade_samples], chunk[:, -self.fade_samples :]
