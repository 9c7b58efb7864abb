"""Weights of a codec from a file or a run, and what is said where they are none or of another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from enhancer.models.dac import Dac
from enhancer.models.dac_weights import encoder_of
from hparams.codec import CodecHParams
from hparams.errors import UserError
from hparams.load import dump
from hparams.schema import HParams
from launch.codec_weights import codec_constants

STRIDES = (2, 4)
WAVE = torch.sin(torch.arange(512) / 9)[None, None]


@pytest.fixture
def codec() -> Dac:
    torch.manual_seed(2)
    return Dac(4, 16, STRIDES, 2, 16, 4)


def write(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, path)
    return path


def encoder_in(constants: dict[str, torch.Tensor]) -> nn.Module:
    return encoder_of({name.removeprefix("codec."): value for name, value in constants.items()})


def test_the_encoder_of_a_file_is_the_codecs(codec: Dac, tmp_path: Path) -> None:
    constants = codec_constants(write(tmp_path / "model.safetensors", codec.state_dict()), 44_100)
    assert {name.split(".")[1] for name in constants} == {"encoder"}
    torch.testing.assert_close(encoder_in(constants)(WAVE), codec.encoder(WAVE), atol=0, rtol=0)


@pytest.mark.parametrize("is_old", [False, True])
def test_weight_normalisation_is_multiplied_out(codec: Dac, tmp_path: Path, is_old: bool) -> None:
    expected = codec.encoder(WAVE).detach()
    for module in codec.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.utils.parametrizations.weight_norm(module)
    weights = codec.state_dict()
    if is_old:  # The names of torch's first implementation.
        names = {
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v",
        }
        for new, old in names.items():
            weights = {name.replace(new, old): value for name, value in weights.items()}
    encoder = encoder_in(codec_constants(write(tmp_path / "model.safetensors", weights), 44_100))
    torch.testing.assert_close(encoder(WAVE), expected, atol=1e-6, rtol=0)


def test_weight_normalisation_of_transformers_is_multiplied_out(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra [codec]")
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=16,
        downsampling_ratios=[2, 4],
        n_codebooks=2,
        codebook_size=16,
    )
    peer = transformers.DacModel(config).eval()
    peer.apply_weight_norm()
    encoder = encoder_in(codec_constants(write(tmp_path / "m.safetensors", peer.state_dict()), 44_100))
    with torch.no_grad():
        torch.testing.assert_close(encoder(WAVE), peer.encoder(WAVE), atol=1e-5, rtol=0)


def test_a_path_that_is_not_there_says_how_to_get_or_train_a_codec(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not there.*train\.py --hparams codec_small.*dac_44khz"):
        codec_constants(tmp_path / "codec_small", 44_100)


def test_a_folder_without_a_checkpoint_says_so_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no codec\.safetensors there.*--hparams codec_small"):
        codec_constants(tmp_path, 44_100)


def without_a_layer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if "res_unit2.conv1" not in name}


def with_another(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "encoder.lstm.weight": torch.zeros(3)}


def narrower(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "encoder.block.1.conv1.weight": torch.zeros(8, 8, 8)}


def of_another_project(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"encoder.block.{number}.weight_v": torch.zeros(2) for number in range(9)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            without_a_layer,
            r"missing encoder\.block\.0\.res_unit2\.conv1\.bias, encoder\.block\.0\.res_unit2\.conv1",
        ),
        (with_another, r"not known encoder\.lstm\.weight"),
        (narrower, r"encoder\.block\.1\.conv1\.weight \(8, 8, 8\) in place of \(16, 8, 8\)"),
        (of_another_project, r"found encoder\.block\.0\.weight_v, .* and 3 more"),
    ],
)
def test_of_weights_of_another_architecture_the_names_are_listed(
    codec: Dac, tmp_path: Path, change: Any, words: str
) -> None:
    path = write(tmp_path / "model.safetensors", change(codec.state_dict()))
    with pytest.raises(UserError, match=words):
        codec_constants(path, 44_100)


def test_a_damaged_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        codec_constants(tmp_path / "model.safetensors", 44_100)


def test_a_run_of_another_rate_or_task_is_refused_in_words(tmp_path: Path) -> None:
    hp = HParams()
    (tmp_path / "hparams.yaml").write_text(dump(hp))
    with pytest.raises(UserError, match="is a denoise run, not a codec's"):
        codec_constants(tmp_path, 44_100)
    (tmp_path / "hparams.yaml").write_text(dump(replace(hp, task=CodecHParams())))
    with pytest.raises(UserError, match="was trained at 44100 Hz, but wav_rate is 16000"):
        codec_constants(tmp_path, 16_000)
