"""Test files of a sweep: pairs of a dry and a wet recording that no member has heard, judged and kept as sound."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from enhancer.engine.atomic import write_text
from enhancer.inference import StatefulModel, load_run
from enhancer.metrics import error_to_signal
from hparams.errors import UserError
from launch.common import knob_values
from launch.sweep_members import Planned

# (dry, wet) as GuitarML and this project's users name them.
ENDINGS = (("-input", "-target"), ("_dry", "_wet"))
SUFFIXES = {".wav", ".flac"}
FOLDER = "files"
RESULTS = "results.json"
BLOCK_SECONDS = 10.0


@dataclass(frozen=True)
class FilePair:
    """One test file: what goes in and what should come out."""

    name: str
    dry: Path
    wet: Path


def find_pairs(folder: Path) -> list[FilePair]:
    """Pairs `NAME-input.wav`/`NAME-target.wav` or `NAME_dry.wav`/`NAME_wet.wav` (also flac) of `folder`, by name.

    Raises UserError where there is none, or one of a pair is missing.
    """
    if not folder.is_dir():
        raise UserError(f"--files {folder}: there is no such folder; needed one with {_wanted()}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    pairs: dict[str, dict[str, Path]] = {}
    for path in files:
        for dry, wet in ENDINGS:
            for role, ending in (("dry", dry), ("wet", wet)):
                if path.stem.endswith(ending):
                    pairs.setdefault(path.stem.removesuffix(ending), {})[role] = path
    for name, found in pairs.items():
        if len(found) < 2:
            (there,) = found.values()
            raise UserError(
                f"--files {folder}: {there.name} has no partner called {name}; needed {_wanted()}"
            )
    if not pairs:
        raise UserError(f"--files {folder} has no pairs; needed {_wanted()}")
    return [FilePair(name, found["dry"], found["wet"]) for name, found in pairs.items()]


def _wanted() -> str:
    return " or ".join(f"NAME{dry}.wav with NAME{wet}.wav" for dry, wet in ENDINGS)


def check_files(members: Sequence[Planned], pairs: Sequence[FilePair], knobs: Sequence[str]) -> None:
    """Raises UserError where test files or knobs do not fit the runs to come: before any of them starts."""
    for each in members:
        knob_values(getattr(each.hp.task, "knobs", ()), knobs)
        for pair in pairs:
            read_pair(pair, each.hp.wav_rate)


def judge_files(planned: Planned, pairs: Sequence[FilePair], knobs: Sequence[str]) -> dict[str, float]:
    """ESR of each pair by the best weights of a member; the estimates are kept in its folder `files`.

    What was judged before, by the same weights on the same files, is not judged again.
    Raises UserError where a file does not fit the run.
    """
    folder = planned.folder / FOLDER
    run = load_run(planned.folder)
    facts = {
        "checkpoint": run.checkpoint.name,
        "knobs": list(knobs),
        "files": {pair.name: [_digest(pair.dry), _digest(pair.wet)] for pair in pairs},
    }
    before = _read(folder / RESULTS)
    if before.get("facts") == facts:
        return dict(before["esr"])
    values = knob_values(getattr(run.hp.task, "knobs", ()), knobs)
    folder.mkdir(parents=True, exist_ok=True)
    esr = {pair.name: judge(run, pair, values, folder / estimate_name(pair)) for pair in pairs}
    write_text(folder / RESULTS, json.dumps({"facts": facts, "esr": esr}, indent=1) + "\n")
    return esr


def estimate_name(pair: FilePair) -> str:
    """The file that a member's estimate of `pair` is kept as."""
    return f"{pair.name}-estimate.wav"


def judge(run: Any, pair: FilePair, knobs: torch.Tensor, estimate_file: Path) -> float:
    """ESR of `run` on one pair; its estimate, at the rate of the pair, is written as 32-bit float."""
    dry, wet = read_pair(pair, run.hp.wav_rate)
    blocks = torch.from_numpy(dry)[None].split(round(BLOCK_SECONDS * run.hp.wav_rate), dim=-1)
    estimate = torch.cat(list(StatefulModel(run.module, knobs).stream(blocks)), dim=-1)
    sf.write(estimate_file, estimate[0].numpy(), run.hp.wav_rate, subtype="FLOAT")
    return float(error_to_signal(estimate, torch.from_numpy(wet)[None]))


def read_pair(pair: FilePair, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Dry and wet of a pair, each float32 [T]. Raises UserError for what a run at `rate_hz` cannot be judged on."""
    dry, wet = (_read_wave(path, rate_hz) for path in (pair.dry, pair.wet))
    if len(dry) != len(wet):
        raise UserError(
            f"{pair.dry} has {len(dry)} samples and {pair.wet} {len(wet)}; cut them to one length"
        )
    if not wet.any():
        raise UserError(f"{pair.wet} is silent, so there is no ESR; take it out of the folder")
    return dry, wet


def _read_wave(path: Path, rate_hz: int) -> np.ndarray:
    """The one channel of a file, float32 [T]. Raises UserError for another rate, more channels, or damage."""
    try:
        wave, found_hz = sf.read(path, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise UserError(f"{path} cannot be read as audio: {error}") from error
    if found_hz != rate_hz:
        raise UserError(f"{path} is at {found_hz} Hz, but the runs are at {rate_hz} Hz; resample it")
    if wave.shape[1] != 1:
        raise UserError(f"{path} has {wave.shape[1]} channels; needed one, as the runs have")
    return np.ascontiguousarray(wave[:, 0])


def _read(path: Path) -> dict[str, Any]:
    """What was judged before; nothing where there is no such file or it is not whole."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
