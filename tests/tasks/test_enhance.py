"""Stage 1 of the enhancer on made-up batches: what it updates and when, what it tells, how it judges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.utils import parameters_to_vector

from enhancer.engine.accelerate_backend import AccelerateBackend, start
from enhancer.engine.forecast import forecast
from enhancer.engine.guard import StepAborted
from enhancer.engine.parts import cut, mean_over_parts, num_parts_of
from enhancer.engine.stop import Stop
from enhancer.engine.update import Update
from enhancer.signal.mixing import foreground_at_level
from enhancer.tasks import TASKS
from enhancer.tasks.enhance import EnhanceTask
from hparams.enhance import EnhanceHParams
from hparams.schema import HParams

T = 4200


@pytest.fixture
def hp() -> HParams:
    own = EnhanceHParams(
        num_extra=4,
        autoencoder_width=8,
        autoencoder_blocks=1,
        vocoder_width=16,
        vocoder_blocks=1,
        periods=(2, 3),
        period_width=2,
        resolution_width=2,
        gan_start_step=2,
        collapse_steps=3,
        mel_weight=1.0,
        autoencoder_weight=10.0,
    )
    return replace(HParams(), training_seconds=T / 44_100, task=own)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two tones with overtones at -20 and -26 dBFS."""
    at = torch.arange(T) / 44_100
    tones = torch.stack(
        [sum(torch.sin(2 * math.pi * hz * k * at) / k for k in range(1, 8)) for hz in (330, 880)]
    )
    return {
        "draw": torch.tensor([4, 5]),
        "item": torch.tensor([0, 1]),
        "fg": (8_000 * tones).to(torch.int16),
        "level_db": torch.tensor([-20.0, -26.0]),
    }


class Parts(dict[str, nn.Module]):
    """Modules as the engine gives them to a step."""

    @contextmanager
    def frozen(self, name: str) -> Iterator[nn.Module]:
        self[name].requires_grad_(False)
        yield self[name]
        self[name].requires_grad_(True)

    def raw(self, name: str) -> nn.Module:
        return self[name]


class Descent:
    """An optimiser for each module as the engine's update; what it was asked for, in order."""

    def __init__(self, modules: Parts, rate: float = 2e-3) -> None:
        self.modules = modules
        self.optimisers = {
            name: torch.optim.AdamW(module.parameters(), lr=rate) for name, module in modules.items()
        }
        self.losses: list[tuple[str, float]] = []

    def __call__(self, name: str, loss: torch.Tensor) -> None:
        self.losses.append((name, float(loss.detach())))
        self.optimisers[name].zero_grad()
        loss.backward()
        for other, module in self.modules.items():
            for weight in module.parameters():
                if other == name:
                    assert weight.grad is not None and bool(weight.grad.isfinite().all())
                else:
                    assert weight.grad is None or other in dict(self.losses[:-1])
        self.optimisers[name].step()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()

    def mean_of_batch(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        return values


def fresh(hp: HParams, **changes: Any) -> tuple[EnhanceTask, Parts]:
    task = TASKS["enhance"](replace(hp, task=replace(hp.task, **changes)))
    assert isinstance(task, EnhanceTask)
    torch.manual_seed(hp.seed)
    return task, Parts(task.build())


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def test_the_discriminator_is_idle_until_its_step_and_then_both_are_updated(hp: HParams, batch) -> None:
    task, modules = fresh(hp)
    update = Descent(modules)
    before = weights_of(modules["discriminator"])
    idle = [task.step(modules, batch, update) for _ in range(2)]
    assert all(map(torch.equal, before, weights_of(modules["discriminator"])))
    playing = task.step(modules, batch, update)
    assert [name for name, _ in update.losses] == ["generator"] * 3 + ["discriminator"]
    assert all("adversarial" not in values and "discriminator" not in values for values in idle)
    assert {"adversarial", "features", "discriminator", "features_weighted"} < playing.keys()


def test_the_loss_is_the_weighted_sum_of_its_terms(hp: HParams, batch) -> None:
    task, modules = fresh(hp, gan_start_step=0, stft_weight=0.5, adversarial_weight=0.25, features_weight=3.0)
    update = Descent(modules)
    values = task.step(modules, batch, update)
    weights = {"autoencoder": 10.0, "mel": 1.0, "stft": 0.5, "adversarial": 0.25, "features": 3.0}
    torch.testing.assert_close(values["loss"], sum(weight * values[name] for name, weight in weights.items()))
    for name, weight in weights.items():
        torch.testing.assert_close(values[f"{name}_weighted"], weight * values[name])
    assert update.losses[0] == ("generator", pytest.approx(float(values["loss"])))


def test_the_normaliser_sees_what_all_ranks_together_have(hp: HParams, batch) -> None:
    """The other rank's moments come through `update.mean_of_batch`; the module then holds their means."""
    task, modules = fresh(hp)
    update = Descent(modules)
    update.mean_of_batch = lambda name, values: (
        values * 0 + torch.tensor([0.25, 0.1])[: values.numel()].reshape(values.shape)
    )  # type: ignore[method-assign]
    task.step(modules, batch, update)
    state = modules["generator"].state_dict()
    assert float(state["normaliser.mean"]) == pytest.approx(0.25)
    assert float(state["normaliser.mean_square"]) == pytest.approx(0.1)
    task, modules = fresh(hp)
    task.step(modules, batch, Descent(modules))
    mel = task.mel.scaled(foreground_at_level(batch))
    assert float(modules["generator"].state_dict()["normaliser.mean"]) == pytest.approx(float(mel.mean()))


def test_a_batch_that_is_given_up_leaves_no_trace(hp: HParams, batch) -> None:
    """As where another rank has no batch, which the first update finds out: the batch comes again after the resume."""
    task, modules = fresh(hp)
    before = {key: value.clone() for key, value in modules["generator"].state_dict().items()}
    update = Descent(modules)
    update.__class__ = type("Refusing", (Descent,), {"__call__": _give_up})
    with pytest.raises(StepAborted):
        task.step(modules, batch, update)
    for key, value in modules["generator"].state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(int(value) == 0 for value in task.state().values())


def _give_up(self: Descent, name: str, loss: torch.Tensor) -> None:
    raise StepAborted


def test_thirty_steps_bring_the_mel_distance_below_the_untrained_models(hp: HParams, batch) -> None:
    task, modules = fresh(hp)
    update = Descent(modules)
    for _ in range(30):
        task.step(modules, batch, update)
    modules["generator"].eval()
    for row in task.evaluate(modules, batch):
        assert row["mel_distance"] < row["mel_distance_untrained"] - 0.1, row
        assert row["stft_distance"] < row["stft_distance_untrained"] - 0.1, row


def test_an_untrained_model_is_as_good_as_itself_and_griffin_lim_is_judged_once(
    hp: HParams, batch, monkeypatch
) -> None:
    task, modules = fresh(hp)
    modules["generator"].eval()
    torch.manual_seed(8)
    state = torch.get_rng_state()
    rows = task.evaluate(modules, batch)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr("enhancer.tasks.enhance.griffin_lim", None)
    assert task.evaluate(modules, batch) == rows
    for row in rows:
        assert row["mel_distance"] == pytest.approx(row["mel_distance_untrained"], rel=1e-5)
        assert row["stft_distance"] == pytest.approx(row["stft_distance_untrained"], rel=1e-5)
        assert row["log_mel_distance_of_griffin_lim_db"] > 0
    with pytest.raises(TypeError):
        task.evaluate(modules, {**batch, "item": torch.tensor([0, -1])})


def test_what_it_hears_is_the_target_at_its_level(hp: HParams, batch) -> None:
    task, modules = fresh(hp)
    waves = task.waves(modules, batch)
    level_db = 20 * waves["target"].square().mean(-1).sqrt().log10()
    torch.testing.assert_close(level_db, batch["level_db"], atol=0.01, rtol=0)
    assert list(waves) == ["recording", "Griffin-Lim", "estimate", "target"]
    assert all(wave.shape == (2, T) for wave in waves.values())


def test_an_all_silent_batch_moves_both_modules_by_finite_steps(hp: HParams, batch) -> None:
    """`Descent` asserts that every gradient is finite."""
    task, modules = fresh(hp, gan_start_step=0)
    update = Descent(modules)
    silent = {**batch, "fg": torch.zeros_like(batch["fg"])}
    for _ in range(3):
        values = task.step(modules, silent, update)
        assert all(bool(value.isfinite()) for value in values.values()), values
    for module in modules.values():
        assert all(bool(weight.isfinite().all()) for weight in module.parameters())
    after = task.step(modules, batch, update)
    assert all(bool(value.isfinite()) for value in after.values()), after
    rows = task.evaluate(modules, {**silent, "item": torch.tensor([5, 6])})
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize(
    ("score", "loss", "words"), [(0.0, 2.0, "tells nothing apart"), (9.0, 0.0, "every target")]
)
def test_a_discriminator_that_stays_at_a_bound_is_told_of_once(
    hp: HParams, batch, score: float, loss: float, words: str
) -> None:
    """A discriminator that cannot learn: 0 for everything, or right of everything by a wide margin."""

    class Stuck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = score
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, wave: torch.Tensor) -> list[Any]:
            signs = torch.ones(len(wave), 1)
            if len(wave) == 4:  # Targets, then estimates.
                signs[2:] = -1
            return [(signs * self.score + 0 * self.weight, [wave + 0 * self.weight])]

    task, modules = fresh(hp, gan_start_step=0)
    modules["discriminator"] = Stuck()
    update = Descent(modules)
    told = []
    for step in range(1, 6):
        values = task.step(modules, batch, update)
        assert float(values["discriminator"]) == loss and float(values["flat_steps"]) == step
        told.append(task.notices())
    assert [len(texts) for texts in told] == [0, 0, 1, 0, 0]
    assert "the discriminator has collapsed" in told[2][0] and words in told[2][0]
    assert f"bound of {loss:g} for 3 steps" in told[2][0]
    # It goes on from a checkpoint, and one step that is not at a bound ends it.
    assert int(task.state()["flat_steps"]) == 5 and int(task.state()["num_steps"]) == 5
    modules["discriminator"].score = 0.5  # type: ignore[assignment]
    values = task.step(modules, batch, update)
    assert float(values["discriminator"]) == 1 and float(values["flat_steps"]) == 0


def test_a_start_beyond_the_end_is_warned_of_once(hp: HParams) -> None:
    task, _ = fresh(replace(hp, max_steps=2000), gan_start_step=2000)
    (text,) = task.notices()
    assert "task.gan_start_step 2000 is not below max_steps 2000" in text and "never take part" in text
    assert task.notices() == []
    assert fresh(replace(hp, max_steps=2000), gan_start_step=1999)[0].notices() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mel_weight": 0.0, "stft_weight": 0.0}, "task.mel_weight and task.stft_weight are both 0"),
        ({"level_range_db": (-10.0, -20.0)}, "task.level_range_db"),
        ({"vocoder_window": 1024}, "task.vocoder_window 1024 is not two or more whole hops of hop_size 420"),
    ],
)
def test_impossible_values_are_refused_in_words(hp: HParams, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(hp, task=replace(hp.task, **changes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_that_are_computed_again_give_the_same_gradients_and_keep_less(
    hp: HParams, batch, precision
) -> None:
    sizes = {"autoencoder_width": 64, "autoencoder_blocks": 4, "vocoder_width": 64, "vocoder_blocks": 4}
    found = {}
    for again in (False, True):
        own = replace(
            hp,
            precision=precision,
            batch_size_per_gpu=2,
            task=replace(hp.task, **sizes, recompute_blocks=again),
        )
        _, modules = fresh(own)
        told = forecast(own, fresh(own)[0], "accelerate", 1).activations["generator"]
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.untyped_storage().nbytes())
            return tensor

        wave = foreground_at_level(batch)
        with torch.no_grad():  # Away from the start, where blocks do nothing.
            for weight in modules["generator"].parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss = modules["generator"](wave).square().mean()
        loss.backward()
        gradients = [weight.grad for weight in modules["generator"].parameters()]
        found[again] = (loss, gradients, sum(kept), told)
    assert torch.equal(found[True][0], found[False][0])
    for one, other in zip(found[True][1], found[False][1], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert found[True][2] < 0.8 * found[False][2]
    assert found[True][3] < 0.95 * found[False][3]


def test_steps_in_parts_are_those_of_whole_batches_with_the_game_on(hp: HParams) -> None:
    """Parts differ in level and content, so that moments or counts of a part alone would show.

    Without the mel loss of the waveform, whose slope where an estimate is nearly silent hangs on rounding.
    """
    at, random = torch.arange(T) / 44_100, torch.Generator().manual_seed(3)
    batches = []
    for _ in range(5):
        hz = 100 + 900 * torch.rand(4, 1, generator=random)
        wave = torch.sin(2 * math.pi * hz * at) + 0.3 * torch.randn(4, T, generator=random)
        levels = torch.tensor([-12.0, -20.0, -30.0, -36.0])
        batches.append({"draw": torch.arange(4), "fg": (6000 * wave).short(), "level_db": levels})
    found = {}
    for num_parts in (1, 2, 4):
        own = replace(
            hp,
            batch_size_per_gpu=4 // num_parts,
            gradient_accumulation_steps=num_parts,
            min_lr=1e-6,  # A weight whose gradient is mere rounding moves by a whole step of Adam.
            task=replace(hp.task, collapse_steps=2, mel_weight=0.0),
        )
        task, parts = fresh(own)
        assert num_parts_of(task, own, 4) == num_parts
        groups = {name: task.param_groups(name, module) for name, module in parts.items()}
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # Another test may have had another precision.
        backend = AccelerateBackend(start(own), parts, groups, own)
        update = Update(backend, "generator", Stop(), num_parts=num_parts)
        steps = []
        for batch in batches:
            update.begin()
            metrics = []
            for number, part in enumerate(cut(batch, num_parts)):
                with update.part(number):
                    metrics.append(task.step(update.modules(), part, update))
            assert update.main_steps == 1 and not update.skipped
            steps.append({**mean_over_parts(metrics), **update.gradient_norms})
        found[num_parts] = steps, {name: int(value) for name, value in task.state().items()}, parts
    whole, counts, expected = found[1]
    assert counts["num_steps"] == len(batches) and "discriminator" in whole[-1] and "flat_steps" in whole[-1]
    for num_parts in (2, 4):
        steps, own_counts, modules = found[num_parts]
        assert own_counts == counts
        for step, reference in zip(steps, whole, strict=True):
            assert step.keys() == reference.keys()
            for name, value in reference.items():
                # The slope of a logarithm at a nearly empty bin hangs on rounding, and norms see it.
                near = {"rel": 1e-4} if name in modules else {"rel": 1e-6, "abs": 1e-6}
                assert float(step[name]) == pytest.approx(float(value), **near), (num_parts, name)
        normalisers = [each["generator"].normaliser.state_dict() for each in (modules, expected)]
        for name, value in normalisers[0].items():
            torch.testing.assert_close(value, normalisers[1][name], rtol=1e-6, atol=0, msg=name)
        # Weights moved alike, but for the few whose gradient is rounding.
        begun = fresh(hp)[1]
        for name in modules:
            start_at, ended, other = (
                parameters_to_vector(each[name].parameters()).detach() for each in (begun, modules, expected)
            )
            assert float((ended - other).norm() / (other - start_at).norm()) < 0.1, name
