"""Bad steps in one process: skipped, counted, never in the weights; and modules that cannot reach each other."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine import accelerate_backend
from enhancer.engine.accelerate_backend import AccelerateBackend
from enhancer.engine.clipping import clip_by_norm, gradient_norm
from enhancer.engine.guard import save_replay
from enhancer.engine.stop import Stop
from enhancer.engine.update import StepModules, Update


def make_backend(task: ToyTask, *values: str) -> AccelerateBackend:
    hp = toy_hparams(*values)
    torch.manual_seed(0)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    return AccelerateBackend(accelerate_backend.start(hp), modules, groups, hp)


def snapshot(backend: AccelerateBackend) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, module in backend.raw_modules.items()
        for key, value in module.state_dict().items()
    }


def moved(backend: AccelerateBackend, before: dict[str, torch.Tensor]) -> set[str]:
    """Modules with a changed weight."""
    after = snapshot(backend)
    return {key.split(".")[0] for key, value in before.items() if not torch.equal(value, after[key])}


@pytest.fixture
def pair():
    backend = make_backend(ToyTask(is_adversarial=True))
    modules = StepModules(backend.modules, backend.raw_modules)
    batch = next(ToyStream().from_draw(0))
    return backend, Update(backend, "generator", Stop()), modules, batch


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_nothing_and_keeps_the_learning_rate(pair, bad):
    backend, update, modules, batch = pair
    before, rate = snapshot(backend), backend.learning_rate("generator")
    update("generator", modules["generator"](batch["mixture"]).mean() * bad)
    assert moved(backend, before) == set()
    assert (update.main_steps, len(update.skipped), backend.learning_rate("generator")) == (0, 1, rate)


def test_a_finite_loss_with_a_gradient_that_is_not_finite_changes_nothing(pair):
    backend, update, modules, batch = pair
    before = snapshot(backend)
    estimate = modules["generator"](batch["mixture"])
    # The square root of 0 has the value 0 and an infinite slope.
    update("generator", (estimate * 0).square().sum().sqrt() + estimate.mean())
    assert moved(backend, before) == set()
    assert update.main_steps == 0
    assert all(parameter.grad is None for parameter in backend.raw_modules["generator"].parameters())


def test_a_loss_that_is_not_finite_over_finite_gradients_is_skipped_too(pair):
    backend, update, modules, batch = pair
    before = snapshot(backend)
    update("generator", modules["generator"](batch["mixture"]).mean() + math.nan)
    assert moved(backend, before) == set()


def test_an_update_moves_its_own_module_alone_and_leaves_no_gradients(pair):
    backend, update, modules, batch = pair
    before = snapshot(backend)
    with modules.frozen("judge") as judge:
        loss = judge(modules["generator"](batch["mixture"])).mean()
    update("generator", loss)
    assert moved(backend, before) == {"generator"}
    for module in backend.raw_modules.values():
        assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_a_step_through_another_module_that_is_not_frozen_is_refused(pair):
    _, update, modules, batch = pair
    loss = modules["judge"](modules["generator"](batch["mixture"])).mean()
    with pytest.raises(RuntimeError, match=r"modules\.frozen\('judge'\)"):
        update("generator", loss)


def test_an_update_of_an_unknown_module_or_with_a_vector_names_what_is_wrong(pair):
    _, update, modules, batch = pair
    with pytest.raises(ValueError, match=r"\['generator', 'judge'\]"):
        update("critic", modules["generator"](batch["mixture"]).mean())
    with pytest.raises(ValueError, match=r"shape \(8, 6\)"):
        update("generator", modules["generator"](batch["mixture"]))


def test_the_reported_norm_is_the_one_before_clipping(pair):
    backend, update, modules, batch = pair
    loss = 100 * (modules["generator"](batch["mixture"]) - batch["target"]).square().mean()
    parameters = list(backend.raw_modules["generator"].parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    expected = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    update("generator", loss)
    assert expected > 1
    assert update.gradient_norms["generator"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_clipping_is_torchs(max_norm, random):
    ours = [torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(2, 3))]
    for parameter in ours:
        parameter.grad = torch.randn(parameter.shape, generator=random)
    theirs = [torch.nn.Parameter(torch.zeros_like(parameter)) for parameter in ours]
    for parameter, other in zip(ours, theirs, strict=True):
        other.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm or math.inf)
    norm = gradient_norm(ours)
    clip_by_norm(ours, norm, max_norm)
    assert float(norm) == float(expected)
    for parameter, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=0)


def test_a_replay_holds_the_batch_with_its_draw_numbers(tmp_path):
    batch = {**next(ToyStream().from_draw(16)), "is_pair": torch.tensor([True, False])}
    path = save_replay(tmp_path, 42, batch)
    assert path.name == "diverged-0000042-rank0.safetensors"
    restored = load_file(path)
    assert restored["draw"].tolist() == list(range(16, 24))
    assert all(torch.equal(restored[key], value) for key, value in batch.items())


def test_optimiser_states_with_code_in_them_are_refused(tmp_path):
    from enhancer.engine.weights import read_state
    from hparams.errors import UserError

    torch.save({"optimizer": subprocess.Popen}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_state(tmp_path / "state.pt")
