"""Sounds and pictures as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from torch import Tensor

from enhancer.charts import SPECTROGRAM_FLOOR_DB

PICTURE_COLUMNS, PICTURE_ROWS = 420, 256
_WEBP_QUALITY = 82


def sound(wave: Tensor, rate_hz: int) -> str:
    """A wave [T] as 16-bit FLAC, which every browser plays. What is beyond full scale is clipped, NaN is silence."""
    import soundfile

    heard = torch.nan_to_num(wave.detach().float().cpu()).clamp(-1, 1)
    file = io.BytesIO()
    soundfile.write(file, heard.numpy(), rate_hz, format="FLAC", subtype="PCM_16")
    return _uri("audio/flac", file.getvalue())


def spectrogram(level_db: Tensor) -> str:
    """Levels [F, N] from SPECTROGRAM_FLOOR_DB to 0 as a WebP picture, low frequencies at the bottom.

    Where there are more bins or frames than pixels the loudest of those that share a pixel is shown.
    """
    from matplotlib import colormaps
    from matplotlib.image import imsave

    small = _loudest(_loudest(level_db.numpy(), PICTURE_ROWS, 0), PICTURE_COLUMNS, 1)
    colours = colormaps["magma"](1 - small / SPECTROGRAM_FLOOR_DB, bytes=True)[::-1, :, :3]
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(colours), format="webp", pil_kwargs={"quality": _WEBP_QUALITY})
    return _uri("image/webp", file.getvalue())


def _loudest(level_db: np.ndarray, count: int, axis: int) -> np.ndarray:
    length = level_db.shape[axis]
    if length <= count:
        return level_db
    return np.maximum.reduceat(level_db, np.arange(count) * length // count, axis=axis)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
