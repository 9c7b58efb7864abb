"""Use a trained run on audio: load it without the training engine, and run it over recordings of any length.

A run needs only `hparams.yaml` and the safetensors of one checkpoint. Long recordings are cut into chunks that carry
the model's whole context on both sides and are cross-faded, so the output is that of one pass over the whole recording.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from enhancer.signal.levels import db_to_gain
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.load import load
from hparams.schema import HParams

CHUNK_SECONDS = 30.0
SILENT_RMS = 1e-5


@dataclass(frozen=True)
class TrainedRun:
    """A model ready for use: `module` maps [B, T] at `hp.wav_rate` Hz to [B, T] and is in eval mode."""

    hp: HParams
    task: Any
    module: nn.Module
    checkpoint: Path
    step: int


def find_checkpoint(run_dir: Path) -> Path:
    """The best checkpoint of a run, or the latest where none was judged best. Raises UserError where there is none."""
    folder = run_dir / "checkpoints"
    for pointer in (folder / "BEST", folder / "LATEST"):
        if pointer.is_file():
            name = pointer.read_text().strip()
            if Path(name).name == name and (folder / name).is_dir():
                return folder / name
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder {run_dir}; give the --run-dir of a training run")
    raise UserError(
        f"{run_dir} has no finished checkpoint; train until the first one is saved (save_every steps)"
    )


def load_run(run_dir: Path, device: torch.device | str = "cpu", checkpoint: Path | None = None) -> TrainedRun:
    """The trained model in `run_dir`, with the weights of its best checkpoint or of `checkpoint`.

    Reads hparams.yaml, manifest.json and safetensors only; nothing that is read can execute code.
    """
    folder = checkpoint or find_checkpoint(run_dir)
    hparams_file = run_dir / "hparams.yaml"
    if not hparams_file.is_file():
        raise UserError(
            f"{run_dir} holds no hparams.yaml, so it is not a run folder; give the --run-dir of a training run"
        )
    hp = load(hparams_file)
    task = TASKS[hp.task.name](hp)
    module = task.build()[task.main_module]
    weights = folder / f"{task.main_module}.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} holds no {weights.name}; copy the whole checkpoint folder")
    module.load_state_dict(load_file(weights))
    step = json.loads((folder / "manifest.json").read_text())["step"]
    return TrainedRun(hp, task, module.to(device).eval(), folder, step)


def gain_into_range(rms: float, range_db: tuple[float, float]) -> float:
    """One gain for a whole recording that brings its RMS into the range of levels the model was trained on.

    1 inside the range and for silence: recordings keep their dynamics, and noise floors are not blown up.
    """
    if rms < SILENT_RMS:
        return 1.0
    low, high = (float(db_to_gain(torch.tensor(level_db))) for level_db in range_db)
    return min(max(rms, low), high) / rms


class ChunkedModel:
    """Runs a model with `context_samples` and `stride_samples` over streams of audio, in bounded memory."""

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
                chunk = self._run(window)[:, position - start :][:, : self.chunk_samples]
                done, tail = self._join(tail, chunk, last=False)
                yield done
                position += advance
                drop = max(0, position - self.context_samples - start)
                held, start = held[:, drop:], start + drop
        if held is not None and start + held.shape[-1] > position:
            chunk = self._run(held)[:, position - start :]
            done, _ = self._join(tail, chunk, last=True)
            yield done

    def whole(self, wave: Tensor) -> Tensor:
        """The model's output for a recording [C, T] in memory, computed in chunks: [C, T]."""
        return torch.cat(list(self.stream([wave])), dim=-1) if wave.shape[-1] else wave

    def _run(self, window: Tensor) -> Tensor:
        return self.module(window.to(self.device)).float().cpu()

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
