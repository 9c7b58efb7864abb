"""Build and check corpora: python launch/build_shards.py {fg,bg,rir,pair,pitch,pedal,string,verify} ...

Running the same command again goes on where a build stopped. Exit codes: 0 done, 2 wrong input or damage found,
75 stopped by Ctrl-C or SIGTERM (run again to go on).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_shards.build import REJECTS_NAME, BuildResult, build_corpus
from data_shards.errors import CorpusError
from data_shards.options import BuildOptions
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus, knob_value, read_pairs
from data_shards.plan import Report
from data_shards.verify import verify_corpus
from hparams.errors import UserError
from launch.notes import NOTES_HELP, NOTES_MORE, add_note_arguments, note_options, print_notes
from launch.shifts import SHIFTS_HELP, add_shift_arguments, joined_range, print_shifts, shift_options

EXIT_USER = 2
EXIT_STOPPED = 75
PLAIN_LINE_SECONDS = 5.0
SHOWN_DAMAGES = 20

KIND_HELP = {
    "fg": "foregrounds: clean voices, instruments, music",
    "bg": "backgrounds: noise and ambience",
    "rir": "room impulse responses; each channel is a sample that starts at its direct path",
    "pair": "recordings and what a model should make of them, matched by relative name without extension",
    "pitch": SHIFTS_HELP,
}
PEDAL_HELP = "a pedal or amp: what was played into it and what came out, with the values of its knobs"
PEDAL_MORE = "--dry, --wet and --knob may be repeated; a --knob belongs to the --dry before it"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(joined_range(sys.argv[1:] if argv is None else argv))
    try:
        with _sigterm_as_interrupt():
            if args.command == "verify":
                return _verify(args.folder)
            build = {"pedal": _build_pedal, "string": _build_string}.get(args.command, _build)
            return build(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        kept = "" if args.command == "verify" else "; finished shards are kept, run the same command to go on"
        print(f"\nstopped{kept}", file=sys.stderr)
        return EXIT_STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/build_shards.py", description="Build corpora of sharded audio, and check them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for kind, text in KIND_HELP.items():
        _add_build_arguments(commands.add_parser(kind, help=text, description=text), kind)
    _add_pedal_arguments(
        commands.add_parser("pedal", help=PEDAL_HELP, description=f"{PEDAL_HELP}. {PEDAL_MORE}")
    )
    add_note_arguments(
        commands.add_parser("string", help=NOTES_HELP, description=f"{NOTES_HELP}. {NOTES_MORE}")
    )
    verify = commands.add_parser("verify", help="read every byte of a corpus and name what is damaged")
    verify.add_argument("folder", type=Path)
    return parser


def _add_build_arguments(command: argparse.ArgumentParser, kind: str) -> None:
    default = BuildOptions(kind)
    command.add_argument(
        "--input", type=Path, action="append", required=True, metavar="DIR",
        help="folder of audio, searched to any depth; may be repeated",
    )  # fmt: skip
    if kind == "pair":
        command.add_argument(
            "--target", type=Path, action="append", required=True, metavar="DIR",
            help="folder of targets, one for each --input",
        )  # fmt: skip
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    command.add_argument(
        "--rate", type=int, default=default.rate_hz, metavar="HZ", help="sample rate (%(default)s)"
    )
    command.add_argument(
        "--codec", choices=("wav", "flac"), default=default.codec,
        help="flac: half the bytes, several times the CPU while training (%(default)s)",
    )  # fmt: skip
    if kind != "rir":
        command.add_argument(
            "--segment-seconds", type=float, default=default.segment_seconds, metavar="S",
            help="longest sample; longer recordings are cut into equal parts (%(default)s)",
        )  # fmt: skip
    command.add_argument(
        "--shard-mb", type=float, default=default.shard_mb, metavar="MB", help="size of a shard (%(default)s)"
    )
    command.add_argument(
        "--group-by", choices=("file", "folder"), default=default.group_by,
        help="what stays together in training or validation: a recording, or a (speaker's) folder (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--max-reject", type=float, default=default.max_reject, metavar="SHARE",
        help="largest share of files that may be unusable (%(default)s)",
    )  # fmt: skip
    command.add_argument("--workers", type=int, metavar="N", help="processes (one per CPU core)")
    if kind == "pitch":
        add_shift_arguments(command)


class _PairPart(argparse.Action):
    """Keeps --dry, --wet and --knob in the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        parts = [*(getattr(namespace, "parts", None) or []), (option_string, values)]
        namespace.parts = parts


def _add_pedal_arguments(command: argparse.ArgumentParser) -> None:
    default = PedalOptions()
    command.set_defaults(parts=[])
    for flag, metavar, text in (
        ("--dry", "IN.wav", "what was played into the device; wav or flac, mono"),
        ("--wet", "OUT.wav", "what came out of it, as long and at the same rate"),
        ("--knob", "NAME=VALUE", "where a knob stood, such as drive=0.5; may be repeated"),
    ):
        command.add_argument(flag, action=_PairPart, dest=flag[2:], metavar=metavar, help=text)
    command.add_argument(
        "--pairs", type=Path, metavar="CSV",
        help="a list of pairs instead: columns dry and wet (paths from the CSV's folder on) and one for each knob",
    )  # fmt: skip
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    command.add_argument(
        "--align", type=_align, default=default.align, metavar="auto|N|off",
        help="samples by which wet is late, to be taken out; auto measures them, off leaves all as it is (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--fix-polarity",
        action="store_true",
        help="turn an inverted wet file over; else polarity stays as recorded",
    )
    command.add_argument(
        "--valid-seconds",
        type=float,
        metavar="S",
        help="how much of the end of each pair validates; what is kept for a test lies behind it",
    )
    command.add_argument(
        "--valid-fraction", type=float, default=default.valid_fraction, metavar="SHARE",
        help="as a share of the pair, where --valid-seconds is not given (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--test-seconds",
        type=float,
        metavar="S",
        help="how much of the very end of each pair is kept for `evaluate.py --split test`",
    )
    command.add_argument(
        "--test-fraction", type=float, default=default.test_fraction, metavar="SHARE",
        help="as a share of the pair, where --test-seconds is not given (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--channel", type=int, metavar="N", help="channel of files with several; 0 is the first"
    )


def _align(text: str) -> str | int:
    try:
        return int(text)
    except ValueError:
        return text


def _device_pairs(args: argparse.Namespace) -> list[DevicePair]:
    if args.pairs is not None:
        if args.parts:
            raise CorpusError(
                "--pairs and --dry, --wet or --knob are both given. Put all pairs into the list"
            )
        return read_pairs(args.pairs)
    dry: list[Path] = []
    wet: dict[int, Path] = {}
    knobs: list[dict[str, float]] = []
    for flag, value in args.parts:
        if flag == "--dry":
            dry.append(Path(value))
            knobs.append({})
        elif not dry:
            raise CorpusError(f"{flag} {value} stands before any --dry. Begin each pair with --dry")
        elif flag == "--wet":
            if len(dry) - 1 in wet:
                raise CorpusError(
                    f"--wet {value} is the second one for --dry {dry[-1]}. Begin each pair with --dry"
                )
            wet[len(dry) - 1] = Path(value)
        else:
            name, _, number = value.partition("=")
            if name in knobs[-1]:
                raise CorpusError(f"--knob {name} is given twice for --dry {dry[-1]}. Give each knob once")
            knobs[-1][name] = knob_value(name, number, f"--knob {value}")
    for number, path in enumerate(dry):
        if number not in wet:
            raise CorpusError(f"--dry {path} has no --wet. Give the device's recording of it with --wet")
    return [DevicePair(path, wet[number], knobs[number]) for number, path in enumerate(dry)]


def _build_pedal(args: argparse.Namespace) -> int:
    options = PedalOptions(
        align=args.align,
        fix_polarity=args.fix_polarity,
        valid_seconds=args.valid_seconds,
        valid_fraction=args.valid_fraction,
        test_seconds=args.test_seconds,
        test_fraction=args.test_fraction,
        channel=args.channel,
    )
    pairs = _device_pairs(args)
    started = time.monotonic()
    with _progress() as report:
        built = build_pedal_corpus(pairs, args.output, options, report=report)
    for imported in built.pairs:
        for warning in imported.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    print(_summary(built.result, time.monotonic() - started))
    for imported in built.pairs:
        print(f"  {imported.summary}")
    return 0


def _build_string(args: argparse.Namespace) -> int:
    # Listening to notes takes torch, which the other kinds need not wait for.
    from data_shards.string_notes import build_string_corpus

    options = note_options(args)
    started = time.monotonic()
    with _progress() as report:
        built = build_string_corpus(args.input, args.output, options, report=report)
    print_notes(built)
    print(_summary(built.result, time.monotonic() - started))
    return 0


def _build(args: argparse.Namespace) -> int:
    kind = args.command
    options = BuildOptions(
        kind,
        rate_hz=args.rate,
        codec=args.codec,
        segment_seconds=getattr(args, "segment_seconds", BuildOptions(kind).segment_seconds),
        shard_mb=args.shard_mb,
        group_by=args.group_by,
        max_reject=args.max_reject,
        workers=args.workers,
        **({"shift": shift_options(args)} if kind == "pitch" else {}),
    )
    targets = args.target if kind == "pair" else ()
    started = time.monotonic()
    with _progress() as report:
        result = build_corpus(kind, args.input, args.output, options, targets=targets, report=report)
    print(_summary(result, time.monotonic() - started))
    if kind == "pitch":
        print_shifts(args.output)
    return 0


def _summary(result: BuildResult, seconds: float) -> str:
    info = result.info
    size = sum(shard.size for shard in info.shards)
    state = (
        "up to date" if result.up_to_date else f"{_count(result.num_built, 'shard')} built in {seconds:.1f} s"
    )
    lines = [
        f"{result.folder}: {state}",
        f"  {info.num_files - info.num_rejected_files} of {info.num_files} files, "
        f"{info.frames / info.rate_hz / 3600:.2f} h, {_count(info.num_samples, 'sample')}, "
        f"{_count(len(info.shards), 'shard')}, {size / 1e6:.1f} MB, {info.kind} at {info.rate_hz} Hz as {info.codec}",
        f"  fingerprint {info.fingerprint[:16]}",
    ]
    num_rejects = (result.folder / REJECTS_NAME).read_bytes().count(b"\n")
    if num_rejects:
        parts = num_rejects - info.num_rejected_files
        rejects = (
            f"{_count(info.num_rejected_files, 'file')} and {_count(parts, 'part')} of other files rejected"
        )
        lines.append(f"  {rejects}; reasons in {result.folder / REJECTS_NAME}")
    if info.clipped:
        lines.append(f"  {info.clipped} values lay beyond full scale and were clipped")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _verify(folder: Path) -> int:
    with _progress() as report:
        found = verify_corpus(folder, report)
    if not found:
        print(f"{folder}: every byte is as it was built")
        return 0
    print(f"error: {folder} is damaged in {_count(len(found), 'place')}", file=sys.stderr)
    for damage in found[:SHOWN_DAMAGES]:
        print(f"  {damage}", file=sys.stderr)
    if len(found) > SHOWN_DAMAGES:
        print(f"  and {len(found) - SHOWN_DAMAGES} more", file=sys.stderr)
    print(
        "Copy these shards and their .json again from where they are whole, or delete both and run the build again",
        file=sys.stderr,
    )
    return EXIT_USER


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let a scheduler's SIGTERM stop a build as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        stage_shown = ""

        def report(stage: str, done: int, total: int) -> None:
            nonlocal stage_shown
            if stage != stage_shown:
                bar.reset(task, description=stage, total=total or None)
                stage_shown = stage
            bar.update(task, completed=done)

        yield report


def _plain_lines() -> Report:
    last = time.monotonic()

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_LINE_SECONDS:
            return
        last = now
        share = f" {100 * done / total:.0f} %" if total else ""
        print(f"{stage}{share}", file=sys.stderr, flush=True)

    return report


if __name__ == "__main__":
    sys.exit(main())
