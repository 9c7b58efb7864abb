"""SI-SDR improvement of base_small after some time of training on real recordings.

    python -m bench.bench_enhancement [--minutes 60] [--ranks 2]
    python -m bench.bench_enhancement --run runs/real        # judge a run that is there

Builds corpora from the optional folder of real recordings ($WAVEWRIGHT_SHARED, default ../shared), trains, stops the
run when the time is over, and judges its best checkpoint on its validation list. Beside it stand doing nothing and an
ideal real-valued mask, which knows the target: what any real mask on the same STFT could reach.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.common import OUT, REPOSITORY, describe_machine, train_command
from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from data_shards.stream import open_stream
from enhancer.engine.evaluate import Row, summarise
from enhancer.inference import load_run
from enhancer.signal.mixing import Mix
from enhancer.signal.stft import Stft
from enhancer.tasks import TASKS
from launch.evaluate import evaluate

KINDS = ("fg", "bg", "rir")
WANTED_DB = 4.0
VALID_FRACTION = 0.25
PERCUSSION = (
    *("bendir", "mridangam", "tabla", "drum_", "vibe_ace", "arovane_beat"),
    *(f"loop_{name}" for name in ("amen", "compus", "electric", "mehackit1", "mika", "perc1", "safari")),
)
"""Parts of the names of foregrounds that are drums, which are noise here: heard on both sides they teach nothing."""


def real_corpora() -> dict[str, str]:
    """Corpora of the real recordings under bench/out, as values for `--set`. Exits with 2 where there are none."""
    audio = Path(os.environ.get("WAVEWRIGHT_SHARED", REPOSITORY.parent / "shared")) / "audio"
    if not audio.is_dir():
        sys.exit(
            f"no real recordings at {audio}; set WAVEWRIGHT_SHARED to the folder above audio/{{fg,bg,rir}}"
        )
    drums = [path for path in (audio / "fg").iterdir() if any(word in path.name for word in PERCUSSION)]
    links = OUT / "real-sources"
    _link(links / "fg", [path for path in (audio / "fg").iterdir() if path not in drums])
    _link(links / "drums", drums)
    sources = {"fg": [links / "fg"], "bg": [audio / "bg", links / "drums"], "rir": [audio / "rir"]}
    for kind, folders in sources.items():
        build_corpus(kind, folders, OUT / "real" / kind, BuildOptions(kind))
    return {f"{kind}_dir": str(OUT / "real" / kind) for kind in KINDS}


def _link(folder: Path, files: Iterable[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).symlink_to(path.resolve())


def train_for(minutes: float, num_ranks: int, max_steps: int) -> Path:
    """Train base_small, asking it to stop when the time is over; the run folder."""
    run_dir = OUT / "enhancement"
    values = {
        **real_corpora(),
        "valid_fraction": VALID_FRACTION,
        "batch_size_per_gpu": 8 // num_ranks,
        "max_steps": max_steps,
    }
    process = subprocess.Popen(train_command(run_dir, values, "deepspeed", num_ranks), cwd=REPOSITORY)
    end = time.monotonic() + 60 * minutes
    while process.poll() is None:
        if time.monotonic() > end:
            (run_dir / "STOP").touch()
        time.sleep(1)
    return run_dir


class IdealRealMask(nn.Module):
    """Scales each bin of the mixture by the share of the target in it, cut to 0..1; told the target beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = Stft(window_samples=1680, hop_samples=420)
        self.target = torch.zeros(0)

    def forward(self, mixture: Tensor) -> Tensor:
        heard, wanted = self.stft(mixture), self.stft(self.target)
        mask = ((wanted * heard.conj()).real / heard.abs().square().clamp_min(1e-12)).clamp(0, 1)
        return self.stft.inverse(heard * mask, length=mixture.shape[-1])


def judge(run_dir: Path) -> float:
    """Print the figures of the best checkpoint beside doing nothing and the ideal mask; the mean improvement in dB."""
    run = load_run(run_dir)
    stream = open_stream(run.hp, batch_size=4, num_workers=0)
    task = TASKS[run.hp.task.name](run.hp, stream.constants())
    ideal, ideal_rows = IdealRealMask(), []
    for batch in stream.validation():
        mixed: Mix = task.mix(batch)
        ideal.target = mixed.target
        rows = task.evaluate({task.main_module: ideal}, batch)
        ideal_rows += [row for row, item in zip(rows, batch["item"].tolist(), strict=True) if item >= 0]
    rows = evaluate(run, stream)
    print(
        f"{run.checkpoint.name} of {run_dir}, {len(rows)} validation items of {run.hp.task.valid_seconds:g} s"
    )
    mean = _say("base_small", rows)
    _say("ideal real mask", ideal_rows)
    print("doing nothing     0.00 dB")
    return mean


def _say(name: str, rows: list[Row]) -> float:
    summary = summarise(rows)
    total, dry, room = (summary[f"si_sdr_improvement_{kind}db"] for kind in ("", "dry_", "room_"))
    print(
        f"{name:<16} {total.mean:6.2f} dB ({total.low:.2f} .. {total.high:.2f}), "
        f"dry {dry.mean:.2f}, in a room {room.mean:.2f}"
    )
    return total.mean


def main() -> int:
    """Train and judge, or judge alone; exit code 1 when the improvement is below what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=8500, help="steps the learning rate is planned for")
    parser.add_argument("--run", type=Path, help="judge this run and train nothing")
    options = parser.parse_args()
    describe_machine()
    run_dir = options.run or train_for(options.minutes, options.ranks, options.max_steps)
    return 0 if judge(run_dir) >= WANTED_DB else 1


if __name__ == "__main__":
    sys.exit(main())
