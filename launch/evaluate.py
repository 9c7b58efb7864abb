"""Judge a trained run on its fixed validation list: python launch/evaluate.py --run runs/base [--json out.json]

The list depends on the run's hyper-parameters and corpora alone, so two runs with the same corpora are judged alike.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from enhancer.engine.evaluate import Interval, Row, summarise
from enhancer.inference import TrainedRun, load_run
from enhancer.metrics import esr_grade
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.place import corpus_place
from launch.common import checkpoint_folder, choose_device, open_data, reports_user_errors

BATCH_SIZE = 4
PROGRESS_SECONDS = 5.0
CORPUS_FIELDS = ("fg_dir", "bg_dir", "rir_dir", "pair_dir")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    run = load_run(args.run, choose_device(args.device), checkpoint_folder(args.run, args.checkpoint))
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    hp = replace(run.hp, **{name: getattr(args, name) for name in CORPUS_FIELDS if getattr(args, name)})
    stream = open_data(hp, batch_size=BATCH_SIZE, num_workers=0)
    for warning in stream.warnings:
        print(f"note: {warning}")
    print(f"{run.checkpoint} on {stream.num_valid_items} validation items", flush=True)
    try:
        rows = evaluate(replace(run, hp=hp), stream)
    except DataError as error:
        raise UserError(f"a corpus cannot be read: {error}") from error
    summary = summarise(rows)
    _print_table(rows, summary)
    for row in rows:
        if "esr" in row:
            names = " -> ".join(stream.item_sources(int(row["item"])).values())
            print(f"{names}: ESR {row['esr']:.4f}, {esr_grade(row['esr'])}")
    if args.json:
        _write_json(args.json, run, stream, rows, summary)
        print(f"written to {args.json}")
    return 0


def evaluate(run: TrainedRun, stream: Any) -> list[Row]:
    """Metrics of every item of the validation list, in its order."""
    task = TASKS[run.hp.task.name](run.hp, stream.constants())
    device = next(run.module.parameters()).device
    task.to(device)
    rows: list[Row] = []
    told = time.monotonic()
    for batch in stream.validation():
        with torch.no_grad():
            metrics = task.evaluate(
                {task.main_module: run.module}, {name: column.to(device) for name, column in batch.items()}
            )
        items = batch["item"].tolist()
        rows += [{"item": item, **row} for item, row in zip(items, metrics, strict=True) if item >= 0]
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"{len(rows)} of {stream.num_valid_items} items", flush=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/evaluate.py", description="Judge a trained run on its fixed validation list."
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of a training run")
    parser.add_argument(
        "--checkpoint", help="name of a checkpoint of the run, such as step-0000500; default: the best"
    )
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; default: the best there is")
    for name in CORPUS_FIELDS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(
            flag,
            type=corpus_place,
            help=f"judge on this corpus (a folder or URL) instead of the run's {name}",
        )
    return parser


def _print_table(rows: list[Row], summary: dict[str, Interval]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(rows)} items: mean and 95 % interval")
    table.add_column("metric")
    for name in ("mean", "low", "high"):
        table.add_column(name, justify="right")
    for name, interval in summary.items():
        table.add_row(name, f"{interval.mean:.3f}", f"{interval.low:.3f}", f"{interval.high:.3f}")
    Console().print(table)


def _write_json(
    path: Path, run: TrainedRun, stream: Any, rows: list[Row], summary: dict[str, Interval]
) -> None:
    items = [{**_finite(row), "sources": stream.item_sources(int(row["item"]))} for row in rows]
    record = {
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "fingerprint": stream.fingerprint,
        "summary": {name: _finite(asdict(interval)) for name, interval in summary.items()},
        "items": items,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error}") from error


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """`values` with null in place of what JSON has no number for."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
