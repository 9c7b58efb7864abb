"""Train a preset over a grid of values, or in variants, with several seeds: launch/sweep.py hparams/sweeps/NAME.yaml

Every member is a run folder of its own below --output. The same command again skips what is finished and goes on with
the rest. Ctrl-C has the running members save. Exit codes: 0 all finished, 1 a member failed (the others are done, the
table says why), 2 the input is wrong, 75 stopped early.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enhancer.engine import folder_lock
from enhancer.engine.folder_lock import FolderTakenError
from hparams.errors import UserError
from hparams.sweep import Sweep, read_sweep
from hparams.sweep_settings import short_names
from launch.common import reports_user_errors
from launch.slurm_job import read_parameters
from launch.sweep_local import STOPPED, train_here
from launch.sweep_members import DIVERGED, FAILED, Planned, plan, progress_of
from launch.sweep_slurm import train_on_cluster
from launch.sweep_statistics import TESTS, require_scipy
from launch.train import load_for_corpus

if TYPE_CHECKING:
    from launch.grades import FilePair
    from launch.sweep_results import Result

EXIT_FAILED = 1
PAGE = "results.html"
FIGURES = "figures"
_UNSAFE = re.compile(r"[^\w.=,+-]+")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; needed 1 or more")
    sweep = read_sweep(args.sweep, [text for texts in args.set for text in texts])
    output = args.output or Path("runs") / "sweeps" / sweep.name
    # What the end needs is looked for at the start: trainings may take days.
    require_scipy()
    pairs = _files(args.files)
    parameters = None if args.slurm is None else read_parameters(args.slurm)
    members = plan(sweep, output, load_for_corpus)
    if pairs:
        from launch.sweep_files import check_files

        check_files(members, pairs, args.knob)
    with nullcontext() if args.no_runs else _kept_to_this(output):
        open_members = [each for each in members if not progress_of(each).is_over]
        print(
            f"{sweep.name}: {len(sweep.settings)} settings x {len(sweep.seeds)} seeds in {output}; "
            f"{len(members) - len(open_members)} of {len(members)} members are done",
            flush=True,
        )
        failures: dict[str, str] | None = {}
        if open_members and not args.no_runs:
            if parameters is None:
                failures = train_here(open_members, args.jobs or 1)
            else:
                train_on_cluster(open_members, output, parameters, args.jobs)
        if failures is None:
            print(
                "stopped; the same command goes on, --no-runs makes the table of what is there",
                file=sys.stderr,
            )
            return STOPPED
        results = report(sweep, members, output, failures, args.test, pairs, args.knob)
    return _exit_code(results)


@contextmanager
def _kept_to_this(output: Path) -> Iterator[None]:
    """Keep other sweeps out of `output`. Raises UserError that names the one that is in it."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = folder_lock.take(output)
    except FolderTakenError as taken:
        raise UserError(
            f"another sweep works in {output} ({taken}); wait for its end, stop it with Ctrl-C, or give another "
            "--output. --no-runs makes the tables of what is there meanwhile"
        ) from taken
    try:
        yield
    finally:
        os.close(lock)


def report(
    sweep: Sweep,
    members: Sequence[Planned],
    output: Path,
    failures: Mapping[str, str],
    test: str,
    pairs: Sequence[FilePair],
    knobs: Sequence[str],
) -> list[Result]:
    """Judge the test files, write tables, page and figures of what has been trained, and print the table."""
    from enhancer.engine.atomic import write_bytes, write_text
    from launch.sweep_page import notes, page
    from launch.sweep_results import metric_of, read_results, with_epochs
    from launch.sweep_table import make_tables

    metric = metric_of(members[0].hp, sweep.metric)
    results = with_epochs(read_results(members, metric, failures))
    if pairs:
        results = _judged(results, pairs, knobs)
    output.mkdir(parents=True, exist_ok=True)
    tables = make_tables(results, metric, test)
    tables.write(output)
    figures = draw(sweep, results, metric, pairs)
    (output / FIGURES).mkdir(exist_ok=True)
    for name, (_, data) in figures.items():
        write_bytes(output / FIGURES / f"{name}.png", data)
    captioned = dict(figures.values())
    write_text(
        output / PAGE,
        page(sweep.name, notes(sweep, results, metric), tables, captioned, _direction(results, metric)),
    )
    _print(results, metric)
    print(f"written to {output / PAGE}, with results.csv, members.csv and {FIGURES}/ beside it")
    return results


def draw(
    sweep: Sweep, results: Sequence[Result], metric: str, pairs: Sequence[FilePair]
) -> dict[str, tuple[str, bytes]]:
    """(caption, PNG) of every figure that the results allow, by file name."""
    from launch import sweep_figures as figures
    from launch.sweep_files import FOLDER, estimate_name

    drawn: dict[str, tuple[str, Any]] = {}
    names = short_names([key for key, _ in sweep.settings[0].values])
    for key in sweep.numeric_keys:
        x = names[key]
        lines = figures.metric_points(results, key, "value")
        if lines:
            caption = f"Validation {metric} against {x}: members, their mean and its 95 % interval over seeds"
            drawn[f"{metric}-against-{x}"] = caption, figures.against_figure({"": lines}, x, metric)
        panels = figures.file_points(results, key)
        if panels:
            caption = (
                f"ESR of each test file against {x}: members, their mean and its 95 % interval over seeds"
            )
            drawn[f"files-esr-against-{x}"] = caption, figures.against_figure(panels, x, "ESR")
        for name, words in (("seconds_per_epoch", "an epoch"), ("seconds_per_step", "a step")):
            lines = figures.metric_points(results, key, name)
            if lines:
                caption = f"Training time of {words} against {x}, without evaluations"
                figure = figures.against_figure({"": lines}, x, name.replace("_", " "))
                drawn[f"{name}-against-{x}"] = caption, figure
                break
    if any(result.train_curve or result.valid_curve for result in results):
        caption = f"Training (pale) and validation {metric} over the steps"
        drawn["curves"] = caption, figures.curves_figure(results, metric)
    waves, rate_hz = figures.validation_waves(results)
    if waves:
        caption = "Target and estimate where the validation recording is loudest, first seed"
        drawn["waves-validation"] = caption, figures.waves_figure(waves, rate_hz)
    for pair in pairs:
        waves, rate_hz = figures.file_waves(results, Path(pair.wet.path), f"{FOLDER}/{estimate_name(pair)}")
        if waves:
            caption = f"Target and estimate where {pair.name} is loudest, first seed"
            drawn[f"waves-{pair.name}"] = caption, figures.waves_figure(waves, rate_hz)
    return {
        _UNSAFE.sub("_", name): (caption, figures.png(figure)) for name, (caption, figure) in drawn.items()
    }


def _judged(results: Sequence[Result], pairs: Sequence[FilePair], knobs: Sequence[str]) -> list[Result]:
    """`results` with the ESR of the test files for every finished member."""
    from launch.sweep_files import judge_files

    judged = []
    for result in results:
        if result.is_finished:
            print(f"judging {len(pairs)} test files: {result.planned.label}", flush=True)
            result = replace(result, files=judge_files(result.planned, pairs, knobs))
        judged.append(result)
    return judged


def _files(folder: Path | None) -> list[FilePair]:
    if folder is None:
        return []
    from launch.sweep_files import find_pairs

    return find_pairs(folder)


def _direction(results: Sequence[Result], metric: str) -> bool | None:
    """Whether more is better, where that is known: of the metric by which the task itself picks its best weights."""
    from enhancer.tasks import TASKS

    task = TASKS[results[0].planned.hp.task.name]
    return bool(task.best_is_higher) if metric == task.best_metric else None


def _print(results: Sequence[Result], metric: str) -> None:
    """A table of the settings that fits a terminal; results.csv has the rest."""
    from rich.console import Console
    from rich.table import Table

    from launch.sweep_page import shown
    from launch.sweep_results import by_setting
    from launch.sweep_table import setting_row

    table = Table(title="mean over seeds and its 95 % interval")
    for name in ("setting", "finished", metric, "s/epoch", "ms/step"):
        table.add_column(name)
    for label, group in by_setting(results).items():
        row = setting_row(group, metric)
        mean, low, high = (row[f"{metric}_{part}"] for part in ("mean", "low", "high"))
        interval = "" if low is None else f" ({shown(low)} .. {shown(high)})"
        step = row["seconds_per_step"]
        table.add_row(
            label,
            f"{row['finished']} of {row['runs']}",
            f"{shown(mean)}{interval}",
            shown(row["seconds_per_epoch"]),
            shown(None if step is None else 1000 * step),
        )
    Console().print(table)
    for result in results:
        if result.state in (FAILED, DIVERGED):
            print(f"{result.planned.label} {result.state}: {result.reason}")


def _exit_code(results: Sequence[Result]) -> int:
    if any(result.state in (FAILED, DIVERGED) for result in results):
        return EXIT_FAILED
    return 0 if all(result.is_finished for result in results) else STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py",
        description="Train a preset over a grid of values or in variants, with several seeds, and compare "
        "(docs/sweeps.md).",
    )
    parser.add_argument("sweep", help="YAML file of the sweep, or the name of one in hparams/sweeps")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default runs/sweeps/<name of the file>")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="members at a time; default 1, on a cluster what it allows"
    )
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="NAME=VALUE",
        help="submit a job array through submitit, with parameters of its AutoExecutor, such as timeout_min=120 "
        "slurm_partition=gpu gpus_per_node=1",
    )
    parser.add_argument(
        "--files",
        type=Path,
        metavar="DIR",
        help="judge every member on pairs NAME-input.wav/NAME-target.wav or NAME_dry.wav/NAME_wet.wav",
    )
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="knobs of the test files; repeat for each",
    )
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="values for all members"
    )
    parser.add_argument("--test", choices=TESTS, default="t", help="test of paired differences; default t")
    parser.add_argument(
        "--no-runs", action="store_true", help="train nothing: tables and figures of what is there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
