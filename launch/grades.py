"""How well a model of a device plays pairs of files: what went into the device, and what came out.

A folder's pairs are NAME-input and NAME-target, or NAME-dry and NAME-wet, with - or _ before the last word and any
extension of an audio file, at any depth.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_shards.align import measure_alignment
from data_shards.ingest import RejectedInput, probe, read_channel
from data_shards.pieces import SILENCE_PEAK
from data_shards.scan import FoundFile, find_audio, require_local
from data_shards.takes import without_lag
from enhancer.inference import StatefulModel, TrainedRun
from enhancer.metrics import device_metrics, esr_grade
from hparams.errors import UserError
from hparams.tasks import DeviceHParams

Play = Callable[[Tensor], Tensor]
"""What a device makes of a recording: dry [1, T] -> estimate [1, T]."""

BLOCK_SECONDS = 10.0
DOUBTFUL_ESR = 0.3
"""Above it the two files may not stand at the same place in time."""

_NAME = re.compile(r"(?P<name>.+)[-_](?P<word>input|target|dry|wet)", re.IGNORECASE | re.DOTALL)
_PARTNERS = {"input": "target", "target": "input", "dry": "wet", "wet": "dry"}
_DRY_WORDS = ("input", "dry")


@dataclass(frozen=True)
class FilePair:
    """A dry file and the device's recording of it. `name` is what they have in common, from their folder on."""

    name: str
    dry: FoundFile
    wet: FoundFile


@dataclass(frozen=True)
class FileGrade:
    """How well a pair was played. `metrics` as `enhancer.metrics.device_metrics`."""

    pair: FilePair
    seconds: float
    lag_samples: int
    """Taken out before."""
    metrics: dict[str, float]
    estimate: np.ndarray
    """What the model made of the dry file, float32 [frames]."""

    @property
    def word(self) -> str:
        """What players call such an ESR."""
        return esr_grade(self.metrics["esr"])


def find_file_pairs(folder: Path) -> tuple[list[FilePair], list[str]]:
    """Pairs below `folder` in the order of their names, and the files that have no partner.

    Raises UserError where there is no folder, no pair, or two files for one side of a pair.
    """
    require_local(folder, "The --files folder")
    if not folder.is_dir():
        raise UserError(f"--files {folder} is no folder; give one with NAME-input.wav and NAME-target.wav")
    sides: dict[tuple[str, str], FoundFile] = {}
    alone: list[str] = []
    for file in find_audio(folder):
        match = _NAME.fullmatch(file.stem)
        if match is None:
            alone.append(file.source)
            continue
        key = (match["name"], match["word"].lower())
        if key in sides:
            raise UserError(
                f"{sides[key].source} and {file.source} in {folder} are both the {key[1]} of {key[0]}; keep one"
            )
        sides[key] = file
    pairs = []
    for (name, word), file in sides.items():
        partner = sides.get((name, _PARTNERS[word]))
        if partner is None:
            alone.append(file.source)
        elif word in _DRY_WORDS:
            pairs.append(FilePair(name, file, partner))
    if not pairs:
        found = f"; found {', '.join(sorted(alone)[:5])}" if alone else ""
        raise UserError(
            f"--files {folder} holds no pair NAME-input.wav and NAME-target.wav, or NAME_dry.wav and "
            f"NAME_wet.wav{found}. Dry files alone can be played by launch/apply.py, not judged"
        )
    return sorted(pairs, key=lambda pair: (pair.name, pair.dry.source)), sorted(alone)


def device_player(run: TrainedRun, knobs: Tensor) -> Play:
    """The model of a pedal run at `knobs` [K], from rest, in bounded memory. Raises UserError for another task."""
    if not isinstance(run.hp.task, DeviceHParams):
        raise UserError(
            f"the run is of the task {run.hp.task.name}; pairs of files are for models of devices"
        )
    model = StatefulModel(run.module, knobs, next(run.module.parameters()).device)
    block_samples = round(BLOCK_SECONDS * run.hp.wav_rate)

    def play(dry: Tensor) -> Tensor:
        return torch.cat(list(model.stream(dry.split(block_samples, dim=-1))), dim=-1)

    return play


def grade_pair(pair: FilePair, play: Play, rate_hz: int, align: str | int = "off") -> FileGrade:
    """Play the dry file at `rate_hz` and compare with the whole of the wet one.

    `align` as for the corpus: `off`, samples by which wet is late, or `auto` to measure them. Raises UserError naming
    the file and what to do where the two do not fit together or to the model.
    """
    dry, wet = (_read(file, rate_hz) for file in (pair.dry, pair.wet))
    if len(dry) != len(wet):
        raise UserError(
            f"{pair.name}: {pair.dry.source} has {len(dry)} frames and {pair.wet.source} {len(wet)}; "
            "cut both to the same start and length"
        )
    if np.max(np.abs(wet)) < SILENCE_PEAK:
        raise UserError(f"{pair.name}: {pair.wet.source} is silent; export it again")
    lag = _lag(pair, dry, wet, rate_hz, align)
    dry, wet = (np.ascontiguousarray(wave) for wave in without_lag(dry, wet, lag))
    estimate = play(torch.from_numpy(dry)[None]).float().cpu()
    columns = device_metrics(estimate, torch.from_numpy(wet)[None], rate_hz)
    metrics = {name: column.item() for name, column in columns.items()}
    return FileGrade(pair, len(dry) / rate_hz, lag, metrics, estimate[0].numpy())


def grade_pairs(
    pairs: Sequence[FilePair], play: Play, rate_hz: int, align: str | int = "off"
) -> tuple[list[FileGrade], dict[str, str]]:
    """Grades of the pairs that can be judged, and why the others cannot, by their names. Each is told as it is done."""
    grades, failed = [], {}
    for number, pair in enumerate(pairs, start=1):
        label = f"[{number}/{len(pairs)}]"
        try:
            grade = grade_pair(pair, play, rate_hz, align)
        except UserError as error:
            failed[pair.name] = str(error)
            print(f"{label} failed: {error}", file=sys.stderr, flush=True)
            continue
        grades.append(grade)
        print(f"{label} {pair.name}: ESR {grade.metrics['esr']:.4f}, {grade.word}", flush=True)
        if grade.metrics["esr"] >= DOUBTFUL_ESR and align == "off":
            for hint in _late(pair, rate_hz):
                print(hint, file=sys.stderr, flush=True)
    return grades, failed


def _read(file: FoundFile, rate_hz: int) -> np.ndarray:
    try:
        header = probe(file)
        if header.rate_hz != rate_hz:
            raise UserError(
                f"{file.source} is at {header.rate_hz} Hz and the model at {rate_hz} Hz; resample it, or judge a model "
                "of that rate"
            )
        if header.channels > 1:
            raise UserError(
                f"{file.source} has {header.channels} channels; a device has one, so export that one alone"
            )
        return read_channel(os.fspath(file.path), header, 0)
    except RejectedInput as error:
        raise UserError(f"{file.source}: {error}; export it again as wav or flac") from error


def _lag(pair: FilePair, dry: np.ndarray, wet: np.ndarray, rate_hz: int, align: str | int) -> int:
    if align == "off":
        return 0
    if isinstance(align, int):
        if abs(align) >= len(dry):
            raise UserError(f"--align is {align} samples, but {pair.name} has {len(dry)}")
        return align
    measured = measure_alignment(dry, wet, rate_hz)
    if measured.problem:
        raise UserError(f"{pair.name}: {measured.problem}; give the lag with --align N, or --align off")
    return measured.lag_samples


def _late(pair: FilePair, rate_hz: int) -> list[str]:
    """A hint where the wet file is late."""
    measured = measure_alignment(_read(pair.dry, rate_hz), _read(pair.wet, rate_hz), rate_hz)
    if measured.problem or not measured.lag_samples:
        return []
    return [f"note: {pair.wet.source} is {measured.lag_samples} samples late; --align auto takes that out"]
