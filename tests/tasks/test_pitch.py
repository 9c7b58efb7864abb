"""The pitch task: its pairs, its metrics for models that are known, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enhancer.engine.evaluate import groups_of_task, summarise
from enhancer.models.spec_unet import SpecUNet
from enhancer.models.wave_unet import WaveUNet
from enhancer.repair_metrics import DISTANCES
from enhancer.signal.levels import power_db
from enhancer.tasks.pitch import PitchTask
from hparams.errors import UserError
from hparams.load import load
from hparams.shifting import ENGINES

TINY = ("task.channels=[1,8,16]", "task.blocks=[1,1]", "task.factors=[8,4]")


def task_of(*overrides: str, preset: str = "pitch_wave_small") -> PitchTask:
    return PitchTask(load(preset, list(overrides)))


def batch_of(rows: int = 2, samples: int = 16_384, seed: int = 0) -> dict[str, Tensor]:
    """Tones as targets; inputs are duller and half as loud."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 44_100
    noise = 0.02 * torch.randn(rows, samples, generator=generator)
    target = sum(0.1 / k * torch.sin(2 * torch.pi * 220 * k * time) for k in range(1, 9)) + noise
    heard = 0.25 * (target + target.roll(1, -1))
    return {
        "draw": torch.arange(rows),
        "input": (heard * 32767).round().short(),
        "target": (target * 32767).round().short(),
        "semitones": torch.tensor([5.0, -10.0])[:rows],
        "cutoff_hz": torch.tensor([16_518.8, 22_050.0])[:rows],
        "engine": torch.tensor([0, 3])[:rows],
        "level_db": torch.full((rows,), -20.0),
    }


class Known(nn.Module):
    """Gives what it hears times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, heard: Tensor, semitones: Tensor) -> Tensor:
        return self.factor * heard


def test_both_sides_of_a_pair_share_the_gain_that_gives_the_input_its_level() -> None:
    batch = batch_of()
    heard, target = task_of().pair(batch)
    torch.testing.assert_close(power_db(heard), torch.full((2,), -20.0), atol=1e-3, rtol=0)
    recorded = batch["target"] / batch["input"].double().square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(target, (0.1 * recorded).float(), atol=1e-4, rtol=1e-3)
    loud, _ = task_of().pair({**batch, "level_db": torch.full((2,), 10.0)})
    assert loud.abs().max() <= 0.99


def test_a_model_that_changes_nothing_improves_nothing() -> None:
    rows = task_of().evaluate({"repairer": Known(1.0)}, batch_of())
    for row in rows:
        for name in DISTANCES:
            assert row[name] > 0 and row[name.replace("distance", "improvement")] == 0


def test_a_better_level_is_an_improvement_by_as_much_as_the_distance_fell() -> None:
    batch = batch_of()
    before, after = (task_of().evaluate({"repairer": Known(f)}, batch) for f in (1.0, 2.0))
    for worse, better in zip(before, after, strict=True):
        for name in DISTANCES:
            gained = better[name.replace("distance", "improvement")]
            assert gained > 0 and gained == pytest.approx(worse[name] - better[name], abs=1e-4)


def test_rows_are_told_by_semitones_and_engine() -> None:
    rows = [
        {"item": n, **row} for n, row in enumerate(task_of().evaluate({"repairer": Known(2.0)}, batch_of()))
    ]
    assert [row["label_semitones"] for row in rows] == [5, -10]
    groups = {(group.kind, group.name): group for group in groups_of_task(PitchTask, rows)}
    assert {name for kind, name in groups if kind == "engine"} == {ENGINES[0], ENGINES[3]}
    assert {name.replace("  ", " ") for kind, name in groups if kind == "semitones"} == {
        "up 4 to 7",
        "down 8 to 12",
    }
    group = groups["engine", ENGINES[0]]
    assert group.count == 1
    assert group.summary["stft_improvement"].mean == pytest.approx(rows[0]["stft_improvement"])
    assert not any(name.startswith("label_") for name in summarise(rows))
    words = {
        PitchTask.groups_of({"label_semitones": s, "label_engine": 0})["semitones"]
        for s in range(-24, 25)
        if s
    }
    assert len(words) == 8


def descend(module: nn.Module, task: PitchTask, batch: dict[str, Tensor], steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []

    def update(name: str, loss: Tensor) -> None:
        assert name == "repairer"
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    for _ in range(steps):
        task.step({"repairer": module}, batch, update)
    return losses


@pytest.mark.parametrize(
    "values",
    [TINY, ("task.model=spec_unet", "task.channels=[2,8,16]", "task.blocks=[1,1]", "task.factors=[8,4]",
            "task.frame_factors=[1,2]")],
    ids=["wave", "spec"],
)  # fmt: skip
def test_ten_steps_on_one_batch_lower_the_loss_and_raise_the_metrics(values: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    task = task_of(*values)
    module = task.build()["repairer"]
    batch = batch_of()
    losses = descend(module, task, batch, 10)
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        rows = task.evaluate({"repairer": module.eval()}, batch)
    assert all(row["log_spectral_improvement_db"] > 0 for row in rows)


def test_presets_build_the_models_they_name() -> None:
    tasks = [task_of(preset=name) for name in ("pitch_wave", "pitch_spec")]
    with torch.device("meta"):
        wave, spec = (task.build()["repairer"] for task in tasks)
    assert isinstance(wave, WaveUNet) and isinstance(spec, SpecUNet)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (wave, spec)]
    assert sizes[0] == pytest.approx(22e6, rel=0.05) and sizes[1] == pytest.approx(sizes[0], rel=0.15)
    assert load("pitch_wave").gradient_clipping == 1e3 and load("pitch_wave").log_every == 1


def test_a_blind_model_is_not_told_the_semitones() -> None:
    task = task_of(*TINY, "task.is_conditioned=false")
    module = task.build()["repairer"]
    first, second = (task.repair({"repairer": module}, task.pair(batch_of())[0], {**batch_of(), "semitones": s})
                     for s in (torch.ones(2), -torch.ones(2)))  # fmt: skip
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["task.semitones=[0,0]"], "shifts nothing"),
        (["task.semitones=[-30,5]"], "-24"),
        (["task.engines=[melodyne]"], "signalsmith"),
        (["task.engines=[]"], "task.engines"),
        (["task.blocks=[1,1]"], "task.blocks has 2 values"),
        (["task.channels=[2,8,16,32,64]"], "a waveform has 1"),
        (["task.kernel_size=8"], "even"),
        (["task.model=spec_unet"], "are 2"),
        (["task.l1_weight=0", "task.stft_weight=0"], "nothing would be learned"),
        (["task.factors=[64,64,64,64]"], "lower them"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_by_name(values: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load("pitch_wave_small", values)
