"""Small corpora for the tests of the reader, the mix and the stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams

RATE_HZ = 8000
NUM_FG_FILES, NUM_FG_GROUPS = 24, 8
NUM_BG_FILES, NUM_ROOMS, NUM_PAIRS = 9, 12, 14


def tone_and_noise(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A loud tone in noise, int16."""
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2000) * at) + 0.05 * rng.standard_normal(len(at))
    return np.rint(wave * 20000).astype(np.int16)


def write_wav(path: Path, wave: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE_HZ, subtype="PCM_16")


def build_all(root: Path, codec: str = "wav") -> HParams:
    """fg, bg, rir and pair corpora below `root`, and hyper-parameters that name them (no pair_dir)."""
    rng = np.random.default_rng(1)
    for number in range(NUM_FG_FILES):
        group = f"group-{number % NUM_FG_GROUPS}"
        # The first file is shorter than the training crop, the others longer.
        seconds = 0.1 if number == 0 else rng.uniform(0.6, 2.5)
        write_wav(root / "audio/fg" / group / f"{number}.wav", tone_and_noise(rng, seconds))
    for number in range(NUM_BG_FILES):
        write_wav(root / f"audio/bg/{number}.wav", tone_and_noise(rng, 0.15 if number < 3 else 1.5))
    for number in range(NUM_ROOMS):
        decay = np.exp(-np.arange(1600) / 200) * rng.standard_normal(1600) * 2000
        decay[5] = 20000
        write_wav(root / f"audio/rir/{number}.wav", np.rint(decay).clip(-32000, 32000).astype(np.int16))
    for number in range(NUM_PAIRS):
        clean = tone_and_noise(rng, 1.0)
        noisy = clean + np.rint(900 * rng.standard_normal(len(clean))).astype(np.int16)
        write_wav(root / f"audio/target/{number}.wav", clean)
        write_wav(root / f"audio/input/{number}.wav", noisy)
    for kind in ("fg", "bg", "rir"):
        options = _options(kind, codec)
        build_corpus(kind, [root / "audio" / kind], root / kind, options)
    build_corpus(
        "pair",
        [root / "audio/input"],
        root / "pair",
        _options("pair", codec),
        targets=[root / "audio/target"],
    )
    return HParams(
        fg_dir=root / "fg",
        bg_dir=root / "bg",
        rir_dir=root / "rir",
        wav_rate=RATE_HZ,
        training_seconds=0.25,
        batch_size_per_gpu=8,
        valid_fraction=0.5,
        data_timeout_seconds=30.0,
        task=DenoiseHParams(valid_seconds=0.5, valid_items=21),
    )


def with_task(hp: HParams, **changes: object) -> HParams:
    """`hp` with some fields of its task changed."""
    return replace(hp, task=replace(hp.task, **changes))


def _options(kind: str, codec: str) -> BuildOptions:
    group_by = "folder" if kind == "fg" else "file"
    return BuildOptions(
        kind, rate_hz=RATE_HZ, codec=codec, group_by=group_by, shard_mb=0.1, workers=1, max_reject=0
    )
