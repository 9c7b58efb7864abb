"""Test files of a sweep: pairs of a dry and a wet recording that no member has heard, judged and kept as sound."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile as sf
import torch

from enhancer.engine.atomic import write_text
from enhancer.inference import TrainedRun, load_run
from hparams.errors import UserError
from hparams.source import read_json
from hparams.sweep_settings import is_number
from launch.common import knob_values
from launch.grades import FilePair, device_player, find_file_pairs, grade_pair
from launch.sweep_members import Planned

FOLDER = "files"
RESULTS = "results.json"


def find_pairs(folder: Path) -> list[FilePair]:
    """The pairs below `folder` (see `launch.grades`); files without a partner are told. Raises UserError for none."""
    pairs, alone = find_file_pairs(folder)
    for name in alone:
        print(f"note: {name} has no partner and is passed over", file=sys.stderr)
    return pairs


def check_files(members: Sequence[Planned], pairs: Sequence[FilePair], knobs: Sequence[str]) -> None:
    """Raises UserError where test files or knobs do not fit the runs to come: before any of them starts."""
    for each in members:
        knob_values(getattr(each.hp.task, "knobs", ()), knobs)
        for pair in pairs:
            grade_pair(pair, lambda dry: dry, each.hp.wav_rate)  # Everything is looked at but the model.


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
        "files": {pair.name: [_digest(Path(side.path)) for side in (pair.dry, pair.wet)] for pair in pairs},
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
    """The file that a member's estimate of `pair` is kept as, all of them side by side."""
    return f"{pair.name.replace('/', '_')}-estimate.wav"


def judge(run: TrainedRun, pair: FilePair, knobs: torch.Tensor, estimate_file: Path) -> float:
    """ESR of `run` on one pair; its estimate, at the rate of the pair, is written as 32-bit float."""
    grade = grade_pair(pair, device_player(run, knobs), run.hp.wav_rate)
    sf.write(estimate_file, grade.estimate, run.hp.wav_rate, subtype="FLOAT")
    return grade.metrics["esr"]


def _read(path: Path) -> dict[str, Any]:
    """What was judged before; nothing where there is no such file or it is not whole."""
    try:
        record = read_json(path, str(path)) if path.exists() else {}
    except UserError:
        return {}
    is_whole = isinstance(record.get("esr"), dict) and all(map(is_number, record["esr"].values()))
    return record if is_whole else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
