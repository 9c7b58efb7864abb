"""The stream of a pitch run: what a draw is, by workers or not, prebuilt or drawn; and the validation list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.build import build_corpus
from data_shards.errors import CorpusError, DataError
from data_shards.options import BuildOptions
from data_shards.pitch_stream import PitchStream, open_pitch_stream
from data_shards.shifters import SHIFTERS
from data_shards.shifts import ShiftOptions, cutoff_of
from hparams.errors import UserError
from hparams.load import load
from hparams.schema import HParams
from hparams.shifting import ENGINES
from tests.data_shards.shift_audio import write_melodies

RATE_HZ = 44_100
VALUES = ["training_seconds=0.25", "batch_size_per_gpu=3", "valid_fraction=0.3", "task.valid_items=5",
          "task.valid_seconds=0.5", "seed=4"]  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pitch")
    write_melodies(root / "in", (0.3,) * 6, 1.5, RATE_HZ)
    shift = ShiftOptions((-6, 6), ("varispeed", "phase_vocoder"), copies=2)
    build_corpus("pitch", [root / "in"], root / "pitch", BuildOptions("pitch", workers=1, shift=shift))
    build_corpus("fg", [root / "in"], root / "fg", BuildOptions("fg", workers=1))
    return root


def hparams(corpora: Path, *overrides: str) -> HParams:
    return load("pitch_wave_small", [f"pair_dir={corpora / 'pitch'}", *VALUES, *overrides])


def drawn(corpora: Path, *overrides: str) -> HParams:
    return hparams(
        corpora, "task.pairs=drawn", f"fg_dir={corpora / 'fg'}", "task.engines=[varispeed]", *overrides
    )


def first_batches(stream: PitchStream, draw: int, count: int) -> list[dict[str, torch.Tensor]]:
    batches = stream.from_draw(draw)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("make", [hparams, drawn], ids=["prebuilt", "drawn"])
def test_a_draw_is_the_same_by_workers_in_process_and_from_the_middle(make, corpora: Path) -> None:
    hp = make(corpora)
    alone = first_batches(open_pitch_stream(hp, num_workers=0), 0, 4)
    by_two = first_batches(open_pitch_stream(hp, num_workers=2), 0, 4)
    later = first_batches(open_pitch_stream(hp, num_workers=0), 6, 2)
    assert all(map(same, alone, by_two)) and all(map(same, alone[2:], later))
    ranks = [first_batches(open_pitch_stream(hp, rank=r, world_size=2, num_workers=0), 0, 2) for r in (0, 1)]
    assert same(ranks[0][1], alone[2]) and same(ranks[1][0], alone[1])
    assert alone[0]["input"].dtype == torch.int16 and alone[0]["input"].shape == (3, 11_025)


@pytest.mark.parametrize("make", [hparams, drawn], ids=["prebuilt", "drawn"])
def test_a_row_says_how_it_was_shifted(make, corpora: Path) -> None:
    stream = open_pitch_stream(make(corpora), num_workers=0)
    for batch in first_batches(stream, 0, 6):
        for semitones, cutoff, engine in zip(
            batch["semitones"].tolist(), batch["cutoff_hz"].tolist(), batch["engine"].tolist(), strict=True
        ):
            assert semitones and cutoff == pytest.approx(cutoff_of(int(semitones), RATE_HZ), abs=0.01)
            assert ENGINES[engine] in ("varispeed", "phase_vocoder")
        assert batch["level_db"].min() >= -32 and batch["level_db"].max() <= -14
        assert (batch["input"] != batch["target"]).any()


def test_drawn_pairs_of_the_control_engine_differ_by_the_band_limit_alone(corpora: Path) -> None:
    (batch,) = first_batches(open_pitch_stream(drawn(corpora), num_workers=0), 0, 1)
    for heard, target, cutoff in zip(batch["input"], batch["target"], batch["cutoff_hz"], strict=True):
        spectra = [np.fft.rfft(wave.numpy() * np.hanning(len(wave)) / 32768) for wave in (heard, target)]
        below = np.fft.rfftfreq(len(heard), 1 / RATE_HZ) < 0.85 * float(cutoff)
        error = np.sum(np.abs(spectra[0] - spectra[1])[below] ** 2) / np.sum(np.abs(spectra[1])[below] ** 2)
        assert 10 * np.log10(error) < -40


@pytest.mark.parametrize("make", [hparams, drawn], ids=["prebuilt", "drawn"])
def test_the_validation_list_is_fixed_and_keeps_to_other_recordings(make, corpora: Path) -> None:
    stream = open_pitch_stream(make(corpora), num_workers=0)
    other = open_pitch_stream(make(corpora, "seed=9"), num_workers=0, batch_size=2)
    rows = [{name: column[row] for name, column in batch.items()}
            for batch in stream.validation() for row in range(len(batch["item"]))]  # fmt: skip
    again = [{name: column[row] for name, column in batch.items()}
             for batch in other.validation() for row in range(len(batch["item"]))]  # fmt: skip
    kept = [row for row in rows if row["item"] >= 0]
    assert [int(row["item"]) for row in kept] == list(range(5))
    assert all(same(*pair) for pair in zip(kept, [row for row in again if row["item"] >= 0], strict=True))
    assert kept[0]["input"].shape == (22_050,) and all(float(row["level_db"]) == -23 for row in kept)
    source = next(iter(stream.recipe.sources.values()))
    trained = {source.corpus.sources[source.corpus.source[row]] for row in source.split.train}
    judged = {stream.item_sources(item)["recording"] for item in range(5)}
    assert judged and not judged & trained
    row = kept[2]
    told = f"{ENGINES[int(row['engine'])]} {int(row['semitones']):+d}"
    assert stream.item_sources(2)["shift"] == told


def test_what_is_missing_is_said_with_the_command(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match=r"build_shards\.py pitch --input"):
        open_pitch_stream(hparams(corpora, "pair_dir=null"))
    with pytest.raises(CorpusError, match=r"build_shards\.py pitch --input DIR --output .*nowhere"):
        open_pitch_stream(hparams(corpora, "pair_dir=/nowhere"))
    with pytest.raises(CorpusError, match="kind fg, but kind pitch"):
        open_pitch_stream(hparams(corpora, f"pair_dir={corpora / 'fg'}"))
    engine = SHIFTERS["rubberband"]
    monkeypatch.setitem(SHIFTERS, "rubberband", engine.__class__(engine.shift, "not_there", "pylibrb", 0.1))
    with pytest.raises(UserError, match="pip install pylibrb"):
        open_pitch_stream(drawn(corpora, "task.engines=[rubberband]"))


def test_recordings_that_give_no_pair_end_the_run_with_the_draw(
    corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
        return np.zeros_like(wave)

    engine = SHIFTERS["varispeed"]
    monkeypatch.setitem(SHIFTERS, "varispeed", engine.__class__(broken, None, "x", 0.01))
    with pytest.raises(DataError, match="draw 0, rank 0: 8 stretches of the recordings gave no pair"):
        first_batches(open_pitch_stream(drawn(corpora), num_workers=0), 0, 1)
