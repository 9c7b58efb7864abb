"""Random numbers by their place: frames of a recording, and strengths of a Beta distribution."""

from __future__ import annotations

import pytest
import torch

from enhancer.signal.seeded import beta_of, frame_noise, generator_of


@pytest.mark.parametrize(("first", "count"), [(0, 1), (100, 60), (127, 2), (128, 128), (250, 300)])
def test_frames_have_the_same_noise_wherever_a_chunk_begins(first: int, count: int) -> None:
    whole = frame_noise(5, 0, 600, 3)
    assert torch.equal(frame_noise(5, first, count, 3), whole[first : first + count])
    assert not torch.equal(frame_noise(6, first, count, 3), whole[first : first + count])


def test_the_noise_is_white_and_gaussian() -> None:
    noise = frame_noise(1, 0, 4000, 8)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02) and float(noise.std()) == pytest.approx(
        1, abs=0.02
    )
    assert float((noise[1:] * noise[:-1]).mean()) == pytest.approx(0, abs=0.02)
    assert float((noise.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.005)


def test_strengths_have_the_moments_of_their_distribution() -> None:
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1))."""
    generator = generator_of("test", 3)
    drawn = torch.tensor([beta_of(generator, 0.2) for _ in range(8000)])
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.var()) == pytest.approx(1 / (4 * 1.4), abs=0.005)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
