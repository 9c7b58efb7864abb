"""Audio files to build corpora from."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile as sf

from data_shards.options import BuildOptions

RATE_HZ = 8_000


def noise(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """Gaussian noise, float32 [frames]."""
    frames = round(seconds * rate_hz)
    return (level * np.random.default_rng(seed).standard_normal(frames)).astype(np.float32)


def write(
    path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ, subtype: str | None = None, fmt: str | None = None
) -> Path:
    """Write an audio file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave, rate_hz, subtype=subtype, format=fmt)
    return path


def folder_of(root: Path, count: int = 4, seconds: float = 0.5) -> Path:
    """A folder of `count` mono 16-bit files of noise."""
    for number in range(count):
        write(root / f"take{number:02d}.wav", noise(seconds, seed=number), subtype="PCM_16")
    return root


def read_samples(folder: Path) -> dict[str, np.ndarray]:
    """Every member of every tar, decoded by tarfile and libsndfile: name to int16 [frames]."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = sf.read(io.BytesIO(stream.read()), dtype="int16")[0]
    return found


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Name to content, without hidden files."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] != "."}


def options(kind: str = "fg", **values) -> BuildOptions:
    """Options for small builds in this process, which forgive any number of rejects."""
    return BuildOptions(kind, **{"rate_hz": RATE_HZ, "workers": 1, "max_reject": 1.0, **values})


def rejects_of(folder: Path) -> list[dict[str, str]]:
    """The lines of `rejects.jsonl`."""
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def joined(folder: Path) -> np.ndarray:
    """All samples one after another."""
    return np.concatenate([wave for _, wave in sorted(read_samples(folder).items())])
