"""The loop of a string in plain torch, sample by sample with autograd: what the compiled one is tested against."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.models.string_loop import Loop

LIMIT, SWING, SMALLEST_ENERGY = 8.0, 2.0, 1e-20


def rollout(loop: Loop, history: Float[Tensor, "batch past"], count: int) -> Float[Tensor, "batch count"]:
    """As `enhancer.models.string_loop.rollout`."""
    samples = list(history.unbind(1))
    past, rows = len(samples), torch.arange(len(history))
    states = history.new_zeros(len(history), len(loop.sections), 2)
    energy = history.double().square().mean(1)[:, None].expand(-1, 2).to(history)
    with torch.no_grad():
        ready = loop.delay + 4
        for n in range(int(ready.min()), past):
            taps = _taps(samples, n, loop.delay, rows, 3, 7, ready)
            _, after = _cut(loop, _delayed(loop, samples, n, taps), states)
            is_ready = (n >= ready)[:, None]
            states = torch.where(is_ready[..., None], after, states)
            energy = torch.where(is_ready, _follow(loop, energy, samples[n - 1]), energy)
    energy = torch.stack([energy[:, 0], energy[:, 0] * torch.exp(1 / loop.scale[:, 2])], 1)
    for n in range(past, past + count):
        taps = _taps(samples, n, loop.delay, rows, 3, 7)
        v, states = _cut(loop, _delayed(loop, samples, n, taps), states)
        energy = _follow(loop, energy, samples[n - 1].detach())
        samples.append(_valve(loop, samples, n, taps, v, energy, rows).clamp(-LIMIT, LIMIT))
    return torch.stack(samples[past:], 1)


def _taps(
    samples: list[Tensor],
    n: int,
    delay: Tensor,
    rows: Tensor,
    ahead: int,
    count: int,
    ready: Tensor | None = None,
) -> Tensor:
    """Samples n - delay + ahead downwards, [B, count]; rows that are not ready get any."""
    numbers = n - delay
    if len(set(numbers.tolist())) == 1:
        newest = max(int(numbers[0]), count - ahead - 1) + ahead
        return torch.stack(samples[newest - count + 1 : newest + 1][::-1], 1)
    if ready is not None:
        numbers = numbers.clamp_min(count - ahead - 1)
    return torch.stack(
        [
            torch.stack([samples[int(number) + ahead - j][row] for row, number in enumerate(numbers)])
            for j in range(count)
        ],
        1,
    )


def _delayed(loop: Loop, samples: list[Tensor], n: int, taps: Tensor) -> Tensor:
    last = torch.stack(samples[n - 3 : n][::-1], 1)
    return (loop.fir * taps).sum(1) + last @ loop.recent


def _cut(loop: Loop, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    after = []
    for k, section in enumerate(loop.sections):
        s1, s2 = states[:, k].unbind(1)
        band = section[6] * s1 + section[7] * s2 + section[8] * x
        one = section[0] * s1 + section[1] * s2 + section[4] * x
        two = section[2] * s1 + section[3] * s2 + section[5] * x
        after.append(torch.stack([one, two], 1))
        x = x - loop.cut[:, k] * band
    return x, torch.stack(after, 1) if after else states


def _follow(loop: Loop, energy: Tensor, sample: Tensor) -> Tensor:
    return energy + loop.rates * (sample.square()[:, None] - energy)


def _valve(
    loop: Loop, samples: list[Tensor], n: int, taps: Tensor, v: Tensor, energy: Tensor, rows: Tensor
) -> Tensor:
    """The next sample from the filtered one, v."""
    sign = torch.where(v < 0, -1.0, 1.0).to(v) if loop.is_odd else torch.ones_like(v)
    m = torch.zeros_like(v)
    if loop.num_layers:
        heard = [torch.stack(samples[n - 3 : n][::-1], 1), taps]
        if loop.has_quarter:
            heard.append(_taps(samples, n, loop.quarter, rows, 1, 3))
        x = torch.cat(heard, 1) * sign[:, None]
        if loop.has_state:
            fast, slow = (energy + SMALLEST_ENERGY).log().unbind(1)
            far = loop.scale[:, 0] * (fast - loop.scale[:, 1])
            now = (loop.scale[:, 2] * (slow - fast) - 1).clamp(-4, 4)
            x = torch.cat([x, far[:, None], now[:, None]], 1)
        hidden = torch.tanh(loop.bias1 + x @ loop.w1)
        if loop.num_layers > 1:
            hidden = torch.tanh(loop.b2 + hidden @ loop.w2)
        m = loop.b3 + hidden @ loop.w3
    if loop.is_additive:
        return v + sign * m
    return v * torch.exp(-loop.loss * torch.exp(SWING * torch.tanh(m / SWING)))
