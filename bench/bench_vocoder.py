"""The vocoder of stage 1 beside one in the time domain: parameters, time of a step, and mel distance at equal steps.

    python -m bench.bench_vocoder [--fg data/fg] [--steps 100] [--set task.vocoder_width=192 ...]

Both hear the mel frames themselves, without an autoencoder, and learn by the mel and STFT losses of stage 1, with Adam
at the same rate. The other is DAC's decoder (snake activations, transposed convolutions by 14 and 30), of the kind of
BigVGAN, with about as many parameters. Times are CPU seconds of the process, the fastest step of each; one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.common import describe_machine
from enhancer.losses.mel import MultiScaleMel
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.weighted import WeightedLoss
from enhancer.models.dac import DacDecoder, initialise
from enhancer.models.stage1 import Stage1
from enhancer.models.vocoder import SpectralVocoder
from enhancer.signal.mel_distance import mel_distance
from enhancer.signal.mixing import foreground_at_level
from enhancer.tasks import TASKS
from hparams.load import load
from launch.common import open_data

STRIDES = (14, 30)
Way = tuple[nn.Module, Callable[[Tensor], Tensor]]


def ways(hp: Any, front: Stage1, other_width: int) -> dict[str, Way]:
    """The vocoders by name, each with a function from waveforms [B, T] by their mel frames to waveforms."""
    spectral = SpectralVocoder(
        hp.num_mels,
        hp.task.vocoder_width,
        hp.task.vocoder_blocks,
        hp.task.vocoder_scale,
        hp.task.vocoder_window,
        hp.hop_size,
    )
    temporal = DacDecoder(hp.num_mels, other_width, STRIDES)
    temporal.apply(initialise)

    def by_spectrum(wave: Tensor) -> Tensor:
        envelope = front.envelope(front.mel(wave).transpose(1, 2))
        return spectral(front.frames(wave), envelope, wave.shape[-1])

    def by_time(wave: Tensor) -> Tensor:
        frames = front.frames(wave).transpose(1, 2)
        # A frame is centred on its sample, and the decoder puts its samples behind it.
        return temporal(frames)[:, 0, hp.hop_size // 2 :][:, : wave.shape[-1]]

    return {"spectral": (spectral, by_spectrum), "time domain": (temporal, by_time)}


def trained(way: Way, crops: list[Tensor], loss: WeightedLoss, rate: float) -> float:
    """Train on `crops` one after another; CPU seconds of the fastest step."""
    module, run = way
    optimiser = torch.optim.Adam(module.parameters(), lr=rate)
    fastest = float("inf")
    for place, crop in enumerate(crops):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (place + 1) / 20)
        started = time.process_time()
        optimiser.zero_grad()
        loss(run(crop), crop)[0].backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        fastest = min(fastest, time.process_time() - started)
    return fastest


def main() -> int:
    """Print what each comes to; exit code 1 where the spectral one is slower or worse."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--fg", default="data/fg", help="corpus of foregrounds")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--other-width", type=int, default=192, help="channels of DAC's decoder at first")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    describe_machine()
    torch.set_num_threads(1)
    hp = load("enhancer_stage1_small", [f"fg_dir={options.fg}", "valid_fraction=0.2", "nj=0", *options.set])
    task = TASKS[hp.task.name](hp)
    torch.manual_seed(0)
    front = task.build()[task.main_module]
    assert isinstance(front, Stage1)
    stream = open_data(hp, rank=0, world_size=1, batch_size=hp.batch_size_per_gpu, num_workers=0)
    batches = stream.from_draw(0)
    crops = [foreground_at_level(next(batches)) for _ in range(options.steps)]
    held_out = foreground_at_level(next(iter(stream.validation())))
    loss = WeightedLoss(
        {
            "mel": (hp.task.mel_weight, MultiScaleMel(hp.wav_rate)),
            "stft": (hp.task.stft_weight, MultiResolutionStft(hp.stft_cfgs)),
        }
    )
    found = {}
    for name, way in ways(hp, front, options.other_width).items():
        seconds = trained(way, crops, loss, options.rate)
        with torch.no_grad():
            distance = float(mel_distance(way[1](held_out), held_out, hp.wav_rate).mean())
        millions = sum(weight.numel() for weight in way[0].parameters()) / 1e6
        print(
            f"{name:<12} {millions:6.2f} M parameters, {1e3 * seconds:6.0f} ms a step of {hp.batch_size_per_gpu} x "
            f"{hp.training_seconds:g} s, mel distance {distance:.3f} after {options.steps} steps",
            flush=True,
        )
        found[name] = (seconds, distance)
    return (
        0
        if found["spectral"] < found["time domain"] and found["spectral"][1] < found["time domain"][1]
        else 1
    )


if __name__ == "__main__":
    raise SystemExit(main())
