"""Batches taken in parts, in one process: the step of the whole batch, never more rows at once, nothing left behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ranks import column, records
from test_guard import make_backend, moved, snapshot
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine.parts import cut, mean_over_parts, num_equal_parts, num_parts_of
from enhancer.engine.session import Options, train
from enhancer.engine.stop import Stop
from enhancer.engine.update import Update
from hparams.errors import UserError
from hparams.schema import HParams

ADVERSARIAL = ToyTask(is_adversarial=True, has_noise=False, is_judge_last=True)


def take(task, backend, batch, num_parts: int) -> tuple[dict[str, torch.Tensor], Update]:
    """Metrics of one step of `task` on `batch` in `num_parts`, and the update afterwards."""
    update = Update(backend, "generator", Stop(), num_parts=num_parts)
    metrics = []
    for number, part in enumerate(cut(batch, num_parts)):
        with update.part(number):
            metrics.append(task.step(update.modules(), part, update))
    return mean_over_parts(metrics), update


def waiting(backend) -> set[str]:
    """Modules that hold gradients."""
    return {
        name
        for name, module in backend.raw_modules.items()
        if any(parameter.grad is not None for parameter in module.parameters())
    }


@pytest.mark.parametrize(
    ("num_rows", "most_rows", "expected"),
    [(8, 8, 1), (8, 100, 1), (8, 4, 2), (8, 3, 4), (6, 4, 2), (7, 4, 7), (9, 4, 3), (1, 1, 1), (12, 5, 3)],
)
def test_parts_are_the_fewest_equal_ones_that_fit(num_rows, most_rows, expected):
    assert num_equal_parts(num_rows, most_rows) == expected


def test_parts_keep_the_order_of_rows_and_every_column():
    batch = {**next(ToyStream().from_draw(16)), "is_pair": torch.arange(8) % 2 == 0}
    parts = cut(batch, 4)
    assert [part["draw"].tolist() for part in parts] == [[16, 17], [18, 19], [20, 21], [22, 23]]
    for key, value in batch.items():
        assert torch.equal(torch.cat([part[key] for part in parts]), value)
    assert cut(batch, 1)[0] is batch


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_a_step_in_parts_moves_both_modules_as_the_whole_batch_does(num_parts):
    """The reference is autograd's gradient of the whole batch in float64, and torch's clipping and AdamW."""
    batch = next(ToyStream().from_draw(0))
    backend = make_backend(ADVERSARIAL, "gradient_clipping=0.1")
    modules = {
        name: module.double()
        for name, module in make_backend(ADVERSARIAL, "gradient_clipping=0.1").raw_modules.items()
    }
    rate = backend.learning_rate("generator")
    _, update = take(ADVERSARIAL, backend, batch, num_parts)

    mixture, target = batch["mixture"].double(), batch["target"].double()
    estimate = modules["generator"](mixture)
    judged, real = modules["judge"](estimate), modules["judge"](target)
    mean_square = (real.square().mean() + modules["judge"](estimate.detach()).square().mean()) / 2
    losses = {
        "generator": (estimate - target).square().mean() - 0.1 * judged.mean(),
        "judge": modules["judge"](estimate.detach()).mean() - real.mean() + mean_square,
    }
    gradients = {
        name: torch.autograd.grad(losses[name], list(module.parameters()), retain_graph=True)
        for name, module in modules.items()
    }
    for name, module in modules.items():
        parameters = list(module.parameters())
        for parameter, gradient in zip(parameters, gradients[name], strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        assert update.gradient_norms[name] == pytest.approx(float(norm), rel=1e-5)
        assert norm > 0.1
        torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0).step()
        for parameter, found in zip(parameters, backend.raw_modules[name].parameters(), strict=True):
            torch.testing.assert_close(found.double(), parameter, atol=1e-6, rtol=0)
    assert (update.main_steps, update.skipped, waiting(backend)) == (1, [], set())


def test_metrics_are_those_of_the_whole_batch():
    batch = next(ToyStream().from_draw(0))
    whole, _ = take(ADVERSARIAL, make_backend(ADVERSARIAL), batch, 1)
    parts, _ = take(ADVERSARIAL, make_backend(ADVERSARIAL), batch, 4)
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("row", [0, 3, 7])
def test_one_bad_row_skips_both_modules_and_leaves_no_gradients(row):
    backend = make_backend(ADVERSARIAL)
    batch = next(ToyStream().from_draw(0))
    batch["mixture"][row, 0] = torch.nan
    before, rate = snapshot(backend), backend.learning_rate("generator")
    _, update = take(ADVERSARIAL, backend, batch, 4)
    assert (moved(backend, before), waiting(backend)) == (set(), set())
    assert (update.main_steps, len(update.skipped), backend.learning_rate("generator")) == (0, 2, rate)


def test_gradients_wait_until_the_last_part():
    backend = make_backend(ADVERSARIAL)
    before = snapshot(backend)
    update = Update(backend, "generator", Stop(), num_parts=2)
    first, last = cut(next(ToyStream().from_draw(0)), 2)
    with update.part(0):
        ADVERSARIAL.step(update.modules(), first, update)
    assert (moved(backend, before), waiting(backend)) == (set(), {"generator", "judge"})
    with update.part(1):
        ADVERSARIAL.step(update.modules(), last, update)
    assert (moved(backend, before), waiting(backend)) == ({"generator", "judge"}, set())


def test_a_stop_that_is_asked_for_between_parts_is_heard_after_the_whole_step():
    backend, stop = make_backend(ADVERSARIAL), Stop()
    before = snapshot(backend)
    update = Update(backend, "generator", stop, num_parts=2)
    for number, part in enumerate(cut(next(ToyStream().from_draw(0)), 2)):
        with update.part(number):
            ADVERSARIAL.step(update.modules(), part, update)
        stop.request("a test")
    assert (update.main_steps, update.is_stopping, waiting(backend)) == (1, True, set())
    assert moved(backend, before) == {"generator", "judge"}


@pytest.mark.parametrize("num_parts", [1, 2])
def test_gradients_that_stray_into_a_module_whose_own_wait_are_refused(num_parts):
    backend = make_backend(ADVERSARIAL)
    update = Update(backend, "generator", Stop(), num_parts=num_parts)
    modules, part = update.modules(), cut(next(ToyStream().from_draw(0)), num_parts)[0]
    with update.part(0):
        update("judge", modules["judge"](part["target"]).mean())
        loss = modules["judge"](modules["generator"](part["mixture"])).mean()
        with pytest.raises(
            RuntimeError, match=r"put gradients into module 'judge'.*modules\.frozen\('judge'\)"
        ):
            update("generator", loss)


def test_a_loss_through_a_module_that_is_still_to_move_is_refused_in_parts():
    task = replace(ADVERSARIAL, is_judge_last=False)
    backend = make_backend(task)
    batch = next(ToyStream().from_draw(0))
    with pytest.raises(
        RuntimeError, match=r"frozen\('judge'\) comes after update\('judge'\).*other module first"
    ):
        take(task, backend, batch, 2)
    take(task, make_backend(task), batch, 1)


def test_a_second_update_of_a_part_is_refused():
    backend = make_backend(ADVERSARIAL)
    update = Update(backend, "generator", Stop(), num_parts=2)
    modules, part = update.modules(), cut(next(ToyStream().from_draw(0)), 2)[0]
    with update.part(0):
        update("generator", modules["generator"](part["mixture"]).mean())
        with pytest.raises(RuntimeError, match="called twice with a part of a batch"):
            update("generator", modules["generator"](part["mixture"]).mean())


def test_a_task_that_takes_no_parts_keeps_its_batch_and_refuses_to_be_asked_for_parts():
    judge_first = replace(ADVERSARIAL, is_judge_last=False)
    assert num_parts_of(judge_first, toy_hparams("batch_size_per_gpu=4"), 8) == 1
    assert num_parts_of(ADVERSARIAL, toy_hparams("batch_size_per_gpu=4"), 8) == 2
    with pytest.raises(UserError, match=r"steps is 2, but a step of task toy.*to 1"):
        num_parts_of(judge_first, toy_hparams("gradient_accumulation_steps=2"), 16)


def test_a_run_never_calls_a_module_with_more_rows_than_a_part_has(tmp_path):
    runs = {}
    for name, values in {
        "whole": (),
        "parts": ("batch_size_per_gpu=2", "gradient_accumulation_steps=4"),
    }.items():
        task, sizes = ToyTask(has_noise=False), []

        def open_task(hp, place, task=task, sizes=sizes):
            sizes.append(place.batch_size)
            return task, ToyStream(batch_size=place.batch_size)

        assert train(toy_hparams(*values), Options(tmp_path / name, backend="accelerate"), open_task) == 0
        runs[name] = (task.most_rows, sizes)
    assert runs == {"whole": (8, [8]), "parts": (2, [8])}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert column(parts, "draws") == column(whole, "draws")
    torch.testing.assert_close(column(parts, "loss"), column(whole, "loss"), atol=1e-6, rtol=0)
    for kind in ("evaluation",):
        for found, expected in zip(records(parts, kind), records(whole, kind), strict=True):
            assert [row["item"] for row in found["rows"]] == list(range(11))
            errors = [[row["error"] for row in each["rows"]] for each in (found, expected)]
            torch.testing.assert_close(*errors, atol=1e-6, rtol=0)


def test_speed_counts_the_examples_of_all_parts(tmp_path):
    values = ("batch_size_per_gpu=2", "gradient_accumulation_steps=4", "max_steps=3", "warmup_steps=1")
    options = Options(tmp_path / "run", backend="accelerate")
    assert train(toy_hparams(*values), options, lambda hp, place: (ToyTask(), ToyStream())) == 0
    import json

    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "step":
            seconds = record["data_wait_seconds"] + record["step_seconds"]
            assert record["examples_per_second"] * seconds == pytest.approx(8)


def test_the_deepspeed_configuration_has_the_key_only_when_it_is_asked_for():
    assert "gradient_accumulation_steps" not in HParams().deepspeed_config
    config = replace(HParams(), gradient_accumulation_steps=4).deepspeed_config
    assert (config["gradient_accumulation_steps"], config["train_micro_batch_size_per_gpu"]) == (4, 16)
