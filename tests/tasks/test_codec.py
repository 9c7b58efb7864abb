"""The codec task on made-up batches: what it updates, which codebooks it trains, how it judges."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from enhancer.models.dac import Dac
from enhancer.tasks import TASKS
from enhancer.tasks.codec import CodecTask
from hparams.codec import CodecHParams
from hparams.schema import HParams

T = 4096


@pytest.fixture
def hp() -> HParams:
    own = CodecHParams(
        encoder_width=4, decoder_width=32, strides=(4, 8), num_codebooks=3, codebook_size=32, codebook_dim=4
    )
    return replace(HParams(), training_seconds=T / 44_100, task=own)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two tones at -20 and -26 dBFS."""
    at = torch.arange(T) / 44_100
    tones = torch.stack([torch.sin(2 * math.pi * hz * at) for hz in (330, 880)])
    return {
        "draw": torch.tensor([4, 5]),
        "fg": (12_000 * tones).to(torch.int16),
        "level_db": torch.tensor([-20.0, -26.0]),
    }


class Descent:
    """An optimiser of the codec alone as the engine's update."""

    def __init__(self, module: nn.Module, rate: float = 3e-3) -> None:
        self.optimiser = torch.optim.AdamW(module.parameters(), lr=rate)
        self.losses: list[torch.Tensor] = []

    def __call__(self, name: str, loss: torch.Tensor) -> None:
        assert name == "codec"
        self.losses.append(loss.detach())
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values


def fresh(hp: HParams, **changes: Any) -> tuple[CodecTask, dict[str, nn.Module]]:
    task = TASKS["codec"](replace(hp, task=replace(hp.task, **changes)))
    torch.manual_seed(hp.seed)
    return task, task.build()


def test_the_codec_is_built_to_the_hyper_parameters(hp: HParams) -> None:
    _, modules = fresh(hp)
    codec = modules["codec"]
    assert isinstance(codec, Dac)
    assert codec.stride_samples == 32 and len(codec.quantizer.quantizers) == 3


def test_a_step_updates_the_codec_once_with_the_weighted_sum_of_its_terms(hp: HParams, batch) -> None:
    task, modules = fresh(hp, l1_weight=2.0)
    update = Descent(modules["codec"])
    metrics = task.step(modules, batch, update)
    assert torch.equal(metrics["loss"], update.losses[0]) and len(update.losses) == 1
    weights = {"mel": 15.0, "stft": 1.0, "l1": 2.0, "commitment": 0.25, "codebook": 1.0}
    shares = [weight * metrics[name] for name, weight in weights.items()]
    torch.testing.assert_close(metrics["loss"], sum(shares))
    assert all(metrics[f"{name}_weighted"] == weight * metrics[name] for name, weight in weights.items())


@pytest.mark.parametrize("is_balanced", [False, True])
def test_twenty_steps_on_one_batch_bring_its_mel_distance_below_the_untrained_codecs(
    hp: HParams, batch, is_balanced: bool
) -> None:
    task, modules = fresh(hp, is_balanced=is_balanced)
    update = Descent(modules["codec"])
    for _ in range(20):
        task.step(modules, batch, update)
    modules["codec"].eval()
    for row in task.evaluate(modules, batch):
        assert row["mel_distance_improvement"] > 0.5, row


def test_an_untrained_codec_improves_on_itself_by_nothing(hp: HParams, batch) -> None:
    task, modules = fresh(hp)
    for row in task.evaluate({"codec": modules["codec"].eval()}, batch):
        assert row["mel_distance_improvement"] == pytest.approx(0, abs=1e-4)
        assert row["si_sdr_improvement_db"] == pytest.approx(0, abs=1e-2)
        assert {"mel_distance_at_1", "mel_distance_at_2", "si_sdr_at_1_db"} < row.keys()
        assert "mel_distance_at_3" not in row and "mel_distance_at_4" not in row


def test_judging_leaves_the_random_generator_as_it_was(hp: HParams, batch) -> None:
    task, modules = fresh(hp)
    torch.manual_seed(8)
    expected = torch.rand(1)
    torch.manual_seed(8)
    task.evaluate({"codec": modules["codec"].eval()}, batch)
    assert torch.equal(torch.rand(1), expected)


def test_the_wave_is_given_at_its_drawn_level(hp: HParams, batch) -> None:
    task, modules = fresh(hp)
    waves = task.waves({"codec": modules["codec"].eval()}, batch)
    level_db = 20 * waves["target"].square().mean(-1).sqrt().log10()
    torch.testing.assert_close(level_db, batch["level_db"], atol=0.01, rtol=0)
    assert waves["estimate"].shape == waves["target"].shape == (2, T)
    assert torch.equal(waves["recording"], waves["target"])


def test_half_of_the_draws_use_fewer_codebooks_evenly_and_a_function_of_seed_and_draw(hp: HParams) -> None:
    task, _ = fresh(hp)
    counts = task._num_codebooks(torch.arange(6000))
    shares = {count: number / 6000 for count, number in Counter(counts.tolist()).items()}
    assert shares == pytest.approx({1: 1 / 6, 2: 1 / 6, 3: 1 / 2 + 1 / 6}, abs=0.005)
    assert torch.equal(task._num_codebooks(torch.tensor([1234, 17])), counts[[1234, 17]])
    other = TASKS["codec"](replace(task.hp, seed=1))
    assert not torch.equal(other._num_codebooks(torch.arange(6000)), counts)
    always = TASKS["codec"](replace(task.hp, task=replace(task.own, codebook_dropout=0.0)))
    assert set(always._num_codebooks(torch.arange(100)).tolist()) == {3}


def test_entropy_is_that_of_the_codes_of_a_row(hp: HParams, batch) -> None:
    class Fixed(nn.Module):
        """Gives the same codes: one entry all the time, two evenly, and four evenly."""

        def forward(self, wave: torch.Tensor) -> torch.Tensor:
            return wave

        def encode(self, wave: torch.Tensor) -> torch.Tensor:
            frames = torch.arange(8)
            return torch.stack([0 * frames, frames % 2, frames % 4]).expand(len(wave), -1, -1)

        def decode(self, codes: torch.Tensor, num_samples: int) -> torch.Tensor:
            return torch.zeros(len(codes), num_samples)

    task, _ = fresh(hp)
    for row in task.evaluate({"codec": Fixed()}, batch):
        assert row["code_entropy_bits"] == pytest.approx((0 + 1 + 2) / 3)


def test_the_balancers_state_is_the_tasks(hp: HParams, batch) -> None:
    task, modules = fresh(hp, is_balanced=True)
    assert fresh(hp)[0].state() == {}
    assert not task.state()["balancer"].any()
    task.step(modules, batch, Descent(modules["codec"]))
    assert bool((task.state()["balancer"] > 0).all())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder_width": 30}, "task.decoder_width is 30, which 2 strides cannot halve"),
        ({"mel_weight": 0.0, "stft_weight": 0.0}, "are all 0, so nothing would be learned"),
        ({"level_range_db": (-10.0, -20.0)}, "task.level_range_db"),
    ],
)
def test_impossible_values_are_refused_in_words(hp: HParams, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(hp.task, **changes)


def test_a_crop_too_short_for_the_mel_distance_is_refused_in_words(hp: HParams) -> None:
    with pytest.raises(
        ValueError, match=r"training_seconds 0\.02 is 882 samples; the mel distance needs 1025"
    ):
        replace(hp, training_seconds=0.02)


def test_without_the_stft_loss_another_rate_will_do(hp: HParams, batch) -> None:
    task, modules = fresh(replace(hp, wav_rate=16_000, training_seconds=0.2), stft_weight=0.0)
    rows = task.evaluate({"codec": modules["codec"].eval()}, batch)
    assert "stft_distance" not in rows[0] and rows[0]["mel_distance"] > 0
