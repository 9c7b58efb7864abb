"""Stage 2 of the enhancer on made-up batches: its target, what is drawn, what it updates, how it judges."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from data_shards.damages import CLEAN, UNDAMAGED
from enhancer.engine import records
from enhancer.engine.evaluate import groups_of_task, summarise
from enhancer.models.velocity import VelocityNetwork
from enhancer.report.tables import groups_table
from enhancer.signal.damage import PARAMETERS
from enhancer.tasks import TASKS
from enhancer.tasks.restore import RestoreTask
from hparams.errors import UserError
from hparams.load import load
from hparams.restore import RestoreHParams
from hparams.schema import HParams
from tests.finished_runs import TINY_DENOISER, TINY_STAGE1
from tests.tasks.test_enhance import Descent, Parts

T = 8820


@pytest.fixture(scope="module")
def hp() -> HParams:
    own = RestoreHParams(num_latents=8, width=16, num_blocks=1, scale=2.0, kernel_size=5, nfe=2)
    return replace(HParams(), training_seconds=T / 44_100, task=own)


@pytest.fixture(scope="module")
def constants(hp: HParams) -> dict[str, nn.Module]:
    torch.manual_seed(2)
    built = {
        name: TASKS[own.name](replace(hp, task=own))
        for name, own in (("stage1", TINY_STAGE1), ("denoiser", TINY_DENOISER))
    }
    return {name: task.build()[task.main_module] for name, task in built.items()}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows: a tone in noise at 6 dB, and silence in noise."""
    generator = torch.Generator().manual_seed(3)
    tone = 8000 * torch.sin(2 * math.pi * 440 / 44_100 * torch.arange(T))
    rows = 2
    return {
        "draw": torch.tensor([4, 5]),
        "item": torch.tensor([0, 1]),
        "fg": torch.stack([tone, 0 * tone]).to(torch.int16),
        "bg": (3000 * torch.randn(2, T, generator=generator)).clamp(-32768, 32767).to(torch.int16),
        "is_pair": torch.zeros(rows, dtype=torch.bool),
        "rir": torch.full((rows,), -1),
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
        **{
            name: torch.full((rows,), value, dtype=torch.int64 if isinstance(value, int) else torch.float32)
            for name, value in UNDAMAGED.items()
            if name not in CLEAN
        },
        "has_bg": torch.ones(rows, dtype=torch.bool),
    }


class Told(VelocityNetwork):
    """Remembers what it was asked."""

    def forward(self, *asked: Any) -> torch.Tensor:
        self.asked = asked
        return super().forward(*asked)


def fresh(hp: HParams, constants: dict[str, nn.Module]) -> tuple[RestoreTask, Parts]:
    task = TASKS["restore"](hp, constants)
    assert isinstance(task, RestoreTask)
    torch.manual_seed(hp.seed)
    own = task.own
    told = Told(own.num_latents, hp.num_mels, own.width, own.num_blocks, own.scale, own.kernel_size)
    return task, Parts({"velocity": told})


def test_the_loss_is_the_squared_error_of_the_velocity_of_a_straight_path(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    """A fresh network stands still, so its loss is the squared length of the paths from the prior to the target."""
    task, modules = fresh(hp, constants)
    values = task.step(modules, batch, Descent(modules))
    assert (values["damage_background"], values["damage_room"]) == (1, 0)
    state, _, time, prior_mix, _ = modules["velocity"].asked
    end = constants["stage1"].encode(task.mix(batch).target)  # Latents were not normalised yet.
    start = (state - time[:, None, None] * end) / (1 - time[:, None, None])
    torch.testing.assert_close(values["loss"], (end - start).square().mean(), rtol=1e-3, atol=0)
    damaged = constants["stage1"].encode(task.mix(batch).mixture)
    noise = (start - (1 - prior_mix[:, None, None]) * damaged) / prior_mix[:, None, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.15) and float(noise.mean()) == pytest.approx(
        0, abs=0.15
    )


def test_paths_begin_with_as_much_noise_as_their_range_says(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    own = replace(hp.task, prior_mix=0.3, prior_mix_range=(0.25, 0.35))
    for given, (low, high) in ((hp, (0.0, 1.0)), (replace(hp, task=own), (0.25, 0.35))):
        task, modules = fresh(given, constants)
        drawn = []
        for first in range(0, 40, 2):
            task.step(modules, {**batch, "draw": torch.tensor([first, first + 1])}, Descent(modules))
            drawn += modules["velocity"].asked[3].tolist()
        width = high - low
        assert low <= min(drawn) < low + 0.2 * width and high - 0.2 * width < max(drawn) <= high
    for wrong, told in (
        ({"prior_mix": 0.5}, "0.5 lies outside of task.prior_mix_range 0.25 to 0.35"),
        ({"prior_mix_range": (0.4, 0.2)}, "task.prior_mix_range"),
    ):
        with pytest.raises(ValueError, match=told):
            replace(own, **wrong)


def test_what_is_drawn_follows_the_draw_and_neither_the_row_nor_the_rank(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    task, modules = fresh(hp, constants)
    torch.manual_seed(1)
    task.step(modules, batch, Descent(modules, rate=0.0))
    both = modules["velocity"].asked
    task, modules = fresh(hp, constants)
    torch.manual_seed(2)
    task.step(modules, {name: column[1:] for name, column in batch.items()}, Descent(modules, rate=0.0))
    for one, two in zip(modules["velocity"].asked, both, strict=True):
        torch.testing.assert_close(one, two[1:], atol=1e-5, rtol=1e-5)


def test_the_network_alone_is_trained(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    """All that the engine is handed, and so all that optimisers and ranks see, are its parameters."""
    task, modules = fresh(hp, constants)
    built = task.build()
    assert list(built) == ["velocity"]
    (group,) = task.param_groups("velocity", built["velocity"])
    handed = {id(weight) for weight in group["params"]}
    frozen = [weight for module in constants.values() for weight in module.parameters()]
    assert frozen and not any(weight.requires_grad or id(weight) in handed for weight in frozen)
    before = [weight.clone() for weight in frozen]
    for _ in range(2):
        task.step(modules, batch, Descent(modules))
    assert all(map(torch.equal, before, frozen)) and all(weight.grad is None for weight in frozen)


def test_latents_are_normalised_by_what_all_ranks_have_seen(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    task, modules = fresh(hp, constants)
    update = Descent(modules)
    asked: list[torch.Tensor] = []
    update.mean_of_batch = lambda name, values: asked.append(values) or values + 1  # type: ignore[method-assign, func-returns-value]
    task.step(modules, batch, update)
    latents = constants["stage1"].encode(task.mix(batch).target)
    torch.testing.assert_close(asked[0][0].float(), latents.mean((0, 1)), atol=1e-5, rtol=1e-4)
    normaliser = modules["velocity"].latents
    torch.testing.assert_close(normaliser.mean, latents.mean((0, 1)) + 1, atol=1e-5, rtol=1e-4)


class InParts:
    """The engine's update of a batch in `num_parts` parts, up to its gradients."""

    def __init__(self, num_parts: int) -> None:
        self.num_parts, self.left = num_parts, num_parts
        self.total: Any = 0

    def __call__(self, name: str, loss: torch.Tensor) -> None:
        (loss / self.num_parts).backward()

    def mean_of_batch(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        self.total, self.left = self.total + values / self.num_parts, self.left - 1
        return None if self.left else self.total


def test_a_batch_in_parts_is_the_whole_batch(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    found = []
    for num_parts in (1, 2):
        task, modules = fresh(hp, constants)
        with torch.no_grad():
            for weight in modules["velocity"].parameters():
                weight.add_(0.05)
        update = InParts(num_parts)
        for rows in torch.arange(2).chunk(num_parts):
            task.step(modules, {name: column[rows] for name, column in batch.items()}, update)
        gradients = [weight.grad for weight in modules["velocity"].parameters()]
        found.append([*gradients, *modules["velocity"].latents.buffers()])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_a_silent_batch_has_a_finite_loss_and_finite_gradients(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    """`Descent` holds every gradient to be finite."""
    task, modules = fresh(hp, constants)
    silent = {**batch, "fg": 0 * batch["fg"], "bg": 0 * batch["bg"]}
    for _ in range(3):
        assert math.isfinite(task.step(modules, silent, Descent(modules))["loss"])


def test_it_is_judged_beside_input_and_denoiser_and_told_to_be_safe(
    hp: HParams, constants: dict[str, nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    """A fresh denoiser is the identity, so that the distances of the two are the same."""
    task, modules = fresh(hp, constants)
    rows = task.evaluate(modules, batch)
    for name in ("log_mel_distance{}_db", "stft_distance{}"):
        input_, denoiser = (rows[0][name.format(whose)] for whose in ("_of_input", "_of_denoiser"))
        assert input_ == pytest.approx(denoiser, rel=1e-3)
    assert math.isnan(rows[1]["clean_log_mel_distance_db"]) and math.isfinite(
        rows[0]["clean_level_change_db"]
    )
    assert [task.groups_of(row) for row in rows] == [{"damage": "background"}] * 2
    assert {"bandwidth_hz", "bandwidth_of_input_hz", "silence_level_dbfs"} <= rows[0].keys()
    assert rows[0]["label_snr_db"] == 6 and rows[0]["label_clip_place"] == 0
    assert {f"label_{name}" for name in PARAMETERS} <= rows[0].keys()
    assert not any(name.startswith("label_") for name in summarise(rows))
    (group,) = groups_of_task(task, rows)
    assert group.count == 2 and "bandwidth_restored" in group.summary
    # A page is made of rows as they were written, where what is not finite is null.
    run: Any = SimpleNamespace(hp=hp, rows=json.loads(records.encode(rows)))
    page = groups_table(run)
    assert page is not None and "background" in str(page) and "Bandwidth restored" in str(page)
    assert {"pesq", "pesq_of_input"} <= group.summary.keys() or "pesq" not in rows[0]
    alone = task.evaluate(modules, {name: column[1:] for name, column in batch.items()})
    assert alone[0]["log_mel_distance_db"] == pytest.approx(rows[1]["log_mel_distance_db"], rel=1e-3)


def test_a_network_without_blocks_is_refused() -> None:
    """It would hear neither time nor strength."""
    with pytest.raises(UserError, match=r"task\.num_blocks"):
        load("enhancer_stage2_small", ["task.num_blocks=0"])


def test_without_its_modules_it_says_what_it_lacks(hp: HParams, batch: dict[str, torch.Tensor]) -> None:
    task = TASKS["restore"](hp)
    with pytest.raises(ValueError, match="a trained stage1, which it was not given"):
        task.step(Parts(task.build()), batch, lambda *asked: None)
