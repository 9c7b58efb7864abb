"""launch/export.py: files of a run for plugins, what goes along, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import save_file

from enhancer.engine.manifest import write_manifest
from enhancer.engine.state import State
from enhancer.models.recurrent import RecurrentDevice
from enhancer.models.wavenet import WaveNetDevice
from hparams.load import dump, load
from launch.export import main
from tests.export.devices import output, recurrent, riff, wavenet
from tests.export.readers import play_nam

STATE = State(step=7, evaluated=7, best=0.0123, best_step=7)


def make_run(
    folder: Path, device: RecurrentDevice | WaveNetDevice, *overrides: str, state: State = STATE
) -> Path:
    """A run folder with nothing but what exporting may need."""
    checkpoint = folder / "checkpoints" / "step-0000007"
    checkpoint.mkdir(parents=True)
    preset = "pedal_wavenet" if isinstance(device, WaveNetDevice) else "pedal_lstm"
    (folder / "hparams.yaml").write_text(dump(load(preset, ["wav_rate=48000", *overrides])))
    save_file(
        {name: value.contiguous() for name, value in device.state_dict().items()},
        checkpoint / "device.safetensors",
    )
    write_manifest(checkpoint, state, {})
    (folder / "checkpoints" / "LATEST").write_text("step-0000007\n")
    return folder


@pytest.fixture
def lstm_run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", recurrent(), "task.hidden_size=16")


def export(run: Path, output_file: Path, *arguments: str) -> int:
    return main(["--run", str(run), "--output", str(output_file), *arguments])


def test_an_lstm_run_becomes_a_nam_file_with_its_rate_esr_and_gear(lstm_run, tmp_path, capsys):
    target = tmp_path / "new" / "ds1.nam"
    gear = ["--name", "DS", "--gear-type", "pedal", "--tone-type", "overdrive", "--input-level-dbu", "12.5"]
    assert export(lstm_run, target, "--format", "nam", *gear) == 0
    content = json.loads(target.read_text())
    assert content["sample_rate"] == 48_000
    metadata = content["metadata"]
    assert metadata["training"] == {"validation_esr": 0.0123}
    assert (metadata["name"], metadata["gear_type"], metadata["tone_type"]) == ("DS", "pedal", "overdrive")
    assert metadata["input_level_dbu"] == 12.5 and set(metadata["date"]) >= {"year", "second"}
    assert "validation ESR 0.0123" in capsys.readouterr().out
    device, dry = recurrent(), riff(2000)
    with torch.no_grad():
        _, state = device(torch.zeros(1, 48_000))
    assert (
        np.abs(
            play_nam(target.read_bytes(), dry[0].double().numpy()) - output(device, dry, state=state)
        ).max()
        <= 1e-6
    )


def test_a_wavenet_run_becomes_a_nam_file(tmp_path):
    run = make_run(tmp_path / "run", wavenet())
    assert export(run, tmp_path / "a.nam", "--format", "nam") == 0
    dry = riff(5000)
    found = play_nam((tmp_path / "a.nam").read_bytes(), dry[0].double().numpy())
    assert np.abs(found - output(wavenet(), dry)).max() <= 1e-6


@pytest.mark.parametrize("name", ["rtneural", "proteus"])
def test_the_json_formats_are_written(lstm_run, tmp_path, name, capsys):
    assert export(lstm_run, tmp_path / "a.json", "--format", name) == 0
    metadata = json.loads((tmp_path / "a.json").read_text())["metadata"]
    assert (metadata["samplerate"], metadata["esr"]) == (48_000, 0.0123)
    assert ("Proteus plays 40 units" in capsys.readouterr().err) == (name == "proteus")


def test_an_onnx_file_is_written(lstm_run, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs wavewright[onnx]")
    assert export(lstm_run, tmp_path / "a.onnx", "--format", "onnx") == 0
    onnx.checker.check_model(onnx.load(str(tmp_path / "a.onnx")))


def test_a_model_with_knobs_is_exported_at_a_setting(tmp_path, capsys):
    device = recurrent(num_knobs=2)
    run = make_run(tmp_path / "run", device, "task.hidden_size=16", "task.knobs=[drive, tone]")
    target = tmp_path / "a.nam"
    assert export(run, target, "--format", "nam") == 2
    assert "--knob drive=0.5 --knob tone=0.5" in capsys.readouterr().err
    assert export(run, target, "--format", "nam", "--knob", "drive=0.25") == 2
    assert "drive, tone" in capsys.readouterr().err
    assert not target.exists()
    assert export(run, target, "--format", "nam", "--knob", "tone=0.75", "--knob", "drive=0.25") == 0
    training = json.loads(target.read_text())["metadata"]["training"]
    assert training["settings"] == {"knobs": {"drive": 0.25, "tone": 0.75}}
    dry, knobs = riff(2000), torch.tensor([[0.25, 0.75]])
    with torch.no_grad():
        _, state = device(torch.zeros(1, 48_000), knobs)
    expected = output(device, dry, knobs, state)
    assert np.abs(play_nam(target.read_bytes(), dry[0].double().numpy()) - expected).max() <= 1e-6


def test_loudness_and_gain_are_measured_by_a_recording(lstm_run, tmp_path, capsys):
    """The RMS of the output for it, from the file itself; a recording that cannot be used is named."""
    dry = riff(4000)
    sf.write(tmp_path / "loud.wav", dry[0].numpy(), 48_000, "FLOAT")
    given = ["--format", "nam", "--loudness-input", str(tmp_path / "loud.wav")]
    assert export(lstm_run, tmp_path / "a.nam", *given) == 0
    played = play_nam((tmp_path / "a.nam").read_bytes(), dry[0].double().numpy())
    metadata = json.loads((tmp_path / "a.nam").read_text())["metadata"]
    assert metadata["loudness"] == pytest.approx(10 * np.log10(np.mean(played**2)), abs=1e-3)
    assert 0 <= metadata["gain"] <= 1
    sf.write(tmp_path / "loud.wav", np.zeros((10, 2)), 48_000)
    assert export(lstm_run, tmp_path / "b.nam", *given) == 2
    assert "10 frames of 2 channels" in capsys.readouterr().err
    (tmp_path / "loud.wav").write_text("no audio")
    assert export(lstm_run, tmp_path / "b.nam", *given) == 2
    assert "loud.wav cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "b.nam").exists()


def test_a_checkpoint_that_was_not_judged_has_no_esr(tmp_path):
    state = State(step=7, evaluated=5, best=0.0123, best_step=5)
    run = make_run(tmp_path / "run", recurrent(), "task.hidden_size=16", state=state)
    assert export(run, tmp_path / "a.nam", "--format", "nam") == 0
    assert "training" not in json.loads((tmp_path / "a.nam").read_text())["metadata"]


def test_a_run_that_may_get_better_is_exported_with_a_word_of_that(lstm_run, tmp_path, capsys):
    for state, text in (
        ("preempted", f"note: {lstm_run} is preempted at step 7; its best"),
        ("finished", ""),
    ):
        content = json.dumps({"state": state, "step": 7, "reason": ""})
        (lstm_run / "status.json").write_text(content)
        assert export(lstm_run, tmp_path / "a.nam", "--format", "nam") == 0
        said = capsys.readouterr().err
        assert said.startswith(text) and bool(said) == bool(text)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("checkpoints", "no finished checkpoint; train until the first one is saved"),
        ("hparams.yaml", "holds no hparams.yaml"),
        ("", "there is no run folder"),
    ],
)
def test_an_unfinished_run_is_refused(lstm_run, tmp_path, capsys, missing, text):
    (lstm_run / missing).rename(tmp_path / "gone")
    assert export(lstm_run, tmp_path / "a.nam", "--format", "nam") == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "a.nam").exists()


@pytest.mark.parametrize(
    ("options", "overrides", "name", "text"),
    [
        ({"has_skip": True}, ["task.has_skip=true"], "nam", "a .nam file cannot say that"),
        ({"num_layers": 2}, ["task.num_layers=2"], "proteus", "plays one layer"),
        ({"unit": "gru"}, ["task.model=gru"], "proteus", "plays LSTMs only"),
    ],
)
def test_what_a_format_cannot_say_leaves_nothing(tmp_path, capsys, options, overrides, name, text):
    run = make_run(tmp_path / "run", recurrent(**options), "task.hidden_size=16", *overrides)
    assert export(run, tmp_path / "a", "--format", name) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_folder_as_output_is_refused(lstm_run, tmp_path, capsys):
    assert export(lstm_run, tmp_path, "--format", "nam") == 2
    assert "name the file to write" in capsys.readouterr().err


def test_a_run_of_another_task_is_refused(tmp_path, capsys):
    from tests.launch.test_apply import make_run as make_denoise_run
    from tests.models.test_denoiser import perturbed

    run = make_denoise_run(tmp_path / "run", perturbed())
    assert export(run, tmp_path / "a.nam", "--format", "nam") == 2
    assert (
        "only models of devices, of the tasks pedal and context, can be exported" in capsys.readouterr().err
    )
