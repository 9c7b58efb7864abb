"""What is drawn for a task that restores recordings: shares, ranges, orders, and that only the draw decides."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from scipy import stats

from data_shards.damaged import DamagedRecipe
from data_shards.damages import KINDS, UNDAMAGED, DamageSettings
from data_shards.stream import open_stream
from enhancer.signal import damage
from enhancer.tasks.restore import DAMAGES
from hparams.damage import DamageHParams
from tests.data_shards import mix_corpora

NUM_DRAWS = 600


@dataclass(frozen=True)
class ToyHParams(DamageHParams):
    """A task that restores recordings, with what `MixSettings` asks of it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["toy"] = "toy"
    level_range_db: tuple[float, float] = (-30.0, -20.0)
    valid_items: Annotated[int, Field(gt=0)] = 40
    valid_seconds: float = 0.25
    valid_snr_range_db: tuple[float, float] = (0.0, 10.0)

    def check(self, run):
        """Nothing that goes with the run."""


TASK = ToyHParams(rir_prob=0.4, bg_prob=0.6)


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return replace(mix_corpora.build_all(tmp_path_factory.mktemp("corpora")), task=TASK)


@pytest.fixture(scope="module")
def examples(hp):
    recipe = open_stream(hp, num_workers=0).recipe
    return [recipe.example(draw) for draw in range(NUM_DRAWS)]


def column(examples, name):
    return np.array([example[name] for example in examples])


def bounds(prob, count):
    """Where a fair count lies but for one time in a million."""
    return stats.binom.ppf(5e-7, count, prob), stats.binom.isf(5e-7, count, prob)


def kinds_of(example):
    on = sorted((example[f"{kind}_place"], kind) for kind in KINDS if example[f"{kind}_place"])
    assert [place for place, _ in on] == list(range(1, len(on) + 1)), on
    return tuple(kind for _, kind in on)


def test_both_ends_name_the_same_kinds_and_columns():
    assert tuple(damage.APPLY) == KINDS
    assert set(damage.PARAMETERS) | set(damage.INTEGERS) | {"noise_snr_db", "noise_seed"} == set(UNDAMAGED)
    assert {field.name for field in fields(DamageSettings)} == {
        field.name for field in fields(DamageHParams)
    } - {"rir_prob"}


def test_kinds_and_clean_examples_come_as_often_as_asked(examples):
    has_room = column(examples, "rir") >= 0
    clean = 1 - TASK.clean_prob
    expected = {
        "room": (has_room, clean * TASK.rir_prob),
        "background": (column(examples, "has_bg"), clean * TASK.bg_prob),
        "reverb": (
            column(examples, "reverb_place") > 0,
            clean * (1 - TASK.rir_prob) * TASK.reverb_prob,
        ),
    }
    for kind in set(KINDS) - {"reverb"}:
        expected[kind] = (column(examples, f"{kind}_place") > 0, clean * getattr(TASK, f"{kind}_prob"))
    for name, (flags, prob) in expected.items():
        low, high = bounds(prob, NUM_DRAWS)
        assert low <= flags.sum() <= high, (name, int(flags.sum()), low, high)
    untouched = [
        not kinds_of(example) and not example["has_bg"] and example["rir"] < 0 for example in examples
    ]
    low, high = bounds(TASK.clean_prob, NUM_DRAWS)
    assert low <= sum(untouched), sum(untouched)
    heard = np.array([bool(example["bg"].any()) for example in examples])
    assert np.array_equal(heard, column(examples, "has_bg"))


def test_every_order_of_two_kinds_is_as_likely(hp):
    task = ToyHParams(
        clean_prob=0.0,
        bg_prob=0.0,
        **{f"{kind}_prob": float(kind in ("band", "clip", "codec")) for kind in KINDS},
    )
    recipe = open_stream(replace(hp, task=task), num_workers=0).recipe
    orders = [kinds_of(recipe.example(draw)) for draw in range(NUM_DRAWS)]
    low, high = bounds(1 / 6, NUM_DRAWS)
    for order in permutations(("band", "clip", "codec")):
        assert low <= orders.count(order) <= high, (order, orders.count(order))


def test_strengths_lie_in_their_ranges_and_are_off_where_the_kind_is(examples, hp):
    for kind, names in {
        "clip": {"clip_db": TASK.clip_range_db},
        "drive": {"drive_db": TASK.drive_range_db},
        "eq": {"eq_gain_db": TASK.eq_range_db, "eq_q": TASK.eq_range_q},
        "reverb": {"reverb_seconds": TASK.reverb_range_seconds, "reverb_db": TASK.reverb_range_db},
        "codec": {"codec_db": TASK.codec_range_db},
        "band": {"lowpass_hz": (hp.wav_rate * 0.2, 0.45 * hp.wav_rate)},
    }.items():
        is_on = column(examples, f"{kind}_place") > 0
        for name, (low, high) in names.items():
            values = column(examples, name)
            assert np.all((values[is_on] >= low) & (values[is_on] <= high)), (name, values[is_on])
            assert np.all(values[~is_on] == UNDAMAGED[name]), name
    high = column(examples, "highpass_hz")
    assert 0 < (high > 0).sum() < (column(examples, "band_place") > 0).sum()
    assert np.all(high <= column(examples, "lowpass_hz") / 2)
    assert np.all(np.isinf(column(examples, "noise_snr_db")))
    low, high = TASK.clip_range_db
    clip_db = column(examples, "clip_db")
    assert stats.kstest(clip_db[clip_db > 0], "uniform", (low, high - low)).pvalue > 1e-5


def test_neither_world_size_nor_workers_nor_another_probability_change_a_draw(hp, examples):
    stream = open_stream(hp, rank=1, world_size=2, batch_size=3, num_workers=1)
    batches = stream.from_draw(60)
    try:
        batch = next(batches)
    finally:
        batches.close()
    assert batch["draw"].tolist() == [63, 64, 65]
    for row, draw in enumerate((63, 64, 65)):
        for name in (*UNDAMAGED, "has_bg", "rir"):
            assert float(batch[name][row]) == pytest.approx(float(examples[draw][name]), rel=1e-6), name
        assert np.array_equal(batch["fg"][row].numpy(), examples[draw]["fg"])
    fewer = open_stream(replace(hp, task=replace(TASK, eq_prob=0.0)), num_workers=0).recipe
    for draw in range(40):
        other = fewer.example(draw)
        assert other["eq_place"] == 0
        for name in ("clip_db", "codec_db", "reverb_seed", "lowpass_hz", "has_bg"):
            assert other[name] == examples[draw][name], (draw, name)


def test_the_validation_list_damages_one_thing_at_a_time(hp):
    recipe = open_stream(hp, num_workers=0).recipe
    assert recipe.valid_turns() == ("clean", *KINDS, "background", "room", "several")
    for item in range(20):
        example, turn = recipe.valid_item(item), recipe.valid_turns()[item % 10]
        assert example["has_bg"] == (turn in ("background", "several")) == bool(example["bg"].any())
        assert (example["rir"] >= 0) == (turn in ("room", "several"))
        if turn != "several":
            assert kinds_of(example) == ((turn,) if turn in KINDS else ()), item
        assert "fg" in recipe.valid_sources(item)
    again = pickle.loads(pickle.dumps(recipe))
    assert isinstance(again, DamagedRecipe)
    assert again.valid_item(5)["clip_db"] == recipe.valid_item(5)["clip_db"]


def test_a_run_of_nothing_but_recorded_rooms_is_validated_on_them(hp):
    """As one that learns dereverberation; the labels are those by which its metrics are grouped."""
    only = ToyHParams(rir_prob=1.0, bg_prob=0.0, **{f"{kind}_prob": 0.0 for kind in KINDS})
    stream = open_stream(replace(hp, task=only), num_workers=0)
    assert stream.recipe.valid_turns() == ("clean", "room")
    batch = next(iter(stream.validation()))
    assert damage.labels(batch)[:4] == ["clean", "room", "clean", "room"]
    assert {"clean", "room"} <= set(DAMAGES)
    assert damage.damage_shares(batch)["damage_room"] == (batch["rir"] >= 0).float().mean()


def test_kinds_that_are_never_drawn_are_not_validated_and_their_corpora_not_needed(hp, tmp_path):
    only = ToyHParams(bg_prob=0.0, **{f"{kind}_prob": float(kind == "clip") for kind in KINDS})
    lonely = replace(hp, task=only, bg_dir=tmp_path / "none", rir_dir=tmp_path / "none")
    recipe = open_stream(lonely, num_workers=0).recipe
    assert recipe.valid_turns() == ("clean", "clip")
    assert kinds_of(recipe.valid_item(1)) == ("clip",)
    assert not any(recipe.example(draw)["has_bg"] for draw in range(20))


def test_the_values_are_checked():
    adapter = TypeAdapter(ToyHParams)
    assert adapter.validate_python({"clip_range_db": (3, 6)}).clip_range_db == (3, 6)
    with pytest.raises(ValidationError, match=r"task\.clip_range_db is \(9\.0, 6\.0\)"):
        adapter.validate_python({"clip_range_db": (9, 6)})
    for name, value in (
        ("clean_prob", 1.5),
        ("lowpass_range_hz", (0, 100)),
        ("eq_range_q", (1, math.inf)),
        ("reverb_range_seconds", (1, 61)),
    ):
        with pytest.raises(ValidationError, match=name):
            adapter.validate_python({name: value})
