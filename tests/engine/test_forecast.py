"""Forecasts of memory against what real steps hold: counted storages, tensors that live, states of real optimisers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import memory_steps
from forked import forked_ranks
from toy import toy_hparams

from data_shards import damages, mix, pitch_recipe
from enhancer.engine.accelerate_backend import AccelerateBackend, start
from enhancer.engine.forecast import Forecast, forecast, module_bytes, optimizer_bytes
from enhancer.engine.optimizers import make_optimizer, optimizer_groups
from enhancer.engine.stop import Stop
from enhancer.engine.task import Foreseeable
from enhancer.engine.update import Update
from enhancer.signal import damage
from enhancer.tasks import TASKS
from enhancer.tasks.trial import trial_mix
from hparams.errors import UserError
from hparams.load import load

SMALL = {
    "enhance": (
        "enhancer_stage1_small",
        "training_seconds=0.1 task.autoencoder_width=16 task.vocoder_width=32 task.periods=[2,3] "
        "task.gan_start_step=0 max_steps=51",
    ),
    "denoise": ("base_small", "training_seconds=0.2 task.width=2 task.lead_seconds=0.05"),
    "pedal": (
        "pedal_lstm",
        "training_seconds=0.05 task.hidden_size=8 task.warmup_samples=200 task.update_samples=900",
    ),
    "context": ("pedal_context", "task.hidden_size=8"),
    "pitch": ("pitch_wave_small", "training_seconds=0.2"),
    "codec": ("codec_small", "training_seconds=0.1"),
    "string": (
        "string_ks",
        "task.rollout_periods=[2,4] training_seconds=0.2 task.hidden_size=8 task.stft_weight=0",
    ),
}


def small(name, rows, *values):
    preset, more = SMALL[name]
    return load(preset, [f"batch_size_per_gpu={rows}", *more.split(), *values])


class Ledger:
    """Bytes of storages that the graphs of a step keep, as long as they do."""

    def __init__(self, modules):
        self.users, self.sizes = Counter(), {}
        self.own = {
            tensor.untyped_storage().data_ptr()
            for module in modules.values()
            for tensor in (*module.parameters(), *module.buffers())
        }

    def live(self):
        return sum(self.sizes[key] for key, count in self.users.items() if count)

    def keep(self, tensor):
        return _Kept(self, tensor.detach())


class _Kept:
    def __init__(self, ledger, tensor):
        storage = tensor.untyped_storage()
        self.ledger, self.tensor, self.key = ledger, tensor, storage.data_ptr()
        if self.key not in ledger.own:
            ledger.sizes[self.key] = storage.nbytes()
            ledger.users[self.key] += 1

    def __del__(self):
        if self.key not in self.ledger.own:
            self.ledger.users[self.key] -= 1


def measured(hp):
    """What is kept when each module is updated in a real step of all rows, the largest of each."""
    task = TASKS[hp.task.name](hp)
    torch.manual_seed(0)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    AcceleratorState._reset_state(reset_partial_state=True)  # Another test may have had another precision.
    backend = AccelerateBackend(start(hp), modules, groups, hp)
    update, ledger, found = Update(backend, task.main_module, Stop()), Ledger(modules), {}

    def counted(name, loss):
        found[name] = max(found.get(name, 0), ledger.live())
        update(name, loss)

    counted.mean, counted.mean_of_batch = update.mean, update.mean_of_batch
    batch = task.trial_batch(hp.batch_size_per_gpu)
    with torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda kept: kept.tensor):
        task.step(update.modules(), batch, counted)
    assert not update.skipped and update.main_steps >= 1
    return found


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("enhance", ()),
        ("enhance", ("precision=bf16",)),
        ("denoise", ()),
        ("pedal", ()),
        ("context", ()),
        ("pitch", ()),
        ("codec", ()),
        ("string", ()),
    ],
)
def test_activations_are_told_within_a_tenth(name, values):
    hp = small(name, 7, *values)
    found = measured(hp)
    told = forecast(hp, TASKS[name](hp), "accelerate", 1).activations
    assert told.keys() == found.keys()
    for module, size in found.items():
        assert told[module] == pytest.approx(size, rel=0.1), (module, told[module], size)
    assert min(found.values()) > 1000


@pytest.mark.multi
@pytest.mark.parametrize(
    ("backend", "ranks", "values"),
    [
        ("accelerate", 1, ()),
        ("deepspeed", 1, ("precision=bf16",)),
        ("deepspeed", 2, ("zero_stage=1", "precision=bf16")),
        ("deepspeed", 2, ("zero_stage=2",)),
    ],
)
def test_weights_masters_gradients_and_states_are_those_of_a_real_step(tmp_path, backend, ranks, values):
    """Rank 0's gradients reach into a weight that it shares with rank 1, which is then held whole."""
    arguments = [word for value in values for word in ("--set", value)]
    ended = forked_ranks(backend, ranks, tmp_path / "found", *arguments, program=Path(memory_steps.__file__))
    assert ended[0].code == 0, ended[0].text
    found = json.loads((tmp_path / "found").read_text())
    hp, modules = toy_hparams(*values), memory_steps.modules()
    told = [
        module_bytes(hp, module, [{"params": list(module.parameters())}], backend, ranks, is_main=True)
        for module in modules.values()
    ]
    # Scales of losses, steps of optimisers, and weights that are filled up to divide by the ranks.
    near = {"rel": 0.002, "abs": 0}
    assert found["stepped"] == pytest.approx(sum(each.steady for each in told), **near)
    gradients = found["gradients"] - found["made"]
    whole = max(weight.numel() for module in modules.values() for weight in module.parameters()) * 4
    expected = sum(each.gradients for each in told)
    assert 0.998 * expected <= gradients <= 1.002 * expected + (whole if ranks > 1 else 0)
    if backend == "accelerate":
        assert found["stepped"] == sum(each.steady for each in told) and gradients == expected


def test_zero_shares_what_the_optimiser_holds_and_the_moving_average_is_whole_everywhere():
    module = memory_steps.modules()["generator"]
    size = sum(weight.numel() for weight in module.parameters())
    groups = [{"params": list(module.parameters())}]
    hp = toy_hparams("zero_stage=1", "precision=bf16", "ema_decay=0.9")
    held = module_bytes(hp, module, groups, "deepspeed", 8, is_main=True)
    assert (held.weights, held.average) == (2 * size, 4 * size)
    assert held.masters == pytest.approx(4 * size / 8, abs=4)
    assert held.states == pytest.approx(8 * size / 8, abs=4)
    assert held.buffers == 2 * size
    assert module_bytes(hp, module, groups, "deepspeed", 8, is_main=False).average == 0
    module[0].requires_grad_(False)
    rest = size - memory_steps.WIDTH * 300 - 300
    frozen = module_bytes(hp, module, groups, "deepspeed", 1, is_main=True)
    assert (frozen.weights, frozen.masters, frozen.gradients) == (2 * size, 4 * rest, 2 * rest)
    assert frozen.states == pytest.approx(8 * rest, abs=16)


def test_each_of_several_ranks_on_accelerate_holds_copies_of_the_gradients_of_all_modules_all_the_time():
    """DistributedDataParallel: a reducer's buckets are as large as the module's trained weights and are never freed."""
    module = memory_steps.modules()["generator"]
    module[0].requires_grad_(False)
    size = sum(weight.numel() for weight in module[2].parameters())
    groups = [{"params": list(module.parameters())}]
    for precision in ("fp32", "bf16"):
        hp = toy_hparams(f"precision={precision}")
        alone, two = (module_bytes(hp, module, groups, "accelerate", n, is_main=True) for n in (1, 2))
        assert (alone.copies, two.copies, two.steady - alone.steady) == (0, 4 * size, 4 * size)
        assert (two.gradients, two.buffers) == (4 * size, 0)
    held = {"generator": two, "judge": two}
    assert Forecast(held, {}, 8).total - Forecast({**held, "judge": alone}, {}, 8).total == 4 * size


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "psgd", "soap"])
def test_states_of_an_optimiser_are_those_after_a_real_step(optimizer):
    if optimizer in ("psgd", "soap"):
        pytest.importorskip("pytorch_optimizer")
    hp = toy_hparams(f"optimizer={optimizer}")
    module = nn.Sequential(nn.Linear(31, 20), nn.Conv1d(3, 5, 7), nn.LayerNorm(9))
    groups = [{"params": list(module.parameters())}]
    told = optimizer_bytes(hp, groups)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    real = make_optimizer(hp, optimizer_groups(hp, groups))
    real.step()
    sizes = [
        tensor.untyped_storage().nbytes()
        for state in real.state.values()
        for value in state.values()
        for tensor in (value if isinstance(value, list) else [value])
        if isinstance(tensor, torch.Tensor)
    ]
    assert told == sum(sizes) > 0


def test_parts_of_a_batch_are_held_one_at_a_time():
    whole = forecast(small("denoise", 6), TASKS["denoise"](small("denoise", 6)), "accelerate", 1)
    hp = small("denoise", 3, "gradient_accumulation_steps=2")
    parts = forecast(hp, TASKS["denoise"](hp), "accelerate", 1)
    assert (whole.rows, parts.rows) == (6, 3)
    hp = small("enhance", 1, "gradient_accumulation_steps=2")
    game = forecast(hp, TASKS["enhance"](hp), "accelerate", 1)
    waiting = game.modules["discriminator"].gradients
    alone = game.modules["generator"].gradients + game.activations["generator"]
    assert game.update("generator") == waiting + alone and game.rows == 1
    assert parts.activations["denoiser"] == pytest.approx(whole.activations["denoiser"] / 2, rel=0.1)


def test_trial_batches_have_the_columns_of_the_streams():
    def kinds(columns):
        return {name: torch.zeros(0, dtype=getattr(torch, kind)).dtype for name, kind in columns.items()}

    columns = trial_mix(2, 100)
    found = {name: column.dtype for name, column in columns.items() if column.ndim == 1}
    expected = {**mix.NUMBERS, **damages.NUMBERS, "has_bg": "bool", "draw": "int64"}
    assert found == kinds(expected)
    assert all(damages.UNDAMAGED[name] == value for name, value in damage.UNDAMAGED.items())
    assert {name for name, column in columns.items() if column.ndim == 2} == set(mix.WAVES)
    hp = small("pitch", 2)
    columns = TASKS["pitch"](hp).trial_batch(2)
    found = {name: column.dtype for name, column in columns.items() if column.ndim == 1}
    assert found == kinds({**pitch_recipe.NUMBERS, "draw": "int64"})


def test_every_task_can_be_told():
    for name, task in TASKS.items():
        assert issubclass(task, Foreseeable), name


def test_what_cannot_be_told_is_refused_in_words():
    hp = small("denoise", 2)
    for values, backend, words in (
        ({"zero_stage": 3}, "deepspeed", "zero_stage 3"),
        ({"zero_stage": 1}, "accelerate", "only DeepSpeed"),
    ):
        with pytest.raises(UserError, match=words):
            forecast(replace(hp, **values), TASKS["denoise"](hp), backend, 2)
