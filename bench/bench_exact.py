"""Is a resumed run the same run, and do two ranks see what one sees? python -m bench.bench_exact

Trains base_small on the demo corpora: 10 steps against 5, a stop, and 5 more, for both backends at 1 and 2 ranks,
comparing weights byte by byte and every metric that is not a time; then 1 rank of 8 against 2 ranks of 4.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from bench.common import OUT, demo_corpora, describe_machine, steps_of, train

SMALL = {
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 100,
    "save_every": 100,
    "training_seconds": 0.5,
    "nj": 1,
    "task.width": 2,
    "task.valid_items": 4,
}
WORLD_LIMIT = 1e-5
WORLD_STEPS = 10
BASE_LOSSES = {"task.l1_weight": 1.0, "task.stft_weight": 1.0, "task.si_sdr_weight": 0.0}


def comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Logged steps without what the clock decides."""
    clock = ("_seconds", "_per_second")
    return [{k: v for k, v in record.items() if not k.endswith(clock)} for record in steps_of(records)]


def fresh(name: str) -> Path:
    """An empty run folder."""
    run_dir = OUT / f"exact-{name}"
    shutil.rmtree(run_dir, ignore_errors=True)
    return run_dir


def weights(run_dir: Path) -> bytes:
    """The weights of the last checkpoint, as bytes."""
    name = (run_dir / "checkpoints" / "LATEST").read_text().strip()
    return (run_dir / "checkpoints" / name / "denoiser.safetensors").read_bytes()


def resumes_exactly(backend: str, num_ranks: int) -> bool:
    """Whether 10 steps equal 5 + resume + 5 in weights and metrics."""
    values = {**demo_corpora(), **SMALL, "batch_size_per_gpu": 8 // num_ranks}
    kind = {"backend": backend, "num_ranks": num_ranks}
    whole, parts = fresh("whole"), fresh("parts")
    once = train(whole, {**values, "max_steps": 10}, **kind)
    # With max_steps 5 the learning rates would differ, so the folder is taken back to what it was at step 5.
    train(parts, {**values, "max_steps": 10, "save_every": 5}, **kind)
    shutil.rmtree(parts / "checkpoints" / "step-0000010")
    (parts / "checkpoints" / "LATEST").write_text("step-0000005\n")
    twice = train(parts, {**values, "max_steps": 10, "save_every": 5}, **kind)
    assert any(record.get("name") == "resumed" for record in twice), "the second start did not resume"
    return weights(whole) == weights(parts) and comparable(once) == comparable(twice)


def world_difference(losses: dict[str, float]) -> tuple[float, float]:
    """Largest difference of the loss between 1 rank x 8 and 2 ranks x 4 over ten steps: absolute, and of its size.

    With the warm-up of the preset. Adam scales every gradient to its own size: at the full learning rate from the
    second step on it would also make whole steps of those gradients that are nothing but rounding, as in layers
    behind a branch that starts at zero, and two ranks round otherwise than one.
    """
    values = {**demo_corpora(), **SMALL, **losses, "warmup_steps": 100, "max_steps": 101}
    traces = []
    for num_ranks in (1, 2):
        run_dir = fresh(f"ranks{num_ranks}")
        records = train(run_dir, {**values, "batch_size_per_gpu": 8 // num_ranks}, num_ranks=num_ranks)
        traces.append([record["loss"] for record in steps_of(records)][:WORLD_STEPS])
    pairs = list(zip(*traces, strict=True))
    return max(abs(one - two) for one, two in pairs), max(abs(one - two) / abs(one) for one, two in pairs)


def main() -> int:
    """Print the verdicts; exit code 1 when one is bad."""
    describe_machine()
    is_good = True
    for backend in ("accelerate", "deepspeed"):
        for num_ranks in (1, 2):
            is_exact = resumes_exactly(backend, num_ranks)
            print(
                f"{backend:<11} {num_ranks} rank(s): 10 steps {'==' if is_exact else '!='} 5 + resume + 5",
                flush=True,
            )
            is_good = is_good and is_exact
    for name, losses in (("base", BASE_LOSSES), ("base_small", {})):
        absolute, relative = world_difference(losses)
        print(
            f"1 rank x 8 against 2 ranks x 4, losses of {name}: differ by {absolute:.2g} at most, "
            f"{relative:.2g} of their size ({WORLD_LIMIT:g} wanted)",
            flush=True,
        )
        is_good = is_good and absolute <= WORLD_LIMIT
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
