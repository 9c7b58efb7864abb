"""`apply.py` for stage 2 of the enhancer: how the flow is solved, how strong the denoiser is, and the seed."""

from __future__ import annotations

import argparse
from dataclasses import replace

from enhancer.inference import TrainedRun
from enhancer.models.flow import SOLVERS
from hparams.errors import UserError
from hparams.restore import RestoreHParams

MOST_NFE = 1024
FLAGS = ("nfe", "solver", "strength", "seed")


def add_restoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --nfe, --solver, --strength and --seed."""
    parser.add_argument(
        "--nfe",
        type=int,
        metavar="N",
        help="of stage 2 of the enhancer: evaluations of its network (task.nfe)",
    )
    parser.add_argument("--solver", help=f"of the same: {', '.join(SOLVERS)} (task.solver)")
    parser.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="of the same: share of the denoised spectrogram in what its network hears, 0 to 1 (task.strength)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the same: seed of its noise (0)")


def told_sampling(run: TrainedRun, args: argparse.Namespace) -> TrainedRun:
    """`run` with a module from waveform to waveform that solves as `args` say, and as its values say where they do not.

    Raises UserError where a value is not possible, or is given for a model that has no use for it.
    """
    given = {flag: getattr(args, flag) for flag in FLAGS if getattr(args, flag) is not None}
    if not isinstance(run.hp.task, RestoreHParams):
        if given:
            raise UserError(
                f"--{' --'.join(given)}: for stage 2 of the enhancer; leave out for this {run.hp.task.name} model"
            )
        return run
    sampling = replace(run.task.sampling(), seed=0)
    sampling = replace(sampling, **given)
    if sampling.solver not in SOLVERS:
        raise UserError(f"--solver {sampling.solver} is not known; needed one of {', '.join(SOLVERS)}")
    if not 1 <= sampling.nfe <= MOST_NFE:
        raise UserError(f"--nfe is {sampling.nfe}; needed 1 to {MOST_NFE} evaluations, such as --nfe 16")
    if not 0 <= sampling.strength <= 1:
        raise UserError(
            f"--strength is {sampling.strength:g}; needed 0 (the recording alone) to 1 (the denoised one alone)"
        )
    if not 0 <= sampling.seed < 1 << 63:
        raise UserError(f"--seed is {sampling.seed}; needed a whole number from 0 to 2^63 - 1")
    return replace(run, module=run.task.restorer(run.module, sampling).eval())
