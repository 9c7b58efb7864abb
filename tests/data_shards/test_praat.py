"""Another voice by Praat: asked for, missing, repeatable, and leaving alone what is no voice."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from scipy import signal

from data_shards import praat
from data_shards.stream import open_stream
from hparams.errors import UserError
from tests.data_shards import mix_corpora


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return mix_corpora.build_all(tmp_path_factory.mktemp("corpora"))


def recipe_of(hp):
    return open_stream(hp, num_workers=0).recipe


needs_praat = pytest.mark.skipif(
    importlib.util.find_spec("parselmouth") is None,
    reason="praat-parselmouth (the [praat] extra) is not installed",
)


def test_praat_asked_for_but_missing_is_an_error_before_training(hp, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'wavewright\[praat\]'"):
        open_stream(replace(hp, praat_augment_prob=0.1), num_workers=0)


def voice(rate_hz: int) -> np.ndarray:
    """A second of a 140 Hz pulse train through a formant at 900 Hz."""
    pulses = np.zeros(rate_hz)
    pulses[:: rate_hz // 140] = 1.0
    poles = 0.97 * np.exp(2j * np.pi * 900 / rate_hz * np.array([1, -1]))
    wave = signal.lfilter([1.0], np.poly(poles).real, pulses)
    return np.rint(wave / np.abs(wave).max() * 12000).astype(np.int16)


@needs_praat
def test_praat_changes_the_voice_but_not_its_length_or_level():
    wave = voice(16_000)
    formants = set()
    for draw in range(6):
        changed = praat.change_voice(wave, 16_000, 0, draw)
        assert changed.dtype == np.int16 and changed.shape == wave.shape
        np.testing.assert_array_equal(changed, praat.change_voice(wave, 16_000, 0, draw))
        assert abs(20 * np.log10(changed.std() / wave.std())) < 1.0
        hz, power = signal.welch(changed.astype(float), 16_000, nperseg=1024)
        formants.add(float(hz[300 * 1024 // 16_000 :][np.argmax(power[300 * 1024 // 16_000 :])]))
    assert len(formants) > 2, formants
    assert all(900 / 1.6 < hz < 900 * 1.6 for hz in formants), formants


@needs_praat
def test_praat_leaves_what_is_no_voice_as_it_is():
    noise = np.random.default_rng(0).integers(-50, 50, 600).astype(np.int16)
    np.testing.assert_array_equal(praat.change_voice(noise, 16_000, 0, 0), noise)
    silence = np.zeros(16_000, np.int16)
    np.testing.assert_array_equal(praat.change_voice(silence, 16_000, 0, 0), silence)


@needs_praat
def test_praat_is_applied_to_the_asked_share_of_foregrounds(hp):
    plain = recipe_of(hp)
    always = recipe_of(replace(hp, praat_augment_prob=1.0))
    half = recipe_of(replace(hp, praat_augment_prob=0.5))
    changed = 0
    for draw in range(30):
        one, two, three = (recipe.example(draw) for recipe in (plain, always, half))
        assert {n: v for n, v in one.items() if n not in ("fg", "bg")} == {
            n: v for n, v in two.items() if n not in ("fg", "bg")
        }
        np.testing.assert_array_equal(one["bg"], two["bg"])
        assert any(np.array_equal(three["fg"], other["fg"]) for other in (one, two))
        changed += not np.array_equal(one["fg"], two["fg"])
    assert changed > 10
