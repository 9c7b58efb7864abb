"""Audio files of all kinds: into a corpus, as a pair of a device, and through a trained model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch

from data_shards.build import no_report
from data_shards.errors import CorpusError
from data_shards.options import BuildOptions
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from data_shards.plan import find_inputs, plan_shards
from data_shards.shard import build_shard
from enhancer.inference import load_run
from hparams.errors import UserError
from launch.apply import apply_to_file
from tests.fuzz.mutations import spoiled_bytes
from tests.fuzz.target import Read, Target
from tests.fuzz.targets_run import make_run

RATE_HZ = 8_000
_FORMATS = (
    ("wav", "WAV", "PCM_16"), ("wav", "WAV", "PCM_U8"), ("wav", "WAV", "FLOAT"), ("wav", "WAV", "IMA_ADPCM"),
    ("wav", "WAVEX", "PCM_24"), ("wav", "RF64", "PCM_16"), ("w64", "W64", "PCM_16"), ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"), ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"), ("aiff", "AIFF", "FLOAT"), ("aifc", "AIFF", "ULAW"),
)  # fmt: skip
_NAMES = ("a", "..", "a\nb", " ", "-rf", "\u202e", "a" * 200, "a.b", "\x1b[2J")


def valid_files(folder: Path) -> list[tuple[str, bytes]]:
    """(extension, content) of each format, mono and in more channels; and a long silence in few bytes."""
    folder.mkdir()
    found = []
    for extension, container, subtype in _FORMATS:
        for channels in (1, 2, 6) if container in ("WAVEX", "FLAC") else (1, 2):
            wave = 0.1 * np.random.default_rng(channels).standard_normal((RATE_HZ // 4, channels))
            found.append((extension, _encoded(folder / f"x.{extension}", wave, container, subtype)))
    silence = np.zeros((RATE_HZ * 120, 1), np.int16)
    silence[::RATE_HZ] = 3000
    found.append(("flac", _encoded(folder / "x.flac", silence, "FLAC", "PCM_16")))
    return found


def _encoded(path: Path, wave: np.ndarray, container: str, subtype: str) -> bytes:
    soundfile.write(path, wave, RATE_HZ, format=container, subtype=subtype)
    return path.read_bytes()


def _spoiled_file(rng: Random, files: list[tuple[str, bytes]], folder: Path) -> Path:
    extension, data = rng.choice(files)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / f"{rng.choice(_NAMES)}.{rng.choice((extension, extension, 'wav'))}"
    path.write_bytes(spoiled_bytes(rng, data) if rng.random() < 0.95 else data)
    return path


def _ingest(folder: Path) -> Read:
    files = valid_files(folder / "valid")
    output = folder / "corpus"

    def read(rng: Random) -> None:
        path = _spoiled_file(rng, files, folder / "audio")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        kind, targets = rng.choice((("fg", ()), ("rir", ()), ("pair", [path.parent])))
        options = BuildOptions(kind, rate_hz=RATE_HZ, workers=1, codec=rng.choice(("wav", "flac")))
        plans, _ = plan_shards(find_inputs([path.parent], targets), options, no_report)
        for plan in plans:
            build_shard(plan, options, output, lambda frames: None)

    return read


def _devices(folder: Path) -> Read:
    files = valid_files(folder / "valid")
    dry = folder / "dry.wav"
    soundfile.write(dry, 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ // 4), RATE_HZ)
    output = folder / "corpus"

    def read(rng: Random) -> None:
        wet = _spoiled_file(rng, files, folder / "audio")
        shutil.rmtree(output, ignore_errors=True)
        options = PedalOptions(
            align=rng.choice(("auto", "off")), channel=rng.choice((None, 0)), valid_seconds=0.06
        )
        build_pedal_corpus([DevicePair(dry, wet)], output, options)

    return read


def _apply(folder: Path) -> Read:
    files = valid_files(folder / "valid")[:-1]  # A model takes seconds for the long one.
    run = load_run(make_run(folder / "run"))

    def read(rng: Random) -> None:
        source = _spoiled_file(rng, files, folder / "audio")
        target = folder / f"out.{rng.choice(('wav', 'flac', 'ogg', 'aiff'))}"
        apply_to_file(run, source, target, 1.0, torch.zeros(0))
        os.unlink(target)

    return read


TARGETS = {
    "ingest": Target(_ingest, (CorpusError,)),
    "device": Target(_devices, (CorpusError,), 0.5),
    "apply": Target(_apply, (UserError,), 0.5),
}
