"""`apply.py` for strings: plucking one with an excitation, and letting it ring."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import soundfile
import torch

from enhancer.inference import TrainedRun
from enhancer.signal.decay import OCTAVE_CENTRES_HZ, octave_levels, octave_t60, window_samples
from enhancer.signal.pitch import cents, estimate_f0
from enhancer.signal.resample import resample
from hparams.errors import UserError
from launch.common import HIGHEST_LEVEL

if TYPE_CHECKING:
    from enhancer.models.string import PluckedString

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}
PLUCK_SECONDS = 8.0
PITCH_SECONDS, SEAM_CENTS = 0.5, 2.0
PLUCK_OPTIONS = ("excite", "f0", "seconds", "velocity", "position", "t60")
PLUCK_HELP = (
    ("f0", "HZ", "pitch, such as 82.4"),
    ("seconds", "S", f"length of what is written, the excitation included; default {PLUCK_SECONDS:g}"),
    ("velocity", "SHARE", "how hard it is plucked, 0 to 1; default: not known"),
    ("position", "SHARE", "where, as a share of its length; default: not known"),
    (
        "t60",
        "S",
        "time to fall by 60 dB, at all frequencies; default: as an excitation of 0.4 s, better 1 s, says",
    ),
)


def add_pluck_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of strings."""
    string = parser.add_argument_group("strings", "a string has no input: it is plucked, and left alone")
    string.add_argument(
        "--excite", type=Path, metavar="PLUCK.wav", help="what sets it going, a period or more"
    )
    for name, metavar, text in PLUCK_HELP:
        string.add_argument(f"--{name}", type=float, metavar=metavar, help=text)


def check_pluck_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, before a model is read."""
    own = {name: getattr(args, name) for name in PLUCK_OPTIONS}
    given = [name for name, value in own.items() if value is not None]
    if args.input is not None:
        if given:
            raise UserError(
                f"--{given[0]} belongs to strings, which are plucked with --excite and have no --input; leave one out"
            )
        return
    if args.excite is None or args.f0 is None:
        raise UserError("give --input IN.wav; or for a string --excite PLUCK.wav --f0 HZ, such as --f0 82.4")
    if args.knob:
        raise UserError("--knob belongs to models of devices; a string has --velocity, --position and --t60")
    for name, value in own.items():
        if name in ("f0", "seconds", "t60") and value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value:g}; needed a number above 0")
        if name in ("velocity", "position") and value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name} is {value:g}; needed a number from 0 to 1")
    if args.output.suffix.lower() not in AUDIO_SUFFIXES:
        raise UserError(f"--output {args.output} has no known audio suffix; name a .wav or .flac file")


def pluck_to_file(run: TrainedRun, args: argparse.Namespace) -> int:
    """Excite a string, write what it does, and tell how fast that was; returns the exit code. Raises: UserError."""
    excitation = read_excitation(args.excite, run.hp.wav_rate)
    started = time.perf_counter()
    wave = pluck(
        run,
        excitation,
        args.f0,
        PLUCK_SECONDS if args.seconds is None else args.seconds,
        velocity=args.velocity,
        position=args.position,
        t60_seconds=args.t60,
    )
    length = len(wave) / run.hp.wav_rate
    factor = length / max(time.perf_counter() - started, 1e-9)
    write_note(args.output, wave, run.hp.wav_rate)
    print(f"{args.output}: {length:.1f} s at {factor:.1f} x real time")
    return 0


def pluck(
    run: TrainedRun,
    excitation: torch.Tensor,
    f0_hz: float,
    seconds: float,
    *,
    velocity: float | None = None,
    position: float | None = None,
    t60_seconds: float | None = None,
) -> torch.Tensor:
    """A string at `f0_hz` that `excitation` [T] sets going: the excitation, and then what the string does alone.

    Float32 [seconds * rate]. The decay is `t60_seconds` at all frequencies where it is given, else what the excitation
    says of it, which is printed: see `told_decay`. Raises: UserError.
    """
    rate_hz = run.hp.wav_rate
    period = rate_hz / f0_hz
    if not f0_hz <= rate_hz / 8:
        raise UserError(
            f"--f0 {f0_hz:g} Hz lies above an eighth of the model's rate, {rate_hz / 8:g} Hz; give a lower note"
        )
    if len(excitation) < period:
        raise UserError(
            f"--excite is {1000 * len(excitation) / rate_hz:.1f} ms long, shorter than one period of {f0_hz:g} Hz "
            f"({1000 * period / rate_hz:.1f} ms), so it does not fill the string; give a longer one"
        )
    count = round(seconds * rate_hz)
    if count <= len(excitation):
        raise UserError(
            f"--seconds {seconds:g} is no longer than the excitation ({len(excitation) / rate_hz:.2f} s); "
            "give more, or a shorter --excite"
        )
    history = filled_history(excitation, period, round(run.hp.task.history_seconds * rate_hz))  # type: ignore[union-attr]
    heard = hear_decay(excitation, f0_hz, rate_hz)
    t60, how = told_decay(run, excitation, heard, f0_hz, t60_seconds)
    print(how, flush=True)
    apart = told_pitch(heard, f0_hz, rate_hz)
    if apart:
        print(apart, flush=True)
    late = max(len(heard) - len(history), 0)
    first = heard[: len(history)] if late else history
    fallen_db = 10 * torch.log10(history.square().mean() / first.square().mean().clamp_min(1e-20))
    device = next(run.module.parameters()).device
    unknown = [math.nan if value is None else value for value in (velocity, position)]
    values = (f0_hz, *unknown, float(fallen_db.clamp_min(-100)), late / rate_hz)
    rows = [torch.tensor([value], dtype=torch.float32, device=device) for value in values]
    with torch.no_grad():
        decay = run.module(
            history[None].to(device),
            count - len(excitation),
            *rows[:3],
            t60.to(device),
            rows[3],
            time=rows[4],
        )
    return torch.cat([excitation, decay[0].float().cpu()])


def filled_history(excitation: torch.Tensor, period: float, frames: int) -> torch.Tensor:
    """The last `frames` of `excitation`, as if its first period had been going round before it. [frames]."""
    frames = max(frames, math.ceil(2 * period) + 1)
    missing = frames - len(excitation)
    if missing <= 0:
        return excitation[-frames:]
    place = torch.arange(-missing, 0, dtype=torch.float64) % period
    before = np.interp(place.numpy(), np.arange(len(excitation)), excitation.double().numpy())
    return torch.cat([torch.from_numpy(before).to(excitation), excitation])


def hear_decay(excitation: torch.Tensor, f0_hz: float, rate_hz: int) -> torch.Tensor:
    """What of `excitation` lies behind the end of its attack; nothing where it is all attack."""
    from data_shards.note_analysis import find_attack

    return excitation[find_attack(excitation.double().numpy(), rate_hz, f0_hz).end :]


def told_pitch(heard: torch.Tensor, f0_hz: float, rate_hz: int) -> str:
    """What is to be said where a recording that is long enough sounds at another pitch than the string will.

    A last period that is repeated every 1 / `f0_hz` has a seam there, which is heard as a buzz.
    """
    if len(heard) < PITCH_SECONDS * rate_hz:
        return ""
    from data_shards.string_notes import FEWEST_CLARITY

    own = estimate_f0(heard, rate_hz, near_hz=f0_hz)
    apart = cents(own.f0_hz, f0_hz)
    if own.clarity < FEWEST_CLARITY or not abs(apart) > SEAM_CENTS:
        return ""
    return (
        f"note: the excitation sounds at {own.f0_hz:.2f} Hz, {apart:+.1f} cents from --f0; with that it goes on "
        "without a seam"
    )


def told_decay(
    run: TrainedRun, excitation: torch.Tensor, heard: torch.Tensor, f0_hz: float, t60_seconds: float | None
) -> tuple[torch.Tensor, str]:
    """(T60 by octave band [1, bands] that the model is told, NaN where it is not known; where it is from, to be shown).

    It is `t60_seconds` where that is given. Else a recording that is long enough says it: by what its outlook
    foretells, or, where as much lies behind what that hears, by the line through it; a shorter one by one through all.
    Raises: UserError.
    """
    rate_hz = run.hp.wav_rate
    unknown = torch.full((1, len(OCTAVE_CENTRES_HZ)), math.nan)
    if t60_seconds is not None:
        return torch.full_like(unknown, t60_seconds), f"T60 is {t60_seconds:g} s, as given"
    outlook = cast("PluckedString", run.module).outlook
    if outlook is None:
        return unknown, "this model is not told T60: it guesses by pitch, velocity and position"
    size = outlook.heard_samples
    if len(heard) >= size:
        device = next(outlook.buffers()).device
        t60 = outlook(heard[None].to(device), torch.tensor([f0_hz], device=device)).cpu()
        rest = heard[size:]
        if len(rest) < size:
            return t60, f"T60 foretold from {outlook.seconds:g} s behind the attack: {_by_band(t60)}"
        from data_shards.note_analysis import noise_in_octaves

        noise = torch.from_numpy(noise_in_octaves(rest.double().numpy(), rate_hz, f0_hz))[None]
        own = _measured(rest, rate_hz, 10 * noise.clamp_min(1e-20).log10())
        t60 = torch.where(own.isfinite() & t60.isfinite(), own, t60)
        return t60, f"T60 from what lies behind {outlook.seconds:g} s of the excitation: {_by_band(t60)}"
    if len(excitation) >= 2 * window_samples(rate_hz):
        t60 = _measured(excitation, rate_hz)
        if bool(t60.isfinite().any()):
            return t60, f"T60 of the excitation as a whole: {_by_band(t60)}"
    raise UserError(
        "this model is told how long a note rings, and the excitation is too short to say; give --t60 SECONDS, such as "
        f"--t60 4, or an excitation of {outlook.seconds:g} s behind its attack"
    )


def _measured(wave: torch.Tensor, rate_hz: int, noise_db: torch.Tensor | None = None) -> torch.Tensor:
    return octave_t60(octave_levels(wave[None], rate_hz), noise_db)[0].t60_seconds.float()


def _by_band(t60: torch.Tensor) -> str:
    columns = zip(OCTAVE_CENTRES_HZ, t60[0].tolist(), strict=True)
    return ", ".join(f"{value:.1f} s at {centre:g} Hz" for centre, value in columns if value == value)


def read_excitation(path: Path, rate_hz: int) -> torch.Tensor:
    """A sound file as one channel at `rate_hz`, float32 [T]. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"--excite {path} does not exist; give a sound file with the start of a pluck")
    try:
        samples, found_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"--excite {path} cannot be read as audio: {error}") from error
    wave = torch.from_numpy(samples.mean(1))
    if not bool((wave.abs() <= HIGHEST_LEVEL).all()) or not bool(wave.any()):
        raise UserError(
            f"--excite {path} is silent, or holds NaN or absurdly large samples; give the start of a pluck"
        )
    return resample(wave, found_hz, rate_hz) if found_hz != rate_hz else wave


def write_note(path: Path, wave: torch.Tensor, rate_hz: int) -> None:
    """Write a note as 32-bit float where the container can, else as its default. Raises: UserError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container = path.suffix.lower().removeprefix(".").upper().replace("AIF", "AIFF").replace("AIFFF", "AIFF")
    try:
        subtype = "FLOAT" if soundfile.check_format(container, "FLOAT") else None
        soundfile.write(path, wave.numpy(), rate_hz, subtype=subtype, format=container)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise UserError(f"--output {path} cannot be written: {error}; name a .wav or .flac file") from error
