"""Stage 2 in use: chunks against the whole, seeds, strength, and what it makes of a known velocity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from enhancer.inference import ChunkedModel
from enhancer.models.restorer import Restorer, Sampling
from enhancer.models.velocity import VelocityNetwork
from enhancer.tasks import TASKS
from hparams.schema import HParams
from tests.finished_runs import TINY_DENOISER, TINY_STAGE1

HOP = 420
STRIDE = 4 * HOP
Make = Callable[[Sampling], Restorer]


class Echo(torch.nn.Module):
    """A denoiser whose context is known."""

    stride_samples = STRIDE
    context_samples = 100

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return wave - 0.5 * torch.nn.functional.pad(wave, (100, 0))[:, :-100]


def trained(task: object) -> torch.nn.Module:
    """The module of a tiny task with weights that are nowhere zero."""
    hp = replace(HParams(), task=task)
    built = TASKS[hp.task.name](hp)
    module = built.build()[built.main_module]
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return module.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def make() -> Make:
    torch.manual_seed(5)
    stage1, denoiser = trained(TINY_STAGE1), trained(TINY_DENOISER)
    velocity = VelocityNetwork(8, 128, 16, 2, 2.0, 5)
    with torch.no_grad():
        for weight in velocity.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    velocity.latents.observe(torch.stack([torch.linspace(-1, 1, 8), torch.full((8,), 4.0)]))
    velocity.eval()
    return lambda sampling: Restorer(stage1, denoiser, velocity, sampling)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wave() -> torch.Tensor:
    at = torch.arange(300 * HOP + 123) / 44_100
    tone = sum(torch.sin(2 * math.pi * 220 * k * at) / k for k in range(1, 6))
    noise = torch.randn(2, len(at), generator=torch.Generator().manual_seed(4))
    return 0.05 * tone + 0.01 * noise


@torch.no_grad()
def test_chunks_are_the_whole(make: Make, wave: torch.Tensor) -> None:
    """The recording is longer than a chunk with its context, and its ends do not see each other."""
    whole = make(Sampling(nfe=3, solver="midpoint", strength=0.5))
    restorer = Restorer(whole.stage1, Echo(), whole.velocity, whole.sampling)
    assert restorer.context_samples + 3 * restorer.stride_samples < wave.shape[-1] / 2
    chunked = ChunkedModel(restorer, 44_100, chunk_seconds=0.2).whole(wave[:1])
    expected = restorer(wave[:1])
    torch.testing.assert_close(chunked, expected, atol=1e-4, rtol=1e-4)
    lacking = ChunkedModel(restorer, 44_100, chunk_seconds=0.2)
    lacking.context_samples = 0
    assert (lacking.whole(wave[:1]) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_a_seed_makes_the_same_bytes_and_channels_share_its_noise(make: Make, wave: torch.Tensor) -> None:
    alike = wave[:1].expand(2, -1)
    first, again = (make(Sampling(nfe=2, seed=7))(alike) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first[0], first[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first, make(Sampling(nfe=2, seed=8))(alike), atol=1e-3)
    still = make(Sampling(nfe=2, seed=7, prior_mix=0.0))(alike)
    assert torch.equal(still, make(Sampling(nfe=2, seed=8, prior_mix=0.0))(alike))


@torch.no_grad()
def test_at_a_velocity_of_zero_and_no_noise_stage_1_alone_is_heard(make: Make, wave: torch.Tensor) -> None:
    restorer = make(Sampling(nfe=2, prior_mix=0.0))
    fresh = VelocityNetwork(8, 128, 16, 2, 2.0, 5)
    still = Restorer(restorer.stage1, restorer.denoiser, fresh, restorer.sampling)
    torch.testing.assert_close(still(wave), restorer.stage1(wave), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_denoiser_is_heard_by_its_strength(make: Make, wave: torch.Tensor) -> None:
    without, half, whole = (make(Sampling(nfe=1, strength=strength)) for strength in (0.0, 0.5, 1.0))
    silent = torch.zeros_like(wave)
    noise = torch.zeros(2, 301 + 1, 8)
    assert torch.equal(without.restore(wave, noise), without.restore(wave, noise, silent))
    assert not torch.allclose(whole.restore(wave, noise), whole.restore(wave, noise, silent), atol=1e-4)
    assert not torch.allclose(half.restore(wave, noise), whole.restore(wave, noise), atol=1e-4)


@torch.no_grad()
def test_without_the_denoiser_frames_are_computed_once(make: Make, wave: torch.Tensor) -> None:
    restorer = make(Sampling(nfe=1, strength=0.0))
    calls: list[object] = []
    handle = restorer.stage1.normaliser.register_forward_hook(lambda *found: calls.append(found))
    restorer(wave[:1])
    handle.remove()
    assert len(calls) == 1


def test_the_presets_are_as_large_as_they_say() -> None:
    """Of the full width 71 M parameters."""
    with torch.device("meta"):
        full = VelocityNetwork()
    assert sum(weight.numel() for weight in full.parameters()) == pytest.approx(71e6, rel=0.01)
