"""Sounds and pictures of an evaluation, as TensorBoard entries and as files in `samples/`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_UNSAFE = re.compile(r"[^\w.-]+")


class NoMedia:
    """Of ranks other than 0: everything is dropped."""

    is_cut = False

    def audio(self, name: str, wave: Tensor, rate_hz: int) -> None:
        """Nothing."""

    def figure(self, name: str, figure: Any) -> None:
        """Nothing."""


class MediaFolder:
    """Keeps media of one step in `folder` and in the TensorBoard `writer`, until `is_stopping`: drawing takes long."""

    def __init__(
        self, folder: Path, writer: Any, step: int, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._folder, self._writer, self._step = folder, writer, step
        self._is_stopping = is_stopping
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
        path = self._path(name, ".wav")
        soundfile.write(path, samples.numpy(), rate_hz, subtype="PCM_16" if fits else "FLOAT")
        heard = torch.nan_to_num(samples).clamp(-1, 1)
        self._writer.add_audio(name, heard[None], self._step, sample_rate=rate_hz)

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
        Image.fromarray(pixels).save(self._path(name, ".png"))
        self._writer.add_image(name, pixels, self._step, dataformats="HWC")

    def _drops(self) -> bool:
        self.is_cut = self.is_cut or self._is_stopping()
        return self.is_cut

    def _path(self, name: str, suffix: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A name such as 3/mixture makes groups in TensorBoard; files stay side by side in one folder.
        return self._folder / (_UNSAFE.sub("_", name).strip("._") + suffix)
