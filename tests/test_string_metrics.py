"""What models of strings are judged by, and the three failures, on signals made to have them."""

from __future__ import annotations

import math

import pytest
import torch

from data_shards.synthetic_string import KarplusString
from enhancer.string_metrics import (
    BLOWS_UP,
    FAILURES,
    FAST,
    MEASURED,
    NEVER,
    SETTLES,
    failures,
    string_metrics,
)

RATE_HZ = 44_100
F0_HZ = 196.0


def note(t60, f0_hz=F0_HZ, seconds=4.0, damping=0.01):
    return torch.from_numpy(KarplusString(f0_hz, t60, damping=damping).render(seconds)).float()


TARGET = note(2.0)


def metrics(estimate, target=TARGET, **more):
    columns = string_metrics(estimate[None], target[None], RATE_HZ, torch.tensor([F0_HZ]), **more)
    return {name: column.item() for name, column in columns.items()}


def test_the_target_itself_has_no_error_and_no_failure():
    values = metrics(TARGET)
    for name in ("t60_error", "t60_worst_error", "t60_whole_error", "f0_error_cents", "level_error_db"):
        assert values[name] == pytest.approx(0, abs=1e-6), name
    assert values["t60_bands"] >= 3
    assert values["end_dc_dbfs"] < -120
    # Two loops of the same note: 60 dB in 2 s are 60 / (2 * 196) dB a period.
    assert values["energy_gain_db_per_period"] == pytest.approx(-60 / (2 * F0_HZ), rel=0.1)
    assert values["num_failures"] == 0
    assert set(values) == {*MEASURED, *FAILURES, "num_failures"}


@pytest.mark.parametrize("ratio", [0.6, 0.95, 1.3])
def test_a_wrong_t60_is_told_relative_to_the_target(ratio):
    # Without damping all partials have the same T60.
    values = metrics(note(2.0 * ratio, damping=1e-6), note(2.0, damping=1e-6))
    assert values["t60_whole_error"] == pytest.approx(ratio - 1, abs=0.01)
    assert values["t60_error"] == pytest.approx(abs(ratio - 1), abs=0.01)
    assert values["t60_worst_error"] == pytest.approx(abs(ratio - 1), abs=0.02)
    assert values["num_failures"] == 0


def test_a_detuned_loop_is_told_in_cents():
    estimate = note(2.0, F0_HZ * 2 ** (7 / 1200))
    assert metrics(estimate)["f0_error_cents"] == pytest.approx(7, abs=0.1)


def never():
    time = torch.arange(len(TARGET)) / RATE_HZ
    return 0.2 * torch.sin(2 * math.pi * F0_HZ * time)


def limit_cycle():
    """Decays by 25 dB and then goes on for ever."""
    return TARGET + 0.02 * never() / 0.2


SIGNALS = {
    "never": (never(), [NEVER]),
    "very slowly": (note(40.0), [NEVER]),
    "limit cycle": (limit_cycle(), [NEVER]),
    "fast": (note(0.7), [FAST]),
    "silent at once": (torch.zeros_like(TARGET), [FAST]),
    "offset": (TARGET + 0.003, [SETTLES]),
    "offset below zero": (TARGET - 0.003, [SETTLES]),
    "fast onto an offset": (note(0.5) + 0.01, [FAST, SETTLES]),
    "nan": (torch.full_like(TARGET, math.nan), [BLOWS_UP]),
    "infinite": (TARGET * torch.where(torch.arange(len(TARGET)) > 1000, math.inf, 1.0), [BLOWS_UP]),
    "growing": (TARGET * 10 ** (2 * torch.arange(len(TARGET)) / RATE_HZ), [BLOWS_UP]),
    "a little slower": (note(3.5), []),
    "a little faster": (note(1.3), []),
    "upside down": (-TARGET, []),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_each_failure_is_called_by_its_name(name):
    estimate, expected = SIGNALS[name]
    assert failures(estimate, TARGET, RATE_HZ, F0_HZ) == expected
    values = metrics(estimate)
    assert [text for key, text in FAILURES.items() if values[key]] == [
        text for text in FAILURES.values() if text in expected
    ]


def test_metrics_of_what_blows_up_are_unknown_and_its_flag_is_not():
    values = metrics(torch.full_like(TARGET, math.nan))
    assert all(math.isnan(values[name]) for name in MEASURED)
    assert values["blows_up"] == 1


def test_a_soft_note_may_not_settle_where_a_loud_one_may():
    soft = 0.02 * TARGET
    assert failures(soft + 3e-4, soft, RATE_HZ, F0_HZ) == [SETTLES]
    assert failures(TARGET + 3e-4, TARGET, RATE_HZ, F0_HZ) == []


def test_bands_that_cannot_be_heard_above_the_noise_are_not_judged(random):
    noisy = TARGET + 1e-4 * torch.randn(len(TARGET), generator=random)
    floor = torch.full((1, 9), -50.0)
    few = metrics(TARGET, noisy, noise_db=floor)["t60_bands"]
    assert 0 < few < metrics(TARGET, noisy)["t60_bands"]


def test_rows_are_judged_alone():
    both = string_metrics(
        torch.stack([TARGET, never()]), torch.stack([TARGET, TARGET]), RATE_HZ, torch.full((2,), F0_HZ)
    )
    assert both["never_decays"].tolist() == [0, 1]
    assert both["t60_error"][1].item() == pytest.approx(metrics(never())["t60_error"])


def test_bands_below_the_string_are_not_judged(random):
    """Rumble at 100 Hz that rings on below a note of 392 Hz."""
    time = torch.arange(len(TARGET)) / RATE_HZ
    high = note(2.0, 392.0)
    rumble = 0.05 * torch.sin(2 * math.pi * 100 * time) * 10 ** (-3 * time / 3)
    columns = string_metrics(high[None], (high + rumble)[None], RATE_HZ, torch.tensor([392.0]))
    assert columns["t60_worst_error"].item() < 0.05
    judged_as_low = string_metrics(high[None], (high + rumble)[None], RATE_HZ, torch.tensor([98.0]))
    assert judged_as_low["t60_worst_error"].item() > 0.2
    assert judged_as_low["t60_bands"].item() == columns["t60_bands"].item() + 1
    # The band of the rumble is the one that is off.
    assert judged_as_low["t60_bands_within"].item() == columns["t60_bands_within"].item()
    assert columns["t60_bands_within"].item() == columns["t60_bands"].item()


def test_a_band_whose_t60_hangs_on_the_stretch_is_counted_as_unsteady():
    """A beat whose first minimum comes as the stretch ends: without its last tenth the band falls by far less."""
    time = torch.arange(len(TARGET)) / RATE_HZ
    fall = 10 ** (-3 * time / 20)
    lone = 0.2 * torch.sin(2 * math.pi * F0_HZ * time) * fall
    beating = lone + 0.18 * torch.sin(2 * math.pi * (F0_HZ + 0.13) * time) * fall
    assert metrics(lone, lone)["t60_unsteady_bands"] == 0
    assert metrics(beating, beating)["t60_unsteady_bands"] >= 1
