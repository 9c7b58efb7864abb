"""Memory of feature matching on two blocks of DAC's encoder, against the plain version by hooks on DacModel.

    python -m bench.bench_features [--samples 16384] [--batch 16] [--width 64]

Each variant runs in a process of its own: features of the target without gradients, of the estimate with, and the way
back to the estimate. Its memory is how far the process' largest resident size rises above where it stood before, with
everything loaded and warmed up on a short waveform. The gradients of all variants are compared as well.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bench.common import describe_machine
from enhancer.losses.features import QUIET, FeatureMatching
from enhancer.models.dac import DacEncoder

VARIANTS = ("hooks", "plain", "checkpointed")
BLOCKS = (0, 1)
STRIDES = (2, 4, 8, 8)
WANTED = 0.5
Loss = Callable[[Tensor, Tensor], Tensor]


def by_hooks(width: int) -> Loss:
    """What one writes first: hooks on the residual units of DacModel's encoder, cut off after the last block."""
    from transformers import DacConfig, DacModel

    config = DacConfig(encoder_hidden_size=width, decoder_hidden_size=16, downsampling_ratios=list(STRIDES))
    encoder = DacModel(config).eval().requires_grad_(False).encoder
    encoder.load_state_dict(own_encoder(width).state_dict())
    found: list[Tensor] = []
    blocks = [encoder.block[number] for number in range(max(BLOCKS) + 1)]
    for number in BLOCKS:
        for unit in (blocks[number].res_unit1, blocks[number].res_unit2, blocks[number].res_unit3):
            unit.register_forward_hook(lambda _module, _inputs, output: found.append(output))

    def features(wave: Tensor) -> list[Tensor]:
        found.clear()
        hidden = encoder.conv1(wave[:, None])
        for block in blocks[:-1]:
            hidden = block(hidden)
        blocks[-1].res_unit3(blocks[-1].res_unit2(blocks[-1].res_unit1(hidden)))
        return list(found)

    def loss(estimate: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(target)
        distances = [
            ((own - other).abs().mean((1, 2)) / other.abs().mean((1, 2)).clamp(min=QUIET)).mean()
            for own, other in zip(features(estimate), wanted, strict=True)
        ]
        return torch.stack(distances).mean()

    return loss


def own_encoder(width: int) -> DacEncoder:
    """The encoder of the measurement, the same in every process."""
    torch.manual_seed(1)
    return DacEncoder(width, STRIDES)


def measure(variant: str, batch: int, samples: int, width: int, gradient_file: Path) -> None:
    """Print the MiB and the seconds of one loss and its gradient, which goes into `gradient_file`."""
    torch.set_num_threads(1)
    if variant == "hooks":
        loss = by_hooks(width)
    else:
        loss = FeatureMatching(own_encoder(width).stages(BLOCKS), is_checkpointed=variant == "checkpointed")
    torch.manual_seed(2)
    target = 0.1 * torch.randn(batch, samples)
    estimate = (target + 0.03 * torch.randn(batch, samples)).requires_grad_()
    loss(estimate[:1, :1024], target[:1, :1024]).backward()
    estimate.grad = None
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loss(estimate, target).backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save(estimate.grad, gradient_file)
    print((peak - before) / 1024, seconds)


def main() -> int:
    """Print the table; exit code 1 where checkpointing takes more than half, or another gradient."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=64, help="channels of the first block; DAC has 64")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        measure(options.variant, options.batch, options.samples, options.width, options.gradient)
        return 0
    if find_spec("transformers") is None:
        sys.exit("the plain version is transformers' DacModel: pip install 'wavewright[codec]'")
    describe_machine()
    memory, gradients = {}, {}
    # Blocks above 64 KiB are then given back at once, so that the resident size is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            file = Path(folder) / variant
            words = [
                "--variant", variant, "--gradient", str(file), "--samples", str(options.samples),
                "--batch", str(options.batch), "--width", str(options.width),
            ]  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", "bench.bench_features", *words],
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            memory[variant], seconds = map(float, done.stdout.split()[-2:])
            gradients[variant] = torch.load(file, weights_only=True)
            print(f"{variant:<13} {memory[variant]:8.0f} MiB  {seconds:6.1f} s", flush=True)
    scale = gradients["hooks"].abs().max()
    difference = float((gradients["checkpointed"] - gradients["hooks"]).abs().max() / scale)
    ratio = memory["checkpointed"] / memory["hooks"]
    print(
        f"checkpointed / hooks {ratio:.2f}, largest difference of the gradients {difference:.1e} of the largest"
    )
    return 0 if ratio <= WANTED and difference <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
