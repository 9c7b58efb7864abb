"""Both backends train alike: the same numbers in fp32, bf16 close to it, whole weights at every ZeRO stage."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from ranks import column, records, run_ranks
from test_guard import make_backend, snapshot
from toy import ToyStream, ToyTask

from enhancer.engine.stop import Stop
from enhancer.engine.update import StepModules, Update

# Low enough that every step is clipped, which a test makes sure of.
ARGUMENTS = ("--no-noise", "--adversarial", "--set", "gradient_clipping=0.1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of the Accelerate backend on one rank."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ended = run_ranks("accelerate", 1, run, *ARGUMENTS)[0]
    assert ended.code == 0, ended.text
    return run


@pytest.mark.multi
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_deepspeed_gives_the_numbers_of_accelerate(tmp_path, reference, zero_stage):
    run = tmp_path / "run"
    ended = run_ranks("deepspeed", 1, run, *ARGUMENTS, "--set", f"zero_stage={zero_stage}")[0]
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
    ended = run_ranks(backend, 1, run, *ARGUMENTS, "--set", "precision=bf16")[0]
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
        ended = run_ranks(backend, 1, run, "--no-noise", "--channels-last", "--set", f"zero_stage={stage}")[0]
        assert ended.code == 0, ended.text
    np.testing.assert_allclose(column(found, "loss"), column(expected, "loss"), atol=1e-6, rtol=0)


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
