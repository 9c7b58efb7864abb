"""The pitch task with losses that listen with a network: a codec's encoder, and CDPAM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from enhancer.losses.features import FeatureMatching
from enhancer.losses.mel import MultiScaleMel
from enhancer.models.cdpam import Cdpam
from enhancer.models.dac import Dac
from enhancer.tasks.pitch import PitchTask
from hparams.errors import UserError
from hparams.load import load
from hparams.schema import HParams
from launch.codec_weights import listening_constants
from tests.tasks.test_pitch import TINY, batch_of

STRIDES = (2, 4)


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    """A file with the weights of a small codec."""
    torch.manual_seed(4)
    weights = Dac(4, 16, STRIDES, 2, 16, 4).state_dict()
    save_file(weights, tmp_path / "codec.safetensors")
    return tmp_path / "codec.safetensors"


def hp_of(codec: Path, *overrides: str) -> HParams:
    return load("pitch_codec", [*TINY, f"task.codec_weights={codec}", *overrides])


class Once:
    """An update that keeps the loss and its gradients."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def __call__(self, name: str, loss: Tensor) -> None:
        loss.backward()
        self.losses.append(loss.detach())

    def mean(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("is_balanced", ["true", "false"])
def test_every_term_is_logged_raw_and_weighted_and_moves_the_model(codec: Path, is_balanced: str) -> None:
    hp = hp_of(codec, f"task.is_balanced={is_balanced}")
    task, update, batch = PitchTask(hp, listening_constants(hp)), Once(), batch_of()
    modules = task.build()
    with torch.no_grad():
        heard, target = task.pair(batch)
        estimate = task.repair(modules, heard, batch)
        torch.manual_seed(4)
        encoder = Dac(4, 16, STRIDES, 2, 16, 4).encoder
        features = FeatureMatching(encoder.stages((0, 1)))(estimate, target)
        mel = MultiScaleMel(44_100)(estimate, target)
    metrics = task.step(modules, batch, update)
    torch.testing.assert_close(metrics["features"], features)
    torch.testing.assert_close(metrics["mel"], mel)
    shares = [metrics[f"{name}_weighted"] for name in ("l1", "stft", "mel", "features")]
    torch.testing.assert_close(metrics["loss"], sum(shares))
    assert any(bool(p.grad.any()) for p in modules["repairer"].parameters() if p.grad is not None)
    assert bool(task.state()) == (is_balanced == "true")


def test_judging_and_using_need_no_codec(codec: Path) -> None:
    task, batch = PitchTask(hp_of(codec)), batch_of()
    modules = {name: module.eval() for name, module in task.build().items()}
    with torch.no_grad():
        assert len(task.evaluate(modules, batch)) == 2
    with pytest.raises(ValueError, match="was not given as constants"):
        task.step(modules, batch, Once())


def test_other_tasks_listen_with_nothing() -> None:
    assert listening_constants(HParams()) == {}
    assert listening_constants(load("pitch_wave_small", [])) == {}


def test_a_codec_that_is_not_there_says_how_to_get_or_train_one(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"task\.codec_weights is .*nowhere, which is not there\. Train one with"
    ):
        listening_constants(hp_of(tmp_path / "nowhere"))


def test_a_block_that_the_codec_has_not_is_refused_in_words(codec: Path) -> None:
    hp = hp_of(codec, "task.feature_blocks=[0,3]")
    with pytest.raises(ValueError, match=r"\[0, 3\] are asked for; needed some of \[0, 1\]"):
        PitchTask(hp, listening_constants(hp))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["task.codec_weights=null"],
            r"task\.features_weight is 1 and task\.codec_weights is not set; give both",
        ),
        (
            ["task.features_weight=0"],
            r"task\.features_weight is 0 and task\.codec_weights is runs/codec_small",
        ),
        (
            ["task.perceptual_weight=1"],
            r"task\.perceptual_weight is 1 and task\.perceptual_weights is not set",
        ),
        (["training_seconds=0.02"], r"training_seconds 0\.02 is 882 samples; the mel distance needs 1025"),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load("pitch_codec", overrides)


def test_cdpam_is_heard_from_a_file_and_refused_where_it_is_none(codec: Path, tmp_path: Path) -> None:
    path = tmp_path / "cdpam.safetensors"
    words = (f"task.perceptual_weights={path}", "task.perceptual_weight=1")
    with pytest.raises(UserError, match="which is not there; give CDPAM's checkpoint"):
        listening_constants(hp_of(codec, *words))
    save_file({"base_encoder.x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"that are not CDPAM's: missing .*not known base_encoder\.x"):
        listening_constants(hp_of(codec, *words))
    save_file(Cdpam().state_dict(), path)
    hp = hp_of(codec, *words)
    task = PitchTask(hp, listening_constants(hp))
    wave = 0.1 * torch.randn(1, 2048)
    assert task.listeners["perceptual"](wave, wave).item() == 0
