"""Optimisers under both backends: what each moves and leaves alone, exact resumes, what is refused."""

from __future__ import annotations

import random as python_random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from forked import forked_ranks
from optimizer_steps import FROZEN, FrozenTask, save, train_generator
from ranks import column, records
from test_guard import make_backend
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine.optimizers import make_optimizer, optimizer_groups, rate_shares
from enhancer.engine.session import Options, train
from enhancer.models.wavenet import WaveNetDevice
from enhancer.tasks.pedal import PedalTask
from hparams.errors import UserError
from hparams.load import load
from hparams.schema import HParams

OPTIMIZERS = ["adamw", "muon", "psgd", "soap"]
PROGRAM = Path(__file__).with_name("optimizer_steps.py")
TWO_RATES = ("optimizer=muon", "adamw_max_lr=0.002")


@pytest.fixture(autouse=True)
def package(request):
    """Skips what needs pytorch_optimizer where that is not installed."""
    if {"psgd", "soap"} & {str(value).rpartition("=")[2] for value in _parameters(request)}:
        pytest.importorskip("pytorch_optimizer", reason="needs the extra [optimizers]")
        pytest.importorskip("opt_einsum", reason="needs the extra [optimizers]")


def _parameters(request) -> list[object]:
    return list(request.node.callspec.params.values()) if hasattr(request.node, "callspec") else []


def words(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def changed(folder: Path) -> set[str]:
    """Names of the weights that are not the same before and after."""
    found = set()
    for name in ("generator", "judge"):
        before, after = (load_file(folder / when / f"{name}.safetensors") for when in ("before", "after"))
        found |= {f"{name}.{key}" for key, value in before.items() if not torch.equal(value, after[key])}
    return found


ALL_OF_THE_GENERATOR = {"generator.0.weight", "generator.2.weight", "generator.2.bias"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accelerate_moves_the_weights_that_it_should_and_no_others(tmp_path, optimizer):
    backend = make_backend(FrozenTask(), f"optimizer={optimizer}")
    save(tmp_path / "before", backend)
    train_generator(backend)
    save(tmp_path / "after", backend)
    assert FROZEN == "0.bias"
    assert changed(tmp_path) == ALL_OF_THE_GENERATOR


@pytest.mark.multi
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_deepspeed_moves_the_weights_that_it_should_and_no_others(tmp_path, optimizer, precision):
    values = words(f"optimizer={optimizer}", f"precision={precision}")
    ended = forked_ranks("deepspeed", 1, tmp_path, *values, program=PROGRAM)[0]
    assert ended.code == 0, ended.text
    assert changed(tmp_path) == ALL_OF_THE_GENERATOR


@pytest.mark.multi
@pytest.mark.parametrize(
    ("values", "num_ranks"),
    # SOAP starts from the eigenvectors of the first gradient, most of which belong to eigenvalue 0 and are anything:
    # ranks round them the same way, but another number of ranks does not.
    [(TWO_RATES, 2), (("optimizer=psgd",), 2), (("optimizer=soap",), 1)],
    ids=str,
)
def test_both_backends_and_two_ranks_have_the_same_losses(tmp_path, values, num_ranks):
    runs = {"accelerate": 1, "deepspeed": num_ranks}
    for backend, count in runs.items():
        sizes = words(*values, f"batch_size_per_gpu={8 // count}")
        for ended in forked_ranks(backend, count, tmp_path / backend, "--no-noise", *sizes):
            assert ended.code == 0, ended.text
    for name in ("loss", "learning_rate"):
        first, second = (column(tmp_path / backend, name) for backend in runs)
        np.testing.assert_allclose(first, second, atol=2e-5, rtol=0, err_msg=name)
    assert column(tmp_path / "deepspeed", "loss")[-1] < 0.95 * column(tmp_path / "deepspeed", "loss")[0]


@pytest.mark.multi
@pytest.mark.parametrize("backend", ["accelerate", "deepspeed"])
def test_one_rank_goes_on_with_a_run_of_muon_on_two(tmp_path, backend):
    one, two = tmp_path / "one", tmp_path / "two"
    assert forked_ranks(backend, 1, one, "--no-noise", *words(*TWO_RATES))[0].code == 0
    for ended in forked_ranks(backend, 2, two, "--no-noise", *words(*TWO_RATES, "batch_size_per_gpu=4")):
        assert ended.code == 0, ended.text
    shutil.rmtree(two / "checkpoints" / "step-0000010")
    ended = forked_ranks(backend, 1, two, "--no-noise", *words(*TWO_RATES))[0]
    assert ended.code == 0, ended.text
    np.testing.assert_allclose(column(two, "loss"), column(one, "loss"), atol=2e-5, rtol=0)


@pytest.mark.parametrize("values", [TWO_RATES, ("optimizer=psgd",), ("optimizer=soap",)], ids=str)
def test_ten_steps_equal_five_and_a_resume_and_five_bit_for_bit(tmp_path, values):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # PSGD seldom balances and updates its factors: more steps reach these too.
    values = (*values, "max_steps=30", "save_every=15", "eval_every=15", "ema_decay=0.9")

    def session(folder: Path) -> int:
        options = Options(folder, backend="accelerate")
        return train(toy_hparams(*values), options, lambda hp, place: (ToyTask(), ToyStream()))

    assert session(whole) == 0
    shutil.copytree(whole, parts)
    for folder in (parts / "checkpoints").glob("step-*"):
        if folder.name > "step-0000015":
            shutil.rmtree(folder)
    np.random.seed(1)
    python_random.seed(1)
    assert session(parts) == 0
    assert [record["name"] for record in records(parts, "event")].count("resumed") == 1
    for kind in ("step", "evaluation"):
        assert records(parts, kind) == records(whole, kind)
    for name in ("generator", "generator.average"):
        found, expected = (
            load_file(run / "checkpoints" / "step-0000030" / f"{name}.safetensors") for run in (parts, whole)
        )
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("optimizer", ["psgd", "soap"])
def test_packaged_optimisers_leave_the_default_generators_alone(optimizer):
    backend = make_backend(FrozenTask(), f"optimizer={optimizer}")
    torch.manual_seed(3)
    np.random.seed(3)
    expected = (torch.rand(1), np.random.random())
    torch.manual_seed(3)
    np.random.seed(3)
    train_generator(backend)
    assert (torch.rand(1), np.random.random()) == expected


def grouped(hp: HParams, module: nn.Module, groups: list[dict]) -> dict[str, tuple[bool, int]]:
    """By name of a weight whether Muon takes it for matrices, and after how many axes."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    return {
        names[id(weight)]: (group["is_matrix"], group["num_stacked"])
        for group in optimizer_groups(hp, groups)
        for weight in group["params"]
    }


def test_muon_takes_what_is_a_matrix_between_channels():
    module = nn.Sequential(
        nn.Conv1d(1, 8, 7),  # mono in: a vector a channel
        nn.Conv1d(8, 8, 7, groups=8),  # depthwise
        nn.Conv1d(8, 4, 3),
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 1),
    )
    hp = replace(HParams(), optimizer="muon")
    found = grouped(hp, module, [{"params": list(module.parameters())}])
    assert {name for name, (is_matrix, _) in found.items() if is_matrix} == {"2.weight", "3.weight"}
    assert found.keys() == dict(module.named_parameters()).keys()


def test_muon_takes_the_layers_of_a_wavenet_one_by_one():
    task = PedalTask(load("pedal_wavenet", ["optimizer=muon"]))
    device = task.build()["device"]
    assert isinstance(device, WaveNetDevice)
    found = grouped(task.hp, device, task.param_groups("device", device))
    stacked = {f"stacks.{stack}.{name}" for stack in (0, 1) for name in ("conv_weight", "output_weight")}
    assert {name for name, kind in found.items() if kind == (True, 1)} == stacked
    plain = {name for name, kind in found.items() if kind == (True, 0)}
    assert plain == {"stacks.0.head_weight", "stacks.1.input_weight"}
    assert all(kind == (False, 0) for name, kind in found.items() if name not in stacked | plain)


def test_options_of_a_group_stay_with_its_weights_and_matrices_come_first():
    decaying, other = nn.Linear(4, 4), nn.Linear(3, 3)
    groups = [
        {"params": list(decaying.parameters()), "weight_decay": 0.1},
        {"params": list(other.parameters()), "weight_decay": 0.0},
    ]
    found = optimizer_groups(replace(HParams(), optimizer="muon"), groups)
    assert [(group["is_matrix"], group["weight_decay"]) for group in found] == [
        *((True, 0.1), (True, 0.0)),
        *((False, 0.1), (False, 0.0)),
    ]


def test_the_rest_has_a_rate_of_its_own_in_proportion():
    hp = toy_hparams(*TWO_RATES)
    backend = make_backend(ToyTask(has_noise=False), *TWO_RATES)
    matrices, rest = backend._optimizers["generator"].param_groups
    for _ in range(4):
        backend.step("generator", torch.zeros(()))
        assert matrices["lr"] == backend.learning_rate("generator")
        assert rest["lr"] == pytest.approx(0.2 * matrices["lr"], rel=1e-12)
    backend.set_max_lr(0.005)
    assert rest["lr"] == pytest.approx(0.2 * matrices["lr"], rel=1e-12)
    assert rate_shares(hp, [matrices, rest]) == pytest.approx([1.0, 0.2])
    assert rate_shares(replace(hp, adamw_max_lr=None), [matrices, rest]) == [1.0, 1.0]


@pytest.mark.parametrize("optimizer", ["muon", "psgd", "soap"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_matrix_optimisers_are_refused_where_zero_flattens(optimizer, zero_stage):
    with pytest.raises(UserError, match=f"optimizer {optimizer} works on matrices.*set zero_stage to 0"):
        load("base", [f"optimizer={optimizer}", f"zero_stage={zero_stage}"])


@pytest.mark.parametrize("optimizer", ["adamw", "psgd", "soap"])
def test_a_rate_for_the_rest_is_refused_where_there_is_none(optimizer):
    with pytest.raises(UserError, match=f"optimizer {optimizer} has one rate.*leave adamw_max_lr null"):
        load("base", [f"optimizer={optimizer}", "adamw_max_lr=1e-4"])


@pytest.mark.parametrize("name", ["psgd", "soap"])
def test_a_package_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    hp = replace(HParams(), optimizer=name)
    with pytest.raises(UserError, match=rf"{name} needs .*pip install 'wavewright\[optimizers\]'"):
        make_optimizer(hp, [{"params": [nn.Parameter(torch.zeros(2, 2))]}])


def test_psgd_without_the_package_that_orders_its_products_is_refused(monkeypatch):
    pytest.importorskip("pytorch_optimizer", reason="needs the extra [optimizers]")
    monkeypatch.setattr(torch.backends.opt_einsum, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"opt_einsum.*wavewright\[optimizers\]"):
        make_optimizer(load("pedal_lstm", ["optimizer=psgd"]), [{"params": [nn.Parameter(torch.ones(4, 4))]}])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_step_of_psgd_holds_no_product_of_all_axes_of_a_matrix_and_its_preconditioners():
    # From left to right these would be 256^2 x 512^2 entries, 64 GiB; a step may take one.
    script = (
        "import psutil, resource, torch; from torch import nn; from hparams.load import load; "
        "from enhancer.engine.optimizers import make_optimizer; weight = nn.Parameter(torch.ones(256, 512)); "
        "steps = make_optimizer(load('pedal_lstm', ['optimizer=psgd']), [{'params': [weight]}]); "
        "weight.grad = torch.ones(256, 512); limit = psutil.Process().memory_info().vms + 2**30; "
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); steps.step(); "
        "print(bool(torch.isfinite(weight).all()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "True\n", found.stderr


def test_deepspeed_is_told_of_no_optimiser_that_it_does_not_make():
    assert "optimizer" not in replace(HParams(), optimizer="muon").deepspeed_config
    assert HParams().deepspeed_config["optimizer"] == {"type": "Adam", "params": {"lr": 1e-5}}
