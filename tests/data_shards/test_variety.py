"""Speed and layers of crops against tones whose pitch and level are known."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.mix import MixRecipe
from data_shards.stream import open_stream
from data_shards.variety import LAYER_RANGE_DB, at_speed, layered
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


def test_variety_changes_the_waves_and_no_other_number(tmp_path) -> None:
    hp = mix_corpora.build_all(tmp_path)
    plain = open_stream(hp, num_workers=0).recipe
    varied_hp = mix_corpora.with_task(hp, speed_range=(0.8, 1.25), second_bg_prob=1.0)
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
