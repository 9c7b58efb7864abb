"""What the commands do for strings: failures by name, the hardest notes, and playing a string by its excitation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from enhancer.inference import TrainedRun
from enhancer.signal.decay import OCTAVE_CENTRES_HZ, octave_levels, octave_t60, window_samples
from enhancer.signal.resample import resample
from enhancer.string_metrics import FAILURES, named_failures
from hparams.errors import UserError

Row = Mapping[str, float]
SHOWN_HARDEST = 8
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def print_string_rows(rows: Sequence[Row], names: Sequence[str], metric: str) -> None:
    """The failures with the notes they happen on, the distribution of `metric`, and the notes hardest by it."""
    for text in FAILURES.values():
        hit = [name for row, name in zip(rows, names, strict=True) if text in named_failures(row)]
        if hit:
            more = f" and {len(hit) - SHOWN_HARDEST} more" if len(hit) > SHOWN_HARDEST else ""
            print(f"failure: {text}: {len(hit)} of {len(rows)} notes: {', '.join(hit[:SHOWN_HARDEST])}{more}")
    if not any(named_failures(row) for row in rows):
        print(f"no failure on {len(rows)} notes")
    known = np.array([row[metric] for row in rows if row[metric] == row[metric]])
    if len(known):
        shown = ", ".join(f"{value:.3g}" for value in np.quantile(known, QUANTILES))
        print(f"{metric} from the least to the most, quartiles and 95 %: {shown}")
    for row, name in hardest(rows, names, metric)[:SHOWN_HARDEST]:
        said = "; ".join(named_failures(row))
        print(f"{name}: {metric} {row[metric]:.3g}{f', {said}' if said else ''}")


def hardest(rows: Sequence[Row], names: Sequence[str], metric: str) -> list[tuple[Row, str]]:
    """Rows with their names: those with a failure first, then by `metric` from the worst on; NaN counts as worst."""

    def badness(pair: tuple[Row, str]) -> tuple[int, float]:
        value = pair[0][metric]
        return len(named_failures(pair[0])), value if value == value else math.inf

    return sorted(zip(rows, names, strict=True), key=badness, reverse=True)


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

    Float32 [seconds * rate]. The decay is `t60_seconds` at all frequencies where it is given, else that which the
    excitation itself has, where it is long enough to tell. Raises: UserError.
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
    t60 = _decay_of(run, excitation, t60_seconds)
    device = next(run.module.parameters()).device
    unknown = [math.nan if value is None else value for value in (velocity, position)]
    rows = [torch.tensor([value], dtype=torch.float32, device=device) for value in (f0_hz, *unknown, 0.0)]
    with torch.no_grad():
        decay = run.module(
            history[None].to(device),
            count - len(excitation),
            rows[0],
            rows[1],
            rows[2],
            t60.to(device),
            rows[3],
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


def _decay_of(run: TrainedRun, excitation: torch.Tensor, t60_seconds: float | None) -> torch.Tensor:
    """T60 by octave band [1, bands] that the model is told, NaN where it is not known."""
    rate_hz = run.hp.wav_rate
    unknown = torch.full((1, len(OCTAVE_CENTRES_HZ)), math.nan)
    if t60_seconds is not None:
        return torch.full_like(unknown, t60_seconds)
    if "t60" not in run.hp.task.controls:  # type: ignore[union-attr]
        return unknown
    if len(excitation) >= 2 * window_samples(rate_hz):
        measured, _ = octave_t60(octave_levels(excitation[None], rate_hz))
        if bool(measured.t60_seconds.isfinite().any()):
            return measured.t60_seconds.float()
    raise UserError(
        "this model is told how long a note rings, and the excitation is too short to say; give --t60 SECONDS, such as "
        "--t60 4"
    )


def read_excitation(path: Path, rate_hz: int) -> torch.Tensor:
    """A sound file as one channel at `rate_hz`, float32 [T]. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"--excite {path} does not exist; give a sound file with the start of a pluck")
    try:
        samples, found_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"--excite {path} cannot be read as audio: {error}") from error
    wave = torch.from_numpy(samples.mean(1))
    if not bool(wave.isfinite().all()) or not bool(wave.any()):
        raise UserError(f"--excite {path} is silent, or holds NaN; give the start of a pluck")
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
