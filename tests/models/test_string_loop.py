"""The compiled loop against plain torch with autograd, and its speed-ups against exact functions."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from enhancer.models import string_kernels, string_loop, string_reference
from enhancer.models.string_loop import LEARNED, Loop, generate, rollout

ROWS, PAST, COUNT = 2, 40, 50


def loop_of(seed: int, num_layers: int = 2, hidden: int = 5, sections: int = 2, **flags: bool) -> Loop:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    chosen = {"is_additive": False, "is_odd": True, "has_quarter": True, "has_state": True} | flags
    inputs = 10 + 3 * chosen["has_quarter"] + 2 * chosen["has_state"]
    return Loop(
        fir=normal(ROWS, 7, scale=0.1), recent=normal(3, scale=0.1), cut=normal(ROWS, sections, scale=0.1).abs(),
        loss=normal(ROWS, scale=0.1).abs(), bias1=normal(ROWS, hidden, scale=0.3),
        w1=normal(inputs, hidden, scale=0.5), b2=normal(hidden, scale=0.1), w2=normal(hidden, hidden, scale=0.4),
        w3=normal(hidden, scale=0.3), b3=normal(1, scale=0.1), delay=torch.tensor([12, 15]),
        quarter=torch.tensor([5, 6]), sections=normal(sections, 9, scale=0.2),
        rates=torch.tensor([[0.1, 0.02]] * ROWS).double(), scale=torch.tensor([[0.05, -1.0, 3.0]] * ROWS).double(),
        num_layers=num_layers, **chosen,
    )  # fmt: skip


def history_of(seed: int) -> Tensor:
    return 0.3 * torch.randn(
        ROWS, PAST, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 99)
    )


def gradients(run, loop: Loop, history: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: getattr(loop, name).clone().requires_grad_() for name in LEARNED}
    start = history.clone().requires_grad_()
    wave = run(replace(loop, **leaves), start, COUNT)
    (wave * torch.cos(torch.arange(wave.numel()).double()).view_as(wave)).sum().backward()
    found = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()
    }
    return wave.detach(), found | {"history": start.grad}


SHAPES = [
    pytest.param(layers, dict(zip(("is_additive", "is_odd", "has_quarter", "has_state"), flags, strict=True)))
    for layers, flags in [
        *itertools.product((0, 1, 2), [(False, True, True, True), (True, False, False, False)]),
        (2, (True, True, False, True)),
        (1, (False, False, True, False)),
    ]
]


@pytest.mark.parametrize(("num_layers", "flags"), SHAPES)
def test_the_compiled_loop_and_its_gradients_are_those_of_plain_torch(num_layers, flags, monkeypatch) -> None:
    """Chunks of 16 of 50 samples, so that gradients cross their borders; a period is 12 or 15."""
    monkeypatch.setattr(string_loop, "CHUNK_SAMPLES", 16)
    loop, history = loop_of(num_layers, num_layers, **flags), history_of(num_layers)
    wave, found = gradients(rollout, loop, history)
    expected, wanted = gradients(string_reference.rollout, loop, history)
    torch.testing.assert_close(wave, expected, atol=1e-12, rtol=1e-9)
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-10, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_are_those_of_finite_differences() -> None:
    loop, history = loop_of(7, hidden=3, has_state=False), history_of(7)
    # Not fir, recent and cut: the states that the filters begin with are taken as given.
    names = ("loss", "bias1", "w1", "w2", "w3", "b3")

    def run(*values: Tensor) -> Tensor:
        return rollout(replace(loop, **dict(zip(names, values, strict=True))), history, 30)

    leaves = [getattr(loop, name).clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, leaves, atol=1e-6, nondet_tol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 512])
def test_generation_from_a_ring_buffer_is_the_rollout(block: int, monkeypatch) -> None:
    monkeypatch.setattr(string_loop, "BLOCK_SAMPLES", block)
    loop, history = loop_of(3), history_of(3)
    torch.testing.assert_close(
        generate(loop, history, 300), rollout(loop, history, 300).detach(), atol=0, rtol=0
    )


def test_single_precision_is_near_double() -> None:
    loop, history = loop_of(5), history_of(5)
    single = replace(
        loop,
        **{
            n: v.float()
            for n, v in vars(loop).items()
            if isinstance(v, Tensor) and v.is_floating_point()
        },
    )  # fmt: skip
    wave, _ = gradients(rollout, loop, history)
    near = rollout(single, history.float(), COUNT)
    torch.testing.assert_close(near.double(), wave, atol=1e-6, rtol=1e-4)


def test_the_rational_tanh_is_within_a_millionth() -> None:
    values = np.linspace(-30, 30, 100_001, dtype=np.float32)
    odd, even = string_kernels.tanh_constants(np.float32)
    found = values.copy()
    string_kernels.squash(found, odd, even, odd[7])
    assert np.abs(found - np.tanh(values.astype(np.float64))).max() < 1e-6
    assert np.abs(found).max() <= 1.0


@pytest.mark.parametrize("is_additive", [False, True])
def test_a_rollout_that_blows_up_stays_finite(is_additive: bool) -> None:
    """Weights of the delay line that add up to far above 1: bounded samples, finite gradients."""
    loop = replace(loop_of(1, is_additive=is_additive), fir=torch.full((ROWS, 7), 5.0).double())
    wave, found = gradients(rollout, loop, history_of(1))
    assert wave.abs().max() <= string_kernels.LIMIT
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_a_nan_is_no_silence() -> None:
    loop = loop_of(2)
    history = history_of(2)
    history[0, -1] = math.nan
    assert not rollout(loop, history, COUNT)[0].isfinite().all()


def test_numba_is_loaded_by_a_string_only() -> None:
    code = "import sys, enhancer.tasks, enhancer.models.string; print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "False", result.stderr


def test_without_a_place_for_a_cache_it_compiles_all_the_same(monkeypatch) -> None:
    def refuse(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(string_kernels, "njit", refuse)
    assert string_kernels.compiled()(math.sin) is math.sin
