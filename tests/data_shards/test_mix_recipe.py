"""What is drawn for each example: ranges, probabilities, the sample order, and the validation list."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from scipy import signal, stats

from data_shards.build import build_corpus
from data_shards.crops import is_quiet
from data_shards.distortions import CLEAN, draw_distortions
from data_shards.options import BuildOptions
from data_shards.stream import open_stream
from tests.data_shards import mix_corpora

NUM_DRAWS = 600
GOLDEN = {
    0: {
        "snr_db": -11.714686296896057,
        "level_db": -28.045542111226403,
        "eq_hz": 101.42999342984311,
        "eq_gain_db": 9.000995236228686,
        "eq_q": 2.6219317507275304,
        "lowpass_hz": math.inf,
        "highpass_hz": 0.0,
        "drive_db": 0.0,
        "noise_snr_db": 11.398231262799147,
        "noise_seed": 3014355369988057,
    },
    123456: {
        "snr_db": -0.9144032185433044,
        "level_db": -34.52541164829738,
        "eq_hz": 2058.89837278153,
        "eq_gain_db": 6.193933155924931,
        "eq_q": 2.674451411577616,
        "lowpass_hz": 3443.0248785080694,
        "highpass_hz": 0.0,
        "drive_db": 0.0,
        "noise_snr_db": 17.81639517163768,
        "noise_seed": 6496752970120859,
    },
}


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return mix_corpora.build_all(tmp_path_factory.mktemp("corpora"))


def recipe_of(hp):
    return open_stream(hp, num_workers=0).recipe


def binomial_bounds(prob: float, count: int) -> tuple[int, int]:
    """Where a fair count lies but for one time in a million."""
    return stats.binom.ppf(5e-7, count, prob), stats.binom.isf(5e-7, count, prob)


@pytest.fixture(scope="module")
def examples(hp):
    recipe = recipe_of(mix_corpora.with_task(hp, distort_prob=0.3, silence_prob=0.1))
    return [recipe.example(draw) for draw in range(NUM_DRAWS)]


def column(examples, name):
    return np.array([example[name] for example in examples])


def test_every_value_lies_in_its_range(examples, hp):
    snr_edge = 20 * math.log10(0.8 / 0.2)
    for name, low, high in [
        ("snr_db", -snr_edge, snr_edge),
        ("level_db", *hp.task.level_range_db),
        ("eq_hz", 50, 0.45 * hp.wav_rate),
        ("eq_gain_db", -12, 12),
        ("eq_q", 0.5, 4),
        ("highpass_hz", 0, 400),
        ("drive_db", 0, 24),
        ("rir", -1, mix_corpora.NUM_ROOMS - 1),
    ]:
        values = column(examples, name)
        assert values.min() >= low - 1e-9 and values.max() <= high + 1e-9, (name, values.min(), values.max())
    lowpass, noise = column(examples, "lowpass_hz"), column(examples, "noise_snr_db")
    assert np.all((lowpass == np.inf) | ((lowpass > 500) & (lowpass < hp.wav_rate / 2)))
    assert np.all((noise == np.inf) | ((noise >= 10) & (noise <= 40)))
    assert all(example["fg"].shape == example["bg"].shape == (hp.crop_samples,) for example in examples)
    assert all(example["fg"].dtype == example["bg"].dtype == np.int16 for example in examples)


def test_snr_and_level_are_uniform_in_db(examples, hp):
    edge = 20 * math.log10(4)
    assert stats.kstest(column(examples, "snr_db"), "uniform", (-edge, 2 * edge)).pvalue > 1e-5
    low, high = hp.task.level_range_db
    assert stats.kstest(column(examples, "level_db"), "uniform", (low, high - low)).pvalue > 1e-5


def test_rooms_silence_and_distortions_come_as_often_as_asked(examples):
    shares = {
        "room": (column(examples, "rir") >= 0, 0.5),
        "silence": (np.array([not example["fg"].any() for example in examples]), 0.1),
        "eq": (column(examples, "eq_gain_db") != 0, 0.3),
        "lowpass": (np.isfinite(column(examples, "lowpass_hz")), 0.3),
        "highpass": (column(examples, "highpass_hz") > 0, 0.3),
        "drive": (column(examples, "drive_db") > 0, 0.3),
        "noise": (np.isfinite(column(examples, "noise_snr_db")), 0.3),
    }
    for name, (chosen, prob) in shares.items():
        low, high = binomial_bounds(prob, NUM_DRAWS)
        assert low <= chosen.sum() <= high, (name, int(chosen.sum()))
    distorted = np.array([shares[name][0] for name in ("eq", "lowpass", "highpass", "drive", "noise")])
    # Independent: no two of them go together more often than chance allows.
    correlation = np.corrcoef(distorted.astype(float)) - np.eye(5)
    assert np.abs(correlation).max() < 5 / math.sqrt(NUM_DRAWS), correlation


def test_the_gain_of_a_room_is_drawn_where_there_is_a_room_and_nowhere_else(hp):
    recipe = recipe_of(mix_corpora.with_task(hp, room_range_db=(-15.0, 3.0)))
    drawn = [recipe.example(draw) for draw in range(200)]
    is_room, gain_db = column(drawn, "rir") >= 0, column(drawn, "room_gain_db")
    assert not gain_db[~is_room].any()
    assert stats.kstest(gain_db[is_room], "uniform", (-15, 18)).pvalue > 1e-5
    assert recipe.valid_item(1)["room_gain_db"] == 0.0


def test_noise_seeds_differ_between_draws(examples):
    seeds = [example["noise_seed"] for example in examples if np.isfinite(example["noise_snr_db"])]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**63


def test_distortions_that_are_off_have_the_values_that_mean_off():
    assert draw_distortions([0.5] * 16, 0.0, 44_100) == CLEAN
    assert draw_distortions([0.5] * 16, 1.0, 44_100).keys() == CLEAN.keys()


def test_frozen_numbers_of_the_seed_contract(hp):
    """These values are part of every saved run: a change breaks resume. Do not update them."""
    recipe = recipe_of(mix_corpora.with_task(hp, distort_prob=0.5))
    for draw, expected in GOLDEN.items():
        example = recipe.example(draw)
        assert {name: example[name] for name in expected} == pytest.approx(expected, rel=1e-12), draw


def test_training_uses_training_rows_only_and_each_once_an_epoch(hp):
    recipe = recipe_of(mix_corpora.with_task(hp, silence_prob=0.0))
    sources = recipe.sources
    rows_read = {kind: [] for kind in sources}
    for kind, reader in recipe._readers.items():

        def crop(row, *args, kind=kind, inner=reader.crop):
            rows_read[kind].append(row)
            return inner(row, *args)

        reader.crop = crop
    size = len(sources["fg"].split.train)
    rooms = [recipe.example(draw)["rir"] for draw in range(2 * size)]
    for epoch in (rows_read["fg"][:size], rows_read["fg"][size:]):
        assert sorted(epoch) == sorted(sources["fg"].split.train)
    assert set(rows_read["bg"]) <= set(sources["bg"].split.train)
    assert set(rooms) - {-1} <= set(sources["rir"].split.train)


def test_an_example_depends_on_seed_and_draw_only(hp):
    first, second = recipe_of(hp), recipe_of(hp)
    for draw in (0, 17, 10**12):
        second.example(draw + 1)
        one, other = first.example(draw), second.example(draw)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    changed = recipe_of(replace(hp, seed=1)).example(17)
    assert not np.array_equal(changed["fg"], first.example(17)["fg"])


def test_quiet_crops_are_drawn_again(hp, tmp_path):
    """Recordings that are silent but for a fifth of their time still give audible foregrounds."""
    rng = np.random.default_rng(3)
    for number in range(6):
        wave = np.zeros(20_000, np.int16)
        wave[:4000] = mix_corpora.tone_and_noise(rng, 0.5)
        mix_corpora.write_wav(tmp_path / f"audio/{number}.wav", wave)
    options = BuildOptions("fg", rate_hz=mix_corpora.RATE_HZ, workers=1)
    build_corpus("fg", [tmp_path / "audio"], tmp_path / "fg", options)
    sparse = mix_corpora.with_task(replace(hp, fg_dir=tmp_path / "fg"), silence_prob=0.0)
    recipe = recipe_of(sparse)
    waves = [recipe.example(draw)["fg"] for draw in range(300)]
    assert all(not wave.any() or not is_quiet(wave) for wave in waves)
    # About 0.3 of the places are audible, so nine tries in a row fail in about 4 % of the draws; without any, 70 %.
    assert sum(not wave.any() for wave in waves) < 45


def test_pairs_alone_need_no_other_corpus(hp, tmp_path):
    pairs = replace(
        hp, pair_dir=hp.fg_dir.parent / "pair", fg_dir=tmp_path, bg_dir=tmp_path, rir_dir=tmp_path
    )
    stream = open_stream(pairs, num_workers=0)
    size = len(stream.recipe.sources["pair"].split.train)
    examples = [stream.recipe.example(draw) for draw in range(size)]
    for example in examples:
        assert example["is_pair"] and example["rir"] == -1
        difference = example["bg"].astype(float) - example["fg"]
        assert 500 < difference.std() < 1300
        assert {name: example[name] for name in CLEAN} == CLEAN
    assert len({example["fg"].tobytes() for example in examples}) == size
    items = [stream.recipe.valid_item(item) for item in range(6)]
    assert all(item["is_pair"] and np.isnan(item["level_db"]) for item in items)
    assert stream.constants()["rir"].shape == (0, 1)


@pytest.mark.parametrize("fraction", [0.25, 1 / 3, 0.9])
def test_pairs_beside_mixes_come_at_their_exact_share(hp, fraction):
    both = mix_corpora.with_task(replace(hp, pair_dir=hp.fg_dir.parent / "pair"), pair_fraction=fraction)
    recipe = recipe_of(both)
    kinds = [recipe.example(draw)["is_pair"] for draw in range(120)]
    assert abs(sum(kinds) - 120 * fraction) <= 1
    for count in range(1, 121):
        assert abs(sum(kinds[:count]) - count * fraction) <= 1


def test_fg_only_needs_no_background_and_no_room(hp, tmp_path):
    alone = mix_corpora.with_task(
        replace(hp, load_fg_only=True, bg_dir=tmp_path, rir_dir=tmp_path), silence_prob=0.0
    )
    recipe = recipe_of(alone)
    for draw in range(40):
        example = recipe.example(draw)
        assert example["fg"].any() and not example["bg"].any() and example["rir"] == -1
    # Otherwise nothing would be left to undo, and nothing to measure.
    for item in range(10):
        values = recipe.valid_item(item)
        assert sum(values[name] != off for name, off in CLEAN.items() if name not in ("eq_hz", "eq_q")) in (
            1,
            2,
        )


def test_the_validation_list_covers_groups_before_repeating_and_uses_kept_back_rows(hp):
    recipe = recipe_of(hp)
    sources = recipe.sources
    rows = {
        kind: [recipe._valid_row(kind, number)[0] for number in range(40)] for kind in ("fg", "bg", "rir")
    }
    for kind, chosen in rows.items():
        corpus, valid = sources[kind].corpus, sources[kind].split.valid
        assert set(chosen) <= set(valid)
        num_groups = len(set(corpus.group[valid]))
        assert num_groups > 1
        for start in range(0, 40 - num_groups, num_groups):
            assert len(set(corpus.group[chosen[start : start + num_groups]])) == num_groups
    assert not set(sources["fg"].corpus.group[sources["fg"].split.train]) & set(
        sources["fg"].corpus.group[rows["fg"]]
    )


def test_validation_items_are_clean_mixtures_every_second_one_in_a_room(hp):
    recipe = recipe_of(replace(hp, valid_seed=4))
    for item in range(20):
        values = recipe.valid_item(item)
        assert (values["rir"] >= 0) == (item % 2 == 1)
        assert -5 <= values["snr_db"] <= 10
        assert {name: values[name] for name in CLEAN} == CLEAN
        assert values["fg"].shape == (4000,) and values["fg"].any() and values["bg"].any()
    other = recipe_of(replace(hp, valid_seed=5))
    assert any(other.valid_item(i)["snr_db"] != recipe.valid_item(i)["snr_db"] for i in range(3))


def test_the_validation_list_does_not_depend_on_the_training_seed(hp):
    one, other = recipe_of(hp), recipe_of(replace(hp, seed=99, batch_size_per_gpu=3))
    for item in range(5):
        for name, value in one.valid_item(item).items():
            np.testing.assert_array_equal(value, other.valid_item(item)[name])


def test_the_room_bank_starts_at_the_direct_path(hp):
    bank = recipe_of(hp).room_bank()
    assert bank.dtype == np.float32 and bank.shape[0] == mix_corpora.NUM_ROOMS
    np.testing.assert_allclose(bank[:, 0], 1.0, atol=1e-4)
    assert np.abs(bank).max() <= 1.0


def contains(recording: np.ndarray, wave: np.ndarray) -> bool:
    """Whether `wave`, without the zeros around it, lies in `recording` sample for sample."""
    wave = np.trim_zeros(wave.astype(float))
    if len(recording) < len(wave):
        return False
    place = int(np.argmax(signal.correlate(recording, wave, "valid")))
    return np.array_equal(recording[place : place + len(wave)], wave)


def test_a_foreground_is_a_piece_of_a_recording_sample_for_sample(hp):
    recipe = recipe_of(mix_corpora.with_task(hp, silence_prob=0.0))
    files = sorted((hp.fg_dir.parent / "audio/fg").rglob("*.wav"))
    recordings = [soundfile.read(path, dtype="int16")[0].astype(float) for path in files]
    for draw in (1, 2, 3):
        wave = recipe.example(draw)["fg"]
        assert any(contains(recording, wave) for recording in recordings), draw


def test_the_sources_of_a_validation_item_are_the_recordings_in_it(hp):
    stream = open_stream(hp, num_workers=0)
    for item in range(6):
        sources, values = stream.item_sources(item), stream.recipe.valid_item(item)
        assert set(sources) == ({"fg", "bg", "rir"} if item % 2 else {"fg", "bg"})
        path = hp.fg_dir.parent / "audio/fg" / sources["fg"]
        assert contains(soundfile.read(path, dtype="int16")[0].astype(float), values["fg"])
