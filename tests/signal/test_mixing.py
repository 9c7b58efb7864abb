"""Mixing against a row-by-row mix in numpy and scipy, and its promises at silence, peaks and pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enhancer.signal.convolution import RirBank
from enhancer.signal.levels import power_db
from enhancer.signal.mixing import MAX_GAIN_DB, PEAK, foreground_at_level, mix

RATE_HZ = 44_100
LENGTH = 4000
INF = math.inf
OFF = {
    "is_pair": False,
    "rir": -1,
    "room_gain_db": 0.0,
    "snr_db": 0.0,
    "level_db": math.nan,
    "eq_hz": 1000.0,
    "eq_gain_db": 0.0,
    "eq_q": 1.0,
    "lowpass_hz": INF,
    "highpass_hz": 0.0,
    "drive_db": 0.0,
    "noise_snr_db": INF,
    "noise_seed": 0,
}


def noise(level, seed):
    """int16 noise of the given RMS, relative to full scale."""
    wave = torch.randn(LENGTH, generator=torch.Generator().manual_seed(seed)) * level * 32768
    return wave.round().clamp(-32768, 32767).to(torch.int16)


def batch_of(*rows):
    """A batch of rows, each a dict of what differs from a row without any effect."""
    full = [{"fg": noise(0.05, 1), "bg": noise(0.02, 2), **OFF, **row} for row in rows]
    columns = {key: [row[key] for row in full] for key in full[0]}
    batch = {}
    for key, values in columns.items():
        if key in ("fg", "bg"):
            batch[key] = torch.stack(values)
        elif key == "is_pair":
            batch[key] = torch.tensor(values)
        else:
            batch[key] = torch.tensor(
                values, dtype=torch.int64 if key in ("rir", "noise_seed") else torch.float32
            )
    return batch


def unit(pcm):
    return pcm.double().numpy() / 32768


@pytest.fixture
def rirs(random):
    rirs = 0.3 * torch.randn(3, 800, generator=random) * torch.exp(-torch.arange(800) / 150)
    rirs[:, 0] = 1
    return rirs


@pytest.mark.parametrize("early_samples", [1, 230, 5000])
def test_a_reverberant_mix_is_what_scipy_makes_row_by_row(rirs, early_samples):
    rows = [
        {"rir": 2, "snr_db": 5.0, "level_db": -25.0},
        {"rir": -1, "snr_db": -12.0, "level_db": -38.0, "fg": noise(0.1, 7)},
        {"rir": 0, "snr_db": 12.0, "level_db": -20.0, "bg": noise(0.001, 9)},
    ]
    batch = batch_of(*rows)
    mixed = mix(batch, RirBank(rirs), RATE_HZ, early_samples)
    for row, wanted in enumerate(rows):
        dry, background = unit(batch["fg"][row]), unit(batch["bg"][row])
        wet = early = dry
        if wanted["rir"] >= 0:
            room = rirs[wanted["rir"]].double().numpy()
            wet = scipy.signal.fftconvolve(dry, room)[:LENGTH]
            early = scipy.signal.fftconvolve(dry, room[:early_samples])[:LENGTH]
        background = background * np.sqrt(
            np.sum(wet**2) / np.sum(background**2) / 10 ** (wanted["snr_db"] / 10)
        )
        gain = 10 ** (wanted["level_db"] / 20) / np.sqrt(np.mean((wet + background) ** 2))
        np.testing.assert_allclose(mixed.mixture[row].numpy(), gain * (wet + background), atol=1e-6)
        np.testing.assert_allclose(mixed.target[row].numpy(), gain * early, atol=1e-6)


def test_the_gain_of_a_room_leaves_the_direct_path_and_scales_the_rest(rirs):
    batch = batch_of({"rir": 1, "room_gain_db": -12.0, "level_db": -25.0}, {"rir": -1}, {"rir": 0})
    mixed = mix(batch, RirBank(rirs), RATE_HZ, 100)
    near = rirs[1].double().numpy().copy()
    near[1:] *= 10 ** (-12 / 20)
    dry, background = unit(batch["fg"][0]), unit(batch["bg"][0])
    wet = scipy.signal.fftconvolve(dry, near)[:LENGTH]
    mixture = wet + background * np.sqrt(np.sum(wet**2) / np.sum(background**2))
    gain = 10 ** (-25 / 20) / np.sqrt(np.mean(mixture**2))
    np.testing.assert_allclose(mixed.mixture[0].numpy(), gain * mixture, atol=1e-6)
    early = scipy.signal.fftconvolve(dry, near[:100])[:LENGTH]
    np.testing.assert_allclose(mixed.target[0].numpy(), gain * early, atol=1e-6)
    # The other rows are what they are without it, bit for bit.
    plain = mix({**batch, "room_gain_db": torch.zeros(3)}, RirBank(rirs), RATE_HZ, 100)
    assert torch.equal(mixed.mixture[1:], plain.mixture[1:])


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_an_snr_is_an_alpha_on_energy_normalised_signals(alpha):
    batch = batch_of({"snr_db": 20 * math.log10(alpha / (1 - alpha)), "level_db": -30.0})
    mixed = mix(batch, None, RATE_HZ)
    foreground, background = unit(batch["fg"][0]), unit(batch["bg"][0])
    blend = alpha * foreground / np.linalg.norm(foreground)
    blend = blend + (1 - alpha) * background / np.linalg.norm(background)
    expected = blend / np.sqrt(np.mean(blend**2)) * 10 ** (-30 / 20)
    np.testing.assert_allclose(mixed.mixture[0].numpy(), expected, atol=1e-6)


def test_silence_teaches_silence():
    silent = torch.zeros(LENGTH, dtype=torch.int16)
    batch = batch_of({"fg": silent, "level_db": -30.0, "noise_snr_db": 10.0, "drive_db": 20.0})
    mixed = mix(batch, None, RATE_HZ)
    assert not mixed.target.any()
    background = unit(batch["bg"][0])
    expected = background / np.sqrt(np.mean(background**2)) * 10 ** (-30 / 20)
    np.testing.assert_allclose(mixed.mixture[0].numpy(), expected, atol=1e-6)


def test_without_a_background_the_mixture_is_the_foreground():
    silent = torch.zeros(LENGTH, dtype=torch.int16)
    mixed = mix(batch_of({"bg": silent, "level_db": -30.0}), None, RATE_HZ)
    assert torch.equal(mixed.mixture, mixed.target)
    assert power_db(mixed.mixture).item() == pytest.approx(-30, abs=1e-3)


def test_a_foreground_at_its_level_is_the_target_of_a_mix_without_background():
    quiet = torch.zeros(LENGTH, dtype=torch.int16)
    batch = batch_of(
        {"bg": quiet, "level_db": -20.0},
        {"bg": quiet, "level_db": -1.0},  # Its peak would pass full scale.
        {"bg": quiet, "fg": quiet, "level_db": -20.0},
        {"bg": quiet, "fg": noise(1e-4, 3), "level_db": -10.0},  # Too quiet to be brought there.
    )
    wave = foreground_at_level(batch)
    torch.testing.assert_close(wave, mix(batch, None, RATE_HZ).target, atol=0, rtol=0)
    assert power_db(wave)[0].item() == pytest.approx(-20, abs=0.01)
    assert wave[1].abs().max().item() == pytest.approx(PEAK, abs=1e-6)
    assert not wave[2].any()


def test_a_mix_of_nothing_is_nothing():
    silent = torch.zeros(LENGTH, dtype=torch.int16)
    mixed = mix(batch_of({"fg": silent, "bg": silent, "level_db": -20.0}), None, RATE_HZ)
    assert not mixed.mixture.any() and not mixed.target.any()


@settings(max_examples=25, deadline=None)
@given(level=st.floats(1e-5, 1e-3), snr_db=st.floats(-12, 12), level_db=st.floats(-38, -14))
def test_a_near_silent_crop_is_never_amplified_beyond_the_limit(level, snr_db, level_db):
    batch = batch_of({"fg": noise(level, 3), "snr_db": snr_db, "level_db": level_db})
    mixed = mix(batch, None, RATE_HZ)
    gain_db = 20 * np.log10(
        np.abs(mixed.target.numpy()).max() / max(np.abs(unit(batch["fg"])).max(), 1 / 32768)
    )
    assert gain_db <= MAX_GAIN_DB + 1e-3


def test_a_peak_turns_both_down_by_the_same_factor():
    loud = noise(0.02, 4)
    loud[100] = 32767
    mixed = mix(batch_of({"fg": loud, "snr_db": 20.0, "level_db": -14.0}), None, RATE_HZ)
    assert mixed.mixture.abs().max().item() == pytest.approx(PEAK, rel=1e-6)
    gain = mixed.target[0].double().numpy() @ unit(loud) / (unit(loud) @ unit(loud))
    np.testing.assert_allclose(mixed.target[0].numpy(), gain * unit(loud), atol=1e-6)
    background = mixed.mixture[0] - mixed.target[0]
    assert (power_db(mixed.target[0]) - power_db(background)).item() == pytest.approx(20, abs=1e-2)


def test_a_pair_is_taken_as_recorded():
    batch = batch_of(
        {"is_pair": True},
        {"is_pair": True, "level_db": -30.0, "snr_db": 7.0},
        {"is_pair": True, "bg": torch.full((LENGTH,), 32767, dtype=torch.int16)},
    )
    mixed = mix(batch, None, RATE_HZ)
    for row in (0, 2):
        np.testing.assert_array_equal(mixed.mixture[row].numpy(), unit(batch["bg"][row]).astype(np.float32))
        np.testing.assert_array_equal(mixed.target[row].numpy(), unit(batch["fg"][row]).astype(np.float32))
    gain = 10 ** (-30 / 20) / np.sqrt(np.mean(unit(batch["bg"][1]) ** 2))
    np.testing.assert_allclose(mixed.mixture[1].numpy(), gain * unit(batch["bg"][1]), atol=1e-6)
    np.testing.assert_allclose(mixed.target[1].numpy(), gain * unit(batch["fg"][1]), atol=1e-6)


DISTORTIONS = [
    {"eq_gain_db": 20.0},
    {"eq_gain_db": -20.0},
    {"lowpass_hz": 2000.0},
    {"highpass_hz": 1000.0},
    {"drive_db": 25.0},
    {"eq_gain_db": 9.0, "lowpass_hz": 4000.0, "highpass_hz": 200.0, "drive_db": 10.0},
]


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda d: "+".join(d))
def test_distortions_touch_the_input_only_and_keep_level_and_ratio(distortion):
    silent = torch.zeros(LENGTH, dtype=torch.int16)
    batch = batch_of({**distortion, "bg": silent}, {**distortion, "snr_db": 3.0, "level_db": -30.0})
    mixed = mix(batch, None, RATE_HZ)
    np.testing.assert_array_equal(mixed.target[0].numpy(), unit(batch["fg"][0]).astype(np.float32))
    error = (mixed.mixture[0] - mixed.target[0]).abs().max() / mixed.target[0].abs().max()
    assert error > 0.05, f"{distortion} changed nothing"
    assert (power_db(mixed.mixture[0]) - power_db(mixed.target[0])).item() == pytest.approx(0, abs=1e-2)
    gain = (mixed.target[1].abs().max() / mixed.target[0].abs().max()).item()
    background = mixed.mixture[1] - gain * mixed.mixture[0]
    assert (power_db(mixed.target[1]) - power_db(background)).item() == pytest.approx(3, abs=1e-2)


def test_noise_is_added_after_the_ratio_is_set():
    batch = batch_of({"snr_db": 6.0}, {"snr_db": 6.0, "noise_snr_db": 15.0, "noise_seed": 3})
    mixed = mix(batch, None, RATE_HZ)
    added = mixed.mixture[1] - mixed.mixture[0]
    assert (power_db(mixed.target[0]) - power_db(added)).item() == pytest.approx(15, abs=1e-2)


def test_a_row_does_not_depend_on_its_neighbours(rirs):
    rows = [
        {"rir": 1, "snr_db": 5.0, "level_db": -25.0, "eq_gain_db": 6.0},
        {"level_db": -20.0, "lowpass_hz": 3000.0, "noise_snr_db": 20.0, "noise_seed": 4},
        {"rir": 0, "drive_db": 12.0, "level_db": -30.0},
        {"is_pair": True},
    ]
    bank = RirBank(rirs)
    together = mix(batch_of(*rows), bank, RATE_HZ)
    for row, values in enumerate(rows):
        alone = mix(batch_of(values), bank, RATE_HZ)
        torch.testing.assert_close(together.mixture[row], alone.mixture[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.target[row], alone.target[0], atol=1e-6, rtol=0)


def test_a_room_without_a_bank_is_refused():
    with pytest.raises(ValueError, match="no bank of impulse responses"):
        mix(batch_of({"rir": 0}), None, RATE_HZ)


@pytest.mark.gpu
def test_an_accelerator_gives_the_same_mix(rirs):
    batch = batch_of(
        {"rir": 1, "level_db": -25.0, "eq_gain_db": 6.0, "noise_snr_db": 10.0}, {"highpass_hz": 90.0}
    )
    device = torch.device("cuda")
    there = mix({key: value.to(device) for key, value in batch.items()}, RirBank(rirs).to(device), RATE_HZ)
    here = mix(batch, RirBank(rirs), RATE_HZ)
    torch.testing.assert_close(there.mixture.cpu(), here.mixture, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.target.cpu(), here.target, atol=1e-5, rtol=0)
