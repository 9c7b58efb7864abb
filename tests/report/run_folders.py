"""Run folders as training leaves them, made in seconds: real corpora, weights that nobody trained, real evaluations."""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from data_shards.shifts import ShiftOptions
from data_shards.string_notes import build_string_corpus
from data_shards.synthetic_string import KarplusString
from enhancer.engine.evaluate import summarise
from enhancer.engine.manifest import folder_name, write_manifest
from enhancer.engine.monitor import Monitor
from enhancer.engine.state import State
from enhancer.engine.weights import write_weights
from enhancer.inference import load_run
from enhancer.tasks import TASKS
from hparams.codec import CodecHParams
from hparams.enhance import EnhanceHParams
from hparams.fields import kinds
from hparams.load import dump
from hparams.pitch import PitchHParams
from hparams.restore import RestoreHParams
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams, StringHParams
from launch.common import open_data
from launch.evaluate import evaluate
from launch.frozen_runs import frozen_constants
from tests.data_shards import pedal_audio
from tests.data_shards.shift_audio import write_melodies
from tests.finished_runs import TINY_DENOISER, TINY_STAGE1, write_run

RATE_HZ = 44_100
EVALUATED = (20, 40)
VALID_SECONDS = 6.0
HOSTILE = "<img src=x onerror=window.owned=1>"


def device_corpus(root: Path, name: str = "dry") -> Path:
    """Two pairs of a clipper at two settings of its drive, of which the last six seconds validate."""
    pairs = []
    for number, drive in enumerate((0.2, 0.8)):
        dry = pedal_audio.guitar(VALID_SECONDS + 1.5, RATE_HZ, number)
        wet = 0.8 * np.tanh((2 + 20 * drive) * dry)
        files = [
            pedal_audio.write(root / f"{kind}-{number}.wav", wave, RATE_HZ)
            for kind, wave in ((name, dry), ("wet", wet))
        ]
        pairs.append(DevicePair(files[0], files[1], {"drive": drive}))
    build_pedal_corpus(pairs, root / "pair", PedalOptions(align="off", valid_seconds=VALID_SECONDS))
    return root / "pair"


def mix_corpora(root: Path, name: str = "voice") -> dict[str, Path]:
    """fg (tones with some breath), bg and rir of a few seconds."""
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE_HZ) / RATE_HZ
    folders = {}
    for kind in ("fg", "bg", "rir"):
        for number in range(4):
            noise = rng.standard_normal(RATE_HZ)
            tone = 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * seconds) + 0.02 * noise
            wave = {"fg": tone, "bg": 0.1 * noise, "rir": 0.3 * noise * np.exp(-40 * seconds)}[kind]
            wave[0] = 0.9 if kind == "rir" else wave[0]
            path = root / "audio" / kind / f"{name if kind == 'fg' else kind}-{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, RATE_HZ)
        folders[f"{kind}_dir"] = root / kind
        options = BuildOptions(kind, rate_hz=RATE_HZ, workers=1)
        build_corpus(kind, [root / "audio" / kind], root / kind, options)
    return folders


def hparams_of(task: str, corpora: dict[str, Path], **changes: Any) -> HParams:
    """A small run of `task`. `corpora` and `changes` go to its task where that has such a field, else to the run."""
    small = {"width": 2, "valid_items": 5, "valid_seconds": 0.5, "hidden_size": 4, "knobs": ("drive",)}
    small |= {"outlook_seconds": 0.6, "valid_seconds": 0.6} if task == "string" else {}
    small |= {"context_samples": 8, "train_windows": 500, "valid_windows": 200, "folds": 2}
    small |= {"channels": (1, 4, 8), "blocks": (1, 1), "factors": (8, 4)}
    small |= {"encoder_width": 2, "decoder_width": 32, "num_codebooks": 2, "codebook_size": 16}
    small |= {"autoencoder_width": 4, "autoencoder_blocks": 1, "vocoder_width": 8, "vocoder_blocks": 1}
    small |= {"periods": (2,), "period_width": 1, "resolution_width": 1}
    small |= {"num_latents": TINY_STAGE1.num_latents, "num_blocks": 1, "kernel_size": 3, "nfe": 2}
    kind: type[Any] = kinds()[task]
    names = {each.name for each in dataclasses.fields(kind)}
    given = {**corpora, **changes}
    own = kind(**{name: value for name, value in {**small, **given}.items() if name in names})
    rest = {name: value for name, value in given.items() if name not in names}
    values = {
        "max_steps": 60,
        "warmup_steps": 10,
        "training_seconds": 0.25,
        "valid_fraction": 0.5,
        **rest,
    }
    return HParams(task=own, **values)


def note_corpus(root: Path) -> Path:
    """Six synthetic notes of a string."""
    (root / "notes").mkdir(parents=True)
    for number, name in enumerate(("a2", "c3", "e3", "a3", "c4", "e4")):
        string = KarplusString(110.0 * 2 ** ([0, 3, 7, 12, 15, 19][number] / 12), 1.0, RATE_HZ, seed=number)
        soundfile.write(root / "notes" / f"{name}_f.wav", string.render(1.0), RATE_HZ, subtype="FLOAT")
    build_string_corpus([root / "notes"], root / "strings")
    return root / "strings"


def pitch_corpus(root: Path) -> Path:
    """Pairs of four short melodies, by the two engines that need nothing installed."""
    write_melodies(root / "melodies", (0.3,) * 4, 1.5, RATE_HZ)
    shift = ShiftOptions((-6, 6), ("varispeed", "phase_vocoder"), copies=2)
    build_corpus("pitch", [root / "melodies"], root / "pitch", BuildOptions("pitch", workers=1, shift=shift))
    return root / "pitch"


def corpora_of(task: str, root: Path) -> dict[str, Path]:
    """What `task` learns from: mixes, also with finished runs, notes of a string, shifted pairs, or else a device."""
    if kinds()[task] is StringHParams:
        return {"note_dir": note_corpus(root)}
    if kinds()[task] is PitchHParams:
        return {"pair_dir": pitch_corpus(root)}
    if kinds()[task] is RestoreHParams:
        runs = {"stage1_run": TINY_STAGE1, "denoiser_run": TINY_DENOISER}
        return mix_corpora(root) | {name: write_run(root / name, own) for name, own in runs.items()}
    is_of_mixes = kinds()[task] in (DenoiseHParams, CodecHParams, EnhanceHParams)
    return mix_corpora(root) if is_of_mixes else {"pair_dir": device_corpus(root)}


def make_run(folder: Path, hp: HParams, seed: int = 0) -> Path:
    """A run in `folder`: hparams.yaml, status.json, metrics.jsonl, samples/ and the checkpoints of two evaluations."""
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").write_text(dump(hp))
    (folder / "status.json").write_text('{"state": "finished", "step": 60, "reason": ""}')
    frozen_constants(hp, folder, is_writer=True)
    monitor = Monitor.open(folder, max_steps=60, from_step=0)
    monitor.event(0, "start", "fresh run")
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, 61):
        noise = float(torch.rand(1, generator=generator))
        values = {"loss": 2 / step + 0.1 * noise, "gradient_norm": 10 ** (4 * noise), "learning_rate": 1e-3}
        monitor.log(step, {**values, "draws": 8 * step, "skipped": 0, "step_seconds": 0.1})
        if step in EVALUATED:
            _judge(folder, hp, monitor, step, seed)
    monitor.close()
    return folder


def _judge(folder: Path, hp: HParams, monitor: Monitor, step: int, seed: int) -> None:
    torch.manual_seed(seed + step)
    task = TASKS[hp.task.name](hp)
    module = task.build()[task.main_module]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    checkpoint = folder / "checkpoints" / folder_name(step)
    checkpoint.mkdir(parents=True)
    write_weights(checkpoint / f"{task.main_module}.safetensors", module.state_dict())
    write_manifest(checkpoint, State(step=step), {})
    (folder / "checkpoints" / "BEST").write_text(checkpoint.name)
    stream = open_data(hp, batch_size=4, num_workers=0)
    run = load_run(folder, "cpu", checkpoint)
    rows = evaluate(run, stream)
    # The better one by construction is the later: what is best must not depend on luck.
    sign = 1 if task.best_is_higher else -1
    rows = [{**row, task.best_metric: row[task.best_metric] + sign * step} for row in rows]
    summary = {name: (each.mean, each.low, each.high) for name, each in summarise(rows).items()}
    monitor.evaluation(step, summary, rows, 1.0)
    shown = TASKS[hp.task.name](hp, {**stream.constants(), **run.constants})
    with torch.no_grad():
        shown.show({task.main_module: run.module}, next(iter(stream.validation())), monitor.media(step))


class Runs(Mapping[str, Path]):
    """Folders of runs by task, each made when it is first asked for, once for all workers that share `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(exist_ok=True)

    def __getitem__(self, task: str) -> Path:
        run = self._root / task / f"run-{task}"
        is_made = self._root / f"{task}.made"
        with (self._root / f"{task}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_made.exists():
                shutil.rmtree(run.parent, ignore_errors=True)
                run.parent.mkdir()
                make_run(run, hparams_of(task, corpora_of(task, run.parent)))
                is_made.touch()
        return run

    def __iter__(self) -> Iterator[str]:
        return iter(TASKS)

    def __len__(self) -> int:
        return len(TASKS)
