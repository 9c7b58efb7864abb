"""PESQ and STOI where they are installed, and what is said where they are not."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from enhancer import listening_scores
from enhancer.listening_scores import PACKAGES, missing, notice


def test_what_is_not_installed_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, noise_wave: torch.Tensor
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing() == ["pesq", "pystoi"]
    monkeypatch.setattr(listening_scores, "resample", None)  # Nothing is made ready for them either.
    assert listening_scores.listening_scores(noise_wave, noise_wave, 44_100) == {}
    (text,) = notice()
    assert "PESQ and STOI are left out" in text and "wavewright[quality]" in text


def test_noise_lowers_both_and_silence_has_neither() -> None:
    absent = missing()
    if len(absent) == len(PACKAGES):
        pytest.skip("needs wavewright[quality]")
    at = torch.arange(3 * 44_100) / 44_100
    # Syllables of a buzz of 120 Hz with formants that move: enough for both to hear speech.
    voice = sum(torch.sin(2 * math.pi * 120 * k * at) / k**0.7 for k in range(1, 40))
    target = 0.05 * (voice * (0.5 + 0.5 * torch.sin(2 * math.pi * 3 * at)).square())[None]
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    found = {
        level: listening_scores.listening_scores(target + level * noise, target, 44_100)
        for level in (0.0, 0.01, 0.1)
    }
    for name, perfect in (("pesq", 4.64), ("stoi", 1.0)):
        if PACKAGES[name] in absent:
            continue
        best, better, worse = (found[level][name][0] for level in found)
        assert best == pytest.approx(perfect, abs=0.02) and best > better > worse, (name, found)
    silent = listening_scores.listening_scores(target, 0 * target, 44_100)
    assert all(math.isnan(value) for values in silent.values() for value in values)
