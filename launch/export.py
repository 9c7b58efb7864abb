"""Write a trained device model for a plugin: python launch/export.py --run runs/ds1 --format nam --output ds1.nam

Any run becomes one file, which apply.py takes as --run: ... --format bundle --output enhancer.safetensors

nam (Neural Amp Modeler), rtneural, proteus (also NeuralPi and Automated-GuitarAmpModelling) and onnx. What a format
cannot say is refused. A model with knobs is exported at one setting of them with `--knob`, or with its knobs where the
format has some.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import soundfile as sf
import torch

from enhancer.bundle import Bundle, write_bundle
from enhancer.engine.atomic import write_bytes
from enhancer.engine.manifest import read_manifest
from enhancer.engine.status import read_status
from enhancer.export.description import GEAR_TYPES, TONE_TYPES, Description, Device, require_device
from enhancer.export.fixed_knobs import at_knobs
from enhancer.export.level import loudness_and_gain, loudness_recording
from enhancer.inference import TrainedRun, load_run
from hparams.errors import UserError
from hparams.tasks import DeviceHParams
from launch.common import checkpoint_folder, knob_values, reports_user_errors, require_plausible

BUNDLE = "bundle"
FORMATS = ("nam", "rtneural", "proteus", "onnx", BUNDLE)
GEAR = ("name", "modeled_by", "gear_make", "gear_model", "gear_type", "tone_type")
LEVELS = ("input_level_dbu", "output_level_dbu")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name the file to write")
    if args.run.is_file():
        raise UserError(f"--run {args.run} is a file; give the run folder that it was exported from")
    run = load_run(args.run, "cpu", checkpoint_folder(args.run, args.checkpoint))
    for note in (*run.notes, *_unfinished(args.run)):
        print(f"note: {note}", file=sys.stderr)
    if args.format == BUNDLE:
        return _export_bundle(run, args)
    device, description = described(run, args)
    exported = importlib.import_module(f"enhancer.export.{args.format}").export(device, description)
    for note in exported.notes:
        print(f"note: {note}", file=sys.stderr)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.output, exported.data)
    esr = "" if description.esr is None else f", validation ESR {description.esr:.4f}"
    print(f"{args.output}: {run.checkpoint.name} of {args.run} at {run.hp.wav_rate} Hz{esr}")
    return 0


def _export_bundle(run: TrainedRun, args: argparse.Namespace) -> int:
    """Write all that using the run needs into one file; knobs stay as they are."""
    if args.knob:
        raise UserError("--knob is for formats of devices; a bundle keeps the model's knobs")
    given = [name for name in (*GEAR, *LEVELS, "loudness_input") if getattr(args, name) is not None]
    if given:
        raise UserError(
            f"--{' --'.join(given).replace('_', '-')}: for formats of devices; leave out for a bundle"
        )
    bundle = Bundle(run.hp, {}, dict(run.constants), run.step, run.checkpoint.name)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(args.output, args.run, run.module, bundle)
    size = args.output.stat().st_size
    held = ", ".join(["its hyper-parameters", *run.constants])
    print(f"{args.output}: {run.checkpoint.name} of {args.run} with {held}, {size / 1e6:.1f} MB")
    return 0


def _unfinished(run_folder: Path) -> list[str]:
    """What to say where training may still make the model better."""
    status = read_status(run_folder)
    if status is None or status["state"] == "finished":
        return []
    return [
        f"{run_folder} is {status['state']} at step {status['step']}; its best checkpoint so far is taken"
    ]


def described(run: TrainedRun, args: argparse.Namespace) -> tuple[Device, Description]:
    """The model to export, at the knobs that are given, and what goes along with it."""
    device = require_device(run.module)
    assert isinstance(run.hp.task, DeviceHParams), run.hp.task
    names = run.hp.task.knobs
    description = Description(
        rate_hz=run.hp.wav_rate,
        esr=_validation_esr(run),
        knobs=names,
        date=datetime.now(),
        **{name: getattr(args, name) for name in (*GEAR, *LEVELS)},
    )
    if args.knob:
        values = knob_values(names, args.knob).tolist()
        device = at_knobs(device, values)
        settings = tuple(zip(names, values, strict=True))
        description = replace(description, knobs=(), settings=settings)
    return device, _with_level(device, description, args.loudness_input)


def _with_level(device: Device, description: Description, given: Path | None) -> Description:
    """With loudness and gain where there is the recording to measure them by, and no knob that changes them."""
    path = given or loudness_recording()
    if path is None or device.num_knobs:
        return description
    try:
        require_plausible(path, sf.info(path))
        samples, _ = sf.read(path, dtype="float32", always_2d=True)
    except (sf.LibsndfileError, OSError) as error:
        raise UserError(f"--loudness-input {path} cannot be read: {error}") from error
    if not len(samples) or samples.shape[1] != 1:
        raise UserError(
            f"--loudness-input {path} has {len(samples)} frames of {samples.shape[1]} channels; needed the mono "
            "loudness_input.wav of neural-amp-modeler"
        )
    measured = loudness_and_gain(device, torch.from_numpy(samples[:, 0]))
    if measured is None:
        return description
    return replace(description, loudness=measured[0], gain=measured[1])


def _validation_esr(run: TrainedRun) -> float | None:
    """ESR of the checkpoint where it is the best so far, which is when it was judged; else None."""
    state = read_manifest(run.checkpoint).state
    is_judged = run.task.best_metric == "esr" and state.best_step == run.step
    return state.best if is_judged else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/export.py", description="Write a trained device model for a plugin."
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of a training run")
    parser.add_argument(
        "--checkpoint", help="name of a checkpoint in the run, such as step-0000500; default: the best"
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="who is to play it")
    parser.add_argument("--output", type=Path, required=True, help="file to write; replaced where it is")
    parser.add_argument(
        "--knob", action="append", default=[], metavar="NAME=VALUE", help="fix a knob; repeat for each"
    )
    words = {"gear_type": GEAR_TYPES, "tone_type": TONE_TYPES}
    for name in GEAR:
        parser.add_argument(
            f"--{name.replace('_', '-')}", choices=words.get(name), help="goes along with the model"
        )
    for name in LEVELS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=float, help="analog level, dBu, of full scale")
    parser.add_argument(
        "--loudness-input",
        type=Path,
        metavar="WAV",
        help="loudness_input.wav of neural-amp-modeler, by which loudness and gain are measured; "
        "default: the one of an installed neural-amp-modeler, else both are left out",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
