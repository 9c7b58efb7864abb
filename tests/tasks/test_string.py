"""The string task on tones whose decay is known: it learns, resumes, and survives what cannot be learned."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from enhancer.signal.decay import octave_levels, octave_t60
from enhancer.tasks.string import StringTask
from hparams.errors import UserError
from hparams.load import load

RATE_HZ = 44_100


def task_of(*overrides: str) -> StringTask:
    values = ["training_seconds=0.25", "task.rollout_draws=0", "task.num_layers=1", "task.hidden_size=4"]
    return StringTask(load("string_ks", [*values, *overrides]))


def batch_of(rows: int = 2, seconds: float = 0.25, first_draw: int = 0) -> dict[str, Tensor]:
    """Sums of four partials with a T60 of 1 s; what is told of it is 2 s."""
    f0 = torch.linspace(150.0, 300.0, rows)
    time = torch.arange(round(seconds * RATE_HZ)) / RATE_HZ
    partials = torch.stack(
        [torch.sin(2 * math.pi * number * f0[:, None] * time + number) / number for number in (1, 2, 3, 4)]
    )
    return {
        "draw": torch.arange(first_draw, first_draw + rows),
        "note": 0.1 * partials.sum(0) * 10 ** (-3 * time),
        "f0_hz": f0,
        "velocity": torch.full((rows,), 0.7),
        "position": torch.full((rows,), math.nan),
        "t60": torch.full((rows, 9), 2.0),
        "time": torch.zeros(rows),
        "decay_db": torch.zeros(rows),
        "t60_range_db": torch.full((rows, 9), math.nan),
    }


def trained(
    task: StringTask, module: torch.nn.Module, batch: dict[str, Tensor], steps: int, rate: float = 0.02
) -> list[float]:
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    losses = []

    def update(name: str, loss: Tensor) -> None:
        assert name == "string"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for _ in range(steps):
        task.step({"string": module}, batch, update)
    return losses


@pytest.mark.parametrize(
    "values",
    [
        ("task.num_layers=2", "task.has_quarter_taps=true"),
        ("task.controls=[f0]", "task.gain_weight=1"),
        ("task.loop=free", "task.symmetry=none"),
    ],
)
def test_ten_steps_lower_the_loss(values: tuple[str, ...]) -> None:
    """A T60 that is told wrong by a factor of 2 is unlearned; a free loop is tamed."""
    task = task_of(*values)
    torch.manual_seed(0)
    module = task.build()["string"]
    losses = trained(task, module, batch_of(), 10, 0.02 if module.is_bounded else 1e-4)
    assert losses[-1] < 0.8 * losses[0]


def test_rollouts_grow_by_equal_factors_with_the_draws() -> None:
    task = task_of("task.rollout_draws=100", "task.rollout_periods=[2, 8]")
    longest = RATE_HZ / 150.0
    for draw, periods in ((0, 2), (50, 4), (100, 8), (5000, 8)):
        batch = batch_of() | {"draw": torch.tensor([draw - 1, draw])}
        assert task.rollout_samples(batch) == round(periods * longest)
    assert task.rollout_samples(batch_of(seconds=0.06) | {"draw": torch.tensor([5000, 5001])}) == 441


def test_negated_copies_are_heard_on_every_other_draw() -> None:
    task = task_of("task.symmetry=augment")
    heard: list[Tensor] = []

    class Listener(torch.nn.Module):
        def forward(self, history: Tensor, count: int, *controls: Tensor) -> Tensor:
            heard.append(history)
            return torch.zeros(len(history), count)

    batch = batch_of()
    task.step({"string": Listener()}, batch, lambda name, loss: None)
    assert torch.equal(heard[0][0], batch["note"][0, :2205])
    assert torch.equal(heard[0][1], -batch["note"][1, :2205])


def test_a_target_that_cannot_be_reached_leaves_finite_gradients() -> None:
    """A loop with weights far too large, bounded by the kernel: loss and gradients stay finite."""
    task = task_of("task.loop=free")
    module = task.build()["string"]
    with torch.no_grad():
        module.taps.fill_(20.0)

    def update(name: str, loss: Tensor) -> None:
        loss.backward()
        assert loss.isfinite()

    task.step({"string": module}, batch_of(), update)
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_evaluation_names_failures_and_waves_begin_with_what_was_heard() -> None:
    task = task_of()
    module = task.build()["string"].eval()
    batch = batch_of(1, seconds=1.5) | {"t60": torch.full((1, 9), 500.0)}
    with torch.no_grad():
        found = task.evaluate({"string": module}, batch)[0]
        waves = task.waves({"string": module}, batch)
    assert found["never_decays"] == 1 and found["num_failures"] == 1
    assert torch.equal(waves["target"], batch["note"])
    assert torch.equal(waves["estimate"][:, :2205], batch["note"][:, :2205])


def test_a_string_is_judged_beside_the_plain_linear_filter() -> None:
    """One without hidden layers that has learned nothing is that filter; judging takes no random numbers."""
    task = task_of("task.num_layers=0")
    module, batch = task.build()["string"].eval(), batch_of(1, seconds=1.5)
    before = torch.get_rng_state()
    with torch.no_grad():
        found = task.evaluate({"string": module}, batch)[0]
        waves = task.waves({"string": module}, batch)
    assert torch.equal(before, torch.get_rng_state())
    for name in ("t60_error", "t60_worst_error", "level_error_db"):
        assert found[f"linear_{name}"] == found[name]
        assert found[f"{name}_below_linear"] == 0
    assert torch.equal(waves["linear filter"], waves["estimate"])
    # Beside a free loop, which needs no training to fail, it is the same.
    free = task_of("task.num_layers=0", "task.loop=free")
    with torch.no_grad():
        beside = free.evaluate({"string": free.build()["string"].eval()}, batch)[0]
    assert beside["linear_level_error_db"] == found["level_error_db"]


def test_a_string_is_judged_also_by_what_the_beginning_of_a_note_foretells() -> None:
    """A T60 of 1 s that is told as 2: what is foretold from the sound is right, of the plain filter too."""
    task = task_of("task.num_layers=0")
    module, batch = task.build()["string"].eval(), batch_of(1, seconds=1.5)
    with torch.no_grad():
        found = task.evaluate({"string": module}, batch)[0]
        short = task.evaluate({"string": module}, batch_of(1, seconds=0.9))[0]
    assert found["t60_worst_error"] > 0.5 > 0.05 > found["foretold_t60_worst_error"]
    assert found["linear_foretold_t60_worst_error"] < 0.05 and found["foretold_num_failures"] == 0
    assert math.isnan(short["foretold_t60_error"]) and math.isnan(short["linear_foretold_num_failures"])
    untold = task_of("task.controls=[f0]")
    with torch.no_grad():
        row = untold.evaluate({"string": untold.build()["string"].eval()}, batch)[0]
    assert not any("foretold" in name for name in row)


def test_the_outlook_of_a_fresh_string_has_learned_from_the_constants_of_its_stream() -> None:
    notes = batch_of(6, seconds=1.5)
    constants = {
        "outlook_level_db": octave_levels(notes["note"], RATE_HZ).band_db,
        "outlook_f0_hz": notes["f0_hz"],
        "outlook_stop_db": torch.full((6, 9), -190.0),
    }
    hp = task_of().hp
    fresh, blank = (StringTask(hp, given).build()["string"].outlook for given in (constants, None))
    assert fresh.bias.exp().item() == pytest.approx(60.0, rel=0.05)  # dB per second: a T60 of 1 s
    assert blank.bias.item() == 0


def test_two_stages_learn_what_a_linear_filter_cannot_do() -> None:
    """Tones that fall by 20 dB within 0.2 s and then ring on: the levels come nearer, T60 stays as told."""
    time = torch.arange(round(1.5 * RATE_HZ)) / RATE_HZ
    stages = 0.9 * 10 ** (-3 * time / 0.5) + 0.1 * 10 ** (-3 * time / 6.0)
    batch = batch_of(seconds=1.5)
    batch["note"] = batch["note"] * 10 ** (3 * time) * stages
    levels = octave_levels(batch["note"][:, 2205:], RATE_HZ)
    batch["t60"] = octave_t60(levels)[0].t60_seconds.float()
    task = task_of("task.num_layers=0", "task.has_two_stages=true")
    torch.manual_seed(0)
    module = task.build()["string"]
    trained(task, module, batch, 15, 0.1)
    with torch.no_grad():
        rows = task.evaluate({"string": module.eval()}, batch)
    for row in rows:
        assert row["level_error_db"] < 0.7 * row["linear_level_error_db"], row
        assert row["t60_worst_error"] < 0.1 and row["num_failures"] == 0, row


def test_a_beginning_too_short_to_hear_a_decay_in_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"outlook_seconds 0.8 leaves too little behind task.history_seconds 0.3"
    ):
        task_of("task.outlook_seconds=0.8", "task.history_seconds=0.3", "training_seconds=0.5")
