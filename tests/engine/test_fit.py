"""The loop in one process: cadences, the end, divergence, resuming, damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from ranks import column, records, status
from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine import monitor
from enhancer.engine.clock import Clock, crossed
from enhancer.engine.monitor import Monitor
from enhancer.engine.session import Options, train
from enhancer.engine.weights import write_file


@pytest.fixture
def session(tmp_path):
    """Runs a toy session in this process: session(*values, stream=..., task=..., **options) -> exit code."""

    def run(*values: str, folder: str = "run", task=None, seconds_per_example: float = 0.0, **stream) -> int:
        def open_task(hp, place):
            kinds = {"fault": "", "batch_size": place.batch_size, **stream}
            return task or ToyTask(), stream.get("opened") or ToyStream(**kinds)

        options = Options(tmp_path / folder, backend="accelerate", seconds_per_example=seconds_per_example)
        return train(toy_hparams(*values), options, open_task)

    return run


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:07d}" / "generator.safetensors")


def events(run: Path, name: str) -> list[int]:
    return [record["step"] for record in records(run, "event") if record["name"] == name]


def test_it_logs_evaluates_and_saves_by_cadence_and_at_the_end(session, tmp_path):
    values = ("max_steps=11", "log_every=3", "eval_every=4", "save_every=5", "keep_checkpoints=10")
    assert session(*values, seconds_per_example=2.0) == 0
    run = tmp_path / "run"
    assert [record["step"] for record in records(run, "step")] == [1, 3, 6, 9]
    assert [record["step"] for record in records(run, "evaluation")] == [4, 8, 11]
    improved = [record["step"] for record in records(run, "evaluation")]
    assert set(events(run, "saved")) - set(improved) == {5, 10}
    assert events(run, "saved")[-1] == 11
    assert column(run, "draws") == [8, 24, 48, 72]
    assert (status(run)["state"], status(run)["step"]) == ("finished", 11)
    lines = (run / "metrics.jsonl").read_text()
    for name in ("data_wait_seconds", "step_seconds", "examples_per_second", "audio_seconds_per_second"):
        assert name in lines


def test_it_learns_and_keeps_the_best_checkpoint(session, tmp_path):
    assert session("max_steps=40", "eval_every=10", "keep_checkpoints=1", task=ToyTask(has_noise=False)) == 0
    run = tmp_path / "run"
    means = {record["step"]: record["summary"]["error"]["mean"] for record in records(run, "evaluation")}
    assert means[40] < 0.5 * means[10]
    best = (run / "checkpoints" / "BEST").read_text().strip()
    assert best == f"step-{min(means, key=means.__getitem__):07d}"
    assert (run / "checkpoints" / best / "generator.safetensors").exists()


def test_ten_steps_equal_five_and_a_resume_and_five(session, tmp_path):
    assert session(folder="whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-0000010")
    assert session(folder="parts") == 0
    for kind in ("step", "evaluation"):
        assert records(tmp_path / "parts", kind) == records(tmp_path / "whole", kind)
    whole, parts = weights(tmp_path / "whole", 10), weights(tmp_path / "parts", 10)
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_a_finished_run_is_left_as_it_is(session, tmp_path):
    assert session() == 0
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert session() == 0
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before
    assert [record["step"] for record in records(tmp_path / "run", "evaluation")] == [5, 10]


def test_a_single_bad_step_is_skipped_without_moving_the_schedule(session, tmp_path):
    assert session(fault="once:3:0") == 0
    run = tmp_path / "run"
    assert column(run, "step") == list(range(1, 11))
    assert column(run, "draws") == [8, 16, 24, 40, 48, 56, 64, 72, 80, 88]
    assert column(run, "skipped") == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert session(folder="clean") == 0
    assert column(run, "learning_rate") == column(tmp_path / "clean", "learning_rate")


def test_bad_steps_in_a_row_end_the_run_with_70_and_the_batch_saved(session, tmp_path):
    assert session("max_bad_steps=3", "save_every=2", fault="nan:4:0") == 70
    run = tmp_path / "run"
    assert (status(run)["state"], status(run)["step"]) == ("diverged", 4)
    assert load_file(run / "diverged-0000004-rank0.safetensors")["draw"].tolist() == list(range(48, 56))
    assert all(torch.isfinite(value).all() for value in weights(run, 4).values())


def test_damage_ends_it_with_2_and_one_text(session, tmp_path, capfd):
    assert session("log_every=100", fault="damage:3:0") == 2
    assert "error: ValueError: shard-000003.tar is damaged at offset 512" in capfd.readouterr().err
    ended = status(tmp_path / "run")
    assert (ended["state"], ended["exit_code"], ended["step"]) == ("failed", 2, 3)


def test_steps_before_damaged_data_are_saved_and_mended_data_go_on(session, tmp_path):
    values = ("save_every=100", "eval_every=100")
    assert session(*values, fault="damage:3:0") == 2
    run = tmp_path / "run"
    assert events(run, "saved") == [3]
    assert status(run)["reason"] == "ValueError: shard-000003.tar is damaged at offset 512"
    assert session(*values) == 0
    assert session(*values, folder="whole") == 0
    for kind in ("step", "evaluation"):
        assert records(run, kind) == records(tmp_path / "whole", kind)
    whole, parts = weights(tmp_path / "whole", 10), weights(run, 10)
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


@pytest.mark.parametrize(("step", "saved"), [(0, []), (4, [2, 4]), (5, [2, 4, 5])])
def test_damaged_data_cost_a_checkpoint_only_after_steps_since_the_last(session, tmp_path, step, saved):
    assert session("save_every=2", "eval_every=100", fault=f"damage:{step}:0") == 2
    assert events(tmp_path / "run", "saved") == saved
    assert (status(tmp_path / "run")["state"], status(tmp_path / "run")["step"]) == ("failed", step)


def test_steps_before_damaged_validation_data_are_saved_and_the_evaluation_is_done_later(session, tmp_path):
    class Damaged(ToyStream):
        def validation(self):
            raise ValueError("shard-000001.tar is damaged at offset 0")
            yield {}

    assert session("save_every=100", opened=Damaged()) == 2
    run = tmp_path / "run"
    assert (events(run, "saved"), status(run)["step"]) == ([5], 5)
    assert session("save_every=100") == 0
    assert [record["step"] for record in records(run, "evaluation")] == [5, 10]


def test_damaged_data_are_told_also_when_the_steps_before_cannot_be_saved(session, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    assert session(fault="damage:3:0") == 2
    damage = "ValueError: shard-000003.tar is damaged at offset 512"
    ended = status(tmp_path / "run")
    assert (ended["state"], ended["exit_code"], ended["step"]) == ("failed", 2, 3)
    for told in (capfd.readouterr().err, ended["reason"]):
        assert damage in told
        assert "step-0000003 could not be written" in told


def test_a_bug_in_a_task_is_no_user_error_but_is_in_the_status(session, tmp_path):
    class Broken(ToyTask):
        def step(self, modules, batch, update):
            raise KeyError("mixtures")

    with pytest.raises(KeyError):
        session(task=Broken())
    assert status(tmp_path / "run")["state"] == "failed"
    assert "KeyError" in status(tmp_path / "run")["reason"]


def test_a_refused_resume_leaves_the_step_of_the_run_in_the_status(session, tmp_path, capfd):
    assert session() == 0
    assert session("max_steps=20", opened=ToyStream(fingerprint="other corpora")) == 2
    assert "--allow-data-change" in capfd.readouterr().err
    ended = status(tmp_path / "run")
    assert (ended["state"], ended["step"]) == ("failed", 10)


def test_a_monitor_is_closed_however_the_run_ends(session, monkeypatch):
    closed = []
    monkeypatch.setattr(Monitor, "close", lambda monitor: closed.append(monitor))

    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr("enhancer.engine.session._announce", refuse)
    assert session() == 2
    assert len(closed) == 1


def test_data_that_end_are_a_failure(session, capfd):
    class Short(ToyStream):
        def from_draw(self, draw):
            source = super().from_draw(draw)
            return iter([next(source), next(source)])

    assert session(opened=Short()) == 2
    assert "endless" in capfd.readouterr().err


def test_sigterm_saves_leaves_with_75_and_the_same_command_goes_on(session, tmp_path):
    assert session(fault="term:3:0") == 75
    assert status(tmp_path / "run")["state"] == "preempted"
    assert session() == 0
    assert session(folder="whole") == 0
    assert records(tmp_path / "run", "step") == records(tmp_path / "whole", "step")


def test_an_evaluation_cut_short_is_done_after_the_resume(session, tmp_path):
    class Stopping(ToyStream):
        def validation(self):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
            return super().validation()

    assert session(opened=Stopping()) == 75
    run = tmp_path / "run"
    assert (status(run)["step"], records(run, "evaluation")) == (5, [])
    assert session() == 0
    assert [record["step"] for record in records(run, "evaluation")] == [5, 10]


def state_of(run: Path, step: int) -> dict[str, object]:
    return json.loads((run / "checkpoints" / f"step-{step:07d}" / "manifest.json").read_text())["state"]


class Judged(ToyTask):
    """Finds the next of `errors` at each evaluation."""

    def __init__(self, *errors: float) -> None:
        super().__init__()
        self.errors, self.error = list(errors), 0.0

    def evaluate(self, modules, batch):
        if 0 in batch["item"]:
            self.error = self.errors.pop(0)
        return [{"error": self.error} for _ in batch["item"]]


@pytest.mark.parametrize("last", [0.5, 2.0])
@pytest.mark.parametrize("more", ["early_stop_patience=0", "lr_plateau_patience=1"])
def test_the_last_evaluation_is_done_once_more_where_it_was_cut_short_and_never_again(
    session, tmp_path, last, more
):
    """The run is then what it is without the stop, also where it goes on: BEST stays with the better step."""
    values, run = ("max_steps=8", more), tmp_path / "run"
    assert session(*values, folder="whole", task=Judged(1.0, last)) == 0
    assert session(*values, task=Judged(1.0, last), fault="late:5:0") == 75
    assert (state_of(run, 8)["evaluated"], status(run)["state"]) == (5, "preempted")
    assert session(*values, task=Judged(last)) == 0
    assert state_of(run, 8) == state_of(tmp_path / "whole", 8)
    assert state_of(run, 8)["best_step"] == (8 if last < 1 else 5)
    assert session(*values, task=Judged()) == 0  # An evaluation would fail.
    assert [record["step"] for record in records(run, "evaluation")] == [5, 8]
    for folder in ("run", "whole"):
        assert session("max_steps=12", more, folder=folder, task=Judged(1.5, 1.5)) == 0
        best = (tmp_path / folder / "checkpoints" / "BEST").read_text()
        assert best == ("step-0000008\n" if last < 1 else "step-0000005\n")
    assert state_of(run, 12) == state_of(tmp_path / "whole", 12)
    for kind in ("step", "evaluation"):
        assert records(run, kind) == records(tmp_path / "whole", kind)


def test_an_evaluation_that_was_done_again_in_mid_run_is_not_lost_by_a_crash_after_it(session, tmp_path):
    """Cut short at the step of a checkpoint, done by the next start, which dies before it saves again."""
    assert session(folder="whole", task=Judged(1.0, 2.0)) == 0
    assert session(task=Judged(1.0), fault="late:0:0") == 75
    run = tmp_path / "run"
    assert state_of(run, 5)["evaluated"] == 0
    with pytest.raises(KeyError):
        session(task=Judged(1.0), fault="crash:7:0")
    assert state_of(run, 5) == state_of(tmp_path / "whole", 5)
    assert session(task=Judged(2.0)) == 0
    assert state_of(run, 10) == state_of(tmp_path / "whole", 10)
    assert (run / "checkpoints" / "BEST").read_text() == "step-0000005\n"
    assert records(run, "evaluation") == records(tmp_path / "whole", "evaluation")


def test_several_updates_a_batch_are_several_steps(session, tmp_path):
    class Truncated(ToyTask):
        def step(self, modules, batch, update):
            for _ in range(3):
                loss = (modules["generator"](batch["mixture"]) - batch["target"]).square().mean()
                update("generator", loss)
            return {"loss": loss.detach()}

    assert session("max_steps=9", "eval_every=4", "save_every=4", task=Truncated()) == 0
    run = tmp_path / "run"
    assert column(run, "step") == [3, 6, 9]
    assert column(run, "draws") == [8, 16, 24]
    assert [record["step"] for record in records(run, "evaluation")] == [6, 9]


def test_a_fresh_run_can_start_from_the_weights_of_another(session, tmp_path):
    assert session(folder="first") == 0
    seen = []

    class Watching(ToyTask):
        def step(self, modules, batch, update):
            seen.append({key: value.clone() for key, value in modules["generator"].state_dict().items()})
            return super().step(modules, batch, update)

    options = Options(tmp_path / "second", backend="accelerate", init_from=tmp_path / "first")
    assert train(toy_hparams(), options, lambda hp, place: (Watching(), ToyStream())) == 0
    best = (tmp_path / "first" / "checkpoints" / "BEST").read_text().strip()
    expected = weights(tmp_path / "first", int(best.removeprefix("step-")))
    assert all(torch.equal(value, seen[0][key]) for key, value in expected.items())
    assert column(tmp_path / "second", "step")[0] == 1


def test_zero_without_deepspeed_is_refused(session, capfd):
    assert session("zero_stage=1") == 2
    assert "deepspeed launch/train.py" in capfd.readouterr().err


def test_the_clock_separates_waiting_from_stepping():
    clock = Clock(examples_per_batch=10, seconds_per_example=2.0)
    clock.start()
    clock.stop(wait_seconds=0.0)
    values = clock.read()
    assert values["data_wait_seconds"] == 0
    assert values["audio_seconds_per_second"] == pytest.approx(2 * values["examples_per_second"])
    assert values["examples_per_second"] == pytest.approx(10 / values["step_seconds"], rel=1e-6)


@pytest.mark.parametrize(
    ("before", "now", "every", "expected"),
    [(0, 1, 5, False), (4, 5, 5, True), (5, 6, 5, False), (3, 11, 5, True)],
)
def test_a_cadence_is_kept_by_batches_of_several_steps(before, now, every, expected):
    assert crossed(before, now, every) is expected


def refuse_writes(monkeypatch, number: int, after: int) -> None:
    """Make every write of a checkpoint's file fail with error `number` once `after` of them are done."""
    done = []

    def write(path, content):
        if len(done) >= after:
            raise OSError(number, os.strerror(number))
        done.append(path)
        write_file(path, content)

    monkeypatch.setattr("enhancer.engine.checkpoint.write_file", write)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_the_middle_of_a_write_beside_training_ends_the_run_and_leaves_no_half(
    session, tmp_path, capfd, monkeypatch, number
):
    # A checkpoint of the toy has three files, so the second one is cut in its middle.
    refuse_writes(monkeypatch, number, after=4)
    assert session("max_steps=100000", "eval_every=100000", "save_every=2") == 2
    run = tmp_path / "run"
    ended = status(run)
    assert (ended["state"], ended["exit_code"]) == ("failed", 2)
    for text in (ended["reason"], capfd.readouterr().err):
        assert "step-0000004 could not be written" in text and os.strerror(number) in text
        assert "step-0000002, is untouched" in text
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["LATEST", "step-0000002"]
    assert events(run, "saved") == [2]
    monkeypatch.undo()
    assert session(f"max_steps={ended['step'] + 1}", "eval_every=100000", "save_every=2") == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_records_on_a_full_disk_end_the_run_with_the_steps_saved(
    session, tmp_path, capfd, monkeypatch, number
):
    append = monitor.records.append

    def append_some(path, lines):
        if '"step": 3,' in lines[-1]:
            raise OSError(number, os.strerror(number))
        append(path, lines)

    with monkeypatch.context() as patch:
        patch.setattr(monitor.records, "append", append_some)
        assert session() == 2
    run = tmp_path / "run"
    reason = f"{run}/metrics.jsonl cannot be written ({os.strerror(number)}); make room or mend the disk"
    ended = status(run)
    assert (ended["state"], ended["exit_code"]) == ("failed", 2)
    assert reason in ended["reason"] and reason in capfd.readouterr().err
    assert state_of(run, ended["step"])["step"] == ended["step"] >= 3
    assert session() == session(folder="whole") == 0
    assert column(run, "loss")[-2:] == column(tmp_path / "whole", "loss")[-2:]


@pytest.mark.parametrize("fault", ["term:6:0", "damage:6:0"])
def test_what_is_being_written_is_finished_when_the_run_ends(session, tmp_path, monkeypatch, fault):
    def write(path, content):
        time.sleep(0.3)
        write_file(path, content)

    monkeypatch.setattr("enhancer.engine.checkpoint.write_file", write)
    assert session("eval_every=100", fault=fault) == (75 if fault.startswith("term") else 2)
    run = tmp_path / "run"
    steps = [5, 7] if fault.startswith("term") else [5, 6]
    assert events(run, "saved") == steps
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        f"step-{step:07d}" for step in steps
    ]


def test_a_bug_in_a_task_does_not_cost_the_checkpoint_under_way(session, tmp_path, monkeypatch):
    class Broken(ToyTask):
        def step(self, modules, batch, update):
            if int(batch["draw"][0]) == 8 * 5:
                raise KeyError("mixtures")
            return super().step(modules, batch, update)

    def write(path, content):
        time.sleep(0.3)
        write_file(path, content)

    monkeypatch.setattr("enhancer.engine.checkpoint.write_file", write)
    with pytest.raises(KeyError, match="mixtures"):
        session("eval_every=100", task=Broken())
    assert (tmp_path / "run" / "checkpoints" / "step-0000005" / "manifest.json").exists()


def test_checkpoints_are_the_same_beside_training_and_while_it_waits(session, tmp_path):
    for folder, is_async in (("beside", True), ("waiting", False)):
        assert session(f"async_checkpoints={is_async}".lower(), "keep_checkpoints=9", folder=folder) == 0
    for step in (5, 10):
        one, other = (
            tmp_path / folder / "checkpoints" / f"step-{step:07d}" for folder in ("beside", "waiting")
        )
        names = sorted(path.name for path in one.iterdir() if path.name != "manifest.json")
        assert names == sorted(path.name for path in other.iterdir() if path.name != "manifest.json")
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


class NoticingTask(ToyTask):
    """Says once, in the step of draw 72, that it has noticed something."""

    told = ""

    def step(self, modules, batch, update):
        if int(batch["draw"][0]) == 72:
            self.told = "noticed"
        return super().step(modules, batch, update)

    def notices(self) -> list[str]:
        told, self.told = self.told, ""
        return [told] if told else []


@pytest.mark.parametrize(("save_every", "expected"), [(10, [10]), (100, [11])])
def test_what_a_task_notices_is_told_before_a_save_and_at_the_end(session, tmp_path, save_every, expected):
    values = ("max_steps=11", "log_every=4", "eval_every=100", f"save_every={save_every}")
    assert session(*values, task=NoticingTask()) == 0
    assert events(tmp_path / "run", "notice") == expected


def test_a_run_goes_on_with_the_frozen_modules_of_its_checkpoint_alone(session, tmp_path, capfd):
    frozen = tmp_path / "run" / "frozen"
    frozen.mkdir(parents=True)
    (frozen / "manifest.json").write_text("one")
    assert session("max_steps=4", "save_every=4") == 0
    assert session("max_steps=5", "save_every=4") == 0
    (frozen / "manifest.json").write_text("other")
    assert session("max_steps=6", "save_every=4") == 2
    assert "with other frozen modules than those in frozen/" in capfd.readouterr().err


def test_a_torn_last_line_of_the_records_does_not_hinder_a_changed_value(session, tmp_path):
    assert session("max_steps=4", "save_every=4") == 0
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "st')
    assert session("max_steps=6", "save_every=4") == 0
    assert path.read_text().startswith(whole)
    assert status(tmp_path / "run")["step"] == 6
