"""launch/train.py: what a device's corpus says about the hyper-parameters, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from launch.train import main
from tests.data_shards import pedal_audio

RATE_HZ = 96_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of a device with a knob, 2 s each at 96 kHz, of which 1.5 s train."""
    folder = tmp_path_factory.mktemp("device")
    pairs = [
        DevicePair(
            *pedal_audio.write_pair(folder, 2.0, rate_hz=RATE_HZ, seed=seed), {"drive": 0.3 + 0.4 * seed}
        )
        for seed in range(2)
    ]
    build_pedal_corpus(pairs, folder / "corpus", PedalOptions(valid_fraction=0.25))
    return folder / "corpus"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[dict, str]:
    """The values that a command would train with, and what it says beside them."""
    assert main(["--print-config", *map(str, arguments)]) == 0
    output = capsys.readouterr()
    return yaml.safe_load(output.out.split("# DeepSpeed:")[0]), output.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["--print-config", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_value_that_only_the_rate_of_the_corpus_allows_is_accepted(corpus, capsys):
    values = [f"pair_dir={corpus}", "task.hf_hinge_fmin=30000", "training_seconds=0.011"]
    hp, said = printed(capsys, "--hparams", "pedal_lstm", "--set", *values)
    assert (hp["wav_rate"], hp["task"]["hf_hinge_fmin"], hp["task"]["knobs"]) == (RATE_HZ, 30_000, ["drive"])
    assert said == ""


def test_a_preset_of_ones_own_may_have_such_a_value_too(corpus, tmp_path, capsys):
    (tmp_path / "bright.yaml").write_text(
        f"extends: pedal_lstm\npair_dir: {corpus}\ntask:\n  hf_hinge_fmin: 30e3\n"
    )
    hp, _ = printed(capsys, "--hparams", tmp_path / "bright.yaml")
    assert (hp["wav_rate"], hp["task"]["hf_hinge_fmin"]) == (RATE_HZ, 30_000)


def test_a_value_that_the_rate_of_the_corpus_does_not_allow_is_refused(corpus, capsys):
    text = refused(
        capsys, "--hparams", "pedal_lstm", "--set", f"pair_dir={corpus}", "task.hf_hinge_fmin=50000"
    )
    assert "task.hf_hinge_fmin 50000 Hz lies above half of wav_rate 96000" in text


@pytest.mark.parametrize("preset", ["pedal_lstm", "pedal_context"])
def test_a_missing_corpus_is_told_before_the_values_that_its_rate_decides(tmp_path, capsys, preset):
    values = [f"pair_dir={tmp_path / 'gone'}", "task.hf_hinge_fmin=30000", "max_lrr=1"]
    text = refused(capsys, "--hparams", preset, "--set", *values)
    missing = f"error: The pedal corpus {tmp_path / 'gone'} does not exist. Build it: "
    assert text.startswith(missing) and "launch/build_shards.py pedal --dry" in text
    rest = text.partition("\nThe values were checked without its rate: ")[2]
    assert "hf_hinge_fmin" in rest and "there is no key max_lrr" in rest
    hp, said = printed(capsys, "--hparams", preset, "--set", values[0])
    assert (hp["wav_rate"], said) == (44_100, "")


def test_a_given_rate_wins_and_other_mistakes_are_told_as_before(corpus, capsys):
    hp, _ = printed(capsys, "--hparams", "pedal_lstm", "--set", f"pair_dir={corpus}", "wav_rate=48000")
    assert hp["wav_rate"] == 48_000
    assert "pair_dir is 12" in refused(capsys, "--hparams", "pedal_lstm", "--set", "pair_dir=12")
    assert "no key widht" in refused(
        capsys, "--hparams", "pedal_lstm", "--set", f"pair_dir={corpus}", "widht=1"
    )


def test_a_configuration_of_automated_guitaramp_modelling_is_read_for_the_corpus(corpus, tmp_path, capsys):
    content = {"hidden_size": 20, "epochs": 100, "segment_length": 48_000, "input_size": 2, "device": "ht1"}
    path = tmp_path / "RNN3.json"
    path.write_text(json.dumps(content))
    hp, said = printed(capsys, "--hparams", path, "--set", f"pair_dir={corpus}", "task.hidden_size=8")
    # Each pair has three whole segments to train on: one batch, of (48000 - 1000) / 2048 updates, rounded up.
    assert (hp["wav_rate"], hp["training_seconds"], hp["max_steps"]) == (RATE_HZ, 0.5, 100 * 23)
    assert (hp["task"]["hidden_size"], hp["task"]["knobs"]) == (8, ["drive"])
    assert f"{path} is read as a configuration of Automated-GuitarAmpModelling" in said
    assert "hidden_size 20             -> task.hidden_size = 20" in said
    path.write_text(json.dumps({**content, "input_size": 1}))
    text = refused(capsys, "--hparams", path, "--set", f"pair_dir={corpus}")
    assert "the 1 knobs of pair_dir make 2" in text


def test_the_memory_of_a_step_is_printed_without_any_corpus(tmp_path, capsys):
    small = [
        "training_seconds=0.1",
        "task.autoencoder_width=8",
        "task.vocoder_width=16",
        f"fg_dir={tmp_path}",
    ]
    command = ["--hparams", "enhancer_stage1_small", "--print-memory", "--set", *small, "zero_stage=1"]
    assert main([*command, "--world-size", "8"]) == 0
    lines = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["MiB"] == ["generator", "discriminator", "all"]
    assert {"weights", "fp32 masters", "optimiser states", "moving average", "activations"} <= lines.keys()
    assert float(lines["optimiser states"][0]) == pytest.approx(float(lines["weights"][0]) / 4, abs=0.11)
    assert not list(tmp_path.iterdir())
    assert main([*command, "zero_stage=3"]) == 2
    assert "zero_stage" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--world-size", "0"])
    assert "1 to" in capsys.readouterr().err
