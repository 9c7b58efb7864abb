"""The context task against a step written out by hand, and against devices whose error is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from enhancer.models.context import ContextDevice
from enhancer.tasks import TASKS
from enhancer.tasks.context import ContextTask
from hparams.errors import UserError
from hparams.load import dump, load, loads

CONTEXT, ROWS = 20, 16


def task_of(*overrides: str) -> ContextTask:
    values = [f"task.context_samples={CONTEXT}", "task.hidden_size=8", *overrides]
    return ContextTask(load("pedal_context", values))


def windows(seed: int = 0, knobs: int = 0) -> dict[str, Tensor]:
    """Windows of noise whose wet sample is that of a clipper with a memory of three samples."""
    generator = torch.Generator().manual_seed(seed)
    dry = 0.3 * torch.randn(ROWS, CONTEXT, generator=generator)
    wet = torch.tanh(3 * dry[:, -1:] + 2 * dry[:, -3:-2])
    return {"dry": dry, "wet": wet, "knobs": torch.rand(ROWS, knobs, generator=generator)}


def test_a_step_is_one_update_of_an_lstm_by_the_error_to_signal_ratio_of_the_batch() -> None:
    task = task_of()
    device = task.build()["device"]
    lstm, linear = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 1)
    for ours, theirs in zip(device.parameters(), [*lstm.parameters(), *linear.parameters()], strict=True):
        theirs.data.copy_(ours.data)
    batch, losses = windows(), []

    def update(name: str, loss: Tensor) -> None:
        assert name == "device"
        loss.backward()
        losses.append(loss.item())

    logged = task.step({"device": device}, batch, update)
    estimate = linear(lstm(batch["dry"][..., None])[0][:, -1])
    loss = (batch["wet"] - estimate).square().mean() / (batch["wet"].square().mean() + 1e-5)
    loss.backward()
    assert losses == pytest.approx([loss.item()], rel=1e-5)
    assert logged["loss"].item() == logged["esr"].item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(device.parameters(), [*lstm.parameters(), *linear.parameters()], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


class Known(nn.Module):
    """A device that is off by a given factor, and keeps what it was called with."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.calls: list[int] = []

    def forward(self, dry: Tensor, knobs: Tensor, state: tuple[Tensor]) -> tuple[Tensor, Any]:
        assert state[0].shape == (len(dry), CONTEXT - 1) and len(knobs) == len(dry)
        self.calls.append(len(dry))
        heard = torch.cat([state[0], dry], dim=1)[:, CONTEXT - 3 :]
        return self.factor * (heard[:, 2:] + 0.5 * heard[:, : heard.shape[1] - 2]), ()


@pytest.mark.parametrize("factor", [1.0, 0.9, 0.0])
def test_the_windows_of_a_validation_row_are_judged_and_no_other_samples(factor: float) -> None:
    """The target is x[n] + x[n - 2] / 2, with nonsense where no window ends."""
    generator = torch.Generator().manual_seed(5)
    dry = 0.3 * torch.randn(1, 5000, generator=generator)
    wet = dry.clone()
    wet[:, 2:] += 0.5 * dry[:, :-2]
    first = torch.arange(0, 5000 - CONTEXT, 7)[None]
    ends = first[0] + CONTEXT - 1
    nonsense = torch.full_like(wet, 9.0)
    nonsense[:, ends] = wet[:, ends]
    device = Known(factor)
    batch = {"dry": dry, "wet": nonsense, "first": first, "knobs": torch.zeros(1, 0)}
    (row,) = task_of().evaluate({"device": device}, batch)
    target = wet[0, ends].double().numpy()
    assert row["esr"] == pytest.approx((1 - factor) ** 2, abs=1e-6)
    assert row["mse"] == pytest.approx((1 - factor) ** 2 * np.mean(target**2), abs=1e-6)
    assert row["mae"] == pytest.approx((1 - factor) * np.mean(np.abs(target)), abs=1e-6)
    assert sum(device.calls) == first.shape[1] and max(device.calls) <= 256


def test_every_window_counts_and_the_model_learns_a_device_with_memory_and_hears_its_knobs() -> None:
    task = task_of("task.knobs=[drive]", "task.hidden_size=16")
    torch.manual_seed(0)
    device = task.build()["device"]
    optimizer = torch.optim.Adam(device.parameters(), lr=1e-2)
    losses = []

    def update(name: str, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    batch = windows(knobs=1)
    for _ in range(120):
        task.step({"device": device}, batch, update)
    assert losses[-1] < 0.1 < losses[0]
    with torch.no_grad():
        one, other = (device(batch["dry"], knobs)[0] for knobs in (batch["knobs"], 1 - batch["knobs"]))
    assert (one - other).abs().max() > 1e-4


def test_the_sounds_shown_are_the_models_on_the_loudest_half_second() -> None:
    class Media:
        def __init__(self) -> None:
            self.waves: dict[str, Tensor] = {}
            self.figures: list[str] = []

        def audio(self, name: str, wave: Tensor, rate_hz: int) -> None:
            self.waves[name] = wave

        def figure(self, name: str, figure: Any) -> None:
            self.figures.append(name)

    task = task_of("wav_rate=8000")
    device = task.build()["device"]
    dry = 0.01 * torch.randn(1, 9000, generator=torch.Generator().manual_seed(1))
    dry[:, 4500:5500] *= 50
    media = Media()
    with torch.no_grad():
        task.show({"device": device}, {"dry": dry, "wet": 2 * dry, "knobs": torch.zeros(1, 0)}, media)
        whole, _ = device(dry)
    shown = media.waves["0/dry"]
    assert len(shown) == 4000 and shown.abs().max() == dry.abs().max()
    start = int((dry[0].unfold(0, 4000, 1) == shown).all(1).nonzero())
    assert start <= 4500 and start + 4000 >= 5500
    torch.testing.assert_close(media.waves["0/estimate"], whole[0, start : start + 4000], atol=1e-6, rtol=0)
    assert torch.equal(media.waves["0/target"], 2 * shown)
    assert media.figures == ["0/spectrogram", "0/response", "0/loudest", "0/worst"]


def test_the_preset_is_the_published_experiment() -> None:
    hp = load("pedal_context")
    task = TASKS[hp.task.name](hp)
    assert isinstance(task, ContextTask) and isinstance(device := task.build()["device"], ContextDevice)
    assert (device.hidden_size, device.context_samples) == (64, 220)
    assert (hp.task.train_windows, hp.task.valid_windows, hp.task.split) == (75_000, 25_000, "time")
    assert (hp.batch_size_per_gpu, hp.seed, hp.min_lr, hp.max_lr) == (64, 25, 1e-3, 1e-3)
    # One evaluation is one epoch, and there are a hundred.
    assert hp.eval_every - 1 < 75_000 / 64 <= hp.eval_every and hp.max_steps == 100 * hp.eval_every
    assert hp.early_stop_patience == 15
    assert all("weight_decay" not in group for group in task.param_groups("device", device))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["task.context_ms=10"], "task.context_samples and task.context_ms both are set"),
        (["task.context_samples=null"], "neither is set; give one"),
        (["task.context_samples=1"], r"task.context_samples is 1; needed integer >= 2 and <= 65535 or null"),
        (["task.context_samples=70000"], "needed integer >= 2 and <= 65535"),
        (["task.context_samples=null", "task.context_ms=0.01"], r"0\.01 is 0 samples at a wav_rate of 44100"),
        (["task.context_samples=null", "task.context_ms=-1"], "task.context_ms is -1; needed number > 0"),
        (["task.split=shuffle"], "task.split is shuffle; needed one of time, random"),
        (["task.train_windows=0"], "task.train_windows is 0; needed integer > 0"),
        (["task.warmup_samples=10"], "task context has none, task pedal has"),
    ],
)
def test_values_that_cannot_be_are_refused_in_words(words: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        load("pedal_context", words)


@pytest.mark.parametrize(
    ("rate_hz", "expected"), [(44_100, 441), (48_000, 480), (96_000, 960)]
)  # fmt: skip
def test_milliseconds_follow_the_rate_and_survive_writing(rate_hz: int, expected: int) -> None:
    words = ["task.context_samples=null", "task.context_ms=10", f"wav_rate={rate_hz}"]
    hp = load("pedal_context", words)
    assert ContextTask(hp).build()["device"].context_samples == expected
    assert loads(dump(hp)) == hp
