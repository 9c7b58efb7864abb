"""Chunked processing against one pass over the whole recording, and the gain of a recording."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from enhancer.inference import ChunkedModel, gain_into_range
from tests.models.test_denoiser import noise, perturbed


class MovingSum(nn.Module):
    """A model whose context is known: each output is the sum of the inputs up to `context_samples` around it."""

    stride_samples = 4
    context_samples = 8

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(1, 1, 2 * self.context_samples + 1)
        return nn.functional.conv1d(wave[:, None], kernel, padding=self.context_samples)[:, 0]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 300),
    chunk=st.integers(1, 80),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    channels=st.integers(1, 2),
)
def test_any_chunking_of_any_blocks_equals_the_whole(
    length: int, chunk: int, cuts: list[int], channels: int
) -> None:
    wave = torch.randn(channels, length, generator=torch.Generator().manual_seed(length))
    blocks, start, turn = [], 0, 0
    while start < length:
        blocks.append(wave[:, start : start + cuts[turn % len(cuts)]])
        start, turn = start + cuts[turn % len(cuts)], turn + 1
    chunked = ChunkedModel(MovingSum(), rate_hz=1, chunk_seconds=chunk)
    output = torch.cat(list(chunked.stream(blocks)), dim=-1)
    torch.testing.assert_close(output, MovingSum()(wave), atol=1e-4, rtol=0)


def test_the_denoiser_in_chunks_matches_the_whole_file() -> None:
    model = perturbed()
    wave = noise(44_100 * 40, rows=2)
    whole_file = model(wave).detach()
    output = ChunkedModel(model, rate_hz=44_100, chunk_seconds=7.0).whole(wave)
    assert (output - whole_file).abs().max() < 1e-4
    assert (whole_file - wave).abs().max() > 1e-2


def test_an_empty_recording_stays_empty() -> None:
    assert ChunkedModel(MovingSum(), rate_hz=1).whole(torch.zeros(2, 0)).shape == (2, 0)


def test_a_chunk_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_seconds is 0"):
        ChunkedModel(MovingSum(), rate_hz=1, chunk_seconds=0)


@pytest.mark.parametrize(
    ("level_db", "wanted_db"), [(-60.0, -38.0), (-38.0, -38.0), (-20.0, -20.0), (-3.0, -14.0)]
)
def test_one_gain_brings_a_recording_into_the_trained_range(level_db: float, wanted_db: float) -> None:
    rms = 10 ** (level_db / 20)
    assert 20 * math.log10(rms * gain_into_range(rms, (-38.0, -14.0))) == pytest.approx(wanted_db, abs=1e-4)


def test_silence_is_not_amplified() -> None:
    assert gain_into_range(0.0, (-38.0, -14.0)) == 1.0
    assert gain_into_range(1e-6, (-38.0, -14.0)) == 1.0
