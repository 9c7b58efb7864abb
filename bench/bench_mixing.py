"""Mixes per CPU second: 16 rows of 1 s at 44.1 kHz, foreground + background + room, on one thread.

    python -m bench.bench_mixing

Prints CPU time, not wall time, so that a busy machine gives the same figure; the best of several runs.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch
from torch import Tensor

from enhancer.signal.convolution import RirBank
from enhancer.signal.mixing import mix

RATE_HZ = 44_100
NUM_ROOMS = 64
EARLY_SAMPLES = round(0.05 * RATE_HZ)


def drawn_batch(
    rows: int, room_share: float, distort_prob: float, random: torch.Generator
) -> dict[str, Tensor]:
    """A batch of the mix stream's shape, each distortion on in the share `distort_prob` of the rows."""

    def share(probability: float) -> Tensor:
        return torch.randperm(rows, generator=random) < round(probability * rows)

    def pcm(level: float) -> Tensor:
        return (torch.randn(rows, RATE_HZ, generator=random) * level * 32768).to(torch.int16)

    rooms = torch.randint(NUM_ROOMS, (rows,), generator=random)
    infinity = torch.full((rows,), torch.inf)
    return {
        "fg": pcm(0.05),
        "bg": pcm(0.02),
        "is_pair": torch.zeros(rows, dtype=torch.bool),
        "rir": torch.where(share(room_share), rooms, -1),
        "room_gain_db": torch.zeros(rows),
        "snr_db": torch.linspace(-12, 12, rows),
        "level_db": torch.linspace(-38, -14, rows),
        "eq_hz": torch.full((rows,), 1000.0),
        "eq_gain_db": share(distort_prob) * 6.0,
        "eq_q": torch.ones(rows),
        "lowpass_hz": torch.where(share(distort_prob), 4000.0, infinity),
        "highpass_hz": torch.zeros(rows),
        "drive_db": share(distort_prob) * 12.0,
        "noise_snr_db": torch.where(share(distort_prob), 20.0, infinity),
        "noise_seed": torch.arange(rows),
    }


def mixes_per_cpu_second(batch: dict[str, Tensor], bank: RirBank, repeats: int) -> float:
    """Best of `repeats`, after one run that makes FFT plans and the cached spectra."""
    mix(batch, bank, RATE_HZ, EARLY_SAMPLES)
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        mix(batch, bank, RATE_HZ, EARLY_SAMPLES)
        best = min(best, time.process_time() - started)
    return len(batch["fg"]) / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    decay = torch.exp(-torch.arange(RATE_HZ) / (0.1 * RATE_HZ))
    bank = RirBank(torch.randn(NUM_ROOMS, RATE_HZ, generator=random) * decay)
    print(
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, batch {arguments.rows} x 1 s, rooms of 1 s"
    )
    for name, room_share, distort_prob in (
        ("every row in a room", 1.0, 0.0),
        ("half in a room, each distortion on 1 row in 8", 0.5, 0.125),
        ("every row in a room, each distortion on 1 row in 8", 1.0, 0.125),
    ):
        batch = drawn_batch(arguments.rows, room_share, distort_prob, random)
        print(f"{mixes_per_cpu_second(batch, bank, arguments.repeats):8.0f} mixes per CPU second: {name}")


if __name__ == "__main__":
    main()
