"""Write the embedded demo corpora: synthesise audio folders, then build data/fg, data/bg and data/rir from them.

    python launch/demo_corpora.py [--data data] [--seed 0] [--rate 44100]
    python launch/demo_corpora.py --kind pedal          # data/pedal: guitar through a simulated overdrive
    python launch/demo_corpora.py --kind string         # data/string: synthetic Karplus-Strong tones
    python launch/demo_corpora.py --kind pitch          # data/pitch: notes and voices, shifted and shifted back

Takes about ten seconds on one core. A corpus that is already there is left as it is, whoever built it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.build import build_corpus, no_report
from data_shards.dataset import DATASET_NAME
from data_shards.note_options import StringOptions, read_note_list
from data_shards.options import BuildOptions
from data_shards.pedal import PedalOptions, build_pedal_corpus, read_pairs
from data_shards.shifters import require_engine
from data_shards.shifts import ShiftOptions
from data_shards.string_notes import build_string_corpus
from data_shards.synthetic import write_demo_audio, write_foregrounds
from data_shards.synthetic_device import write_device_pairs
from data_shards.synthetic_string import CSV_NAME, NUM_NOTES, write_string_notes
from launch.common import reports_user_errors

KINDS = ("fg", "bg", "rir")


@reports_user_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo_corpora.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the corpora")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other voices, noises and rooms")
    parser.add_argument("--rate", type=int, default=44_100, help="sample rate in Hz")
    parser.add_argument(
        "--kind", choices=("mix", "pedal", "string", "pitch"), default="mix",
        help="mix: fg, bg and rir for the main job; pedal: dry/wet pairs of a simulated device; string: single notes "
        "of known decay; pitch: recordings shifted in pitch and back (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    writers = {"pedal": write_demo_pedal, "string": write_demo_string, "pitch": write_demo_pitch}
    write = writers.get(options.kind, write_demo_corpora)
    write(options.data, seed=options.seed, rate_hz=options.rate)
    return 0


def write_demo_pedal(data: Path, *, seed: int = 0, rate_hz: int = 44_100) -> None:
    """Make `data`/pedal if it is not there. Raises: UserError, OSError."""
    output = data / "pedal"
    if (output / DATASET_NAME).is_file():
        print(f"{output} is there already and stays as it is")
        return
    start = time.monotonic()
    audio = data / f"demo-pedal-{rate_hz}hz-seed{seed}"
    if not audio.is_dir():
        with _whole_folder(audio) as unfinished:
            write_device_pairs(unfinished, seed=seed, rate_hz=rate_hz, report=_say)
    _say(f"building {output}")
    # Nothing is late in a simulation, and what its filters delay is the model's to learn.
    build_pedal_corpus(read_pairs(audio / "pairs.csv"), output, PedalOptions(align="off"))
    _say(f"demo corpus written to {output} in {time.monotonic() - start:.0f} s")


def write_demo_string(
    data: Path, *, seed: int = 0, rate_hz: int = 44_100, num_notes: int = NUM_NOTES
) -> None:
    """Make `data`/string if it is not there. Raises: UserError, OSError."""
    output = data / "string"
    if (output / DATASET_NAME).is_file():
        print(f"{output} is there already and stays as it is")
        return
    start = time.monotonic()
    _say("plucking synthetic strings")
    audio = data / f"demo-string-{rate_hz}hz-seed{seed}"
    if not audio.is_dir():
        with _whole_folder(audio) as unfinished:
            write_string_notes(unfinished, seed=seed, rate_hz=rate_hz, report=no_report, num_notes=num_notes)
    _say(f"building {output}")
    known = read_note_list(audio / CSV_NAME)
    options = StringOptions(rate_hz=rate_hz, known=known, max_reject=0.0)
    built = build_string_corpus([audio], output, options)
    _say(f"{len(built.notes)} notes written to {output} in {time.monotonic() - start:.0f} s")


def write_demo_pitch(data: Path, *, seed: int = 0, rate_hz: int = 44_100, num_instruments: int = 6) -> None:
    """Make `data`/pitch if it is not there. Raises: UserError, OSError."""
    output = data / "pitch"
    if (output / DATASET_NAME).is_file():
        print(f"{output} is there already and stays as it is")
        return
    start = time.monotonic()
    for engine in ShiftOptions().engines:
        require_engine(engine)
    audio = data / f"demo-pitch-{rate_hz}hz-seed{seed}"
    if not audio.is_dir():
        _say("synthesising instruments and speakers")
        with _whole_folder(audio) as unfinished:
            write_foregrounds(
                unfinished, seed=seed, rate_hz=rate_hz, num_speakers=2, num_instruments=num_instruments
            )
    _say(f"building {output}")
    options = BuildOptions("pitch", rate_hz=rate_hz, group_by="folder", shift=ShiftOptions(copies=2))
    build_corpus("pitch", [audio], output, options)
    _say(f"demo corpus written to {output} in {time.monotonic() - start:.0f} s")


def write_demo_corpora(data: Path, *, seed: int = 0, rate_hz: int = 44_100) -> None:
    """Make those of `data`/fg, bg and rir that are not there. Raises: UserError, OSError."""
    missing = [kind for kind in KINDS if not (data / kind / DATASET_NAME).is_file()]
    for kind in KINDS:
        if kind not in missing:
            print(f"{data / kind} is there already and stays as it is")
    if not missing:
        return
    start = time.monotonic()
    audio = data / f"demo-audio-{rate_hz}hz-seed{seed}"
    if not audio.is_dir():
        with _whole_folder(audio) as unfinished:
            write_demo_audio(unfinished, seed=seed, rate_hz=rate_hz, report=_say)
    for kind in missing:
        _say(f"building {data / kind}")
        # Takes of one speaker or instrument share a folder, and are kept on one side of the split.
        group_by = "folder" if kind == "fg" else "file"
        build = BuildOptions(kind, rate_hz=rate_hz, group_by=group_by)
        build_corpus(kind, [audio / kind], data / kind, build)
    _say(f"demo corpora written to {data} in {time.monotonic() - start:.0f} s")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name only once it is whole."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    yield unfinished
    unfinished.rename(folder)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
