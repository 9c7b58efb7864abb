"""One-second foreground crops per second, one process: this project's reader against stock webdataset.

    python -m bench.bench_shards [--seconds 20]

Both read the same WAV shards, built here from synthetic audio in a temporary folder, in one process, with a
warm page cache. webdataset does what its documentation shows: it streams the tars, decodes each member
whole with soundfile, and a crop is cut from the result. Ours takes the samples in permuted order and reads
the bytes of the crop only. The two take turns in rounds, and the best round of each counts, so that a busy
machine hurts both alike.
"""

from __future__ import annotations

import argparse
import io
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.crops import padded_crop
from data_shards.options import BuildOptions
from data_shards.reader import Reader
from data_shards.schedule import generator, sample_of_draw
from data_shards.synthetic import write_foregrounds

RATE_HZ = 44_100
CROP_SAMPLES = RATE_HZ
CLIP_SECONDS = 10.0
ROUNDS = 4
TARGET_RATIO = 5.0


def our_crops(corpus: Corpus) -> Iterator[np.ndarray]:
    """Endless crops in the order of the draws."""
    reader = Reader(corpus)
    draw = 0
    while True:
        row = sample_of_draw(0, draw, len(corpus))
        yield padded_crop(reader, row, CROP_SAMPLES, generator(0, draw, "fg").random())
        draw += 1


def webdataset_crops(shards: list[str]) -> Iterator[np.ndarray]:
    """Endless crops of stock webdataset: whole members decoded by soundfile, then cut."""
    import soundfile
    import webdataset

    rng = np.random.default_rng(0)

    def decode(data: bytes) -> np.ndarray:
        wave, _ = soundfile.read(io.BytesIO(data), dtype="int16")
        return wave

    dataset = webdataset.WebDataset(shards, shardshuffle=False).decode(
        webdataset.handle_extension("wav", decode)
    )
    while True:
        for sample in dataset:
            wave = sample["wav"]
            start = rng.integers(len(wave) - CROP_SAMPLES + 1)
            yield wave[start : start + CROP_SAMPLES]


def crops_per_second(crops: Iterator[np.ndarray], seconds: float) -> float:
    """How many crops come in a second, each of the right length."""
    next(crops)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(20):
            assert len(next(crops)) == CROP_SAMPLES
        count += 20
    return count / elapsed


def measure(folder: Path, seconds: float, say: Callable[[str], None]) -> tuple[float, float]:
    """Best rounds of (ours, webdataset), crops per second."""
    say("synthesising and building the corpus")
    write_foregrounds(folder / "audio", seed=0, rate_hz=RATE_HZ, num_speakers=8, seconds=CLIP_SECONDS)
    build_corpus("fg", [folder / "audio"], folder / "fg", BuildOptions("fg", rate_hz=RATE_HZ, shard_mb=10))
    corpus = Corpus.open(folder / "fg", "fg", RATE_HZ)
    say(f"{len(corpus)} clips of {CLIP_SECONDS:g} s in {len(corpus.shards)} shards")
    ours, stock = our_crops(corpus), webdataset_crops([str(path) for path in corpus.shards])
    rounds = [
        (crops_per_second(ours, seconds / ROUNDS / 2), crops_per_second(stock, seconds / ROUNDS / 2))
        for _ in range(ROUNDS)
    ]
    return max(pair[0] for pair in rounds), max(pair[1] for pair in rounds)


def main() -> int:
    """Print both figures and their ratio; exit code 1 when the ratio is below the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time to measure for, both together")
    options = parser.parse_args()
    names = ("webdataset", "soundfile", "numpy")
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {', '.join(f'{n} {version(n)}' for n in names)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, stock = measure(Path(folder), options.seconds, print)
    print(f"ours                                {ours:10,.0f} crops/s")
    print(f"webdataset (full decode, then crop) {stock:10,.0f} crops/s")
    print(f"ratio                               {ours / stock:10.1f} (at least {TARGET_RATIO:g} wanted)")
    return 0 if ours / stock >= TARGET_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
