"""launch/apply.py with a pitch model: it is told the semitones, and says what it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import save_file

from enhancer.engine.manifest import write_manifest
from enhancer.engine.state import State
from enhancer.inference import load_run
from enhancer.tasks.pitch import PitchTask
from hparams.load import dump, load
from launch.apply import main
from tests.launch.test_apply import make_run as make_denoiser_run
from tests.models.test_denoiser import perturbed as perturbed_denoiser
from tests.models.test_unets import perturbed

VALUES = ["task.channels=[1,4,8]", "task.blocks=[1,1]", "task.factors=[8,4]", "ema_decay=0"]


def make_run(folder: Path, *overrides: str) -> Path:
    """A run folder with nothing but what using the model may need."""
    hp = load("pitch_wave_small", [*VALUES, *overrides])
    checkpoint = folder / "checkpoints" / "step-0000007"
    checkpoint.mkdir(parents=True)
    (folder / "hparams.yaml").write_text(dump(hp))
    model = perturbed(PitchTask(hp).build()["repairer"], size=0.3)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              checkpoint / "repairer.safetensors")  # fmt: skip
    write_manifest(checkpoint, State(step=7), {})
    (folder / "checkpoints" / "LATEST").write_text("step-0000007\n")
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pitch_run"))


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4.1 s of noise at -20 dBFS, which is inside the range of levels: no gain is applied."""
    path = tmp_path_factory.mktemp("audio") / "shifted.wav"
    wave = 0.1 * np.random.default_rng(0).standard_normal(180_811).astype(np.float32)
    sf.write(path, wave, 44_100, "FLOAT")
    return path


def test_a_file_is_repaired_by_the_model_that_was_told_the_semitones(
    run_dir: Path, shifted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repaired.wav"
    arguments = ["--run", str(run_dir), "--input", str(shifted), "--output", str(out)]
    assert main([*arguments, "--semitones", "5", "--chunk-seconds", "0.7"]) == 0
    repaired, _ = sf.read(out, dtype="float32")
    heard, _ = sf.read(shifted, dtype="float32")
    with torch.no_grad():
        model = load_run(run_dir).module
        told = [model(torch.from_numpy(heard[None]), torch.tensor([s]))[0].numpy() for s in (5.0, -5.0)]
    assert repaired.shape == heard.shape
    assert np.abs(repaired - told[0]).max() < 1e-4
    assert np.abs(repaired - told[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give --semitones, such as --semitones 5"),
        (["--semitones", "0"], "--semitones is 0; needed a number from -24 to 24 other than 0"),
        (["--semitones", "25"], "--semitones is 25; needed a number from -24 to 24"),
        (["--semitones", "-24.5"], "--semitones is -24.5"),
        (["--semitones", "nan"], "--semitones is nan"),
    ],
)
def test_semitones_that_are_missing_or_cannot_be_are_refused(
    run_dir: Path,
    shifted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    said: str,
) -> None:
    out = tmp_path / "out.wav"
    assert main(["--run", str(run_dir), "--input", str(shifted), "--output", str(out), *given]) == 2
    assert said in capsys.readouterr().err and not out.exists()


def test_a_model_that_does_not_hear_the_semitones_takes_none(
    shifted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = make_run(tmp_path / "blind", "task.is_conditioned=false")
    denoiser = make_denoiser_run(tmp_path / "denoiser", perturbed_denoiser())
    for folder in (blind, denoiser):
        arguments = ["--run", str(folder), "--input", str(shifted), "--output", str(tmp_path / "out.wav")]
        assert main([*arguments, "--semitones", "5"]) == 2
        assert "leave it out" in capsys.readouterr().err
    assert main(["--run", str(blind), "--input", str(shifted), "--output", str(tmp_path / "out.wav")]) == 0
