"""Trained modules that a run works with and does not train: copied once into its folder, which then needs no other.

```
RUN/frozen/
  stage1.yaml  stage1.safetensors  denoiser.yaml  denoiser.safetensors   hyper-parameters and weights of each
  manifest.json   size and sha256 of these, and which checkpoint of which run each was, as of a checkpoint
```
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.engine import atomic
from enhancer.engine.manifest import FROZEN, DamagedCheckpoint, read_manifest, verify, write_manifest
from enhancer.engine.state import State
from enhancer.engine.weights import read_weights_file, write_weights
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.load import dump, load_resolved
from hparams.restore import RestoreHParams
from hparams.schema import HParams

SOURCES = "sources"
SOURCE_TASKS = {"stage1": "enhance", "denoiser": "denoise"}
"""Which task the run of each module is of."""


@dataclass(frozen=True)
class FrozenModule:
    """A trained module, its hyper-parameters, and where it was found: the run as it was named, and its checkpoint."""

    hp: HParams
    module: nn.Module
    run: str
    checkpoint: str


def sources_of(hp: HParams) -> dict[str, Path]:
    """The runs whose modules a run of `hp` works with, by the name of the module; none for most tasks."""
    if not isinstance(hp.task, RestoreHParams):
        return {}
    return {"stage1": hp.task.stage1_run, "denoiser": hp.task.denoiser_run}


def require_frozen(run_dir: Path, hp: HParams) -> None:
    """Raises UserError where `run_dir` has no modules of the runs that `hp` names.

    Such as a run with checkpoints was trained with can be had from nowhere else: the runs may have gone on since.
    """
    folder = run_dir / FROZEN
    if not folder.is_dir():
        raise _missing(folder, hp)
    try:
        record = read_manifest(folder).record
    except DamagedCheckpoint as error:
        raise _unusable(error) from error
    named = {name: str(run) for name, run in sources_of(hp).items()}
    found = {name: source.get("run") for name, source in record.get(SOURCES, {}).items()}
    if found != named:
        raise UserError(
            f"{folder} holds modules of {found}, but the run names {named}; copy the whole run folder again"
        )


def write_frozen(run_dir: Path, modules: Mapping[str, FrozenModule]) -> None:
    """Copy `modules` into `run_dir`, all of them or none. Raises OSError."""
    temporary = run_dir / atomic.temporary_name(FROZEN)
    temporary.mkdir(parents=True)
    try:
        for name, frozen in modules.items():
            (temporary / f"{name}.yaml").write_text(dump(frozen.hp), encoding="utf-8")
            write_weights(temporary / f"{name}.safetensors", frozen.module.state_dict())
        sources = {
            name: {"run": frozen.run, "checkpoint": frozen.checkpoint} for name, frozen in modules.items()
        }
        write_manifest(temporary, State(), {SOURCES: sources})
        atomic.publish_folder(temporary, run_dir / FROZEN)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def read_frozen(run_dir: Path, hp: HParams) -> dict[str, nn.Module]:
    """The modules in `run_dir` that a run of `hp` works with, in eval mode; none for most tasks.

    Raises UserError that names what is missing or is not what was written.
    """
    names = list(sources_of(hp))
    if not names:
        return {}
    folder = run_dir / FROZEN
    if not folder.is_dir():
        raise _missing(folder, hp)
    try:
        listed = verify(folder).files
    except DamagedCheckpoint as error:
        raise _unusable(error) from error
    modules = {}
    for name in names:
        hparams_file, file = f"{name}.yaml", f"{name}.safetensors"
        if not {hparams_file, file} <= listed.keys():
            raise UserError(
                f"{folder} lists no {file} with its {hparams_file}; copy the whole run folder again"
            )
        task = frozen_task(name, load_resolved(folder / hparams_file), folder / hparams_file)
        modules[name] = built(task, read_weights_file(folder / file), folder / file, folder / hparams_file)
    return {name: module.eval() for name, module in modules.items()}


def frozen_hparams(run_dir: Path, hp: HParams) -> dict[str, HParams]:
    """The hyper-parameters of the modules in `run_dir`, which `read_frozen` has found whole. Raises UserError."""
    return {name: load_resolved(run_dir / FROZEN / f"{name}.yaml") for name in sources_of(hp)}


def task_of(hp: HParams) -> Any:
    """The task that `hp` names, without constants."""
    return TASKS[hp.task.name](hp)


def frozen_task(name: str, own: HParams, place: Path | str) -> Any:
    """The task of the module `name`, whose hyper-parameters `own` are in `place`. Raises UserError for another one."""
    if own.task.name != SOURCE_TASKS[name]:
        raise UserError(
            f"{place} is of task {own.task.name}; {name} is a module of task {SOURCE_TASKS[name]}"
        )
    return task_of(own)


def built(task: Any, weights: Mapping[str, Tensor], file: Path, hparams_file: Path) -> nn.Module:
    """The main module of `task` with `weights` of `file`.

    It is built without memory first, since hyper-parameters may ask for any size. Raises UserError where they do not
    fit.
    """
    try:
        with torch.device("meta"):
            task.build()[task.main_module].load_state_dict(weights, assign=True)
        module: nn.Module = task.build()[task.main_module]
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file} holds another model than {hparams_file} says: {error}") from error
    return module


def _missing(folder: Path, hp: HParams) -> UserError:
    return UserError(
        f"{folder} is missing, which holds the modules that the run works with ({', '.join(sources_of(hp))}); copy the "
        "whole run folder again"
    )


def _unusable(error: Exception) -> UserError:
    return UserError(f"{error}; copy the whole run folder again")
