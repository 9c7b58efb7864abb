"""Impulse responses of shoebox rooms by pyroomacoustics' image-source method (the [rooms] extra).

Source: Allen and Berkley, "Image method for efficiently simulating small-room acoustics" (1979); the
absorption that gives a wanted reverberation time is from Sabine's formula.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from hparams.errors import UserError

# Images up to this many reflections; later ones are below the cut of one second for the rooms drawn here.
MOST_REFLECTIONS = 40


def _import_pyroomacoustics() -> ModuleType:
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError(
            "simulating rooms needs pyroomacoustics, which is not installed; "
            "run: pip install 'wavewright[rooms]'"
        ) from error
    return pyroomacoustics


def simulate_room(reverberation_seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Response of a random shoebox with about that RT60, source and microphone 0.7 m or more apart: [T],
    peak 1.

    Raises: UserError when pyroomacoustics is missing.
    """
    rooms = _import_pyroomacoustics()
    # One thread, so that the sums are always made in the same order.
    rooms.constants.set("num_threads", 1)
    scale = (reverberation_seconds / 0.15) ** 0.5
    size = rng.uniform([2.6, 2.2, 2.3], [3.6, 3.0, 2.7]) * [scale, scale, min(scale, 1.5)]
    absorption, _ = rooms.inverse_sabine(reverberation_seconds, size)
    room = rooms.ShoeBox(
        size, fs=rate_hz, materials=rooms.Material(min(absorption, 0.95)), max_order=MOST_REFLECTIONS
    )
    source, microphone = _places(size, rng)
    room.add_source(source)
    room.add_microphone(microphone)
    room.compute_rir()
    response = np.asarray(room.rir[0][0], dtype=np.float64)
    return response / np.abs(response).max()


def _places(size: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Source and microphone, 0.4 m from every wall and 0.7 to 3 m from each other."""
    while True:
        source, microphone = rng.uniform(0.4, size - 0.4, (2, 3))
        if 0.7 <= np.linalg.norm(source - microphone) <= 3.0:
            return source, microphone
