"""Damage of recordings against scipy, numpy and closed forms, and that none of it delays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch

from enhancer.signal.damage import (
    APPLY,
    INTEGERS,
    PARAMETERS,
    clip,
    damage_shares,
    damaged,
    damaged_mix,
    labels,
    quantise,
    reverberate,
)
from enhancer.signal.mdct import inverse_mdct, mdct

RATE_HZ = 44_100
INF = math.inf
OFF = {
    "lowpass_hz": INF,
    "highpass_hz": 0.0,
    "clip_db": 0.0,
    "drive_db": 0.0,
    "eq_hz": 1000.0,
    "eq_gain_db": 0.0,
    "eq_q": 1.0,
    "reverb_seconds": 0.0,
    "reverb_db": -INF,
    "codec_db": INF,
    "codec_hz": INF,
}
STRONG = {
    "band": {"lowpass_hz": 4000.0, "highpass_hz": 300.0},
    "clip": {"clip_db": 15.0},
    "drive": {"drive_db": 20.0},
    "eq": {"eq_hz": 500.0, "eq_gain_db": -18.0, "eq_q": 0.7},
    "reverb": {"reverb_seconds": 0.5, "reverb_db": 0.0, "reverb_seed": 3},
    "codec": {"codec_db": 4.0, "codec_hz": 8000.0},
}


def columns(*rows):
    """Columns of a batch, each row of them `{kind: parameters, ...}` in the order of its kinds."""
    table = {name: [OFF[name]] * len(rows) for name in PARAMETERS} | {
        name: [0] * len(rows) for name in INTEGERS
    }
    for number, kinds in enumerate(rows):
        for place, (kind, own) in enumerate(kinds.items(), start=1):
            table[f"{kind}_place"][number] = place
            for name, value in own.items():
                table[name][number] = value
    return {
        name: torch.tensor(values, dtype=torch.int64 if name in INTEGERS else torch.float32)
        for name, values in table.items()
    }


def speech_like(random, rows=1, samples=20_000):
    """Noise that swells and fades, 1/f-like, at about -20 dBFS."""
    noise = torch.randn(rows, samples, generator=random)
    at = torch.arange(samples) / RATE_HZ
    coloured = torch.fft.irfft(
        torch.fft.rfft(noise) / (1 + torch.arange(samples // 2 + 1) / 50).sqrt(), n=samples
    )
    return 0.3 * coloured * (1.1 + torch.sin(2 * math.pi * 5 * at))


def test_the_mdct_is_the_published_sum_and_comes_back(random):
    hop, samples = 16, 100
    wave = torch.randn(2, samples, generator=random, dtype=torch.float64)
    n, k = np.arange(2 * hop), np.arange(hop)
    cosines = np.cos(np.pi / hop * (n[:, None] + 0.5 + hop / 2) * (k + 0.5))
    window = np.sin(np.pi / (2 * hop) * (n + 0.5))
    padded = np.pad(wave.numpy(), ((0, 0), (hop, 5 * hop)))
    found = mdct(wave, hop)
    for frame in range(found.shape[1]):
        expected = np.sqrt(2 / hop) * (padded[:, frame * hop : (frame + 2) * hop] * window) @ cosines
        np.testing.assert_allclose(found[:, frame].numpy(), expected, atol=1e-12)
    torch.testing.assert_close(inverse_mdct(found, samples), wave, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise_db", [20.0, 30.0])
def test_quantisation_makes_the_noise_it_is_asked_for(noise_db, random):
    wave = 0.1 * torch.randn(1, RATE_HZ, generator=random)
    bad = quantise(wave, torch.tensor([noise_db]), torch.tensor([INF]), RATE_HZ)
    middle = slice(4096, -4096)
    noise = (bad - wave)[0, middle].double()
    snr_db = 10 * math.log10(wave[0, middle].double().square().sum() / noise.square().sum())
    # White noise is masked by nothing louder than itself, and a fine uniform quantiser has noise of step^2 / 12.
    assert snr_db == pytest.approx(noise_db, abs=0.5)


def test_a_coarse_quantiser_follows_the_level_of_each_band_and_drops_what_a_louder_one_hides(random):
    at = torch.arange(RATE_HZ) / RATE_HZ
    tone = 0.5 * torch.sin(2 * math.pi * 1000 * at)
    hidden, free = (0.005 * torch.sin(2 * math.pi * hz * at) for hz in (1120, 9000))
    bad = quantise((tone + hidden + free)[None], torch.tensor([9.0]), torch.tensor([INF]), RATE_HZ)[0]
    spectrum = np.abs(scipy.fft.rfft(bad[4410:-4410].numpy() * np.hanning(RATE_HZ - 8820)))
    bin_hz = RATE_HZ / (RATE_HZ - 8820)
    level_db = {hz: 20 * math.log10(spectrum[round(hz / bin_hz)]) for hz in (1000, 1120, 9000)}
    assert level_db[9000] - level_db[1000] == pytest.approx(-40, abs=2)
    assert level_db[1120] - level_db[1000] < -60


def test_nothing_is_left_above_the_cutoff_of_a_codec(random):
    wave = 0.1 * torch.randn(1, RATE_HZ, generator=random)
    bad = quantise(wave, torch.tensor([12.0]), torch.tensor([7000.0]), RATE_HZ)[0].double().numpy()
    frequencies, power = scipy.signal.welch(bad[4096:-4096], RATE_HZ, nperseg=4096)
    level = power[frequencies < 6500].mean()
    assert power[frequencies > 7500].max() < 1e-3 * level


def test_clipping_is_that_of_numpy(random):
    wave = torch.randn(3, 1000, generator=random)
    bad = clip(wave, torch.tensor([0.0, 6.0, 20.0]))
    for row, share in enumerate((1.0, 10 ** (-6 / 20), 0.1)):
        limit = share * np.abs(wave[row].numpy()).max()
        np.testing.assert_allclose(
            bad[row].numpy(), np.clip(wave[row].numpy(), -limit, limit), rtol=1e-6, atol=0
        )


def test_a_synthetic_room_has_its_t60_and_its_share_of_reverberation():
    t60, tail_db = 0.6, -5.0
    impulse = torch.zeros(1, RATE_HZ)
    impulse[0, 0] = 1
    response = reverberate(impulse, torch.tensor([t60]), torch.tensor([tail_db]), torch.tensor([4]), RATE_HZ)
    response = response[0].double().numpy()
    assert response[0] == pytest.approx(1, abs=1e-5)
    tail = response[88:]
    assert np.abs(response[1:88]).max() < 1e-5
    assert 10 * math.log10((tail**2).sum()) == pytest.approx(tail_db, abs=0.01)
    # Schroeder: the energy still to come falls by 60 dB in T60; read between -5 and -25 dB.
    to_come_db = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / (tail**2).sum())
    first, last = (int(np.argmax(to_come_db < level)) for level in (-5, -25))
    assert 3 * (last - first) / RATE_HZ == pytest.approx(t60, rel=0.05)


def test_a_room_is_the_convolution_with_its_response(random):
    wave, impulse = speech_like(random, samples=4000), torch.zeros(1, 4000)
    impulse[0, 0] = 1
    room = (torch.tensor([0.05]), torch.tensor([0.0]), torch.tensor([9]), RATE_HZ)
    expected = scipy.signal.fftconvolve(wave[0].double(), reverberate(impulse, *room)[0].double())[:4000]
    np.testing.assert_allclose(reverberate(wave, *room)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", APPLY)
def test_no_kind_delays(kind, random):
    wave = torch.randn(1, 1 << 15, generator=random) * 0.1
    bad = damaged(wave, columns({kind: STRONG[kind]}), RATE_HZ)
    assert not torch.equal(bad, wave)
    correlation = scipy.signal.correlate(bad[0].double().numpy(), wave[0].double().numpy(), method="fft")
    assert int(np.abs(correlation).argmax()) == wave.shape[-1] - 1, kind


@pytest.mark.parametrize("kind", ["band", "eq", "clip"])
def test_what_a_kind_leaves_alone_has_its_old_gain(kind, random):
    own = {
        "band": {"lowpass_hz": 9000.0},
        "eq": {"eq_hz": 8000.0, "eq_gain_db": 12.0, "eq_q": 4.0},
        "clip": {"clip_db": 3.0},
    }[kind]
    at = torch.arange(1 << 14) / RATE_HZ
    tone = 0.1 * torch.sin(2 * math.pi * 1000 * at)[None]
    wave = tone.clone()
    wave[0, 100] += 0.4 if kind == "clip" else 0
    bad = damaged(wave, columns({kind: own}), RATE_HZ)
    middle = slice(4000, -4000)
    assert float(bad[:, middle].norm() / wave[:, middle].norm()) == pytest.approx(1, abs=5e-3)


def test_overdrive_keeps_the_level(random):
    wave = speech_like(random)
    bad = damaged(wave, columns({"drive": STRONG["drive"]}), RATE_HZ)
    assert float(bad.square().mean()) == pytest.approx(float(wave.square().mean()), rel=1e-4)


def test_kinds_are_applied_in_the_order_of_their_places(random):
    wave = speech_like(random, rows=2)
    band, drive = STRONG["band"], STRONG["drive"]
    bad = damaged(
        wave, columns({"band": band, "clip": {"clip_db": 9.0}}, {"drive": drive, "band": band}), RATE_HZ
    )

    def alone(row, kind, own):
        return damaged(row[None], columns({kind: own}), RATE_HZ)[0]

    first = alone(alone(wave[0], "band", band), "clip", {"clip_db": 9.0})
    second = alone(alone(wave[1], "drive", drive), "band", band)
    torch.testing.assert_close(bad[0], first, rtol=0, atol=1e-6)
    torch.testing.assert_close(bad[1], second, rtol=0, atol=1e-6)
    # The other way round would be heard: the last word of the first row is a flat top.
    limit = bad[0].abs().max()
    assert int((bad[0].abs() >= limit * (1 - 1e-6)).sum()) > 10


def test_a_row_is_the_same_alone_and_beside_others_and_off_is_bit_for_bit(random):
    wave = speech_like(random, rows=len(STRONG) + 2)
    rows = [{}, *({kind: own} for kind, own in STRONG.items()), STRONG]
    together = damaged(wave, columns(*rows), RATE_HZ)
    assert torch.equal(together[0], wave[0])
    for number, row in enumerate(rows):
        alone = damaged(wave[number : number + 1], columns(row), RATE_HZ)[0]
        difference = float((together[number] - alone).norm() / alone.norm())
        # Where a coefficient lies half-way between two steps of the codec, rounding may take it to the other one.
        assert difference < (2e-2 if "codec" in row else 1e-6), (row, difference)


def test_silence_stays_silence():
    rows = [{kind: own} for kind, own in STRONG.items()]
    bad = damaged(torch.zeros(len(rows), 5000), columns(*rows), RATE_HZ)
    assert bool((bad.abs() < 1e-9).all())


def batch_of(fg, bg, *rows, snr_db=10.0, level_db=-20.0):
    number = len(rows)

    def pcm(wave):
        return (wave * 32768).round().clamp(-32768, 32767).to(torch.int16)

    return columns(*rows) | {
        "fg": pcm(fg),
        "bg": pcm(bg),
        "rir": torch.full((number,), -1),
        "room_gain_db": torch.zeros(number),
        "snr_db": torch.full((number,), snr_db),
        "level_db": torch.full((number,), level_db),
        "has_bg": bg.abs().amax(-1) > 0,
    }


def test_a_clean_row_is_its_own_target_at_the_asked_level(random):
    fg = speech_like(random, rows=2)
    bg = torch.stack([torch.zeros(fg.shape[-1]), 0.1 * torch.randn(fg.shape[-1], generator=random)])
    mix = damaged_mix(batch_of(fg, bg, {}, {}), None, RATE_HZ)
    assert torch.equal(mix.mixture[0], mix.target[0])
    level_db = 10 * torch.log10(mix.target.square().mean(-1))
    torch.testing.assert_close(level_db, torch.full((2,), -20.0), rtol=0, atol=1e-3)
    noise = mix.mixture[1] - mix.target[1]
    assert float(10 * torch.log10(mix.target[1].square().mean() / noise.square().mean())) == pytest.approx(
        10, abs=1e-2
    )


def test_mixture_and_target_have_one_gain_and_no_peak_beyond_full_scale(random):
    fg = speech_like(random, rows=len(STRONG)) * 0.1
    rows = [{kind: own} for kind, own in STRONG.items()]
    mix = damaged_mix(batch_of(fg, torch.zeros_like(fg), *rows, level_db=0.0), None, RATE_HZ)
    peaks = torch.maximum(mix.mixture.abs().amax(-1), mix.target.abs().amax(-1))
    assert bool((peaks <= 0.99 + 1e-6).all()) and bool((peaks > 0.5).all())
    plain = (fg * 32768).round() / 32768
    for row in range(len(rows)):
        gain = float(mix.target[row].norm() / plain[row].norm())
        bad = damaged(plain[row : row + 1], columns(rows[row]), RATE_HZ)[0]
        difference = float((mix.mixture[row] - gain * bad).norm() / mix.mixture[row].norm())
        assert difference < (2e-2 if "codec" in rows[row] else 1e-5), (rows[row], difference)


def test_an_all_silent_batch_is_finite():
    fg = torch.zeros(len(STRONG), 5000)
    mix = damaged_mix(batch_of(fg, fg, *({kind: own} for kind, own in STRONG.items())), None, RATE_HZ)
    assert bool(mix.mixture.isfinite().all()) and not bool(mix.target.any())


def test_rows_are_labelled_by_what_happened_to_them(random):
    rows = [{}, {"clip": STRONG["clip"]}, STRONG, {}, {}]
    batch = batch_of(torch.ones(5, 10), torch.zeros(5, 10), *rows)
    batch["has_bg"][3] = True
    batch["rir"][4] = 0
    assert labels(batch) == ["clean", "clip", "several", "background", "room"]
    shares = damage_shares(batch)
    assert float(shares["damage_clip"]) == pytest.approx(0.4)
    assert float(shares["damage_eq"]) == pytest.approx(0.2)
