"""Show runs in one HTML file that needs nothing beside itself: python launch/report.py runs/a runs/b --output x.html

Curves and values come from what the runs wrote while training. What is to be heard and looked at is computed by the
best checkpoint from the validation list; where a corpus or a checkpoint is out of reach the sounds kept in samples/
take its place, and the report says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from enhancer.engine.atomic import write_text
from enhancer.inference import TrainedRun, load_run
from enhancer.report.examples import Heard, chosen_items, from_samples, grouped, title
from enhancer.report.page import Content, document
from enhancer.report.record import RunRecord, read_runs
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.place import corpus_place
from launch.common import choose_device, open_data, reports_user_errors

BATCH_SIZE = 4
CORPUS_FIELDS = ("fg_dir", "bg_dir", "rir_dir", "pair_dir", "note_dir")
DEFAULT_NAME = "report.html"


@dataclass
class Gathered:
    """What is found out about runs beside their records."""

    heard: list[Heard] = field(default_factory=list)
    names_of_items: dict[str, dict[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    items: dict[str, list[int]] = field(default_factory=dict)
    """Items that are shown, by fingerprint of the corpora: the same for all runs that are judged on them."""


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.examples < 0:
        raise UserError(f"--examples {args.examples}: needed 0 or more")
    runs = read_runs(args.runs)
    output = _output(args.output, args.runs)
    gathered = Gathered()
    for run in runs:
        if args.examples:
            _gather(run, args, gathered)
    made = f"Made {datetime.now().strftime('%Y-%m-%d %H:%M')} by launch/report.py."
    content = Content(runs, grouped(gathered.heard), gathered.names_of_items, gathered.notes, made)
    text = document(content)
    try:
        write_text(output, text, is_durable=False)
    except OSError as error:
        raise _unwritable(output, error.strerror) from error
    for note in gathered.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{output}: {len(runs)} runs, {len(content.examples)} items to hear, {len(text) / 1e6:.1f} MB")
    return 0


def _gather(run: RunRecord, args: argparse.Namespace, gathered: Gathered) -> None:
    """Add what `run` makes of some items of its validation list: computed, or else from its samples."""
    reason = "--samples-only was given"
    if not args.samples_only:
        try:
            gathered.heard += _computed(run, args, gathered)
            return
        except (UserError, DataError, OSError) as error:
            reason = str(error)
    kept, notes = from_samples(run, args.examples)
    gathered.heard += kept
    place = "its kept samples are shown" if kept else "there is nothing to hear of it"
    said = "; ".join([reason, *notes])
    gathered.notes.append(f"{run.name}: the validation list was not computed, {place}. {said}")


def _computed(run: RunRecord, args: argparse.Namespace, gathered: Gathered) -> list[Heard]:
    """What the best checkpoint makes of the chosen items. Raises UserError and DataError for what is out of reach."""
    trained = load_run(run.folder, choose_device(args.device))
    hp = replace(trained.hp, **{name: getattr(args, name) for name in CORPUS_FIELDS if getattr(args, name)})
    stream = open_data(hp, batch_size=BATCH_SIZE, num_workers=0)
    names = {item: title(stream.item_sources(item)) for item in range(stream.num_valid_items)}
    key = f"{run.hp.task.name} {stream.fingerprint} {stream.num_valid_items}"
    chosen = gathered.items.setdefault(key, chosen_items(run, args.examples))
    print(f"{run.name}: {trained.checkpoint.name} on items {', '.join(map(str, sorted(chosen)))}", flush=True)
    origin = f"by {trained.checkpoint.name}"
    heard = [
        Heard(run, item, names[item], hp.wav_rate, waves, origin)
        for item, waves in run_items(replace(trained, hp=hp), stream, chosen).items()
    ]
    gathered.names_of_items[run.name] = names
    gathered.notes += [f"{run.name}: {note}" for note in trained.notes]
    if trained.step != run.best["step"]:
        gathered.notes.append(
            f"{run.name}: sounds are of {trained.checkpoint.name}, the values of the evaluation at step "
            f"{run.best['step']}, whose checkpoint is not there"
        )
    return heard


def run_items(run: TrainedRun, stream: Any, items: Sequence[int]) -> dict[int, dict[str, torch.Tensor]]:
    """The waves [T] of some items of the validation list, by item in the order of `items`."""
    task = TASKS[run.hp.task.name](run.hp, {**stream.constants(), **run.constants})
    device = next(run.module.parameters()).device
    task.to(device)
    found: dict[int, dict[str, torch.Tensor]] = {}
    for batch in stream.validation():
        picked = [row for row, item in enumerate(batch["item"].tolist()) if item in items]
        if not picked:
            continue
        few = {name: column[picked].to(device) for name, column in batch.items()}
        with torch.no_grad():
            waves = task.waves({task.main_module: run.module}, few)
        for row, item in enumerate(few["item"].tolist()):
            found[item] = {name: wave[row].float().cpu() for name, wave in waves.items()}
        if len(found) == len(items):
            break
    return {item: found[item] for item in items if item in found}


def _output(given: Path | None, folders: list[Path]) -> Path:
    """The file to write. Raises UserError where it is not clear or cannot be."""
    if given is None and len(folders) > 1:
        raise UserError(f"say where the report of {len(folders)} runs goes: --output {DEFAULT_NAME}")
    output = given or folders[0] / DEFAULT_NAME
    if output.is_dir():
        raise UserError(
            f"--output {output} is a folder; name the file to write, such as {output / DEFAULT_NAME}"
        )
    # Before anything is computed.
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(output, error.strerror) from error
    if not os.access(output.parent, os.W_OK):
        raise _unwritable(output, "no permission to write into its folder")
    return output


def _unwritable(output: Path, reason: str | None) -> UserError:
    return UserError(f"--output {output} cannot be written ({reason}); name a file in a folder of yours")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/report.py", description="Show runs in one HTML file that needs nothing beside itself."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder of a training run")
    parser.add_argument("--output", type=Path, help=f"file to write; default for one run: RUN/{DEFAULT_NAME}")
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N",
        help="items to hear, from the worst to the best of the validation list; 0 for none (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--samples-only", action="store_true", help="compute nothing: show the sounds that the runs kept"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; default: the best there is")
    for name in CORPUS_FIELDS:
        parser.add_argument(
            "--" + name.replace("_", "-"), type=corpus_place,
            help=f"where the corpus lies now (a folder or URL), in place of the runs' {name}",
        )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
