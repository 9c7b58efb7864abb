"""The denoise task on made-up batches: what it feeds the model, what it updates, how it judges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from enhancer.models.denoiser import MaskUNet
from enhancer.tasks import TASKS
from enhancer.tasks.denoise import DenoiseTask
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams

T = 22_050


@pytest.fixture
def hp() -> HParams:
    return HParams(task=DenoiseHParams(width=2))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows: a tone in noise at 6 dB, dry and in a room of one echo."""
    generator = torch.Generator().manual_seed(3)
    tone = (8000 * torch.sin(2 * math.pi * 440 / 44_100 * torch.arange(T))).to(torch.int16)
    background = (3000 * torch.randn(2, T, generator=generator)).clamp(-32768, 32767).to(torch.int16)
    rows = 2
    return {
        "draw": torch.arange(rows),
        "fg": tone.expand(rows, -1).clone(),
        "bg": background,
        "is_pair": torch.zeros(rows, dtype=torch.bool),
        "rir": torch.tensor([-1, 0]),
        "room_gain_db": torch.zeros(rows),
        "snr_db": torch.full((rows,), 6.0),
        "level_db": torch.full((rows,), -26.0),
        "eq_hz": torch.full((rows,), 1000.0),
        "eq_gain_db": torch.zeros(rows),
        "eq_q": torch.ones(rows),
        "lowpass_hz": torch.full((rows,), math.inf),
        "highpass_hz": torch.zeros(rows),
        "drive_db": torch.zeros(rows),
        "noise_snr_db": torch.full((rows,), math.inf),
        "noise_seed": torch.zeros(rows, dtype=torch.int64),
    }


@pytest.fixture
def task(hp: HParams) -> DenoiseTask:
    room = torch.zeros(1, 3000)
    # 24.75 periods of the tone: the echo stands at a right angle to it.
    room[0, 0], room[0, 2481] = 1.0, 0.5
    return TASKS["denoise"](hp, {"rir": room})


class Oracle(nn.Module):
    """Knows the answer."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, mixture: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_the_model_is_built_to_the_hyper_parameters(task: DenoiseTask) -> None:
    model = task.build()["denoiser"]
    assert isinstance(model, MaskUNet)
    assert model.stride_samples == 16 * 420
    assert model.stft.window_samples == 1680


def test_a_step_updates_the_denoiser_once_with_the_weighted_sum_of_its_terms(
    task: DenoiseTask, hp: HParams, batch
) -> None:
    seen: list[tuple[str, torch.Tensor]] = []
    modules = task.build()
    metrics = task.step(modules, batch, lambda name, loss: seen.append((name, loss)))
    ((name, loss),) = seen
    assert name == "denoiser"
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    weighted = hp.task.l1_weight * metrics["l1"] + hp.task.stft_weight * metrics["stft"]
    torch.testing.assert_close(metrics["loss"], weighted)
    # The identity's waveform error is that of the mixture, computed here from the mix alone.
    mixed = task.mix(batch)
    torch.testing.assert_close(
        metrics["l1"], (mixed.mixture - mixed.target).abs().mean(), atol=1e-6, rtol=1e-4
    )


def test_the_lead_is_mixed_but_not_trained_on(hp: HParams, task: DenoiseTask, batch) -> None:
    """The model hears the last part of the very mixture, in which the room already rings."""
    lead = 4410
    leading = DenoiseTask(
        replace(hp, task=replace(hp.task, lead_seconds=lead / 44_100)), {"rir": task.bank.rirs}
    )
    heard = []

    class Listener(nn.Module):
        def forward(self, mixture: torch.Tensor) -> torch.Tensor:
            heard.append(mixture)
            return mixture

    metrics = leading.step({"denoiser": Listener()}, batch, lambda name, loss: None)
    mixed = task.mix(batch)
    assert torch.equal(heard[0], mixed.mixture[:, lead:])
    torch.testing.assert_close(metrics["l1"], (mixed.mixture - mixed.target)[:, lead:].abs().mean())
    assert leading.hp.crop_samples == hp.crop_samples + lead


def test_doing_nothing_improves_nothing_and_the_oracle_improves_all(task: DenoiseTask, batch) -> None:
    identity = task.evaluate({"denoiser": nn.Identity()}, batch)
    assert [row["si_sdr_improvement_db"] for row in identity] == [0.0, 0.0]
    assert identity[0]["si_sdr_db"] == pytest.approx(6.0, abs=0.3)
    assert [math.isnan(row["si_sdr_improvement_dry_db"]) for row in identity] == [False, True]
    assert [math.isnan(row["si_sdr_improvement_room_db"]) for row in identity] == [True, False]
    # The foreground in its room has the power 1 + 1/4, the background lies 6 dB below that, and the echo is noise too.
    assert identity[1]["si_sdr_db"] == pytest.approx(-10 * math.log10(1.25 * 10**-0.6 + 0.25), abs=0.4)
    oracle = task.evaluate({"denoiser": Oracle(task.mix(batch).target)}, batch)
    for row, other in zip(oracle, identity, strict=True):
        assert row["si_sdr_improvement_db"] > 30
        assert row["stft_distance"] < 1e-3 < other["stft_distance"]
        assert row["log_mel_distance_db"] < 1e-3 < other["log_mel_distance_db"]


def test_twenty_steps_on_one_batch_raise_its_si_sdr(hp: HParams, batch) -> None:
    weights = {"l1_weight": 0.0, "stft_weight": 0.0, "si_sdr_weight": 1.0}
    batch["rir"] = torch.full_like(batch["rir"], -1)
    task = DenoiseTask(replace(hp, task=replace(hp.task, **weights)))
    torch.manual_seed(0)
    modules = task.build()
    optimiser = torch.optim.AdamW(task.param_groups("denoiser", modules["denoiser"]), lr=2e-3)

    def update(name: str, loss: torch.Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    for _ in range(20):
        task.step(modules, batch, update)
    modules["denoiser"].eval()
    with torch.no_grad():
        rows = task.evaluate(modules, batch)
    assert all(row["si_sdr_improvement_db"] > 3 for row in rows), rows


def test_the_gradients_of_rows_one_by_one_are_on_average_those_of_the_batch(hp: HParams, batch) -> None:
    task = TASKS["denoise"](hp, {"rir": torch.eye(1, 3000)})
    assert task.takes_parts
    torch.manual_seed(0)
    modules = task.build()

    def gradients(part: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        parameters = list(modules["denoiser"].parameters())
        task.step(modules, part, lambda name, loss: found.extend(torch.autograd.grad(loss, parameters)))
        return found

    rows = [gradients({key: value[row : row + 1] for key, value in batch.items()}) for row in (0, 1)]
    for whole, first, second in zip(gradients(batch), *rows, strict=True):
        torch.testing.assert_close((first + second) / 2, whole, atol=1e-6, rtol=1e-4)


def test_another_rate_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="wav_rate is 48000 Hz, but the STFT loss"):
        TASKS["denoise"](replace(HParams(), wav_rate=48_000))


def test_show_gives_each_row_three_sounds_and_a_picture_with_three_spectrograms(
    task: DenoiseTask, batch
) -> None:
    sounds, figures = {}, {}

    class Album:
        def audio(self, name: str, wave: torch.Tensor, rate_hz: int) -> None:
            assert rate_hz == 44_100
            sounds[name] = wave

        def figure(self, name: str, figure) -> None:
            figures[name] = figure

    task.show({"denoiser": nn.Identity()}, batch, Album())
    assert sorted(sounds) == [f"{row}/{name}" for row in (0, 1) for name in ("estimate", "mixture", "target")]
    assert all(wave.shape == (T,) for wave in sounds.values())
    torch.testing.assert_close(sounds["0/mixture"], sounds["0/estimate"])
    titles = [axis.get_title() for axis in figures["0/spectrogram"].axes]
    assert titles[:3] == ["mixture", "estimate", "target"]
