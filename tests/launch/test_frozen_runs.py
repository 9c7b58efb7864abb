"""The runs that stage 2 starts from: what is refused, and what is copied; and how it is told to solve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from enhancer.bundle import digest_of
from enhancer.engine.manifest import read_manifest, write_manifest
from enhancer.frozen import read_frozen
from enhancer.inference import load_run
from hparams.errors import UserError
from hparams.restore import RestoreHParams
from hparams.schema import HParams
from launch.apply import main as apply
from launch.export import main as export
from launch.frozen_runs import frozen_constants
from launch.train import main as train
from tests.finished_runs import TINY_DENOISER, TINY_STAGE1, write_run


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {
        "stage1_run": write_run(root / "stage1", TINY_STAGE1),
        "denoiser_run": write_run(root / "denoiser", TINY_DENOISER),
    }


@pytest.fixture
def hp(sources: dict[str, Path]) -> HParams:
    return replace(HParams(), task=RestoreHParams(num_latents=8, width=16, num_blocks=1, **sources))


def refused(hp: HParams, tmp_path: Path, **changes: Any) -> str:
    """Why a run of `hp` with other values of its task cannot begin; nothing of it is written."""
    run = tmp_path / "run"
    with pytest.raises(UserError) as error:
        frozen_constants(replace(hp, task=replace(hp.task, **changes)), run, is_writer=True)
    assert not run.exists()
    return str(error.value)


def test_the_modules_are_copied_once_and_read_from_there(hp: HParams, tmp_path: Path) -> None:
    taken = frozen_constants(hp, tmp_path, is_writer=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frozen"]
    write_run(tmp_path, hp.task)
    file = tmp_path / "frozen" / "stage1.safetensors"
    written = file.stat().st_mtime_ns
    for again in (frozen_constants(hp, tmp_path, is_writer=True), read_frozen(tmp_path, hp)):
        for name, module in taken.items():
            assert module.state_dict().keys() == again[name].state_dict().keys()
            assert all(map(torch.equal, module.state_dict().values(), again[name].state_dict().values()))
    assert file.stat().st_mtime_ns == written


def test_a_run_with_checkpoints_is_not_given_other_modules(hp: HParams, tmp_path: Path) -> None:
    """What they were trained with is gone, though the runs that they came from are there."""
    run = tmp_path / "run"
    frozen_constants(hp, run, is_writer=True)
    write_run(run, hp.task)
    (run / "frozen").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"frozen is missing.*copy the whole run folder again"):
        frozen_constants(hp, run, is_writer=True)
    assert not (run / "frozen").exists()
    (tmp_path / "aside").rename(run / "frozen")
    frozen_constants(hp, run, is_writer=True)


def test_before_the_first_checkpoint_the_runs_are_looked_at_anew(hp: HParams, tmp_path: Path) -> None:
    """A start that failed has left modules of the same names, which the values given now do not go with."""
    source = write_run(tmp_path / "stage1", TINY_STAGE1)
    hp = replace(hp, task=replace(hp.task, stage1_run=source))
    frozen_constants(hp, tmp_path / "run", is_writer=True)
    with pytest.raises(UserError, match=r"num_mels: stage 1 has 128, this run 80"):
        frozen_constants(replace(hp, num_mels=80), tmp_path / "run", is_writer=True)
    shutil.rmtree(source)
    write_run(source, replace(TINY_STAGE1, num_extra=6))
    frozen_constants(hp, tmp_path / "run", is_writer=True)
    assert read_frozen(tmp_path / "run", hp)["stage1"].autoencoder.num_extra == 6


def test_what_is_in_the_folder_is_held_against_the_values_too(hp: HParams, tmp_path: Path) -> None:
    frozen_constants(hp, tmp_path, is_writer=True)
    write_run(tmp_path, hp.task)
    with pytest.raises(UserError, match=r"num_mels: stage 1 has 128, this run 80"):
        frozen_constants(replace(hp, num_mels=80), tmp_path, is_writer=True)


def test_a_damaged_best_checkpoint_is_told(
    hp: HParams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "stage1", TINY_STAGE1)
    latest = run / "checkpoints" / "step-0000004"
    shutil.copytree(latest, run / "checkpoints" / "step-0000003")
    (run / "checkpoints" / "BEST").write_text("step-0000003\n")
    frozen_constants(replace(hp, task=replace(hp.task, stage1_run=run)), tmp_path / "run", is_writer=True)
    said = capsys.readouterr().err
    assert "checkpoint step-0000003 is refused" in said and "using step-0000004 in its place" in said
    assert f"task.stage1_run: step-0000004 of {run}" in said


def test_a_denoiser_of_another_hop_is_refused(hp: HParams, tmp_path: Path) -> None:
    run = write_run(tmp_path / "denoiser", TINY_DENOISER, hop_size=840)
    assert f"has hop_size 840, but hop_size of this run is {hp.hop_size}" in refused(
        hp, tmp_path, denoiser_run=run
    )


def test_other_runs_than_those_in_the_folder_are_taken_anew(
    hp: HParams, sources: dict[str, Path], tmp_path: Path
) -> None:
    """As where a first command named the wrong run, and training never began."""
    frozen_constants(hp, tmp_path / "run", is_writer=True)
    other = write_run(tmp_path / "other", replace(TINY_STAGE1, num_extra=6))
    changed = replace(hp, task=replace(hp.task, stage1_run=other))
    frozen_constants(changed, tmp_path / "run", is_writer=True)
    assert read_frozen(tmp_path / "run", changed)["stage1"].autoencoder.num_extra == 6


def test_a_run_that_is_missing_or_of_another_task_is_named(
    hp: HParams, sources: dict[str, Path], tmp_path: Path
) -> None:
    text = refused(hp, tmp_path, stage1_run=tmp_path / "nowhere")
    assert "task.stage1_run" in text and "is not there" in text and "enhancer_stage1_small" in text
    (tmp_path / "file").touch()
    text = refused(hp, tmp_path, stage1_run=tmp_path / "file")
    assert "is a file; needed the folder of a finished run" in text
    (tmp_path / "empty").mkdir()
    assert "holds no hparams.yaml" in refused(hp, tmp_path, denoiser_run=tmp_path / "empty")
    text = refused(hp, tmp_path, stage1_run=sources["denoiser_run"])
    assert "is a run of task denoise; needed one of task enhance" in text


def test_a_run_that_is_not_finished_is_refused(hp: HParams, tmp_path: Path) -> None:
    run = write_run(tmp_path / "stage1", TINY_STAGE1)
    (run / "status.json").write_text(json.dumps({"state": "preempted", "step": 2, "reason": "asked to"}))
    text = refused(hp, tmp_path, stage1_run=run)
    assert "is not finished: it is preempted at step 2 of 4" in text and "max_steps=STEP" in text
    (run / "status.json").unlink()
    assert "it has no status.json" in refused(hp, tmp_path, stage1_run=run)


def test_a_run_without_a_checkpoint_or_its_weights_is_refused_by_name(hp: HParams, tmp_path: Path) -> None:
    run = write_run(tmp_path / "stage1", TINY_STAGE1)
    (run / "checkpoints/step-0000004/generator.safetensors").unlink()
    text = refused(hp, tmp_path, stage1_run=run)
    assert "no whole checkpoint" in text and "generator.safetensors" in text
    (run / "checkpoints/step-0000004").rename(tmp_path / "aside")
    (run / "checkpoints/LATEST").unlink()
    assert "has no finished checkpoint" in refused(hp, tmp_path, stage1_run=run)


def test_another_mel_spectrogram_is_shown_value_by_value(hp: HParams, tmp_path: Path) -> None:
    run = write_run(tmp_path / "stage1", TINY_STAGE1, num_mels=80, preemphasis=0.9)
    text = refused(hp, tmp_path, stage1_run=run)
    assert "num_mels: stage 1 has 80, this run 128" in text
    assert "preemphasis: stage 1 has 0.9, this run 0.97" in text
    assert "hop_size" not in text and "--set num_mels=80 preemphasis=0.9" in text


def test_another_number_of_latents_is_told(hp: HParams, tmp_path: Path) -> None:
    assert "give --set task.num_latents=8" in refused(hp, tmp_path, num_latents=64)


def test_a_denoiser_of_another_rate_is_refused(hp: HParams, tmp_path: Path) -> None:
    run = write_run(tmp_path / "denoiser", TINY_DENOISER)
    text = (run / "hparams.yaml").read_text()
    (run / "hparams.yaml").write_text(text.replace("wav_rate: 44100", "wav_rate: 48000"))
    text = refused(hp, tmp_path, denoiser_run=run)
    assert "was trained at 48000 Hz, but wav_rate is 44100" in text


@pytest.fixture(scope="module")
def trained(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2 with what it works with in its folder."""
    run = tmp_path_factory.mktemp("runs") / "stage2"
    task = RestoreHParams(num_latents=8, width=16, num_blocks=1, **sources)
    frozen_constants(replace(HParams(), task=task), run, is_writer=True)
    return write_run(run, task)


def test_a_bundle_is_the_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the folder, by the command; every weight and value, and the same sound to the byte."""
    file = tmp_path / "enhancer.safetensors"
    assert export(["--run", str(trained), "--format", "bundle", "--output", str(file)]) == 0
    run, bundled = load_run(trained), load_run(file)
    assert bundled.hp == run.hp and bundled.step == run.step
    for one, two in (
        (run.module, bundled.module),
        *((run.constants[name], bundled.constants[name]) for name in run.constants),
    ):
        assert one.state_dict().keys() == two.state_dict().keys()
        assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    sf.write(tmp_path / "in.wav", 0.1 * np.random.default_rng(3).standard_normal(20_000), 44_100)
    for place, name in ((trained, "a.wav"), (file, "b.wav")):
        words = ["--run", str(place), "--input", str(tmp_path / "in.wav"), "--output", str(tmp_path / name)]
        assert apply([*words, "--nfe", "1", "--device", "cpu"]) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_what_a_bundle_does_not_say_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "enhancer.safetensors"
    words = ["--run", str(trained), "--format", "bundle", "--output", str(file)]
    assert export([*words, "--gear-make", "x", "--input-level-dbu", "12"]) == 2
    assert "--gear-make --input-level-dbu: for formats of devices" in capsys.readouterr().err
    assert not file.exists()


def test_a_file_that_is_no_whole_bundle_is_refused(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "enhancer.safetensors"
    assert export(["--run", str(trained), "--format", "bundle", "--output", str(file)]) == 0
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="its weights or its metadata are not those that were written"):
        load_run(file)
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_run(file)
    with pytest.raises(UserError, match="is no bundle: its format is not said"):
        load_run(trained / "frozen" / "stage1.safetensors")


def with_metadata(file: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Write `file` with other metadata, by the safetensors package, and with its digest as it was."""
    with safe_open(file, "pt") as opened:
        metadata, weights = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(metadata)
    save_file(weights, file, metadata)


def test_a_changed_digit_of_the_metadata_is_seen(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "enhancer.safetensors"
    assert export(["--run", str(trained), "--format", "bundle", "--output", str(file)]) == 0
    with_metadata(file, lambda metadata: None)
    load_run(file)

    def other(metadata: dict[str, str]) -> None:
        assert "nfe: 16" in metadata["hparams"]
        metadata["hparams"] = metadata["hparams"].replace("nfe: 16", "nfe: 17")

    with_metadata(file, other)
    with pytest.raises(UserError, match="is changed"):
        load_run(file)


@pytest.mark.parametrize(
    ("key", "other", "words"),
    [
        (
            "hparams.stage1",
            None,
            r"has hparams\.denoiser; a model of task restore works with hparams\.stage1",
        ),
        ("hparams.x", "hparams.stage1", r"hparams\.stage1, hparams\.x; a model"),
        ("hparams.stage1", "hparams.denoiser", "is of task denoise; stage1 is a module of task enhance"),
        ("hparams", "hparams.denoiser", "a model of task denoise works with none"),
    ],
)
def test_a_bundle_of_other_modules_is_refused(
    trained: Path, tmp_path: Path, key: str, other: str | None, words: str
) -> None:
    """With a digest that fits."""
    file = tmp_path / "enhancer.safetensors"
    assert export(["--run", str(trained), "--format", "bundle", "--output", str(file)]) == 0
    weights = load_torch(file)

    def change(metadata: dict[str, str]) -> None:
        if other is None:
            del metadata[key]
        else:
            metadata[key] = metadata[other]
        metadata["sha256"] = digest_of(weights, metadata)

    with_metadata(file, change)
    with pytest.raises(UserError, match=words):
        load_run(file)


def test_a_folder_of_other_modules_is_refused(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    manifest = read_manifest(run / "frozen")
    for kind in ("yaml", "safetensors"):
        shutil.copy(run / f"frozen/denoiser.{kind}", run / f"frozen/stage1.{kind}")
    (run / "frozen/manifest.json").unlink()
    write_manifest(run / "frozen", manifest.state, manifest.record)
    with pytest.raises(
        UserError, match=r"stage1\.yaml is of task denoise; stage1 is a module of task enhance"
    ):
        load_run(run)


@pytest.mark.parametrize(
    "name",
    [
        "frozen/denoiser.safetensors",
        "frozen/stage1.yaml",
        "frozen",
        "checkpoints/step-0000004/velocity.safetensors",
    ],
)
def test_what_is_missing_from_the_folder_is_named(trained: Path, name: str, tmp_path: Path) -> None:
    (trained / name).rename(tmp_path / "aside")
    try:
        with pytest.raises(UserError, match=name.rpartition("/")[2]):
            load_run(trained)
    finally:
        (tmp_path / "aside").rename(trained / name)
    load_run(trained)


def test_a_changed_byte_of_what_it_works_with_is_seen(trained: Path) -> None:
    file = trained / "frozen" / "stage1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"stage1\.safetensors is changed"):
        load_run(trained)
    file.write_bytes(whole)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nfe", "0"], "--nfe is 0; needed 1 to 1024"),
        (["--solver", "heun"], "--solver heun is not known; needed one of euler, midpoint, rk4"),
        (["--strength", "1.5"], "--strength is 1.5; needed 0"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_a_way_to_solve_that_there_is_not_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    source = tmp_path / "in.wav"
    source.write_bytes(b"")
    command = ["--run", str(trained), "--input", str(source), "--output", str(tmp_path / "out.wav")]
    assert apply([*command, *flags]) == 2
    assert words in capsys.readouterr().err


def test_memory_is_told_with_the_frozen_modules(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their bytes are those of the float32 weights that were written, and no state of an optimiser."""
    own = [f"task.{name}={run}" for name, run in sources.items()]
    small = [
        "task.num_latents=8",
        "task.width=16",
        "task.num_blocks=1",
        "batch_size_per_gpu=2",
        "training_seconds=0.2",
    ]
    words = ["--hparams", "enhancer_stage2_small", "--run-dir", str(tmp_path / "run"), "--set", *own, *small]
    assert train([*words, "--print-memory", "--world-size", "2"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen modules"))
    files = [
        run / f"checkpoints/step-0000004/{name}.safetensors"
        for run, name in zip(sources.values(), ("generator", "denoiser"), strict=True)
    ]
    size = sum(value.nbytes for file in files for value in load_file(file).values())
    assert float(line.split()[-1]) == pytest.approx(size / (1 << 20), abs=0.06)
    assert not (tmp_path / "run").exists()


def test_other_models_have_no_use_for_it(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.wav"
    source.write_bytes(b"")
    command = [
        "--run",
        str(sources["denoiser_run"]),
        "--input",
        str(source),
        "--output",
        str(tmp_path / "out.wav"),
    ]
    assert apply([*command, "--nfe", "4", "--seed", "1"]) == 2
    assert "--nfe --seed: for stage 2" in capsys.readouterr().err
