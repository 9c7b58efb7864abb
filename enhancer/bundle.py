"""A trained run as one safetensors file: the weights it is used with, and those of the modules it works with.

Weights of module `velocity` are named `velocity.NAME`. The metadata has all else: `format`, the resolved
hyper-parameters of the run (`hparams`) and of each module that it works with (`hparams.stage1`), `step` and
`checkpoint`, and `sha256` of all weights and all other metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from enhancer.engine import atomic
from enhancer.engine.manifest import FROZEN
from enhancer.engine.weights import read_described, write_weights
from enhancer.frozen import built, frozen_task, sources_of, task_of
from hparams.errors import UserError
from hparams.load import loads
from hparams.schema import HParams

FORMAT = "wavewright bundle 2"
HPARAMS = "hparams"
DIGEST = "sha256"
STEP = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds: `weights` of the main module, and `modules` that the task works with, in eval mode."""

    hp: HParams
    weights: dict[str, Tensor]
    modules: dict[str, nn.Module]
    step: int
    checkpoint: str


def write_bundle(path: Path, run_dir: Path, main: nn.Module, bundle: Bundle) -> None:
    """Write `bundle` of the run in `run_dir`, whose main module is `main`, to `path`, whole or not at all.

    Raises OSError.
    """
    name = task_of(bundle.hp).main_module
    weights = {f"{name}.{key}": value for key, value in main.state_dict().items()}
    metadata = {
        "format": FORMAT,
        HPARAMS: (run_dir / "hparams.yaml").read_text("utf-8"),
        "step": str(bundle.step),
        "checkpoint": bundle.checkpoint,
    }
    for own, module in bundle.modules.items():
        weights |= {f"{own}.{key}": value for key, value in module.state_dict().items()}
        metadata[f"{HPARAMS}.{own}"] = (run_dir / FROZEN / f"{own}.yaml").read_text("utf-8")
    metadata[DIGEST] = digest_of(weights, metadata)
    temporary = path.with_name(atomic.temporary_name(path.name))
    try:
        write_weights(temporary, weights, metadata)
        atomic.sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_bundle(path: Path) -> Bundle:
    """The bundle in the file `path`. Raises UserError that says what is wrong with it."""
    weights, metadata = read_described(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is no bundle: its format is {metadata.get('format', 'not said')!s:.60}, needed {FORMAT}. Give a "
            "run folder, or what `launch/export.py --format bundle` wrote"
        )
    if not {HPARAMS, "step", "checkpoint"} <= metadata.keys() or not STEP.fullmatch(metadata["step"]):
        raise UserError(f"{path} lacks its hyper-parameters, step or checkpoint; export the run again")
    if metadata.get(DIGEST) != digest_of(weights, metadata):
        raise UserError(
            f"{path} is changed: its weights or its metadata are not those that were written; copy it again"
        )
    hp = loads(metadata[HPARAMS], str(path))
    needed = {f"{HPARAMS}.{name}": name for name in sources_of(hp)}
    found = {key for key in metadata if key.startswith(f"{HPARAMS}.")}
    if found != needed.keys():
        raise UserError(
            f"{path} has {', '.join(sorted(found)) or 'no other modules'}; a model of task {hp.task.name} works with "
            f"{', '.join(needed) or 'none'}. Export the run again"
        )
    modules = {}
    for key, name in needed.items():
        task = frozen_task(name, loads(metadata[key], f"{path}, {key}"), f"{path}, {key}")
        modules[name] = built(task, _of(weights, name), path, Path(f"the {key} of its metadata")).eval()
    main = task_of(hp).main_module
    return Bundle(hp, _of(weights, main), modules, int(metadata["step"]), metadata["checkpoint"])


def _of(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")
    }


def digest_of(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over the metadata but itself, and over names and values of weights, in the order of the names."""
    said = {key: value for key, value in metadata.items() if key != DIGEST}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        value = value.float() if value.is_floating_point() else value
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).numpy().tobytes())
    return digest.hexdigest()
