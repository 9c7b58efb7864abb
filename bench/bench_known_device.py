"""Validation ESR of an LSTM of 32 units that learns a known LSTM of 32 units, driven by a real guitar.

    python -m bench.bench_known_device [--minutes 10] [--ranks 1] [--seconds 60] [--set key=value ...]

The device has random weights of a fixed seed, with an input so strong that it clips and a memory of some milliseconds.
The student could have its very weights, so what is left of the error is the training's. The guitar is that of the
optional folder of real recordings; the last 15 % validate. Exit code 1 above an ESR of 0.01.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from bench.bench_pedal import add_training_arguments, real_audio, report, train_for
from bench.common import OUT, describe_machine

WANTED = 0.01
HIDDEN_SIZE = 32
SEED = 3
DRIVE = 12.0
PEAK = 0.7
# Small batches and short chunks: many updates in little time (docs/LOG.md).
FAST = {
    "task.hidden_size": HIDDEN_SIZE, "batch_size_per_gpu": 16, "task.update_samples": 512, "max_lr": 5e-3,
    "warmup_steps": 100, "max_steps": 15_000, "eval_every": 500, "save_every": 5000,
}  # fmt: skip


def known_device(dry: np.ndarray) -> np.ndarray:
    """What the device makes of `dry`, float32 [frames], peak 0.7 and no offset at rest."""
    import torch

    from enhancer.models.recurrent import RecurrentDevice

    torch.manual_seed(SEED)
    device = RecurrentDevice(hidden_size=HIDDEN_SIZE)
    with torch.no_grad():
        device.recurrent.weight_ih_l0.mul_(DRIVE)
        # A forget gate nearer to 1: it remembers some tens of samples.
        device.recurrent.bias_ih_l0[HIDDEN_SIZE : 2 * HIDDEN_SIZE] += 2
        _, rest = device(torch.zeros(1, 48_000))
        offset = device(torch.zeros(1, 1), None, rest)[0].item()
        wet, _ = device(torch.from_numpy(dry)[None], None, rest)
    wave = wet[0].numpy() - offset
    return PEAK * wave / np.abs(wave).max()


def corpus(seconds: float) -> Path:
    """The pair as a corpus under bench/out; says how far from a mere gain the device is."""
    import soundfile

    from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus

    dry, rate_hz = soundfile.read(real_audio("di") / "klon-di-guitar.flac", dtype="float32")
    dry = dry[: round(seconds * rate_hz)]
    wet = known_device(dry)
    likeness = np.dot(dry, wet) ** 2 / (np.dot(dry, dry) * np.dot(wet, wet))
    print(f"{len(dry) / rate_hz:.1f} s of guitar; the best gain alone has an ESR of {1 - likeness:.3f}")
    OUT.mkdir(parents=True, exist_ok=True)
    paths = [OUT / f"known-{side}.wav" for side in ("dry", "wet")]
    for path, wave in zip(paths, (dry, wet), strict=True):
        soundfile.write(path, wave, rate_hz, "FLOAT")
    build_pedal_corpus([DevicePair(*paths)], OUT / "known-pair", PedalOptions(align="off"))
    return OUT / "known-pair"


def main() -> int:
    """Train for so many minutes and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of guitar (%(default)s)")
    add_training_arguments(parser)
    options = parser.parse_args()
    describe_machine()
    run_dir = OUT / "known-device"
    started = train_for(options, run_dir, "pedal_lstm", {"pair_dir": corpus(options.seconds), **FAST})
    return report(run_dir, started, WANTED)


if __name__ == "__main__":
    sys.exit(main())
