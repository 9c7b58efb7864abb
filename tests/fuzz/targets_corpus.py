"""Corpora: `dataset.json`, sidecars and tars, also where whoever changed them has signed them again."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.dataset import DATASET_NAME, parse_dataset, shard_info, write_dataset
from data_shards.errors import CorpusError, DataError
from data_shards.options import BuildOptions
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from data_shards.reader import Reader
from data_shards.sidecar import parse_sidecar
from data_shards.verify import verify_corpus
from hparams.errors import UserError
from hparams.load import load
from launch.common import open_data
from tests.fuzz.mutations import changed_json, spoiled_bytes, spoiled_json
from tests.fuzz.target import Read, Target

RATE_HZ = 8_000
_SHORT = (
    f"wav_rate={RATE_HZ}",
    "training_seconds=0.05",
    "batch_size_per_gpu=2",
    "nj=0",
    "valid_fraction=0.3",
)
_SHORT_TASK = ("task.valid_seconds=0.05", "task.valid_items=2")
_MIX = load("base_small", [*_SHORT, *_SHORT_TASK, "load_fg_only=true"])
_MODEL = ("task.warmup_samples=10", "task.update_samples=64", "task.knobs=[drive]", "task.hf_hinge_fmin=1000")
_DEVICE = load("pedal_lstm", [*_SHORT, *_MODEL])


def built(folder: Path) -> dict[str, Path]:
    """Corpora `wav`, `flac` and `pedal` of one small shard each, by codec or kind."""
    audio = folder / "audio"
    audio.mkdir()
    for number in range(3):
        wave = 0.1 * np.random.default_rng(number).standard_normal(RATE_HZ // 4)
        soundfile.write(audio / f"take{number}.wav", wave, RATE_HZ)
    found = {}
    for codec in ("wav", "flac"):
        options = BuildOptions("fg", rate_hz=RATE_HZ, codec=codec, workers=1)
        found[codec] = build_corpus("fg", [audio], folder / codec, options).folder
    pair = DevicePair(audio / "take0.wav", audio / "take1.wav", {"drive": 0.5})
    found["pedal"] = build_pedal_corpus(
        [pair], folder / "pedal", PedalOptions(align="off", valid_seconds=0.06)
    ).result.folder
    return found


def read_corpus(folder: Path, kind: str) -> None:
    """Open, split, read and verify the corpus in `folder`."""
    corpus = Corpus.open(folder, kind)
    corpus.split(0.3)
    reader = Reader(corpus)
    try:
        for row in range(min(len(corpus), 3)):
            for member in ("input", "target") if kind == "pedal" else (None,):
                frames = min(corpus.frames.item(row), 500)
                reader.crop(row, corpus.frames.item(row) - frames, frames, member)
                reader.whole(row, member)
    finally:
        reader.close()
    verify_corpus(folder)
    values = _DEVICE if kind == "pedal" else _MIX
    place = "pair_dir" if kind == "pedal" else "fg_dir"
    stream = open_data(replace(values, **{place: folder}), batch_size=2, num_workers=0)
    next(iter(stream.from_draw(0)))
    for _ in itertools.islice(stream.validation(), 3):
        pass


def sign(folder: Path) -> None:
    """Make `dataset.json` fit the sidecar again, and leave it where the sidecar cannot be read."""
    info = parse_dataset((folder / DATASET_NAME).read_bytes(), DATASET_NAME)
    (shard,) = info.shards
    data = (folder / f"{shard.tar}.json").read_bytes()
    try:
        sidecar = parse_sidecar(data, "sidecar")
        info = replace(info, kind=sidecar.kind, rate_hz=sidecar.rate_hz, codec=sidecar.codec)
        shard = shard_info(sidecar, data)
    except CorpusError:
        shard = replace(shard, sidecar_sha256=hashlib.sha256(data).hexdigest())
    write_dataset(folder, replace(info, shards=(shard,)))


def _working_copy(folder: Path, name: str, kept: Path) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(kept, copy)
    return copy


def _sides(copy: Path) -> tuple[Path, Path]:
    (tar,) = copy.glob("*.tar")
    return tar, copy / f"{tar.name}.json"


def _kind(name: str) -> str:
    return "pedal" if name == "pedal" else "fg"


def _datasets(folder: Path) -> Read:
    corpora = built(folder)

    def read(rng: Random) -> None:
        name = rng.choice(sorted(corpora))
        copy = _working_copy(folder, name, corpora[name])
        path = copy / DATASET_NAME
        content = json.loads(path.read_bytes())
        if rng.random() < 0.5:
            path.write_bytes(spoiled_json(rng, content))
        else:  # The sums and the fingerprint fit, so what comes behind them is reached.
            path.write_bytes(
                json.dumps(_with_sums(changed_json(rng, content))).encode("utf-8", "surrogatepass")
            )
        read_corpus(copy, _kind(name))

    return read


def _with_sums(content: Any) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get("shards"), list):
        return content
    shards = [shard for shard in content["shards"] if isinstance(shard, dict)]
    for key in ("num_samples", "frames"):
        numbers = [shard.get(key) for shard in shards]
        content[key] = sum(number for number in numbers if type(number) is int)
    lines = ["wavewright-corpus", str(content.get("kind")), str(content.get("rate_hz"))]
    lines += [f"{shard.get('sha256')} {shard.get('groups_sha256')}" for shard in shards]
    content["fingerprint"] = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
    return content


def _sidecars(folder: Path) -> Read:
    corpora = built(folder)

    def read(rng: Random) -> None:
        name = rng.choice(sorted(corpora))
        copy = _working_copy(folder, name, corpora[name])
        _, path = _sides(copy)
        path.write_bytes(spoiled_json(rng, json.loads(path.read_bytes())))
        if rng.random() < 0.9:
            sign(copy)
        read_corpus(copy, _kind(name))

    return read


def _tars(folder: Path) -> Read:
    corpora = built(folder)

    def read(rng: Random) -> None:
        name = rng.choice(sorted(corpora))
        copy = _working_copy(folder, name, corpora[name])
        path, sidecar = _sides(copy)
        data = spoiled_bytes(rng, path.read_bytes())
        path.write_bytes(data)
        if rng.random() < 0.8:
            content = json.loads(sidecar.read_bytes())
            content["sha256"], content["bytes"] = hashlib.sha256(data).hexdigest(), len(data)
            for columns in content["members"].values():
                places = zip(columns["offset"], columns["bytes"], strict=True)
                columns["crc32"] = [zlib.crc32(data[offset : offset + size]) for offset, size in places]
            sidecar.write_text(json.dumps(content))
            sign(copy)
        read_corpus(copy, _kind(name))

    return read


_ERRORS = (UserError, DataError)
TARGETS = {
    "dataset": Target(_datasets, _ERRORS),
    "sidecar": Target(_sidecars, _ERRORS),
    "tar": Target(_tars, _ERRORS),
}
