"""Train a preset, or go on with the run: `deepspeed launch/train.py --hparams base`.

Without a launcher, and under torchrun and `accelerate launch`, Accelerate runs the training instead. The same command
again goes on where the run stopped. Exit codes: 0 finished, 2 the input is wrong, 70 diverged, 71 a rank died or
froze, 75 stopped early.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enhancer.engine.ancestors import Ancestors
from enhancer.engine.launcher import detect, is_first_rank
from enhancer.engine.memory import keep_freed_memory
from hparams.errors import UserError

if TYPE_CHECKING:
    from data_shards.corpus import Corpus
    from enhancer.engine.session import Place
    from enhancer.engine.task import Stream, Task
    from hparams.load import Override
    from hparams.schema import HParams

EXIT_USER = 2
MOST_RANKS = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; the exit code."""
    options = parse(arguments)
    ancestors = Ancestors.of(detect())
    from hparams.load import dump, preset_name

    try:
        hp = load_for_corpus(options.hparams, [text for texts in options.set for text in texts])
    except UserError as error:
        if is_first_rank():
            print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    if options.print_config:
        print(dump(hp), end="")
        print("# DeepSpeed:", json.dumps(hp.deepspeed_config, indent=2).replace("\n", "\n# "))
        return 0
    if options.print_memory:
        from launch.memory_table import print_memory

        run_folder = options.run_dir or Path("runs") / preset_name(options.hparams)
        return print_memory(hp, options.backend or "deepspeed", options.world_size, run_folder)
    # Importing torch takes seconds, so a mistake in the hyper-parameters is found first.
    from data_shards.remote import RemoteFolder
    from enhancer.engine.session import Options, train

    session = Options(
        run_folder=options.run_dir or Path("runs") / preset_name(options.hparams),
        backend=options.backend,
        init_from=options.init_from,
        allow_data_change=options.allow_data_change,
        seconds_per_example=hp.example_seconds,
        ancestors=ancestors,
        copies=RemoteFolder(hp.checkpoint_copy_url) if hp.checkpoint_copy_url else None,
    )
    return train(hp, session, open_task)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument(
        "--hparams",
        default="base",
        metavar="NAME_OR_PATH",
        help="preset, or path of a YAML file or of an Automated-GuitarAmpModelling configuration (.json); default base",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="run folder; default runs/<preset>")
    parser.add_argument(
        "--set",
        action="append",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="values on top of the preset, such as max_lr=1e-3 task.width=8",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print hyper-parameters and DeepSpeed configuration; trains nothing",
    )
    parser.add_argument(
        "--print-memory",
        action="store_true",
        help="print what memory a step will take on each GPU; trains nothing and needs no GPU",
    )
    parser.add_argument(
        "--world-size",
        type=_ranks,
        default=1,
        metavar="N",
        help="GPUs that --print-memory is about; default 1",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="RUN_OR_SAFETENSORS",
        help="start a fresh run from these weights (the best ones of a run); all else starts anew",
    )
    parser.add_argument(
        "--allow-data-change",
        action="store_true",
        help="go on although the corpora are not the same any more",
    )
    parser.add_argument(
        "--backend",
        choices=["deepspeed", "accelerate"],
        help="default: deepspeed under the deepspeed launcher, else accelerate",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it.
    return parser.parse_args(arguments)


def _ranks(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_RANKS:
        raise argparse.ArgumentTypeError(f"{text} is no number of GPUs from 1 to {MOST_RANKS}")
    return int(text)


def load_for_corpus(preset: str, overrides: Sequence[Override]) -> HParams:
    """The hyper-parameters; rate and knobs are those of a device's or string's corpus unless `overrides` say more.

    What a configuration of Automated-GuitarAmpModelling was read as is told on stderr.
    """
    from hparams.load import converted, load

    corpus = _device_corpus(preset, overrides)
    recordings = None
    if corpus is not None and corpus.kind == "string":
        overrides = [f"wav_rate={corpus.rate_hz}", *overrides]
    elif corpus is not None:
        from hparams.agam import Recordings

        knobs = tuple(corpus.takes[0].knobs)
        frames = corpus.frames[corpus.split(0.5).train]
        recordings = Recordings(corpus.rate_hz, len(knobs), tuple(frames.tolist()))
        own = [f"wav_rate={corpus.rate_hz}", f"task.knobs={json.dumps(knobs)}"]
        overrides = [*own, *overrides]
    try:
        hp = load(preset, overrides, recordings)
    except UserError as error:
        _blame_missing_corpus(preset, overrides, error)
        raise
    old = converted(preset, recordings)
    if old is not None and is_first_rank():
        print(f"{old.text}\n  Values of --set come on top.", file=sys.stderr)
    return hp


def _device_corpus(preset: str, overrides: Sequence[Override]) -> Corpus | None:
    """The corpus of a device or a string to learn; None for other tasks, and where there is none yet.

    Looked for before the values are checked, for what is possible depends on its rate.
    """
    sought = _device_place(preset, overrides)
    if sought is None or _is_missing(sought[0]):
        return None  # What is not there is told of when the data are opened.
    from data_shards.corpus import Corpus

    return Corpus.open(*sought)


def _blame_missing_corpus(preset: str, overrides: Sequence[Override], error: UserError) -> None:
    """Raises UserError with `error` after the corpus, where that is not there: its rate may be all that is wrong."""
    sought = _device_place(preset, overrides)
    if sought is not None and _is_missing(sought[0]):
        from data_shards.corpus import Corpus

        try:
            Corpus.open(*sought)
        except UserError as missing:
            raise UserError(f"{missing}\nThe values were checked without its rate: {error}") from error


def _device_place(preset: str, overrides: Sequence[Override]) -> tuple[Path | str, str] | None:
    """Where the corpus of a device or a string to learn should be, and its kind; None for other tasks."""
    from hparams.load import peek
    from hparams.place import corpus_place
    from hparams.tasks import DEVICE_TASKS

    task, pairs, notes = peek(preset, overrides, ("task.name", "pair_dir", "note_dir"))
    given, kind = (notes, "string") if task == "string" else (pairs, "pedal")
    if task not in (*DEVICE_TASKS, "string") or not isinstance(given, str):
        return None
    return corpus_place(given), kind


def _is_missing(place: Path | str) -> bool:
    return isinstance(place, Path) and not place.is_dir()


def open_task(hp: HParams, place: Place) -> tuple[Task, Stream]:
    """The task that `hp` names and this rank's share of its data."""
    from data_shards.stream import worker_count
    from enhancer.engine.session_end import say
    from enhancer.tasks import TASKS
    from launch.codec_weights import listening_constants
    from launch.common import open_data
    from launch.frozen_runs import frozen_constants

    frozen = frozen_constants(hp, place.run_folder, is_writer=place.rank == 0)
    stream = open_data(
        hp,
        rank=place.rank,
        world_size=place.world_size,
        batch_size=place.batch_size,
        num_workers=worker_count(hp, place.local_world_size),
    )
    for text in stream.warnings:
        say(text)
    return TASKS[hp.task.name](hp, {**stream.constants(), **listening_constants(hp), **frozen}), stream


if __name__ == "__main__":
    # Until training listens, Ctrl-C ends each rank at once and without a traceback: nothing is there to be saved.
    # For the same reason what takes long to import is imported later.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    keep_freed_memory()
    code = main()
    if "torch" in sys.modules:
        from enhancer.engine.session_end import leave

        leave(code)
    sys.exit(code)
