"""Judge a trained run on its fixed validation list: python launch/evaluate.py --run runs/base [--json out.json]

The list depends on the run's hyper-parameters and corpora alone, so two runs with the same corpora are judged alike.
A model of a device is judged on the stretch that was kept for a test with `--split test`, or on pairs of files of its
own with `--files FOLDER`; how fast it plays in blocks is told too. Of pitch repair the improvements are also told by
semitones and by engine. Of a string the failures are called by their names,
and the hardest notes listed.
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
from enhancer.engine.evaluate import Group, Interval, Row, groups_of_task, summarise
from enhancer.engine.task import Noticing
from enhancer.inference import TrainedRun, load_run
from enhancer.metrics import esr_grade
from enhancer.realtime import real_time_factors
from enhancer.string_metrics import named_failures
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.place import corpus_place
from hparams.tasks import DeviceHParams
from launch.common import checkpoint_folder, choose_device, knob_values, open_data, reports_user_errors
from launch.grades import FileGrade, device_player, find_file_pairs, grade_pairs
from launch.string_rows import print_string_rows

BATCH_SIZE = 4
PROGRESS_SECONDS = 5.0
CORPUS_FIELDS = ("fg_dir", "bg_dir", "rir_dir", "pair_dir", "note_dir")
EXIT_USER = 2


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    run = load_run(args.run, choose_device(args.device), checkpoint_folder(args.run, args.checkpoint))
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.files is not None:
        return _judge_files(run, args)
    if args.knob or args.align != "off":
        raise UserError("--knob and --align are for --files FOLDER; the pairs of a corpus have theirs")
    return _judge_corpus(run, args)


def _judge_corpus(run: TrainedRun, args: argparse.Namespace) -> int:
    hp = replace(run.hp, **{name: getattr(args, name) for name in CORPUS_FIELDS if getattr(args, name)})
    place: dict[str, Any] = {"batch_size": BATCH_SIZE, "num_workers": 0}
    is_string = hp.task.name == "string"
    if isinstance(hp.task, DeviceHParams):
        place["judged_side"] = args.split
    elif args.split != "valid":
        raise UserError(
            f"--split {args.split}: only corpora of devices have a test stretch; leave --split out"
        )
    stream = open_data(hp, **place)
    for warning in stream.warnings:
        print(f"note: {warning}")
    items = "validation" if args.split == "valid" else args.split
    print(f"{run.checkpoint} on {stream.num_valid_items} {items} items", flush=True)
    try:
        rows = evaluate(replace(run, hp=hp), stream)
    except DataError as error:
        raise UserError(f"a corpus cannot be read: {error}") from error
    summary = summarise(rows)
    _print_table(f"{len(rows)} items: mean and 95 % interval", summary)
    groups = groups_of_task(TASKS[hp.task.name], rows)
    if groups:
        _print_groups(groups)
    for row in rows:
        if "esr" in row:
            names = " -> ".join(stream.item_sources(int(row["item"])).values())
            print(f"{names}: ESR {row['esr']:.4f}, {esr_grade(row['esr'])}")
    if is_string:
        notes = [stream.item_sources(int(row["item"]))["note"] for row in rows]
        print_string_rows(rows, notes, run.task.best_metric)
    record: dict[str, Any] = {
        "fingerprint": stream.fingerprint,
        "split": args.split,
        "summary": _as_values(summary),
        **({"groups": [_as_group(group) for group in groups]} if groups else {}),
        "items": [
            {
                **_finite(row),
                **({"failures": named_failures(row)} if is_string else {}),
                "sources": stream.item_sources(int(row["item"])),
            }
            for row in rows
        ],
    }
    _finish(run, args.json, record)
    return 0


def _judge_files(run: TrainedRun, args: argparse.Namespace) -> int:
    """Grade the pairs of a folder; exit code 2 where some of them could not be judged."""
    given = [name for name in CORPUS_FIELDS if getattr(args, name)]
    if given or args.split != "valid":
        flag = f"--{given[0].replace('_', '-')}" if given else f"--split {args.split}"
        raise UserError(f"--files and {flag} are both given; judge on files or on a corpus")
    play = device_player(run, knob_values(getattr(run.hp.task, "knobs", ()), args.knob))
    pairs, alone = find_file_pairs(args.files)
    for name in alone:
        print(f"note: {name} has no partner and is passed over", file=sys.stderr)
    print(f"{run.checkpoint} on {len(pairs)} pairs of files", flush=True)
    grades, failed = grade_pairs(pairs, play, run.hp.wav_rate, args.align)
    if not grades:
        raise UserError(f"none of the {len(pairs)} pairs in {args.files} could be judged")
    summary = summarise([{"item": number, **grade.metrics} for number, grade in enumerate(grades)])
    _print_grades(grades)
    _print_table(f"{len(grades)} files: mean and 95 % interval", summary)
    files = [
        {
            "name": grade.pair.name,
            "dry": grade.pair.dry.source,
            "wet": grade.pair.wet.source,
            "seconds": grade.seconds,
            "lag_samples": grade.lag_samples,
            "grade": grade.word,
            **_finite(grade.metrics),
        }
        for grade in grades
    ]
    record = {"summary": _as_values(summary), "files": files, "without_partner": alone, "failed": failed}
    _finish(run, args.json, record)
    if failed:
        print(f"error: {len(failed)} of {len(pairs)} pairs could not be judged", file=sys.stderr)
    return EXIT_USER if failed else 0


def _finish(run: TrainedRun, target: Path | None, record: dict[str, Any]) -> None:
    """What is said of every run: how fast a device plays; and all values as JSON where they are asked for."""
    head: dict[str, Any] = {"checkpoint": str(run.checkpoint), "step": run.step}
    if isinstance(run.hp.task, DeviceHParams):
        factors = real_time_factors(run.module, run.hp.wav_rate, torch.zeros(len(run.hp.task.knobs)))
        shown = ", ".join(f"{factor:.1f} x at blocks of {size}" for size, factor in factors.items())
        print(f"real time on one CPU thread, in PyTorch: {shown} samples")
        head["real_time_factors"] = {str(size): factor for size, factor in factors.items()}
    if target:
        _write_json(target, {**head, **record})
        print(f"written to {target}")


def evaluate(run: TrainedRun, stream: Any) -> list[Row]:
    """Metrics of every item of the validation list, in its order."""
    task = TASKS[run.hp.task.name](run.hp, {**stream.constants(), **run.constants})
    device = next(run.module.parameters()).device
    task.to(device)
    if isinstance(task, Noticing):
        for text in task.notices():
            print(f"note: {text}")
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
    parser.add_argument(
        "--split",
        choices=("valid", "test"),
        default="valid",
        help="stretch of a device's corpus (%(default)s)",
    )
    parser.add_argument(
        "--files",
        type=Path,
        metavar="FOLDER",
        help="judge a model of a device on the pairs NAME-input.wav and NAME-target.wav, or NAME_dry.wav and "
        "NAME_wet.wav, below this folder",
    )
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --files: a knob; repeat for each",
    )
    parser.add_argument(
        "--align",
        type=_align,
        default="off",
        metavar="auto|N|off",
        help="with --files: samples by which the wet files are late, to be taken out (%(default)s)",
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


def _align(text: str) -> str | int:
    if text in ("auto", "off"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, off or a number of samples") from None


def _print_grades(grades: list[FileGrade]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="per file; excess is above 10 kHz: of the energy, and as the mean over frequency")
    for name in ("file", "s", "ESR", "", "MSE", "MAE", "excess dB", "mean dB"):
        table.add_column(name, justify="left" if name in ("file", "") else "right")
    for grade in grades:
        values = grade.metrics
        table.add_row(
            grade.pair.name,
            f"{grade.seconds:.1f}",
            f"{values['esr']:.4f}",
            grade.word,
            f"{values['mse']:.2e}",
            f"{values['mae']:.2e}",
            f"{values['excess_above_10k_db']:+.1f}",
            f"{values['response_excess_above_10k_db']:+.1f}",
        )
    Console().print(table)


def _print_table(title: str, summary: dict[str, Interval]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("metric")
    for name in ("mean", "low", "high"):
        table.add_column(name, justify="right")
    for name, interval in summary.items():
        # Errors of devices are small; a metric in decibels does not get longer by this.
        table.add_row(name, *(f"{value:.4g}" for value in (interval.mean, interval.low, interval.high)))
    Console().print(table)


def _print_groups(groups: list[Group]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="by group: mean and 95 % interval")
    for name in ("of", "group", "items"):
        table.add_column(name)
    for name in groups[0].summary:
        table.add_column(name, justify="right")
    for group in groups:
        cells = [f"{each.mean:.3g} ({each.low:.3g} … {each.high:.3g})" for each in group.summary.values()]
        table.add_row(group.kind, group.name, str(group.count), *cells)
    Console().print(table)


def _as_group(group: Group) -> dict[str, Any]:
    return {
        "of": group.kind,
        "group": group.name,
        "items": group.count,
        "summary": _as_values(group.summary),
    }


def _as_values(summary: dict[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {name: _finite(asdict(interval)) for name, interval in summary.items()}


def _write_json(path: Path, record: dict[str, Any]) -> None:
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
