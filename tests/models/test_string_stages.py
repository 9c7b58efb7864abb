"""Two stages and trial runs: against closed forms, least squares by numpy, and decays that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from enhancer.models.string import PluckedString
from enhancer.models.string_filter import BandSections, lagrange
from enhancer.models.string_loop import generate
from enhancer.models.string_stages import Stages, later_drop, slower, split_history
from enhancer.models.string_tuning import NEAR_ENOUGH, tuned
from enhancer.signal.decay import OCTAVE_CENTRES_HZ, octave_levels, octave_t60
from tests.models.test_string import HISTORY, RATE_HZ, controls, history_of, wild


def bands(value: float) -> Tensor:
    return torch.full((1, 9), value, dtype=torch.float64)


def test_the_half_sample_all_pass_passes_all_and_whole_delays_come_out_exact() -> None:
    sections = BandSections(RATE_HZ)
    a11, a12, a21, a22, b1, b2, c1, c2, d = sections.state_space()[-1].tolist()
    for f0 in (55.0, 440.0, 2000.0):
        hz = torch.tensor([f0], dtype=torch.float64)
        z = np.exp(2j * np.pi * f0 / RATE_HZ)
        inner = np.linalg.solve(z * np.eye(2) - np.array([[a11, a12], [a21, a22]]), np.array([b1, b2]))
        half = 1 - 2 * (np.array([c1, c2]) @ inner + d)
        assert abs(half) == pytest.approx(1, abs=1e-12)
        assert -np.angle(half) / (2 * np.pi * f0 / RATE_HZ) == pytest.approx(
            sections.half_delay(hz).item(), rel=1e-9
        )
        for part in np.linspace(0, 0.99, 12):
            exact = torch.tensor([100 + part], dtype=torch.float64)
            whole, offset, is_half = sections.split_delay(exact, hz)
            assert abs(offset.item()) <= 0.26
            taps = lagrange(offset)[0].numpy()
            through = (taps * z ** (3.0 - np.arange(7))).sum() * z ** -float(whole) * (half if is_half else 1)
            turned = through * z ** float(exact)
            assert np.angle(turned) / (2 * np.pi * f0 / RATE_HZ) == pytest.approx(0, abs=1e-4)


def test_a_history_is_split_into_parts_that_make_it_and_a_band_falls_by_its_drop() -> None:
    """A tone in the middle of a band, long enough for filters to settle."""
    sections = BandSections(RATE_HZ)
    time = torch.arange(8820) / RATE_HZ
    for hz, nepers in ((250.0, 0.5), (1000.0, 2.0), (4000.0, 1.0)):
        tone = torch.sin(2 * math.pi * hz * time)[None]
        slow, fast = split_history(tone, bands(nepers), torch.tensor([hz]), sections)
        torch.testing.assert_close(slow + fast, tone, atol=1e-6, rtol=0)
        found = -math.log(float(slow[0, -2205:].std() / tone[0, -2205:].std()))
        assert found == pytest.approx(nepers, abs=0.1)
    same, rest = split_history(history_of(), bands(0.0), torch.tensor([200.0]), sections)
    assert float(rest.abs().max()) < 1e-4 and float(same.abs().max()) > 0.1


def test_later_in_a_note_less_of_the_drop_is_to_come() -> None:
    drop, loss, ratio = bands(2.0), bands(0.002), math.log(5.0)
    for periods in (0.0, 100.0, 400.0):
        slow, fast = math.exp(-2.0), (1 - math.exp(-2.0)) * math.exp(-4 * 0.002 * periods)
        found = later_drop(drop, bands(ratio), loss, torch.tensor([periods]))
        assert found[0, 0].item() == pytest.approx(-math.log(slow / (slow + fast)), abs=1e-9)
    assert later_drop(drop, bands(ratio), loss, torch.tensor([1e5])).abs().max().item() == pytest.approx(0)


@pytest.mark.parametrize(("drop", "ratio", "t60"), [(1.0, 3.0, 8.0), (3.0, 10.0, 2.0), (2.0, 5.0, 20.0)])
def test_the_line_through_both_stages_has_the_t60_of_one_alone(drop: float, ratio: float, t60: float) -> None:
    f0 = 200.0
    loss = 3 * math.log(10) / (f0 * t60)
    change = slower(bands(drop), bands(math.log(ratio)), bands(loss), torch.tensor([f0]))[0, 0].item()
    assert change < 0
    time = np.linspace(0, min(4.0, t60), 4000)
    rate = math.exp(change) * loss * f0
    level = 20 * np.log10(
        math.exp(-drop) * np.exp(-rate * time) + (1 - math.exp(-drop)) * np.exp(-ratio * rate * time)
    )
    assert -60 / np.polyfit(time, level, 1)[0] == pytest.approx(t60, rel=0.03)
    for same in (slower(bands(0.0), bands(1.0), bands(loss), torch.tensor([f0])),
                 slower(bands(drop), bands(0.0), bands(loss), torch.tensor([f0]))):  # fmt: skip
        assert same.abs().max().item() < 1e-6


def test_neither_stage_ever_gains_whatever_the_weights() -> None:
    """Each loop for itself from filters at rest, and their sum by the triangle inequality; 0.3 s."""
    for seed in (0, 1):
        model = wild(PluckedString(hidden_size=8, has_two_stages=True), 1.5, seed)
        assert model.stages is not None
        with torch.no_grad():
            f0, velocity, position, t60, decay = controls(300.0)
            loss = model._loss_per_band(model._features(f0, velocity, position, t60), f0, t60)
            drop, ratio = model.stages(model._features(f0, velocity, position, None), f0, loss)
            assert float(drop.min()) >= 0 and float(ratio.min()) > 0
            both = torch.cat(split_history(history_of(seed=seed), drop, f0, model.sections))
            doubled = [torch.cat([each, each]) for each in (f0, velocity, position, t60, decay)]
            loop = model.loop(both, *doubled, torch.cat([torch.zeros_like(ratio), ratio]))
            delay = int(loop.delay.max())
            start = both[:, -delay - 5 :]
            waves = generate(loop, start, 13_230)
        energy = waves.double().square().unfold(1, int(loop.delay.min()) - 3, 1).sum(-1)
        assert float((energy / start.double().square().sum(1, keepdim=True)).max()) <= 1 + 1e-5, (
            f"seed {seed}"
        )


def test_a_string_of_two_stages_is_silent_on_silence_and_odd() -> None:
    model = wild(PluckedString(num_layers=1, hidden_size=4, has_two_stages=True), 0.3, 0)
    with torch.no_grad():
        assert not model(torch.zeros(1, HISTORY), 3000, *controls(200.0)).any()
        one, other = (model(sign * history_of(), 3000, *controls(200.0)) for sign in (1, -1))
    torch.testing.assert_close(one, -other, atol=1e-6, rtol=0)


def test_what_stages_tell_begins_alike_for_all_bands() -> None:
    drop, log_ratio = Stages(2)(torch.zeros(1, 2), torch.tensor([100.0]), bands(0.01))
    assert drop.std().item() == 0 and drop[0, 0].item() == pytest.approx(math.log1p(math.exp(-2)))
    assert log_ratio.exp().mean().item() == pytest.approx(5.0)


def ring_of(rates: Tensor, seen: list[Tensor]) -> object:
    """Two tones, at 250 and 1000 Hz, that lose `rates` nepers a second, each times exp(change) of its band."""

    def ring(change: Tensor, count: int) -> Tensor:
        seen.append(change)
        time = torch.arange(count, dtype=torch.float64) / RATE_HZ
        chosen = rates * change[0, [2, 4]].exp()
        tones = [
            torch.sin(2 * math.pi * hz * time) * torch.exp(-rate * time)
            for hz, rate in zip((250.0, 1000.0), chosen, strict=True)
        ]
        return torch.stack(tones).sum(0)[None]

    return ring


def test_trial_runs_put_each_band_right_and_leave_alone_what_is_not_known() -> None:
    seen: list[Tensor] = []
    t60 = torch.full((1, 9), math.nan)
    # 125 Hz holds no partial of 250 Hz.
    t60[0, 1], t60[0, 2], t60[0, 4] = 1.0, 2.0, 0.5
    rates = 3 * math.log(10) / torch.tensor([1.2, 0.8], dtype=torch.float64)
    ring = ring_of(rates, seen)
    change, wave = tuned(ring, 3 * RATE_HZ, RATE_HZ, torch.tensor([250.0]), t60)  # type: ignore[arg-type]
    assert len(seen) > 1 and not seen[0].any()
    assert wave is not None and torch.equal(wave, ring(change, 3 * RATE_HZ))  # type: ignore[operator]
    _, longer = tuned(ring, 9 * RATE_HZ, RATE_HZ, torch.tensor([250.0]), t60)  # type: ignore[arg-type]
    assert longer is None
    assert change[0, 2].item() == pytest.approx(math.log(1.2 / 2.0), abs=2 * NEAR_ENOUGH)
    assert change[0, 4].item() == pytest.approx(math.log(0.8 / 0.5), abs=2 * NEAR_ENOUGH)
    others = [band for band in range(9) if band not in (2, 4)]
    assert not change[0, others].any()


def test_a_stretch_too_short_for_a_decay_is_not_tuned() -> None:
    seen: list[Tensor] = []
    change, wave = tuned(ring_of(torch.ones(2), seen), 1000, RATE_HZ, torch.tensor([250.0]), torch.ones(1, 9))  # type: ignore[arg-type]
    assert not seen and not change.any() and wave is None


@pytest.mark.parametrize("has_two_stages", [False, True])
def test_a_string_told_t60_by_octaves_has_them(has_two_stages: bool) -> None:
    """From noise, whose partials are as they come; 3 s, each band another T60."""
    wanted = torch.tensor([[math.nan, 6.0, 4.0, 5.0, 2.0, 3.0, 1.5, 1.0, math.nan]])
    model = PluckedString(num_layers=1, hidden_size=4, has_two_stages=has_two_stages)
    with torch.no_grad():
        wave = model(history_of(), 3 * RATE_HZ, *controls(130.0, wanted))
    found = octave_t60(octave_levels(wave, RATE_HZ))[0].t60_seconds[0]
    for band, centre in enumerate(OCTAVE_CENTRES_HZ[:-1]):
        if band:
            assert found[band].item() == pytest.approx(wanted[0, band].item(), rel=0.06), centre
