"""Forward and backward of the waveform U-Net on a CPU: as it is, channels first, and compiled.

    python -m bench.bench_wave_unet [--preset pitch_wave_small] [--rows 4] [--seconds 0.8] [--rounds 5]

`eager` is the model as it is: features channels last, so that pointwise layers are matrix products without a copy.
`channels first` is the same network with the same weights as one usually writes it, by Conv1d over [B, C, T].
`compiled` is the model under torch.compile. They take turns, and the fastest round of each counts, in CPU seconds of
the process, so that a busy machine hurts all alike. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import describe_machine
from enhancer.tasks import TASKS
from hparams.load import load


def channels_first(model: Any, heard: Tensor, semitones: Tensor) -> Tensor:
    """What `model` makes of `heard` [B, T], computed over [B, C, T]."""
    network = model.network
    embedding = network.embedding(semitones)
    length = heard.shape[-1]
    features, skips = F.pad(heard, (0, -length % model.stride_samples))[:, None], []

    def block(part: Any, features: Tensor) -> Tensor:
        weight = part.depthwise.weight[:, :, 0]
        hidden = F.conv1d(
            features, weight, part.depthwise.bias, padding=weight.shape[-1] // 2, groups=len(weight)
        )
        hidden = part.norm(hidden.transpose(1, 2)).transpose(1, 2)
        scale, shift = part.condition(embedding)[:, :, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, hidden, 1 + scale)
        hidden = F.gelu(F.conv1d(hidden, part.widen.weight[:, :, None], part.widen.bias))
        return features + F.conv1d(hidden, part.narrow.weight[:, :, None], part.narrow.bias)

    for shorten, blocks in zip(network.shorten, network.down, strict=True):
        skips.append(features)
        factor = shorten.patch[1]
        weight = shorten.linear.weight.unflatten(1, (factor, -1)).transpose(1, 2)
        features = F.conv1d(features, weight, shorten.linear.bias, stride=factor)
        for part in blocks:
            features = block(part, features)
    for level in reversed(range(len(network.patches))):
        for part in network.up[level]:
            features = block(part, features)
        lengthen = network.lengthen[level]
        factor = lengthen.patch[1]
        weight = lengthen.linear.weight.unflatten(0, (factor, -1)).permute(2, 1, 0)
        features = F.conv_transpose1d(features, weight, stride=factor)
        features = features + lengthen.linear.bias.unflatten(0, (factor, -1)).t().repeat(
            1, features.shape[-1] // factor
        )
        if level:
            features = features + skips[level]
    return heard + features[:, 0, :length]


def main() -> int:
    """Print the seconds of each way; exit code 1 when two ways give different results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="pitch_wave_small")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    describe_machine()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hp = load(options.preset)
    model = TASKS[hp.task.name](hp).build()["repairer"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    heard = 0.1 * torch.randn(options.rows, round(options.seconds * hp.wav_rate))
    semitones = torch.linspace(-12, 12, options.rows)
    ways: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: model(heard, semitones),
        "channels first": lambda: channels_first(model, heard, semitones),
    }
    compiled = torch.compile(model)
    ways["compiled"] = lambda: compiled(heard, semitones)
    print(f"{options.preset}, {options.rows} rows of {options.seconds:g} s, one thread")
    gradients, best = {}, dict.fromkeys(ways, float("inf"))
    for name, way in ways.items():
        started = time.perf_counter()
        model.zero_grad()
        way().square().mean().backward()
        gradients[name] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        print(f"{name:<16} first call {time.perf_counter() - started:6.1f} s", flush=True)
    for _ in range(options.rounds):
        for name, way in ways.items():
            model.zero_grad()
            started = time.process_time()
            way().square().mean().backward()
            best[name] = min(best[name], time.process_time() - started)
    apart = {
        name: float((found - gradients["eager"]).norm() / gradients["eager"].norm())
        for name, found in gradients.items()
    }
    for name, seconds in best.items():
        print(
            f"{name:<16} {1e3 * seconds:8.0f} ms forward and backward, {seconds / best['eager']:.2f} x eager; "
            f"gradient apart by {apart[name]:.1e}"
        )
    return 0 if max(apart.values()) < 1e-3 else 1


if __name__ == "__main__":
    raise SystemExit(main())
