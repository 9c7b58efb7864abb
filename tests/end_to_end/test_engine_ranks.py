"""Real processes: ranks agree on bad steps, stops and damage, resume exactly, and leave no orphans."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from forked import forked_ranks
from ranks import (
    alive,
    column,
    free_port,
    records,
    run_ranks,
    start_launcher,
    start_ranks,
    status,
    wait,
    wait_until,
)

pytestmark = [pytest.mark.multi, pytest.mark.slow]

HALF = ("--set", "batch_size_per_gpu=4")
FOREVER = ("--set", "max_steps=100000", "--set", "save_every=100000", "--set", "eval_every=100000")
DEEPSPEED = ["deepspeed", "--num_gpus", "2", "--master_port"]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:07d}" / "generator.safetensors")


@pytest.mark.parametrize(
    ("backend", "num_ranks", "values"),
    [
        ("accelerate", 1, ()),
        ("accelerate", 2, ("ema_decay=0.9",)),
        ("deepspeed", 1, ("ema_decay=0.9",)),
        ("deepspeed", 2, ()),
        ("deepspeed", 1, ("precision=bf16",)),
        ("deepspeed", 2, ("zero_stage=1", "precision=bf16", "ema_decay=0.9")),
        ("deepspeed", 2, ("zero_stage=2", "ema_decay=0.9")),
        ("deepspeed", 2, ("zero_stage=3",)),
        ("deepspeed", 2, ("zero_stage=3", "precision=bf16")),
        ("accelerate", 2, ("optimizer=muon", "adamw_max_lr=0.001", "ema_decay=0.9")),
        ("deepspeed", 2, ("optimizer=muon", "adamw_max_lr=0.001")),
        ("deepspeed", 1, ("optimizer=muon", "adamw_max_lr=0.001", "precision=bf16")),
        ("deepspeed", 2, ("optimizer=psgd",)),
        ("deepspeed", 1, ("optimizer=soap", "precision=bf16")),
    ],
)
def test_ten_steps_equal_five_and_a_resume_and_five_bit_for_bit(tmp_path, backend, num_ranks, values):
    if {"optimizer=psgd", "optimizer=soap"} & set(values):
        pytest.importorskip("pytorch_optimizer", reason="needs the extra [optimizers]")
    arguments = [*HALF, "--adversarial", *(word for value in values for word in ("--set", value))]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for ended in forked_ranks(backend, num_ranks, whole, *arguments):
        assert ended.code == 0, ended.text
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-0000010")
    for ended in forked_ranks(backend, num_ranks, parts, *arguments):
        assert ended.code == 0, ended.text
    assert [record["name"] for record in records(parts, "event")].count("resumed") == 1
    for kind in ("step", "evaluation"):
        assert records(parts, kind) == records(whole, kind)
    averaged = [name for name in ("generator.average",) if any(value.startswith("ema") for value in values)]
    for name in ("generator", "judge", *averaged):
        expected = load_file(whole / "checkpoints" / "step-0000010" / f"{name}.safetensors")
        found = load_file(parts / "checkpoints" / "step-0000010" / f"{name}.safetensors")
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"{name}.{key}"


def test_an_average_of_split_weights_is_refused_in_words(tmp_path):
    for ended in forked_ranks(
        "deepspeed", 1, tmp_path / "run", "--set", "zero_stage=3", "--set", "ema_decay=0.9"
    ):
        assert ended.code == 2 and "set zero_stage to 2 or less, or ema_decay to 0" in ended.text


@pytest.mark.parametrize("backend", ["accelerate", "deepspeed"])
def test_one_rank_of_eight_and_two_ranks_of_four_have_the_same_losses(tmp_path, backend):
    one, two = tmp_path / "one", tmp_path / "two"
    assert forked_ranks(backend, 1, one, "--no-noise")[0].code == 0
    for ended in forked_ranks(backend, 2, two, "--no-noise", *HALF):
        assert ended.code == 0, ended.text
    np.testing.assert_allclose(column(one, "loss"), column(two, "loss"), atol=1e-5, rtol=0)
    np.testing.assert_allclose(column(one, "gradient_norm"), column(two, "gradient_norm"), atol=1e-5, rtol=0)
    assert column(one, "draws") == column(two, "draws")
    for first, second in zip(records(one, "evaluation"), records(two, "evaluation"), strict=True):
        assert (
            [row["item"] for row in first["rows"]]
            == [row["item"] for row in second["rows"]]
            == list(range(11))
        )
        errors = [[row["error"] for row in each["rows"]] for each in (first, second)]
        np.testing.assert_allclose(*errors, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("backend", "values"),
    [("accelerate", ()), ("deepspeed", ()), ("deepspeed", ("--set", "zero_stage=2"))],
)
def test_a_nan_on_one_rank_of_two_is_skipped_by_both_and_ends_the_run_in_the_end(tmp_path, backend, values):
    run = tmp_path / "run"
    arguments = [*HALF, *values, "--set", "max_bad_steps=3", "--set", "save_every=1"]
    for ended in run_ranks(backend, 2, run, *arguments, "--fault", "nan:4:1"):
        assert ended.code == 70, ended.text
    assert (status(run)["state"], status(run)["exit_code"], status(run)["step"]) == ("diverged", 70, 4)
    assert len([record for record in records(run, "event") if record["name"] == "skipped"]) == 3
    for value in weights(run, 4).values():
        assert torch.isfinite(value).all()
    # Steps 0 to 3 were good, so the third bad one in a row is step 6: draws 48 to 55.
    draws = [load_file(run / f"diverged-0000004-rank{rank}.safetensors")["draw"].tolist() for rank in (0, 1)]
    assert draws == [[48, 49, 50, 51], [52, 53, 54, 55]]
    assert "max_lr" in status(run)["reason"]


def test_a_sigterm_to_one_rank_makes_both_save_and_leave_with_75(tmp_path):
    run = tmp_path / "run"
    for ended in run_ranks("accelerate", 2, run, *HALF, "--fault", "term:3:1"):
        assert ended.code == 75, ended.text
    state = status(run)
    assert (state["state"], state["reason"]) == ("preempted", "SIGTERM")
    weights(run, state["step"])
    for ended in run_ranks("accelerate", 2, run, *HALF):
        assert ended.code == 0, ended.text
    assert column(run, "draws") == [8.0 * step for step in range(1, 11)]


@pytest.mark.parametrize(("backend", "values"), [("accelerate", ()), ("deepspeed", ("zero_stage=1",))])
def test_a_stop_in_the_last_evaluation_costs_one_more_start_and_no_more(tmp_path, backend, values):
    """The third start has nothing to do, and the run is that of an unbroken one, manifest and all."""
    words = (*HALF, *(word for value in ("max_steps=8", *values) for word in ("--set", value)))
    for run, fault in ((tmp_path / "whole", ""), (tmp_path / "run", "late:5:1")):
        ended = run_ranks(backend, 2, run, *words, "--fault", fault)
        assert [each.code for each in ended] == [75 if fault else 0] * 2, ended
    assert [record["step"] for record in records(run, "evaluation")] == [5]
    texts = [run_ranks(backend, 2, run, *words)[0].text for _ in range(2)]
    assert ["evaluating" in text for text in texts] == [True, False], texts
    assert all("finished at step 8" in text and status(run)["state"] == "finished" for text in texts)
    names = (f"step-{8:07d}/manifest.json", "BEST", "LATEST")
    own, other = ([folder / "checkpoints" / name for name in names] for folder in (run, tmp_path / "whole"))
    states = [json.loads(paths[0].read_text())["state"] for paths in (own, other)]
    assert states[0] == states[1] and states[0]["evaluated"] == 8
    assert [path.read_text() for path in own[1:]] == [path.read_text() for path in other[1:]]
    assert records(run, "evaluation") == records(tmp_path / "whole", "evaluation")


@pytest.mark.parametrize("backend", ["accelerate", "deepspeed"])
def test_damage_found_by_one_rank_stops_both_with_its_text_said_once(tmp_path, backend):
    run = tmp_path / "run"
    ended = run_ranks(backend, 2, run, *HALF, "--set", "zero_stage=0", "--fault", "damage:3:1")
    assert [each.code for each in ended] == [2, 2], ended
    text = "rank 1: ValueError: shard-000003.tar is damaged at offset 512"
    assert ended[0].text.count(text) == 1
    assert "Traceback" not in ended[0].text + ended[1].text
    assert "shard-000003.tar" not in ended[1].text
    assert (status(run)["state"], status(run)["step"], status(run)["reason"]) == ("failed", 3, text)
    assert [record["step"] for record in records(run, "event") if record["name"] == "saved"] == [3]
    for mended in run_ranks(backend, 2, run, *HALF, "--set", "zero_stage=0"):
        assert mended.code == 0, mended.text
    assert column(run, "draws") == [8.0 * step for step in range(1, 11)]


def test_damage_found_by_one_rank_is_told_also_when_no_rank_can_save(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").touch()
    ended = run_ranks("accelerate", 2, run, *HALF, "--fault", "damage:3:1")
    assert [each.code for each in ended] == [2, 2], ended
    for told in (ended[0].text, status(run)["reason"]):
        assert told.count("rank 1: ValueError: shard-000003.tar is damaged at offset 512") == 1
        assert told.count("step-0000003 could not be written") == 1
    assert "Traceback" not in ended[0].text + ended[1].text
    assert status(run)["state"] == "failed"


@pytest.mark.parametrize(
    ("backend", "values"), [("accelerate", ()), ("deepspeed", ("--set", "zero_stage=2"))]
)
def test_a_checkpoint_that_one_rank_cannot_write_ends_both_with_its_reason(tmp_path, backend, values):
    run = tmp_path / "run"
    cadence = ("--set", "max_steps=100000", "--set", "save_every=5", "--set", "eval_every=100000")
    ended = run_ranks(
        backend, 2, run, *HALF, *cadence, *values, "--fault", "full:7:1", "--step-seconds", "0.05"
    )
    assert [each.code for each in ended] == [2, 2], [each.text for each in ended]
    reason = status(run)["reason"]
    assert "step-0000010 could not be written: rank 1: " in reason
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 2)
    assert 10 <= status(run)["step"] < 20
    found = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert found == ["LATEST", "step-0000005"]
    assert ended[0].text.count("step-0000010 could not be written") == 1


def take_place_of(path: Path) -> None:
    """A folder of the name of a file, which then cannot be written by anybody; what was there stays beside it."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.aside"))
    path.mkdir(parents=True)


@pytest.mark.parametrize(
    ("backend", "name"),
    [("accelerate", "metrics.jsonl"), ("deepspeed", "status.json")],
)
def test_a_file_of_rank_0_that_cannot_be_written_ends_both_alike_with_the_steps_saved(
    tmp_path, backend, name
):
    run = tmp_path / "run"
    processes = start_ranks(backend, 2, run, *HALF, *FOREVER, "--step-seconds", "0.02")
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 60, "the first step")
    take_place_of(run / name)
    ended = [wait(process) for process in processes]
    assert [each.code for each in ended] == [2, 2], [each.text for each in ended]
    reason = f"{run / name} cannot be written (Is a directory); make room or mend the disk, then run again"
    assert ended[0].text.count(reason) == 1
    assert "Traceback" not in ended[0].text + ended[1].text
    (saved,) = (path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-"))
    if name != "status.json":
        found = status(run)
        assert (found["state"], found["exit_code"], found["reason"]) == ("failed", 2, reason)
        assert saved.name == f"step-{found['step']:07d}"


def test_a_folder_of_rank_0_that_cannot_be_made_ends_both_alike_with_the_steps_saved(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").touch()
    ended = run_ranks("accelerate", 2, run, *HALF, *FOREVER)
    assert [each.code for each in ended] == [2, 2], [each.text for each in ended]
    found = status(run)
    assert (found["state"], found["exit_code"], found["step"]) == ("failed", 2, 2)
    assert f"{run / 'tensorboard'} cannot be written (" in found["reason"]
    weights(run, 2)


def test_a_disk_of_rank_0_that_is_full_ends_both_alike_and_names_every_file_that_was_tried(tmp_path):
    run = tmp_path / "run"
    ended = run_ranks("deepspeed", 2, run, *HALF, *FOREVER, "--fault", "full:7:0", "--step-seconds", "0.02")
    assert [each.code for each in ended] == [2, 2], [each.text for each in ended]
    found = status(run)
    assert (found["state"], found["exit_code"]) == ("failed", 2)
    assert "cannot be written (File too large)" in found["reason"]
    assert re.search(
        r"While saving the steps before that: .*step-\d+ could not be written: rank 0", found["reason"]
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == []


def test_a_log_that_cannot_be_written_ends_both_alike_and_status_json_says_so(tmp_path):
    run = tmp_path / "run"
    with open("/dev/full", "w") as full:
        processes = start_ranks("accelerate", 2, run, *HALF, *FOREVER, output=[full, None])
        ended = [wait(process) for process in processes]
    assert [each.code for each in ended] == [2, 2], [each.text for each in ended]
    found = status(run)
    assert (found["state"], found["exit_code"]) == ("failed", 2)
    assert "standard output cannot be written (No space left on device)" in found["reason"]


def test_damage_in_the_first_batch_of_one_rank_stops_both(tmp_path):
    for ended in run_ranks("accelerate", 2, tmp_path / "run", *HALF, "--fault", "damage:0:1"):
        assert ended.code == 2, ended.text


def test_a_killed_deepspeed_runner_leaves_a_saved_run_and_no_orphans(tmp_path):
    run = tmp_path / "run"
    command = [*DEEPSPEED, str(free_port())]
    launcher = start_launcher(command, run, *HALF, *FOREVER, "--step-seconds", "0.01")
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 60, "the first step")
    os.kill(launcher.pid, signal.SIGTERM)
    wait_until(lambda: not alive(run), 30, "the end of all processes")
    ended = wait(launcher)
    assert (status(run)["state"], status(run)["reason"]) == ("preempted", "the launcher is gone"), ended.text
    weights(run, status(run)["step"])


def wait_until_it_stands_still(heartbeat: Path, seconds: float) -> None:
    """Return when the main thread of a living rank has come no further for `seconds`."""
    marks, since = -1, time.monotonic()

    def stands_still() -> bool:
        nonlocal marks, since
        found = json.loads(heartbeat.read_text())["marks"]
        if found != marks:
            marks, since = found, time.monotonic()
        return time.monotonic() - since > seconds

    wait_until(stands_still, 60, f"{heartbeat} stands still")


@pytest.mark.parametrize(
    ("backend", "values"), [("accelerate", ()), ("deepspeed", ("--set", "zero_stage=2"))]
)
def test_a_rank_that_keeps_the_others_waiting_too_long_ends_the_run_with_the_reason(
    tmp_path, backend, values
):
    run = tmp_path / "run"
    # On one machine the watch of the ranks over each other would name the frozen rank first.
    limit = ("--set", "comm_timeout_seconds=5", "--set", "hang_timeout_seconds=600")
    processes = start_ranks(backend, 2, run, *HALF, *FOREVER, *values, *limit, "--step-seconds", "0.01")
    try:
        wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 60, "the first step")
        processes[1].send_signal(signal.SIGSTOP)
        wait_until_it_stands_still(
            run / "heartbeats" / "rank00000.json", 8
        )  # Rank 0 must have given up by then.
        processes[1].send_signal(signal.SIGCONT)
        ended, other = (wait(process) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (ended.code, other.code) == (1, 1), ended.text + other.text
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 1)
    assert "longer than comm_timeout_seconds=5" in status(run)["reason"]
    assert re.search("error: rank [01].* has lost another rank", other.text)
    assert "Traceback" not in ended.text + other.text


def test_sigterm_to_torchrun_is_a_saved_run(tmp_path):
    run = tmp_path / "run"
    command = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port())]
    launcher = start_launcher(command, run, *HALF, *FOREVER, "--step-seconds", "0.01")
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 60, "the first step")
    os.kill(launcher.pid, signal.SIGTERM)
    ended = wait(launcher)
    assert not alive(run)
    assert status(run)["state"] == "preempted", ended.text
    weights(run, status(run)["step"])


def test_the_deepspeed_launcher_trains_without_a_compiler_and_without_noise(tmp_path):
    run, tools = tmp_path / "run", tmp_path / "tools"
    tools.mkdir()
    for name in ("python", "python3", "deepspeed"):
        os.symlink(Path(sys.executable).parent / name, tools / name)
    script = Path(__file__).parents[1] / "engine" / "toy.py"
    process = psutil.Popen(
        [
            str(tools / "deepspeed"),
            "--num_gpus",
            "2",
            "--master_port",
            str(free_port()),
            str(script),
            str(run),
            *HALF,
        ],
        env={"PATH": str(tools), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdout=-1,
        stderr=-2,
        text=True,
    )
    ended = wait(process)
    assert ended.code == 0, ended.text
    assert status(run)["state"] == "finished"
    lines = [line for line in ended.text.splitlines() if not re.match(r"\[20\d\d-", line)]
    assert all("deepspeed" not in line.lower() or line.startswith("deepspeed backend") for line in lines), (
        lines
    )
