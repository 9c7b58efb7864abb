"""Speed, equaliser and layers of crops against tones whose pitch and level are known."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.mix import MixRecipe
from data_shards.stream import open_stream
from data_shards.variety import ANCHOR_RANGE_HZ, LAYER_RANGE_DB, NUM_ANCHORS, at_speed, equalised, layered
from tests.data_shards import mix_corpora

RATE_HZ = 44_100


def tone(pitch_hz: float, samples: int, peak: float = 10_000) -> np.ndarray:
    return np.rint(peak * np.sin(2 * np.pi * pitch_hz * np.arange(samples) / RATE_HZ)).astype(np.int16)


def pitch_of(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(spectrum.argmax() * RATE_HZ / len(wave))


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_a_crop_played_faster_is_higher_by_the_same_factor(speed: float) -> None:
    played = at_speed(tone(1000, round(RATE_HZ * speed)), RATE_HZ)
    assert played.shape == (RATE_HZ,) and played.dtype == np.int16
    assert pitch_of(played) == pytest.approx(1000 * speed, abs=2)
    expected = tone(1000 * speed, RATE_HZ)
    assert np.abs(played[2000:-2000] - expected[2000:-2000].astype(float)).max() < 60


def test_the_same_speed_is_the_same_wave() -> None:
    wave = tone(500, 1000)
    assert at_speed(wave, 1000) is wave


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_the_second_layer_lies_at_its_drawn_level(place: float) -> None:
    """Two tones in different bins: their levels can be read off the spectrum of the sum."""
    both = layered(tone(1000, RATE_HZ), tone(3000, RATE_HZ, peak=300), place)
    spectrum = np.abs(np.fft.rfft(both.astype(float)))
    difference_db = 20 * np.log10(spectrum[3000] / spectrum[1000])
    assert difference_db == pytest.approx(LAYER_RANGE_DB * (2 * place - 1), abs=0.05)


def test_loud_layers_do_not_wrap_around_and_silent_ones_change_nothing() -> None:
    loud = tone(100, 5000, peak=32_000)
    assert np.abs(layered(loud, loud, 1.0).astype(int)).max() == 32_767
    silence = np.zeros_like(loud)
    assert np.array_equal(layered(loud, silence, 0.5), loud)
    assert np.array_equal(layered(silence, loud, 0.5), loud)


def test_an_equaliser_has_its_drawn_gains_at_the_anchors_and_lines_between() -> None:
    """Equal tones at the anchors and half-way between two (in pitch); the RMS stays, so only ratios can be told."""
    anchors = np.geomspace(*ANCHOR_RANGE_HZ, NUM_ANCHORS).round()
    between = np.sqrt(anchors[2] * anchors[3]).round()
    places = np.append(anchors, between).astype(int)
    wave = sum(tone(hz, RATE_HZ, peak=1000).astype(float) for hz in places).astype(np.int16)
    gains_db = np.array([6.0, -9.0, 0.0, 12.0, -3.0, 4.0])
    after = equalised(wave, gains_db, RATE_HZ)
    assert after.dtype == np.int16 and after.shape == wave.shape
    change_db = 20 * np.log10(
        np.abs(np.fft.rfft(after.astype(float)))[places] / np.abs(np.fft.rfft(wave))[places]
    )
    np.testing.assert_allclose(change_db - change_db[2], [*gains_db, 6.0], atol=0.1)
    level = [np.sqrt(np.mean(w.astype(float) ** 2)) for w in (wave, after)]
    assert level[1] == pytest.approx(level[0], rel=1e-3)


def test_an_equaliser_delays_nothing_and_leaves_silence() -> None:
    click = np.zeros(4410, np.int16)
    click[2000] = 20_000
    after = equalised(click, np.array([3.0, -3.0, 3.0, -3.0, 3.0, -3.0]), RATE_HZ)
    assert np.abs(after.astype(int)).argmax() == 2000
    np.testing.assert_allclose(after[1990:2000], after[2001:2011][::-1], atol=1)
    silence = np.zeros(100, np.int16)
    assert equalised(silence, np.full(NUM_ANCHORS, 9.0), RATE_HZ) is silence


def test_variety_changes_the_waves_and_no_other_number(tmp_path) -> None:
    hp = mix_corpora.build_all(tmp_path)
    plain = open_stream(hp, num_workers=0).recipe
    varied_hp = mix_corpora.with_task(
        hp, speed_range=(0.8, 1.25), second_bg_prob=1.0, fg_eq_db=6.0, bg_eq_db=12.0
    )
    varied: MixRecipe = open_stream(varied_hp, num_workers=0).recipe
    for draw in range(20):
        one, other = plain.example(draw), varied.example(draw)
        assert {k: v for k, v in one.items() if k not in ("fg", "bg")} == {
            k: v for k, v in other.items() if k not in ("fg", "bg")
        }
        assert not np.array_equal(one["bg"], other["bg"])
        assert other["fg"].shape == one["fg"].shape
        again = varied.example(draw)
        assert np.array_equal(again["fg"], other["fg"]) and np.array_equal(again["bg"], other["bg"])
    assert np.array_equal(plain.valid_item(0)["fg"], varied.valid_item(0)["fg"])
