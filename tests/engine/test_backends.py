"""Both backends train alike: the same numbers in fp32, bf16 close to it, whole weights at every ZeRO stage."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from forked import forked_ranks
from ranks import column, records, status
from test_guard import make_backend, snapshot
from toy import ToyStream, ToyTask

from enhancer.engine.deepspeed_masters import Masters
from enhancer.engine.stop import Stop
from enhancer.engine.update import StepModules, Update

# Low enough that every step is clipped, which a test makes sure of.
ARGUMENTS = ("--no-noise", "--adversarial", "--set", "gradient_clipping=0.1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of the Accelerate backend on one rank."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ended = forked_ranks("accelerate", 1, run, *ARGUMENTS)[0]
    assert ended.code == 0, ended.text
    return run


@pytest.mark.multi
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_deepspeed_gives_the_numbers_of_accelerate(tmp_path, reference, zero_stage):
    run = tmp_path / "run"
    ended = forked_ranks("deepspeed", 1, run, *ARGUMENTS, "--set", f"zero_stage={zero_stage}")[0]
    assert ended.code == 0, ended.text
    assert min(column(reference, "gradient_norm_judge") + column(reference, "gradient_norm")) > 0.1
    for name in ("loss", "judge_loss", "gradient_norm", "gradient_norm_judge", "learning_rate"):
        np.testing.assert_allclose(
            column(run, name), column(reference, name), atol=1e-6, rtol=1e-6, err_msg=name
        )


@pytest.mark.multi
@pytest.mark.parametrize("backend", ["accelerate", "deepspeed"])
def test_bf16_is_close_to_fp32_and_not_the_same(tmp_path, reference, backend):
    run = tmp_path / "run"
    ended = forked_ranks(backend, 1, run, *ARGUMENTS, "--set", "precision=bf16")[0]
    assert ended.code == 0, ended.text
    np.testing.assert_allclose(column(run, "loss"), column(reference, "loss"), atol=0.02)
    assert column(run, "loss") != column(reference, "loss")
    weights = load_file(run / "checkpoints" / "step-0000010" / "generator.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert len(records(run, "evaluation")) == 2


@pytest.mark.multi
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_weights_that_lie_channels_last_train_alike_on_both_backends(tmp_path, zero_stage):
    expected, found = tmp_path / "accelerate", tmp_path / "deepspeed"
    for backend, run, stage in (("accelerate", expected, 0), ("deepspeed", found, zero_stage)):
        ended = forked_ranks(
            backend, 1, run, "--no-noise", "--channels-last", "--set", f"zero_stage={stage}"
        )[0]
        assert ended.code == 0, ended.text
    np.testing.assert_allclose(column(found, "loss"), column(expected, "loss"), atol=1e-6, rtol=0)


@pytest.mark.multi
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_saved_weights_of_bf16_are_the_unrounded_masters(tmp_path, zero_stage, num_ranks):
    program = Path(__file__).with_name("bf16_weights.py")
    arguments = ("--set", f"zero_stage={zero_stage}")
    for ended in forked_ranks("deepspeed", num_ranks, tmp_path, *arguments, program=program):
        assert ended.code == 0, ended.text
    for name in ("generator", "judge"):
        given, fresh, trained, live = (
            load_file(tmp_path / kind / f"{name}.safetensors")
            for kind in ("given", "fresh", "trained", "live")
        )
        assert given.keys() == fresh.keys() == trained.keys() == live.keys()
        for key, value in trained.items():
            assert (value.dtype, live[key].dtype) == (torch.float32, torch.bfloat16)
            assert torch.equal(fresh[key], given[key]), f"{name}.{key}"
            assert torch.equal(value.bfloat16(), live[key]), f"{name}.{key}"
            assert not torch.equal(value, given[key]), f"{name}.{key}"
        rounded = [torch.equal(value, live[key].float()) for key, value in trained.items()]
        assert not any(rounded), rounded


def test_masters_that_the_fused_adam_holds_as_one_are_found_by_weight(random):
    """DeepSpeed's wrapper of its fused Adam, which needs a GPU, around torch's AdamW."""
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.loss_scaler import LossScaleConfig, LossScaleProfile

    shapes = [(3, 5), (7,), (2, 2, 2)]
    weights = [torch.nn.Parameter(torch.randn(shape, generator=random).bfloat16()) for shape in shapes]
    scale = LossScaleConfig(
        low_precision_dtype=torch.bfloat16,
        dynamic_loss_scale=False,
        static_loss_scale=1.0,
        dynamic_loss_args=None,
        profile=LossScaleProfile.FUSED,
    )
    adam = torch.optim.AdamW([{"params": weights[:2]}, {"params": weights[2:]}], lr=1e-3, weight_decay=0)
    optimizer = FP16_Optimizer(adam, loss_scale_config=scale, low_precision_dtype=torch.bfloat16)
    masters = Masters(optimizer, zero_stage=0)
    assert all(torch.equal(masters.read(weight), weight.float()) for weight in weights)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=random).bfloat16()
    optimizer.step()
    for weight in weights:
        master = masters.read(weight)
        assert master.shape == weight.shape
        assert torch.equal(master.bfloat16(), weight)
        assert not torch.equal(master, weight.float())
    assert masters.read(torch.nn.Parameter(torch.zeros(2), requires_grad=False)) is None


@pytest.mark.multi
@pytest.mark.parametrize("values", [(), ("--set", "gradient_accumulation_steps=2")])
def test_a_parameter_that_the_loss_does_not_reach_ends_a_run_of_two_ranks_in_words(tmp_path, values):
    """Its bucket of gradients is never exchanged, so the ranks would drift apart."""
    run = tmp_path / "run"
    for ended in forked_ranks("accelerate", 2, run, "--unused", "--set", "batch_size_per_gpu=2", *values):
        assert ended.code == 1, ended.text
    assert "were not used in producing loss" in status(run)["reason"]
    assert status(run)["step"] == 1


@pytest.mark.multi
def test_a_run_starts_from_the_weights_of_a_bf16_run_unrounded(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    # So low a rate that Adam, whose steps are about as long as the rate, moves no weight visibly.
    still = ("max_steps=2", "warmup_steps=1", "min_lr=1e-12", "max_lr=1e-12", "eval_every=100")
    values = [word for value in still for word in ("--set", value)]
    for run, arguments in (
        (first, ("--set", "eval_every=100")),
        (second, (*values, "--init-from", str(first))),
    ):
        ended = forked_ranks("deepspeed", 1, run, "--set", "precision=bf16", *arguments)[0]
        assert ended.code == 0, ended.text
    given = load_file(first / "checkpoints" / "step-0000010" / "generator.safetensors")
    found = load_file(second / "checkpoints" / "step-0000002" / "generator.safetensors")
    for key, value in given.items():
        torch.testing.assert_close(found[key], value, atol=1e-10, rtol=1e-7)


def test_the_optimiser_is_adamw_without_decay_by_the_book(random):
    """Against the update rule of Kingma and Ba (2015), algorithm 1, in float64."""
    task = ToyTask(has_noise=False)
    backend = make_backend(task, "gradient_clipping=0")
    update = Update(backend, "generator", Stop())
    modules = StepModules(backend.modules, backend.raw_modules)
    expected = {key: value.double() for key, value in snapshot(backend).items()}
    mean = {key: torch.zeros_like(value) for key, value in expected.items()}
    square = {key: torch.zeros_like(value) for key, value in expected.items()}
    stream = ToyStream().from_draw(0)
    for step in range(1, 6):
        batch = next(stream)
        rate = backend.learning_rate("generator")
        loss = (modules["generator"](batch["mixture"]) - batch["target"]).square().mean()
        named = dict(backend.raw_modules["generator"].named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        update("generator", loss)
        for name, gradient in zip(named, gradients, strict=True):
            key, gradient = f"generator.{name}", gradient.double()
            mean[key] = 0.9 * mean[key] + 0.1 * gradient
            square[key] = 0.999 * square[key] + 0.001 * gradient**2
            scaled = (square[key] / (1 - 0.999**step)).sqrt() + 1e-8
            expected[key] = expected[key] - rate * mean[key] / (1 - 0.9**step) / scaled
    for key, value in snapshot(backend).items():
        torch.testing.assert_close(value.double(), expected[key], atol=1e-6, rtol=0)
