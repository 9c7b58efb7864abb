"""Run a trained model over audio files: python launch/apply.py --run runs/base --input in.wav --output out.wav

Input and output may be folders, which are walked; rate, length, channels and sample format of each file are kept.
A file of a folder that fails is named with its reason and the others are done; the exit code is then 2.
A shifted recording is repaired with the semitones it was shifted by: ... --semitones 5
Stage 2 of the enhancer takes how its flow is solved: ... --nfe 16 --solver midpoint --strength 0.5 --seed 0
A string has no input: python launch/apply.py --run runs/string_real --excite pluck.wav --f0 82.4 --output e2.wav
Needs only the run's hparams.yaml and safetensors, and neither DeepSpeed nor the corpora.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from enhancer.inference import (
    CHUNK_SECONDS,
    ChunkedModel,
    StatefulModel,
    TrainedRun,
    gain_into_range,
    load_run,
)
from enhancer.signal.resample import resample_blocks
from hparams.codec import CodecHParams
from hparams.enhance import EnhanceHParams
from hparams.errors import UserError
from hparams.pitch import PitchHParams
from hparams.restore import RestoreHParams
from hparams.tasks import DenoiseHParams, DeviceHParams
from launch.common import (
    HIGHEST_LEVEL,
    checkpoint_folder,
    choose_device,
    knob_values,
    reports_user_errors,
    require_plausible,
)
from launch.pluck import AUDIO_SUFFIXES, add_pluck_arguments, check_pluck_options, pluck_to_file
from launch.restoring import add_restoring_arguments, told_sampling
from launch.semitones import add_semitones_argument, told_semitones

BLOCK_SECONDS = 10.0
MAX_BLOCK_VALUES = 1 << 23
EXIT_USER = 2


@dataclass(frozen=True)
class Done:
    """What became of one file."""

    seconds: float
    wall_seconds: float
    num_clipped: int

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / max(self.wall_seconds, 1e-9)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.chunk_seconds <= 0:
        raise UserError(
            f"--chunk-seconds is {args.chunk_seconds}; needed a length above 0, such as {CHUNK_SECONDS:g}"
        )
    is_pluck = args.input is None
    check_pluck_options(args)
    jobs = [] if is_pluck else plan(args.input, args.output)
    run = load_run(args.run, choose_device(args.device), checkpoint_folder(args.run, args.checkpoint))
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    if is_pluck != (run.hp.task.name == "string"):
        raise UserError(
            f"{args.run} holds a {run.hp.task.name} model, which is run over audio: give --input IN.wav"
            if is_pluck
            else f"{args.run} holds a string, which is plucked: give --excite PLUCK.wav --f0 HZ in place of --input"
        )
    print(f"{run.hp.task.name} model of {args.run}, {run.checkpoint.name}, {run.hp.wav_rate} Hz", flush=True)
    if is_pluck:
        return pluck_to_file(run, args)
    knobs = knob_values(getattr(run.hp.task, "knobs", ()), args.knob)
    run = told_sampling(told_semitones(run, args.semitones), args)
    num_failed = apply_to_all(run, jobs, args.chunk_seconds, knobs, goes_on=args.input.is_dir())
    return EXIT_USER if num_failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/apply.py", description="Run a trained model over audio files."
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of a training run")
    parser.add_argument(
        "--checkpoint", help="name of a checkpoint in the run, such as step-0000500; default: the best"
    )
    parser.add_argument(
        "--input",
        type=Path,
        help="audio file, or a folder that is walked; a file that fails is named and passed over",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="file or folder to write; replaced where it is"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; default: the best there is")
    parser.add_argument(
        "--chunk-seconds", type=float, default=CHUNK_SECONDS, help="audio in memory at a time"
    )
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a knob of a device model; repeat for each",
    )
    add_semitones_argument(parser)
    add_restoring_arguments(parser)
    add_pluck_arguments(parser)
    return parser


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(input file, output file) pairs; raises UserError for what cannot be done before anything is written."""
    if not source.exists():
        raise UserError(f"--input {source} does not exist")
    if source.is_file():
        if target.is_dir():
            target = target / source.name
        jobs = [(source, target)]
    else:
        if target.is_file():
            raise UserError(
                f"--input {source} is a folder but --output {target} is a file; give a folder to write to"
            )
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise UserError(
                f"--output {target} lies in --input {source}, so a second run would take its results for input; "
                "give a folder outside"
            )
        files = sorted(
            path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES
        )
        if not files:
            raise UserError(
                f"--input {source} holds no audio; looked for {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
        jobs = [(path, target / path.relative_to(source)) for path in files]
    for path, output in jobs:
        if output.suffix.lower() not in AUDIO_SUFFIXES:
            raise UserError(
                f"--output {output} has no known audio suffix; use one of {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
        if output.resolve() == path.resolve():
            raise UserError(f"--output {output} is the input itself; write to another file or folder")
    return jobs


def apply_to_all(
    run: TrainedRun, jobs: list[tuple[Path, Path]], chunk_seconds: float, knobs: Tensor, *, goes_on: bool
) -> int:
    """Run the model over (input file, output file) pairs and tell what became of each; how many failed.

    With `goes_on` a file that fails is told on stderr and passed over; else its UserError or OSError is raised.
    """
    seconds = wall_seconds = 0.0
    num_failed = 0
    for number, (source, target) in enumerate(jobs, start=1):
        label = f"[{number}/{len(jobs)}] "
        try:
            done = apply_to_file(run, source, target, chunk_seconds, knobs, label)
        except (UserError, OSError) as error:
            if not goes_on:
                raise
            num_failed += 1
            reason = f"{error}" if isinstance(error, UserError) else f"{source}: {error}"
            print(f"{label}failed: {reason}", file=sys.stderr, flush=True)
            continue
        clipped = f", {done.num_clipped} samples clipped" if done.num_clipped else ""
        print(
            f"{label}{target}: {done.seconds:.1f} s at {done.real_time_factor:.1f} x real time{clipped}",
            flush=True,
        )
        seconds, wall_seconds = seconds + done.seconds, wall_seconds + done.wall_seconds
    if len(jobs) > 1:
        factor = Done(seconds, wall_seconds, 0).real_time_factor
        print(
            f"{len(jobs) - num_failed} files, {seconds:.1f} s of audio at {factor:.1f} x real time",
            flush=True,
        )
    if num_failed:
        print(f"error: {num_failed} of {len(jobs)} files failed", file=sys.stderr)
    return num_failed


def apply_to_file(
    run: TrainedRun, source: Path, target: Path, chunk_seconds: float, knobs: Tensor, label: str = ""
) -> Done:
    """Stream `source` through the model into `target`; the file appears whole or not at all.

    Raises UserError that names the file where it cannot be read, or `target` cannot hold it; OSError where the system
    refuses.
    """
    started = time.perf_counter()
    try:
        info = sf.info(str(source))
    except sf.LibsndfileError as error:
        raise UserError(f"{source} cannot be read as audio: {error}") from error
    require_plausible(source, info)
    container = _container(target)
    subtype = info.subtype if sf.check_format(container, info.subtype) else sf.default_subtype(container)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    num_clipped = 0
    try:
        with sf.SoundFile(
            str(part), "w", info.samplerate, info.channels, subtype, format=container
        ) as writer:
            for block in _processed(run, source, info, chunk_seconds, label, knobs):
                samples = block.T.numpy()
                if not subtype.startswith(("FLOAT", "DOUBLE")):
                    num_clipped += int((np.abs(samples) > 1).sum())
                    samples = np.clip(samples, -1, 1)
                writer.write(samples)
        os.replace(part, target)
    except sf.SoundFileError as error:
        raise UserError(f"{source} cannot be written as {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return Done(info.frames / info.samplerate, time.perf_counter() - started, num_clipped)


def _processed(
    run: TrainedRun,
    source: Path,
    info: sf._SoundFileInfo,
    chunk_seconds: float,
    label: str,
    knobs: Tensor,
) -> Iterator[Tensor]:
    """Blocks [C, T] of the output at the rate of the input, `info.frames` samples in all."""
    if info.frames == 0:
        return
    device = next(run.module.parameters()).device
    model: ChunkedModel | StatefulModel
    gain = 1.0
    if isinstance(run.hp.task, DeviceHParams):
        # What a device makes of a signal depends on its level, so that stays.
        model = StatefulModel(run.module, knobs, device)
    else:
        assert isinstance(
            run.hp.task, (DenoiseHParams, CodecHParams, PitchHParams, EnhanceHParams, RestoreHParams)
        ), run.hp.task
        gain = gain_into_range(_rms(source, info.samplerate), run.hp.task.level_range_db)
        model = ChunkedModel(run.module, run.hp.wav_rate, chunk_seconds, device)
    scaled = (block * gain for block in _blocks(source, info.samplerate))
    heard = resample_blocks(scaled, info.samplerate, run.hp.wav_rate)
    restored = resample_blocks(model.stream(heard), run.hp.wav_rate, info.samplerate)
    left = info.frames
    told = time.monotonic()
    for block in restored:
        block = block[:, :left] / gain
        left -= block.shape[-1]
        yield block
        if time.monotonic() - told > 5:
            told = time.monotonic()
            print(f"{label}{source.name}: {1 - left / info.frames:.0%}", flush=True)
    if left:
        # Resampling there and back may end a few samples short.
        yield torch.zeros(info.channels, left)


def _blocks(source: Path, rate_hz: int) -> Iterator[Tensor]:
    """Blocks [C, T] of a file, float32. Raises UserError where it is damaged."""
    try:
        with sf.SoundFile(str(source)) as reader:
            frames = min(round(BLOCK_SECONDS * rate_hz), MAX_BLOCK_VALUES // reader.channels)
            for block in reader.blocks(frames, dtype="float32", always_2d=True):
                if not (np.abs(block) <= HIGHEST_LEVEL).all():  # NaN is not.
                    found = "absurdly large" if np.isfinite(block).all() else "NaN or infinite"
                    raise UserError(f"{source} holds {found} samples; repair the file first")
                yield torch.from_numpy(np.ascontiguousarray(block.T))
    except sf.SoundFileError as error:
        raise UserError(f"{source} cannot be read to its end: {error}") from error


def _rms(source: Path, rate_hz: int) -> float:
    """Root mean square of a whole file, all channels together."""
    energy, count = 0.0, 0
    for block in _blocks(source, rate_hz):
        energy += float(block.double().square().sum())
        count += block.numel()
    return (energy / count) ** 0.5 if count else 0.0


def _container(target: Path) -> str:
    """libsndfile's name of the container for a file name."""
    suffix = target.suffix.lower().removeprefix(".")
    return {"aif": "AIFF", "aiff": "AIFF"}.get(suffix, suffix.upper())


if __name__ == "__main__":
    sys.exit(main())
