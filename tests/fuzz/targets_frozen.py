"""What a run works with beside its own weights: the folder of frozen modules, and a whole run as one file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

from torch import Tensor

from enhancer.bundle import DIGEST, Bundle, digest_of, write_bundle
from enhancer.engine.manifest import FROZEN, MANIFEST, _measure
from enhancer.engine.weights import read_described
from enhancer.inference import load_run
from hparams.errors import UserError
from hparams.restore import RestoreHParams
from hparams.schema import HParams
from launch.frozen_runs import frozen_constants
from tests.finished_runs import TINY_DENOISER, TINY_STAGE1, write_run
from tests.fuzz.mutations import changed_json, spoiled_bytes, spoiled_json, spoiled_text
from tests.fuzz.target import Read, Target
from tests.fuzz.targets_run import sign, spoiled_safetensors


def make_run(folder: Path) -> Path:
    """A finished run of stage 2, with the modules that it works with."""
    sources = {
        "stage1_run": write_run(folder / "stage1", TINY_STAGE1),
        "denoiser_run": write_run(folder / "denoiser", TINY_DENOISER),
    }
    task = RestoreHParams(num_latents=8, width=16, num_blocks=1, **sources)
    frozen_constants(replace(HParams(), task=task), folder / "kept", is_writer=True)
    return write_run(folder / "kept", task)


def _folders(folder: Path) -> Read:
    """Any file of the folder, with a manifest that fits it, or the manifest."""
    kept, run = make_run(folder), folder / "run"

    def read(rng: Random) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(kept, run)
        content = json.loads((run / FROZEN / MANIFEST).read_bytes())
        if rng.random() < 0.2:
            (run / FROZEN / MANIFEST).write_bytes(spoiled_json(rng, content))
        elif rng.random() < 0.3:
            sign(run / FROZEN, changed_json(rng, content))
        else:
            path = run / FROZEN / rng.choice(sorted(content["files"]))
            data = path.read_bytes()
            is_text = path.suffix == ".yaml"
            path.write_bytes(spoiled_text(rng, data.decode()) if is_text else spoiled_safetensors(rng, data))
            size, digest = _measure(path)
            content["files"][path.name] = {"bytes": size, "sha256": digest}
            sign(run / FROZEN, content)
        load_run(run)

    return read


def _bundles(folder: Path) -> Read:
    """A bundle whose bytes, header or metadata are changed."""
    run = load_run(make_run(folder))
    kept, path = folder / "kept.safetensors", folder / "bundle.safetensors"
    modules = dict(run.constants)
    write_bundle(
        kept, folder / "kept", run.module, Bundle(run.hp, {}, modules, run.step, run.checkpoint.name)
    )

    weights = read_described(kept)[0]

    def read(rng: Random) -> None:
        data = kept.read_bytes()
        path.write_bytes(
            _with_other_metadata(rng, data, weights) if rng.random() < 0.6 else spoiled_bytes(rng, data)
        )
        load_run(path)

    return read


def _with_other_metadata(rng: Random, data: bytes, weights: dict[str, Tensor]) -> bytes:
    """Mostly with a digest that fits, as whoever changes it on purpose would write."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    key = rng.choice(sorted(metadata))
    choice = rng.random()
    if choice < 0.1:
        del metadata[key]
    elif choice < 0.2:
        metadata[f"hparams.{rng.choice(('', 'velocity', 'stage1', 'x'))}"] = metadata.pop(key)
    elif choice < 0.3:
        metadata["step"] = rng.choice(("9" * 5000, "-1", "\u0663", "1e3", ""))
    else:
        metadata[key] = spoiled_text(rng, metadata[key]).decode("utf-8", "replace")
    if rng.random() < 0.9:
        metadata[DIGEST] = digest_of(weights, metadata)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_ERRORS = (UserError,)
TARGETS = {"frozen": Target(_folders, _ERRORS, 0.5), "bundle": Target(_bundles, _ERRORS, 0.5)}
