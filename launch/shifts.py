"""`build_shards.py pitch`: its arguments, and what is told of its pairs."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from data_shards.corpus import Corpus
from data_shards.shifts import ShiftOptions, semitone_range
from hparams.shifting import ENGINES

SHIFTS_HELP = "recordings, and the same shifted in pitch and back, from which a model learns to undo it"
SEGMENT_SECONDS = 10.0
"""Each segment is shifted by its own number of semitones, so that short ones make variety."""


def add_shift_arguments(command: argparse.ArgumentParser) -> None:
    """Add what only `pitch` takes to its parser."""
    default = ShiftOptions()
    command.set_defaults(segment_seconds=SEGMENT_SECONDS)
    command.add_argument(
        "--semitones", default="-12..12", metavar="LOW..HIGH",
        help="whole semitones of the first shift, drawn for each pair; above 0 up and then down again (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--engines", default=",".join(default.engines), metavar="A,B",
        help=f"shifters, one drawn for each pair: {', '.join(ENGINES)} (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--copies", type=int, default=default.copies, metavar="N",
        help="pairs made of each segment, each drawn anew (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--seed", type=int, default=default.seed, help="other seeds draw other shifts (%(default)s)"
    )


def shift_options(args: argparse.Namespace) -> ShiftOptions:
    """The options that were given. Raises: CorpusError."""
    engines = tuple(name.strip() for name in args.engines.split(",") if name.strip())
    return ShiftOptions(semitone_range(args.semitones), engines, args.copies, args.seed)


def joined_range(arguments: list[str]) -> list[str]:
    """`--semitones -12..12` as one argument, which argparse would take for a flag of its own."""
    joined: list[str] = []
    for text in arguments:
        if joined and joined[-1] == "--semitones":
            joined[-1] = f"--semitones={text}"
        else:
            joined.append(text)
    return joined


def print_shifts(folder: Path) -> None:
    """How many pairs each engine made, and how late they were."""
    takes = Corpus.open(folder, "pitch").shifts
    for engine, count in sorted(Counter(take.engine for take in takes).items()):
        lags = sorted(take.lag_samples for take in takes if take.engine == engine)
        ups = sum(take.engine == engine and take.semitones > 0 for take in takes)
        print(
            f"  {engine}: {count} pairs, {ups} of them up first; late by {lags[0]} to {lags[-1]} samples, median "
            f"{lags[len(lags) // 2]}, taken out"
        )
