"""`apply.py` for pitch models: by how many semitones a recording was shifted."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from enhancer.inference import TrainedRun
from hparams.errors import UserError
from hparams.pitch import PitchHParams
from hparams.shifting import MOST_SEMITONES


def add_semitones_argument(parser: argparse.ArgumentParser) -> None:
    """Add --semitones."""
    parser.add_argument(
        "--semitones",
        type=float,
        metavar="N",
        help="of a pitch model: by how much the recording was shifted, up or (below 0) down",
    )


class Conditioned(torch.nn.Module):
    """A pitch model that has been told the semitones: [B, T] -> [B, T]."""

    def __init__(self, module: torch.nn.Module, semitones: float) -> None:
        super().__init__()
        self.module = module
        self.semitones = semitones
        self.stride_samples, self.context_samples = module.stride_samples, module.context_samples

    def forward(self, heard: Tensor) -> Tensor:
        """What the model makes of `heard`."""
        return self.module(heard, torch.full((len(heard),), self.semitones, device=heard.device))


def told_semitones(run: TrainedRun, semitones: float | None) -> TrainedRun:
    """`run` with a model that knows the shift. Raises UserError where it needs what is not given, or the reverse."""
    task = run.hp.task
    if not (isinstance(task, PitchHParams) and task.is_conditioned):
        if semitones is not None:
            raise UserError(
                f"--semitones is for pitch models that hear it; leave it out for this {task.name} model"
            )
        return run
    if semitones is None:
        raise UserError(
            "the model hears by how many semitones a recording was shifted; give --semitones, such as --semitones 5"
        )
    if not 0 < abs(semitones) <= MOST_SEMITONES:
        raise UserError(
            f"--semitones is {semitones:g}; needed a number from -{MOST_SEMITONES} to {MOST_SEMITONES} other than 0"
        )
    return replace(run, module=Conditioned(run.module, semitones).eval())
