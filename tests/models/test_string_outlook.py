"""How a note will go on, from its beginning: against decays that are known, and blind to what is not yet heard."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from enhancer.models.string import PluckedString
from enhancer.models.string_outlook import Outlook
from enhancer.signal.decay import octave_levels, octave_t60

RATE_HZ, SECONDS, HISTORY = 44_100, 4.0, 2205
F0_HZ = 250.0


def note(fast: float, slow: float, share: float = 0.8, f0_hz: float = F0_HZ) -> Tensor:
    """Partials 1, 2, 4, ... of f0, one an octave band: `share` of each falls by a T60 of `fast`, the rest by `slow`."""
    time = torch.arange(round(SECONDS * RATE_HZ), dtype=torch.float64) / RATE_HZ
    partials = sum(torch.sin(2 * math.pi * f0_hz * 2**octave * time) / 2**octave for octave in range(5))
    falls = share * 10 ** (-3 * time / fast) + (1 - share) * 10 ** (-3 * time / slow)
    return (0.1 * partials * falls)[None].float()


def learned(notes: list[Tensor], f0_hz: list[float]) -> Outlook:
    outlook = Outlook(RATE_HZ)
    levels = torch.cat([octave_levels(wave, RATE_HZ).band_db for wave in notes])
    outlook.learn(levels, torch.tensor(f0_hz), torch.full((len(notes), 9), -190.0))
    return outlook


def heard_t60(t60: Tensor) -> list[float]:
    """Of the five octave bands that `note` has a partial in."""
    return t60[0][2:7].tolist()


@pytest.mark.parametrize("t60", [0.7, 3.0, 12.0])
def test_a_note_of_one_stage_goes_on_as_it_began(t60: float) -> None:
    """Without anything learned."""
    outlook, wave, f0 = Outlook(RATE_HZ), note(t60, t60), torch.tensor([F0_HZ])
    assert heard_t60(outlook(wave, f0)) == pytest.approx([t60] * 5, rel=0.02)
    over = outlook.over(wave, f0, HISTORY, wave.shape[-1] - HISTORY)
    assert heard_t60(over) == pytest.approx([t60] * 5, rel=0.02)


def test_nothing_is_heard_behind_the_first_seconds() -> None:
    outlook, wave, f0 = Outlook(RATE_HZ), note(0.5, 4.0), torch.tensor([F0_HZ])
    other = wave.clone()
    other[:, outlook.heard_samples :] = torch.randn(other[:, outlook.heard_samples :].shape)
    for ask in (
        lambda heard: outlook(heard, f0),
        lambda heard: outlook.over(heard, f0, HISTORY, heard.shape[-1] - HISTORY),
    ):
        torch.testing.assert_close(ask(wave), ask(other), rtol=0, atol=0, equal_nan=True)


def test_that_notes_ring_on_is_learned_from_others() -> None:
    """Notes whose slow stage is six times as long as their fast one, which hides it for a second."""
    fasts = (1.5, 1.8, 2.2, 2.7, 3.3, 4.0)
    notes = [note(fast, 6 * fast) for fast in fasts]
    outlook = learned(notes, [F0_HZ] * len(notes))
    unheard, f0 = note(2.4, 6 * 2.4), torch.tensor([F0_HZ])
    ahead = unheard.shape[-1] - HISTORY
    wanted = heard_t60(octave_t60(octave_levels(unheard[:, HISTORY:], RATE_HZ))[0].t60_seconds)
    blunt = heard_t60(Outlook(RATE_HZ).over(unheard, f0, HISTORY, ahead))
    found = heard_t60(outlook.over(unheard, f0, HISTORY, ahead))
    for own, before, value in zip(found, blunt, wanted, strict=True):
        # The ridge holds back, so it is not exact.
        assert abs(own / value - 1) < 0.1, (found, wanted)
        assert abs(own / value - 1) < abs(before / value - 1) / 3, (found, blunt, wanted)


def test_bands_without_a_partial_are_not_foretold_and_few_notes_teach_nothing() -> None:
    f0 = torch.tensor([F0_HZ])
    t60 = Outlook(RATE_HZ)(note(2.0, 2.0), f0)[0]
    assert t60[:2].isnan().all() and t60[2:7].isfinite().all()
    assert torch.equal(learned([note(2.0, 9.0)], [F0_HZ]).weight, Outlook(RATE_HZ).weight)


def test_what_was_learned_is_saved_with_the_string() -> None:
    string, other = PluckedString(num_layers=0), PluckedString(num_layers=0)
    assert string.outlook is not None and other.outlook is not None
    string.outlook.bias.fill_(3.0)
    other.load_state_dict(string.state_dict())
    assert other.outlook.bias.item() == 3.0
    assert PluckedString(controls=("f0",), num_layers=0).outlook is None
