"""Finished runs of tiny models for tests that start from some: written, not trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from enhancer.engine.manifest import write_manifest
from enhancer.engine.pointers import LATEST, write_pointer
from enhancer.engine.state import State
from enhancer.engine.weights import write_weights
from enhancer.tasks import TASKS
from hparams.enhance import EnhanceHParams
from hparams.load import dump
from hparams.restore import RestoreHParams
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams

STEP = 4
TINY_STAGE1 = EnhanceHParams(
    num_latents=8,
    num_extra=4,
    autoencoder_width=8,
    autoencoder_blocks=1,
    vocoder_width=16,
    vocoder_blocks=1,
    periods=(2,),
    period_width=2,
    resolution_width=2,
)
TINY_DENOISER = DenoiseHParams(width=1)


def write_run(folder: Path, task: EnhanceHParams | DenoiseHParams | RestoreHParams, **values: Any) -> Path:
    """A finished run of STEP steps in `folder`, whose weights are those it would start with."""
    hp = replace(HParams(), task=task, max_steps=STEP, warmup_steps=1, **values)
    checkpoint = folder / "checkpoints" / f"step-{STEP:07d}"
    checkpoint.mkdir(parents=True)
    (folder / "hparams.yaml").write_text(dump(hp))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": STEP, "reason": ""}))
    torch.manual_seed(3)
    built = TASKS[task.name](hp)
    for name, module in built.build().items():
        write_weights(checkpoint / f"{name}.safetensors", module.state_dict())
    write_manifest(checkpoint, State(step=STEP), {})
    write_pointer(folder / "checkpoints", LATEST, checkpoint.name)
    return folder
