"""Stage 2 of the enhancer in use: from a damaged recording to a restored one, by way of stage 1's latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.models.flow import plan, solve
from enhancer.models.stage1 import Stage1
from enhancer.models.velocity import VelocityNetwork
from enhancer.signal.seeded import frame_noise
from enhancer.signal.types import WaveBatch

Frames = Float[Tensor, "batch frame channel"]


@dataclass(frozen=True)
class Sampling:
    """How a recording is restored.

    Args:
        nfe: evaluations of the velocity network.
        solver: one of `flow.SOLVERS`.
        strength: share of the denoised mel spectrogram in what the network hears; the rest is that of the recording. At
            0 the denoiser is not asked.
        prior_mix: share of noise in what the path starts from; the rest is the latents of the recording.
        seed: of the noise.
    """

    nfe: int = 16
    solver: str = "midpoint"
    strength: float = 1.0
    prior_mix: float = 0.5
    seed: int = 0


class Heard:
    """What is known of damaged recordings: their frames, those of the denoiser's estimates, and their latents.

    `noisy` and `denoised` are normalised mel frames [B, N, M], `latents` of the recordings as stage 1 gives them.
    """

    def __init__(self, stage1: Stage1, noisy: WaveBatch, denoised: WaveBatch) -> None:
        self.noisy = stage1.frames(noisy)
        self.denoised = self.noisy if denoised is noisy else stage1.frames(denoised)
        self.latents = stage1.autoencoder.encode(self.noisy).float()

    def condition(self, strength: Float[Tensor, " batch"]) -> Frames:
        """What the velocity network hears: `strength` of the denoised frames and the rest of the others."""
        return torch.lerp(self.noisy, self.denoised, strength[:, None, None])


def prior(latents: Frames, noise: Frames, prior_mix: Float[Tensor, " batch"]) -> Frames:
    """Where paths start: `prior_mix` of noise and the rest of the normalised latents of the damaged recordings."""
    return torch.lerp(latents, noise, prior_mix[:, None, None])


class Restorer(nn.Module):
    """Damaged waveform in, restored waveform out, both [B, T].

    `context_samples`, `stride_samples`: as in `MaskUNet`; every evaluation of the velocity network adds its reach. With
    `hears_place` it is told where in the recording a chunk begins: the noise of a frame hangs on the seed and the place
    of the frame alone. Channels have the same noise, so that what is alike in them stays so.

    Raises ValueError for a solver or a number of evaluations that there is not.
    """

    hears_place = True

    def __init__(
        self, stage1: Stage1, denoiser: nn.Module, velocity: VelocityNetwork, sampling: Sampling
    ) -> None:
        super().__init__()
        plan(sampling.nfe, sampling.solver)
        self.stage1, self.denoiser, self.velocity, self.sampling = stage1, denoiser, velocity, sampling
        self.hop_samples = stage1.mel.hop_samples
        self.stride_samples = math.lcm(int(denoiser.stride_samples), stage1.stride_samples)  # type: ignore[arg-type]
        frames = sampling.nfe * velocity.reach_frames
        own = stage1.context_samples + frames * self.hop_samples
        self.context_samples = int(denoiser.context_samples) + own  # type: ignore[arg-type]

    def forward(self, wave: WaveBatch, first_sample: int = 0) -> WaveBatch:
        """What is made of `wave`, which begins `first_sample` samples into the recording, a multiple of the stride."""
        num_frames = -(-wave.shape[-1] // self.hop_samples) + 1
        noise = frame_noise(
            self.sampling.seed, first_sample // self.hop_samples, num_frames, self.velocity.num_latents
        )
        return self.restore(wave, noise.expand(len(wave), -1, -1))

    def restore(self, wave: WaveBatch, noise: Frames, denoised: WaveBatch | None = None) -> WaveBatch:
        """What is made of `wave` from `noise`. `denoised`: what the denoiser makes of it, where that is known."""
        sampling, latents = self.sampling, self.velocity.latents
        if denoised is None:
            denoised = self.denoiser(wave) if sampling.strength else wave
        heard = Heard(self.stage1, wave, denoised)
        mix, strength = (
            wave.new_full((len(wave),), value) for value in (sampling.prior_mix, sampling.strength)
        )
        condition = heard.condition(strength)

        def velocity(state: Frames, time: float) -> Frames:
            times = state.new_full((len(state),), time)
            return self.velocity(state, condition, times, mix, strength)

        start = prior(latents(heard.latents), noise.to(heard.latents), mix)
        end = solve(velocity, start, sampling.nfe, sampling.solver)
        return self.stage1.decode(latents.inverse(end), wave.shape[-1])
