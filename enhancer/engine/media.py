"""Sounds and pictures of an evaluation, as TensorBoard entries and as files in `samples/`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enhancer.engine.board import Board
from enhancer.engine.own_files import OwnFiles

_UNSAFE = re.compile(r"[^\w.-]+")


class NoMedia:
    """Of ranks other than 0: everything is dropped."""

    is_cut = False

    def audio(self, name: str, wave: Tensor, rate_hz: int) -> None:
        """Nothing."""

    def figure(self, name: str, figure: Any) -> None:
        """Nothing."""


class MediaFolder:
    """Keeps media of one step in `folder` and on the TensorBoard `board`, until `is_stopping`: drawing takes long.

    Failures to write go to `files`; what comes after one is dropped.
    """

    def __init__(
        self, folder: Path, board: Board, step: int, files: OwnFiles, is_stopping: Callable[[], bool]
    ) -> None:
        self._folder, self._board, self._step = folder, board, step
        self._files, self._is_stopping = files, is_stopping
        self.is_cut = False
        """Whether something was dropped."""

    def audio(self, name: str, wave: Tensor, rate_hz: int) -> None:
        """Keep `wave` of shape [T], floats of full scale 1, as NAME.wav and in TensorBoard.

        The file is 16-bit PCM where that loses no peak, 32-bit float where the wave goes beyond full scale.
        """
        import soundfile

        if wave.ndim != 1:
            raise ValueError(f"audio {name} has the shape {tuple(wave.shape)}; needed one channel, [T]")
        if self._drops():
            return
        samples = wave.detach().to("cpu", torch.float32)
        fits = bool((samples.abs() <= 1).all())
        # In memory first: libsndfile tells of a full disk in words of its own, if at all.
        content = io.BytesIO()
        subtype = "PCM_16" if fits else "FLOAT"
        soundfile.write(content, samples.numpy(), rate_hz, subtype=subtype, format="WAV")
        heard = torch.nan_to_num(samples).clamp(-1, 1)
        self._keep(
            name + ".wav",
            content,
            lambda writer: writer.add_audio(name, heard[None], self._step, sample_rate=rate_hz),
        )

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib `figure` as NAME.png and in TensorBoard."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        if self._drops():
            return
        # Drawn once for both: savefig and add_figure would each lay out and draw it anew.
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="PNG")
        self._keep(
            name + ".png",
            content,
            lambda writer: writer.add_image(name, pixels, self._step, dataformats="HWC"),
        )

    def _drops(self) -> bool:
        self.is_cut = self.is_cut or self._is_stopping() or bool(self._files.failure)
        return self.is_cut

    def _keep(self, name: str, content: io.BytesIO, show: Callable[[Any], None]) -> None:
        # A name such as 3/mixture makes groups in TensorBoard; files stay side by side in one folder.
        path = self._folder / _UNSAFE.sub("_", name).strip("._")
        with self._files.kept(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getbuffer())
        self._board.write(show)
        self.is_cut = bool(self._files.failure)
