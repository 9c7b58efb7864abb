"""Pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from enhancer.signal.stft import Stft

FLOOR_DB = -90.0


def overlay_figure(waves: Mapping[str, Tensor], rate_hz: int, start_seconds: float = 0.0) -> Any:
    """Matplotlib figure of waves, each [T], on top of each other; the first is drawn wide and pale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (name, wave) in enumerate(waves.items()):
        seconds = start_seconds + torch.arange(wave.shape[-1]) / rate_hz
        style: dict[str, Any] = {"linewidth": 3.5, "alpha": 0.45} if number == 0 else {"linewidth": 1.0}
        axis.plot(seconds.numpy(), wave.detach().float().cpu().numpy(), label=name, **style)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("amplitude")
    figure.legend(loc="outside upper right", ncols=len(waves))
    return figure


def spectrogram_figure(waves: Mapping[str, Tensor], rate_hz: int) -> Any:
    """Matplotlib figure with one spectrogram a wave (each [T]), on one colour scale in dB below the loudest bin."""
    from matplotlib.figure import Figure

    stft = Stft(window_samples=2048, hop_samples=512)
    spectra = {name: stft(wave.detach().float().cpu()[None])[0].abs() for name, wave in waves.items()}
    loudest = max(float(magnitude.max()) for magnitude in spectra.values()) or 1.0
    figure = Figure(figsize=(4.2 * len(spectra), 3.6), layout="constrained")
    axes = figure.subplots(1, len(spectra), sharey=True, squeeze=False)[0]
    for axis, (name, magnitude) in zip(axes, spectra.items(), strict=True):
        level_db = 20 * torch.log10((magnitude / loudest).clamp_min(10 ** (FLOOR_DB / 20)))
        seconds = waves[name].shape[-1] / rate_hz
        image = axis.imshow(
            level_db.numpy(),
            origin="lower",
            aspect="auto",
            vmin=FLOOR_DB,
            vmax=0,
            cmap="magma",
            extent=(0, seconds, 0, rate_hz / 2000),
        )
        axis.set_title(name)
        axis.set_xlabel("time (s)")
    axes[0].set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=axes, label="dB below the loudest bin")
    return figure
