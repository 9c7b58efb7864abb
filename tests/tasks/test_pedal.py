"""The pedal task against a training loop written out by hand, and against devices whose error is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enhancer.models.wavenet import WaveNetDevice
from enhancer.tasks.pedal import PedalTask
from hparams.load import load

LENGTH, ROWS = 5000, 3


def task_of(*overrides: str) -> PedalTask:
    return PedalTask(load("pedal_lstm", ["training_seconds=0.2", "task.hidden_size=8", *overrides]))


def segments(knobs: int = 0, seed: int = 0, length: int = LENGTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dry = 0.3 * torch.randn(ROWS, length, generator=generator)
    return {"dry": dry, "wet": torch.tanh(3 * dry), "knobs": torch.rand(ROWS, knobs, generator=generator)}


class Descent:
    """`update` as plain gradient descent that counts its calls."""

    def __init__(self, module: nn.Module, rate: float) -> None:
        self.module, self.rate, self.losses = module, rate, []

    def __call__(self, name: str, loss: Tensor) -> None:
        assert name == "device"
        loss.backward()
        self.losses.append(loss.item())
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter -= self.rate * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize(
    ("update_samples", "takes_parts"), [(2048, False), (7819, False), (7820, True), (100_000, True)]
)
def test_batches_are_taken_in_parts_where_a_segment_is_one_update(update_samples, takes_parts) -> None:
    # 0.2 s are 8820 samples, of which the first 1000 are only heard.
    task = task_of(f"task.update_samples={update_samples}", "task.warmup_samples=1000")
    assert task.takes_parts == takes_parts


def test_a_step_is_truncated_backpropagation_as_one_writes_it_by_hand() -> None:
    """Warm-up of 1000 without gradient, then chunks of 2048 and the remaining 1904, each its own update; ESR only."""
    task = task_of("task.dc_weight=0", "task.hf_hinge_weight=0", "task.esr_weight=1")
    device = task.build()["device"]
    lstm, linear = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 1)
    for ours, theirs in zip(device.parameters(), [*lstm.parameters(), *linear.parameters()], strict=True):
        theirs.data.copy_(ours.data)
    batch = segments()
    update = Descent(device, 0.05)
    logged = task.step({"device": device}, batch, update)

    with torch.no_grad():
        _, state = lstm(batch["dry"][:, :1000, None])
    losses = []
    for start, stop in [(1000, 3048), (3048, 5000)]:
        features, state = lstm(batch["dry"][:, start:stop, None], state)
        state = tuple(part.detach() for part in state)
        estimate, target = linear(features).squeeze(-1), batch["wet"][:, start:stop]
        loss = (target - estimate).square().mean() / (target.square().mean() + 1e-5)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in [*lstm.parameters(), *linear.parameters()]:
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
    assert update.losses == pytest.approx(losses, rel=1e-5)
    for ours, theirs in zip(device.parameters(), [*lstm.parameters(), *linear.parameters()], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    mean = (losses[0] * 2048 + losses[1] * 1952) / 4000
    assert logged["loss"].item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("update_samples", "warmup", "count"), [(2048, 1000, 2), (4000, 1000, 1), (500, 1000, 8), (999, 0, 6)]
)
def test_every_sample_after_the_warm_up_is_learned_from_once(
    update_samples: int, warmup: int, count: int
) -> None:
    task = task_of(f"task.update_samples={update_samples}", f"task.warmup_samples={warmup}")
    device = task.build()["device"]
    update = Descent(device, 0.0)
    task.step({"device": device}, segments(), update)
    assert len(update.losses) == count


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 48_000, 96_000])
def test_the_stft_loss_is_that_of_torchs_spectra_at_the_rate_of_the_pair(rate_hz: int) -> None:
    """On chunks that are shorter than its longest window, too."""
    only = ["task.esr_weight=0", "task.dc_weight=0", "task.hf_hinge_weight=0", "task.stft_weight=1"]
    task = PedalTask(load("pedal_lstm", ["task.hidden_size=8", f"wav_rate={rate_hz}", *only]))
    batch = segments()
    device = Known(0.5)
    losses: list[float] = []
    task.step({"device": device}, batch, lambda name, loss: losses.append(loss.item()))
    expected = []
    for start, stop in [(1000, 3048), (3048, 5000)]:
        target = batch["wet"][:, start:stop]
        distances = []
        for hop in (round(usual * rate_hz / 44_100) for usual in (100, 256, 512)):
            window = torch.hann_window(4 * hop)
            n_fft = 2 ** math.ceil(math.log2(4 * hop))
            missing = -target.shape[1] % hop
            padded = torch.nn.functional.pad(target, (2 * hop, 2 * hop + missing))
            frames = padded.unfold(1, 4 * hop, hop) * window
            spectra = torch.fft.rfft(frames, n=n_fft).abs()
            floor = math.sqrt(10 ** (-80 / 10) * 0.375 * 4 * hop)
            distance = (spectra.clamp(min=floor) / (0.5 * spectra).clamp(min=floor)).log().abs().mean((1, 2))
            distances.append(0.5 + distance)
        expected.append(torch.stack(distances).mean().item())
    assert losses == pytest.approx(expected, rel=1e-3)


def test_recurrent_weights_decay_less() -> None:
    task = task_of("task.num_layers=2")
    device = task.build()["device"]
    groups = task.param_groups("device", device)
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in device.named_parameters()}
    assert {value for name, value in found.items() if "weight_hh" in name} == {3e-5}
    assert {value for name, value in found.items() if "weight_hh" not in name} == {1e-4}


class Known(nn.Module):
    """A device that is off by a given factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, dry: Tensor, knobs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.factor * torch.tanh(3 * dry), ()


@pytest.mark.parametrize("factor", [1.0, 0.9, 0.0, -1.0])
def test_the_error_of_a_device_off_by_a_factor_is_the_square_of_the_difference(factor: float) -> None:
    rows = task_of().evaluate({"device": Known(factor)}, segments())
    assert [row["esr"] for row in rows] == pytest.approx([(1 - factor) ** 2] * ROWS, abs=1e-6)
    expected_db = 20 * math.log10(abs(factor)) if factor else None
    for row in rows:
        if expected_db is None:
            assert row["excess_above_10k_db"] < -60
        else:
            assert row["excess_above_10k_db"] == pytest.approx(expected_db, abs=1e-3)


@pytest.mark.parametrize("model", ["lstm", "gru", "wavenet"])
def test_every_model_learns_a_clipper_and_hears_its_knobs(model: str) -> None:
    """Forty updates on one batch: the loss falls well below that of silence (1), knobs or not."""
    task = task_of(
        f"task.model={model}", "task.knobs=[drive, tone]", "task.hidden_size=16", "task.update_samples=4000",
        "task.dc_weight=0", "task.hf_hinge_weight=0", "task.esr_weight=1",
    )  # fmt: skip
    torch.manual_seed(0)
    device = task.build()["device"]
    assert isinstance(device, WaveNetDevice) == (model == "wavenet")
    optimizer = torch.optim.Adam(device.parameters(), lr=1e-2)
    losses = []

    def update(name: str, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    batch = segments(knobs=2, length=2000)
    for _ in range(40):
        task.step({"device": device}, batch, update)
    assert losses[-1] < 0.3
    changed = {**batch, "knobs": 1 - batch["knobs"]}
    with torch.no_grad():
        one, _ = device(batch["dry"], batch["knobs"])
        other, _ = device(changed["dry"], changed["knobs"])
    assert (one - other).abs().max() > 1e-4
