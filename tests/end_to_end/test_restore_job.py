"""Stage 2 of the enhancer by the commands: it goes on exactly, needs its own folder alone, is judged and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from launch.apply import main as apply
from launch.evaluate import main as evaluate
from launch.report import main as show
from tests.end_to_end.test_main_job import command, metrics, run_command
from tests.finished_runs import TINY_DENOISER, TINY_STAGE1, write_run

pytestmark = [pytest.mark.multi, pytest.mark.slow]

RATE_HZ = 44_100
TINY: dict[str, Any] = {
    "task.num_latents": 8,
    "task.width": 16,
    "task.num_blocks": 1,
    "task.nfe": 2,
    # Noise for the seed to change; the small preset starts without any.
    "task.prior_mix": 0.5,
    "task.prior_mix_range": [0.0, 1.0],
    "task.valid_items": 3,
    "task.valid_seconds": 0.3,
    "valid_fraction": 0.4,
    "training_seconds": 0.2,
    "batch_size_per_gpu": 2,
    "max_steps": 10,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 10,
    "save_every": 5,
    "nj": 0,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Corpora of a few tones, noises and rooms, and finished runs of a tiny stage 1 and denoiser."""
    root = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(7)
    at = np.arange(RATE_HZ) / RATE_HZ
    for kind in ("fg", "bg", "rir"):
        (root / "audio" / kind).mkdir(parents=True)
        for number in range(5):
            wave = {
                "fg": 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at),
                "bg": 0.1 * rng.standard_normal(RATE_HZ),
                "rir": np.exp(-at[:8000] * 20) * rng.standard_normal(8000) * 0.1 + (at[:8000] == 0),
            }[kind]
            sf.write(root / f"audio/{kind}/{number}.wav", wave, RATE_HZ)
        build_corpus(kind, [root / "audio" / kind], root / kind, BuildOptions(kind))
    return {
        **{f"{kind}_dir": root / kind for kind in ("fg", "bg", "rir")},
        "task.stage1_run": write_run(root / "stage1", TINY_STAGE1),
        "task.denoiser_run": write_run(root / "denoiser", TINY_DENOISER),
    }


def train(run: Path, given: dict[str, Any], launcher: str = "python", **values: Any) -> str:
    """A run to its end; what it said."""
    done = run_command(*command(launcher, run, {**TINY, **given, **values}, "enhancer_stage2_small"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "python"
    train(run, given)
    return run


def test_ten_steps_equal_five_and_a_resume_and_five_without_the_runs_it_came_from(
    trained: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit, in a folder that was moved, with stage 1 and the denoiser gone from where they were."""
    parts = tmp_path / "elsewhere" / "parts"
    shutil.copytree(trained, parts)
    shutil.rmtree(parts / "checkpoints" / "step-0000010")
    for pointer in ("LATEST", "BEST"):
        (parts / "checkpoints" / pointer).write_text("step-0000005\n")
    hidden = {key: Path(given[key]) for key in ("task.stage1_run", "task.denoiser_run")}
    for folder in hidden.values():
        folder.rename(folder.with_suffix(".hidden"))
    try:
        train(parts, given)
    finally:
        for folder in hidden.values():
            folder.with_suffix(".hidden").rename(folder)
    assert [record["name"] for record in metrics(parts, "event")].count("resumed") == 1
    for kind in ("step", "evaluation"):
        assert metrics(parts, kind) == metrics(trained, kind)
    ends = [each / "checkpoints" / "step-0000010" for each in (trained, parts)]
    for name in ("velocity", "velocity.average"):
        expected, found = (load_file(end / f"{name}.safetensors") for end in ends)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{name}.{key}")
    frozen = {path.name for path in (trained / "frozen").iterdir()}
    assert frozen >= {"stage1.safetensors", "denoiser.safetensors", "stage1.yaml", "denoiser.yaml"}
    kept = {path.name for path in ends[0].iterdir()}
    assert not any("stage1" in name or "denoiser" in name or "generator" in name for name in kept)


def test_it_is_judged_applied_and_shown_from_its_folder_alone(
    trained: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(trained, run)
    text = (run / "hparams.yaml").read_text()
    for key in ("task.stage1_run", "task.denoiser_run"):
        text = text.replace(str(given[key]), "/nowhere")
    (run / "hparams.yaml").write_text(text)
    report = tmp_path / "out.json"
    assert evaluate(["--run", str(run), "--json", str(report)]) == 0
    summary = json.loads(report.read_text())["summary"]
    for name in ("log_mel_distance{}_db", "stft_distance{}"):
        assert {name.format(whose) for whose in ("", "_of_input", "_of_denoiser")} <= summary.keys()
    assert {"silence_level_dbfs", "clean_log_mel_distance_db", "clean_level_change_db"} <= summary.keys()

    # A length that neither the stride nor the chunks divide, at another rate, in two channels that are alike.
    source = tmp_path / "in.wav"
    wave = 0.1 * np.random.default_rng(1).standard_normal((70_001, 1)).repeat(2, axis=1)
    sf.write(source, wave, 48_000)
    flags = {
        "first": ["--seed", "0"],
        "again": ["--seed", "0"],
        "chunks": ["--seed", "0", "--chunk-seconds", "0.5"],
        "other": ["--seed", "1"],
    }
    how = ["--nfe", "3", "--solver", "midpoint", "--strength", "0.5"]
    for name, own in flags.items():
        words = ["--run", str(run), "--input", str(source), "--output", str(tmp_path / f"{name}.wav")]
        assert apply([*words, *how, *own]) == 0
    assert (tmp_path / "first.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()
    restored = {name: sf.read(tmp_path / f"{name}.wav", dtype="int16")[0].astype(int) for name in flags}
    assert restored["first"].shape == (70_001, 2)
    assert np.abs(restored["first"][:, 0] - restored["first"][:, 1]).max() <= 1
    assert np.abs(restored["first"] - restored["chunks"]).max() <= 1
    assert np.abs(restored["first"] - restored["other"]).max() > 10

    page = tmp_path / "report.html"
    assert show([str(run), "--output", str(page)]) == 0
    assert "denoiser alone" in page.read_text()


def test_two_ranks_train_the_velocity_network_alone_and_as_one_rank_does(
    trained: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    """The states of the optimiser are as large as two moments of that network's parameters and no more."""
    run = tmp_path / "two"
    said = train(run, given, "torchrun 2", batch_size_per_gpu=1)
    checkpoint = run / "checkpoints" / "step-0000010"
    weights = load_file(checkpoint / "velocity.safetensors")
    network = sum(value.size for name, value in weights.items() if not name.startswith("latents."))
    assert f"parameters velocity {network / 1e6:.3g} M" in said
    states = [load_file(path) for path in checkpoint.glob("velocity.rank*.state")]
    moments = sum(value.size for state in states for value in state.values() if value.size > 1)
    assert moments == 2 * network
    one, two = ([record["loss"] for record in metrics(each, "step")] for each in (trained, run))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)
