"""Evaluations without a new best: the learning rate falls, the run stops early, and a resume changes nothing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from forked import forked_ranks
from ranks import column, records, status
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine.session import Options, train

# So high a rate that the error soon goes up and down.
RESTLESS = ("max_steps=40", "eval_every=2", "save_every=6", "max_lr=0.2", "keep_checkpoints=40")
PLATEAU = (*RESTLESS, "lr_plateau_patience=2", "lr_plateau_factor=0.3", "min_lr=0.01")
EARLY = (*RESTLESS, "early_stop_patience=3")


def session(run: Path, *values: str) -> int:
    options = Options(run, backend="accelerate")
    return train(toy_hparams(*values), options, lambda hp, place: (ToyTask(), ToyStream()))


def means(run: Path) -> dict[int, float]:
    return {record["step"]: record["summary"]["error"]["mean"] for record in records(run, "evaluation")}


def back_to(run: Path, step: int, copy: Path) -> Path:
    """A copy of `run` without the checkpoints after `step`."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return copy


def same_weights(first: Path, second: Path, step: int) -> bool:
    name = Path("checkpoints") / f"step-{step:07d}" / "generator.safetensors"
    one, two = load_file(first / name), load_file(second / name)
    return all(torch.equal(value, two[key]) for key, value in one.items())


def test_the_rate_falls_as_with_torchs_scheduler(tmp_path):
    assert session(tmp_path, *PLATEAU) == 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    # It counts the evaluations that it lets pass.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=1, threshold=0, min_lr=0.01, eps=0
    )
    rates, errors = column(tmp_path, "learning_rate"), means(tmp_path)
    expected = []
    for step in range(1, 41):
        expected.append(optimizer.param_groups[0]["lr"])
        if step in errors:
            scheduler.step(errors[step])
    assert rates[4:] == pytest.approx(expected[4:], rel=1e-12)
    assert min(rates[4:]) == 0.01 and len(set(rates[4:])) == 4
    texts = [record["text"] for record in records(tmp_path, "event") if record["name"] == "rate_lowered"]
    assert len(texts) == 3
    assert texts[0].startswith("learning rate lowered from 0.2 to 0.06: 2 evaluations in a row")


@pytest.mark.parametrize("step", [6, 18, 24, 36])
def test_a_resume_goes_on_at_the_lowered_rate(tmp_path, step):
    assert session(tmp_path / "whole", *PLATEAU) == 0
    parts = back_to(tmp_path / "whole", step, tmp_path / "parts")
    assert session(parts, *PLATEAU) == 0
    for kind in ("step", "evaluation"):
        assert records(parts, kind) == records(tmp_path / "whole", kind)
    assert same_weights(tmp_path / "whole", parts, 40)


def test_a_run_without_a_new_best_stops_early_and_keeps_the_best(tmp_path, capfd):
    assert session(tmp_path, *EARLY) == 0
    errors, ended = means(tmp_path), status(tmp_path)
    best = min(errors, key=errors.__getitem__)
    assert ended["step"] == max(errors) == best + 3 * 2 < 40
    assert (ended["state"], ended["exit_code"]) == ("finished", 0)
    text = f"3 evaluations in a row without a better error (the best is {errors[best]:.4g} at step {best})"
    assert text in ended["reason"]
    assert (tmp_path / "checkpoints" / "BEST").read_text() == f"step-{best:07d}\n"
    assert (tmp_path / "checkpoints" / f"step-{best:07d}" / "manifest.json").exists()
    before, lines = sorted((tmp_path / "checkpoints").iterdir()), records(tmp_path, "step")
    capfd.readouterr()
    assert session(tmp_path, *EARLY) == 0
    assert text in capfd.readouterr().out
    assert status(tmp_path)["reason"] == ended["reason"]
    assert (sorted((tmp_path / "checkpoints").iterdir()), records(tmp_path, "step")) == (before, lines)


def test_evaluations_without_a_new_best_are_counted_on_after_a_resume(tmp_path):
    assert session(tmp_path / "whole", *EARLY) == 0
    stopped = status(tmp_path / "whole")["step"]
    later = [step for step in range(6, stopped, 6) if step > stopped - 6]
    assert later, f"no checkpoint of the cadence between the best and step {stopped}"
    parts = back_to(tmp_path / "whole", later[-1], tmp_path / "parts")
    assert session(parts, *EARLY) == 0
    assert (status(parts)["step"], status(parts)["reason"]) == (
        stopped,
        status(tmp_path / "whole")["reason"],
    )
    assert records(parts, "evaluation") == records(tmp_path / "whole", "evaluation")


def test_more_patience_lets_a_stopped_run_go_on_as_if_it_had_not_stopped(tmp_path):
    assert session(tmp_path / "run", *EARLY) == 0
    assert session(tmp_path / "run", *RESTLESS, "early_stop_patience=0") == 0
    assert session(tmp_path / "whole", *RESTLESS) == 0
    assert (status(tmp_path / "run")["step"], status(tmp_path / "run")["reason"]) == (40, "")
    assert records(tmp_path / "run", "step") == records(tmp_path / "whole", "step")
    assert same_weights(tmp_path / "whole", tmp_path / "run", 40)


def test_an_evaluation_that_is_not_a_number_is_no_new_best(tmp_path):
    class Lost(ToyTask):
        def evaluate(self, modules, batch):
            return [{"error": float("nan")} for _ in batch["item"]]

    options = Options(tmp_path, backend="accelerate")
    assert train(toy_hparams(*EARLY), options, lambda hp, place: (Lost(), ToyStream())) == 0
    assert status(tmp_path)["step"] == 6
    assert "without a better error (the best is none yet)" in status(tmp_path)["reason"]


@pytest.mark.multi
@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 0), (2, 0), (2, 2), (1, 3)])
def test_deepspeed_has_the_rates_and_the_end_of_accelerate_also_after_a_resume(
    tmp_path, num_ranks, zero_stage
):
    values = (*PLATEAU, "early_stop_patience=3", f"batch_size_per_gpu={8 // num_ranks}")
    words = ["--no-noise", *(word for value in values for word in ("--set", value))]
    for backend in ("accelerate", "deepspeed"):
        stage = ["--set", f"zero_stage={zero_stage}"] if backend == "deepspeed" else []
        for ended in forked_ranks(backend, num_ranks, tmp_path / backend, *words, *stage):
            assert ended.code == 0, ended.text
    first, second = (status(tmp_path / backend) for backend in ("accelerate", "deepspeed"))
    assert (first["state"], first["reason"].split("(")[0]) == (
        second["state"],
        second["reason"].split("(")[0],
    )
    assert first["reason"].startswith("stopped early after 3 evaluations in a row")
    assert first["step"] == second["step"] < 40
    rates = column(tmp_path / "accelerate", "learning_rate")
    assert column(tmp_path / "deepspeed", "learning_rate") == pytest.approx(rates, rel=1e-12)
    assert len(set(rates[4:])) > 2
    parts = back_to(tmp_path / "deepspeed", 18, tmp_path / "parts")
    for ended in forked_ranks("deepspeed", num_ranks, parts, *words, "--set", f"zero_stage={zero_stage}"):
        assert ended.code == 0, ended.text
    for kind in ("step", "evaluation"):
        assert records(parts, kind) == records(tmp_path / "deepspeed", kind)
    assert status(parts)["reason"] == second["reason"]
