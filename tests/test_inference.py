"""Chunked processing against one pass over the whole recording, the gain of a recording, and which weights are used."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from enhancer.engine.manifest import write_manifest
from enhancer.engine.resume import read_weights
from enhancer.engine.state import State
from enhancer.engine.weights import write_weights
from enhancer.inference import PIECE_SAMPLES, ChunkedModel, StatefulModel, gain_into_range, load_run
from enhancer.models.context import ContextDevice
from enhancer.models.denoiser import MaskUNet
from enhancer.models.recurrent import RecurrentDevice
from hparams.errors import UserError
from hparams.load import dump
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams
from tests.models.test_denoiser import noise, perturbed


class MovingSum(nn.Module):
    """A model whose context is known: each output is the sum of the inputs up to `context_samples` around it."""

    stride_samples = 4
    context_samples = 8

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(1, 1, 2 * self.context_samples + 1)
        return nn.functional.conv1d(wave[:, None], kernel, padding=self.context_samples)[:, 0]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 300),
    chunk=st.integers(1, 80),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    channels=st.integers(1, 2),
)
def test_any_chunking_of_any_blocks_equals_the_whole(
    length: int, chunk: int, cuts: list[int], channels: int
) -> None:
    wave = torch.randn(channels, length, generator=torch.Generator().manual_seed(length))
    blocks, start, turn = [], 0, 0
    while start < length:
        blocks.append(wave[:, start : start + cuts[turn % len(cuts)]])
        start, turn = start + cuts[turn % len(cuts)], turn + 1
    chunked = ChunkedModel(MovingSum(), rate_hz=1, chunk_seconds=chunk)
    output = torch.cat(list(chunked.stream(blocks)), dim=-1)
    torch.testing.assert_close(output, MovingSum()(wave), atol=1e-4, rtol=0)


def test_the_denoiser_in_chunks_matches_the_whole_file() -> None:
    model = perturbed()
    wave = noise(44_100 * 40, rows=2)
    whole_file = model(wave).detach()
    output = ChunkedModel(model, rate_hz=44_100, chunk_seconds=7.0).whole(wave)
    assert (output - whole_file).abs().max() < 1e-4
    assert (whole_file - wave).abs().max() > 1e-2


def test_an_empty_recording_stays_empty() -> None:
    assert ChunkedModel(MovingSum(), rate_hz=1).whole(torch.zeros(2, 0)).shape == (2, 0)


@torch.no_grad()
@pytest.mark.parametrize("model", [ContextDevice(6, 1, 4), RecurrentDevice(1, 4)], ids=["context", "lstm"])
def test_a_device_hears_a_recording_in_any_blocks_as_it_hears_the_whole(model: nn.Module) -> None:
    """Two channels, each with its own past; a block longer than a piece, and empty ones."""
    wave = noise(PIECE_SAMPLES + 5000, rows=2)
    knobs = torch.tensor([0.3])
    whole, _ = model(wave, knobs.expand(2, -1))
    blocks = wave.split([0, 1, 17, PIECE_SAMPLES + 900, 0, 4082], dim=-1)
    found = list(StatefulModel(model, knobs).stream(blocks))
    assert max(block.shape[-1] for block in found) == PIECE_SAMPLES
    assert (torch.cat(found, dim=-1) - whole).abs().max() < 1e-6


def test_a_chunk_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_seconds is 0"):
        ChunkedModel(MovingSum(), rate_hz=1, chunk_seconds=0)


@pytest.mark.parametrize(
    ("level_db", "wanted_db"), [(-60.0, -38.0), (-38.0, -38.0), (-20.0, -20.0), (-3.0, -14.0)]
)
def test_one_gain_brings_a_recording_into_the_trained_range(level_db: float, wanted_db: float) -> None:
    rms = 10 ** (level_db / 20)
    assert 20 * math.log10(rms * gain_into_range(rms, (-38.0, -14.0))) == pytest.approx(wanted_db, abs=1e-4)


def test_silence_is_not_amplified() -> None:
    assert gain_into_range(0.0, (-38.0, -14.0)) == 1.0
    assert gain_into_range(1e-6, (-38.0, -14.0)) == 1.0


def run_with(folder: Path, *steps: int) -> Path:
    """A run folder whose checkpoints, as the engine writes them, are models of width 1."""
    folder.mkdir()
    (folder / "hparams.yaml").write_text(dump(HParams(task=DenoiseHParams(width=1))))
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:07d}"
        checkpoint.mkdir(parents=True)
        write_weights(checkpoint / "denoiser.safetensors", MaskUNet(1).state_dict())
        write_manifest(checkpoint, State(step=step), {})
    return folder


def point(run: Path, pointer: str, step: int) -> None:
    (run / "checkpoints" / pointer).write_text(f"step-{step:07d}\n")


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_best_checkpoint_is_used_else_the_latest_else_the_newest(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3, 12_345_678)
    assert load_run(run).step == 12_345_678
    point(run, "LATEST", 3)
    assert load_run(run).step == 3
    point(run, "BEST", 1)
    found = load_run(run)
    assert (found.step, found.checkpoint.name, found.notes) == (1, "step-0000001", ())
    assert load_run(run, checkpoint=run / "checkpoints" / "step-0000002").step == 2


def test_changed_weights_are_refused_and_named_and_the_latest_whole_ones_are_used(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3)
    point(run, "BEST", 2)
    point(run, "LATEST", 3)
    for step in (2, 3):
        flip_a_byte(run / "checkpoints" / f"step-000000{step}" / "denoiser.safetensors")
    found = load_run(run)
    assert found.step == 1
    text = "\n".join(found.notes)
    assert "step-0000002 is refused" in text and "step-0000003/denoiser.safetensors is changed" in text
    assert found.notes[-1] == "using step-0000001 in its place"


def test_changed_weights_asked_for_by_name_or_alone_are_an_error(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 4)
    weights = run / "checkpoints" / "step-0000004" / "denoiser.safetensors"
    flip_a_byte(weights)
    with pytest.raises(UserError, match=r"step-0000004/denoiser\.safetensors is changed"):
        load_run(run, checkpoint=weights.parent)
    with pytest.raises(UserError, match=r"no whole checkpoint: .*denoiser\.safetensors is changed"):
        load_run(run)
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes, the manifest says"):
        load_run(run)


def test_weights_of_another_model_are_the_users_error(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 4)
    (run / "hparams.yaml").write_text(dump(HParams(task=DenoiseHParams(width=2))))
    with pytest.raises(UserError, match=r"holds another model than .*hparams\.yaml says"):
        load_run(run)


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "../..",
        "/etc",
        "step-0000001/..",
        "step-0000001/../../evil",
        "a\0b",
        "step-1\n\n",
        "",
        "x" * 9000,
    ],
)
def test_a_pointer_cannot_lead_out_of_the_checkpoints(tmp_path: Path, text: str) -> None:
    run = run_with(tmp_path / "run", 1)
    for elsewhere in (
        run,
        tmp_path / "evil",
    ):  # Where some of them would lead, a whole checkpoint lies in wait.
        shutil.copytree(
            run_with(tmp_path / f"of-{elsewhere.name}", 9) / "checkpoints" / "step-0000009",
            elsewhere,
            dirs_exist_ok=True,
        )
    (run / "checkpoints" / "BEST").write_text(text)
    found = load_run(run)
    assert (
        found.step == 1 and "not the name of a checkpoint" in found.notes[0]
    ) or "at most 64" in found.notes[0]
    with pytest.raises(UserError, match=r"BEST holds|at most 64"):
        read_weights(run, "denoiser")


@pytest.mark.parametrize(
    "linked",
    ["checkpoints/BEST", "checkpoints/step-0000001", "checkpoints/step-0000001/denoiser.safetensors"],
)
def test_links_in_a_run_are_not_followed(tmp_path: Path, linked: str) -> None:
    run = run_with(tmp_path / "run", 1)
    point(run, "BEST", 1)
    (run / linked).rename(tmp_path / "moved")
    (run / linked).symlink_to(tmp_path / "moved")
    try:
        assert "is a link" in load_run(run).notes[0]
    except UserError as error:
        assert "is a link" in str(error)
    with pytest.raises(UserError, match="is a link"):
        read_weights(run, "denoiser")


def test_the_values_of_a_run_cannot_read_other_files(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1)
    (tmp_path / "secret.yaml").write_text("secret: 1\n")
    text = (run / "hparams.yaml").read_text()
    (run / "hparams.yaml").write_text(f"extends: {tmp_path / 'secret.yaml'}\n{text}")
    with pytest.raises(UserError, match="extends stands in preset files only") as caught:
        load_run(run)
    assert "secret: 1" not in str(caught.value)


def test_a_model_larger_than_its_weights_is_refused_without_its_memory(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1)
    (run / "hparams.yaml").write_text(dump(HParams(task=DenoiseHParams(width=256))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="holds another model"):
        load_run(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB; its weights are 10 GB
