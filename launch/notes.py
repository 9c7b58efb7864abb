"""`build_shards.py string`: its arguments, and the table of what was found in the files."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.note_names import read_name
from data_shards.note_options import StringOptions, read_note_list
from data_shards.notes import ATTACK_MODES, NoteTake

if TYPE_CHECKING:
    from data_shards.string_notes import StringBuild

NOTES_HELP = "single notes of plucked strings, with their pitch and decay"
NOTES_MORE = (
    "Names such as e2_f.wav, eb3_p.flac, c#4 or 040_vel90 say the note and how hard it was plucked (pp to ff, velN of "
    "127, vlN for layers); what is rejected is listed with its reason"
)


def add_note_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `string` to its parser."""
    default = StringOptions()
    command.add_argument(
        "--input", type=Path, action="append", required=True, metavar="DIR",
        help="folder of notes, one a file, searched to any depth; may be repeated",
    )  # fmt: skip
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    command.add_argument(
        "--f0", type=_f0, default=default.f0, metavar="from-name|estimate|HZ",
        help="what says which note it is; the exact pitch is measured (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--octave", type=_octave, default=default.octave, metavar="auto|N",
        help="octaves to add to the notes of names, such as -1; auto: as many as the sound says (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--attack", choices=ATTACK_MODES, default=default.attack,
        help="cut: keep the decay only; keep: all from the onset on (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--list", type=Path, metavar="CSV",
        help="a table with the columns file (from --input on) and any of f0_hz, velocity and position (0 to 1)",
    )  # fmt: skip
    command.add_argument(
        "--rate", type=int, default=default.rate_hz, metavar="HZ", help="sample rate (%(default)s)"
    )
    command.add_argument(
        "--max-reject", type=float, default=default.max_reject, metavar="SHARE",
        help="largest share of files that may be unusable (%(default)s)",
    )  # fmt: skip


def note_options(args: argparse.Namespace) -> StringOptions:
    """The options that were given. Raises: CorpusError."""
    return StringOptions(
        f0=args.f0,
        octave=args.octave,
        attack=args.attack,
        rate_hz=args.rate,
        max_reject=args.max_reject,
        known=read_note_list(args.list) if args.list else None,
    )


def print_notes(built: StringBuild) -> None:
    """The table of what was found, then warnings and rejects on stderr."""
    width = max((len(note.source) for note in built.notes), default=4)
    head = f"{'file':{width}} {'f0 said':>9} {'measured':>9} {'cents':>6} {'s':>6} {'ends':5} {'vel':>4}  T60 (s) at Hz"
    print(head)
    for note in built.notes:
        print(_line(note.source, note.take, width, built.result.info.rate_hz))
    for note in built.notes:
        for warning in note.warnings:
            print(f"warning: {note.source}: {warning}", file=sys.stderr)
    for reject in built.rejects:
        print(f"rejected: {reject.source}: {reject.reason}", file=sys.stderr)


def _line(source: str, take: NoteTake, width: int, rate_hz: int) -> str:
    said = "-" if take.f0_from == "estimate" else f"{take.given_hz:.2f}"
    apart = (
        "-"
        if take.f0_from == "estimate"
        else f"{round(1200 * math.log2(take.f0_hz / take.given_hz), 1) + 0.0:+.1f}"
    )
    velocity = "-" if take.velocity is None else f"{take.velocity:.2f}"
    decays = " ".join(f"{centre}:{value:.2f}" for centre, value in take.t60_seconds.items())
    moved = _octave_note(source, take)
    return (
        f"{source:{width}} {said:>9} {take.f0_hz:9.2f} {apart:>6} {take.frames / rate_hz:6.2f} {take.end:5} "
        f"{velocity:>4}  {decays}{moved}"
    )


def _octave_note(source: str, take: NoteTake) -> str:
    named = read_name(Path(source).stem).f0_hz if take.f0_from == "name" else None
    octaves = 0 if named is None else round(math.log2(take.given_hz / named))
    if not octaves:
        return ""
    count = f"{abs(octaves)} octave{'s' if abs(octaves) > 1 else ''}"
    return f"  ({count} {'below' if octaves < 0 else 'above'} its name)"


def _f0(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _octave(text: str) -> str | int:
    try:
        return int(text)
    except ValueError:
        return text
