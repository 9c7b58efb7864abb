"""Real-time factors against a model that takes a known time, by a clock that it moves itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from enhancer.realtime import WARM_UP_BLOCKS, real_time_factors


class Timed(nn.Module):
    """Takes 1 ms a block and 10 us a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int | None, int]] = []
        self.seconds = [0.0]

    def __deepcopy__(self, memo: object) -> Timed:
        return self

    def forward(self, dry: torch.Tensor, knobs: torch.Tensor, state: int | None = None):
        assert knobs.tolist() == [[0.5, 1.0]] and not torch.is_grad_enabled()
        self.seen.append((dry.shape[-1], state, torch.get_num_threads()))
        self.seconds[0] += 1e-3 + 1e-5 * dry.shape[-1]
        return dry, (state or 0) + 1


def test_the_factor_is_audio_over_time_and_the_state_goes_on():
    model, threads = Timed(), torch.get_num_threads()
    found = real_time_factors(
        model, 48_000, torch.tensor([0.5, 1.0]), (64, 512), 0.5, clock=lambda: model.seconds[0]
    )
    assert found == {size: pytest.approx(size / 48_000 / (1e-3 + 1e-5 * size)) for size in (64, 512)}
    sizes = [size for size, _, _ in model.seen]
    assert sizes.count(64) == 375 + WARM_UP_BLOCKS and sizes.count(512) == 47 + WARM_UP_BLOCKS
    states = [state for size, state, _ in model.seen if size == 512]
    assert states == [None, *range(1, len(states))]
    assert {num for _, _, num in model.seen} == {1} and torch.get_num_threads() == threads
