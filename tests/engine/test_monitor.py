"""Metrics, TensorBoard, samples and the console, read back by other programs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from enhancer.engine import monitor as monitor_module
from enhancer.engine.board import Board
from enhancer.engine.console import BarConsole, PlainConsole, left_text, open_console, values_text
from enhancer.engine.monitor import Monitor
from enhancer.engine.own_files import OwnFiles
from hparams.errors import UserError


def lines(folder: Path) -> list[dict]:
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def board(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_a_logged_step_is_one_line_and_a_point_on_each_curve(tmp_path):
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    before = time.time()
    monitor.log(1, {"loss": 0.5, "draws": 16, "step_seconds": 0.1})
    monitor.log(2, {"loss": 0.25, "draws": 32, "step_seconds": 0.1})
    monitor.close()
    first, second = lines(tmp_path)
    assert (first["kind"], first["step"], first["loss"], first["draws"]) == ("step", 1, 0.5, 16)
    assert before - 1 < second["unix_seconds"] < time.time() + 1
    assert [(point.step, point.value) for point in board(tmp_path).Scalars("train/loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]


def test_what_is_not_finite_is_null_and_no_point_on_a_curve(tmp_path):
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    monitor.log(1, {"loss": float("nan"), "gradient_norm": float("inf")})
    monitor.log(2, {"loss": 1.0, "gradient_norm": 1.0})
    monitor.close()
    assert [(line["loss"], line["gradient_norm"]) for line in lines(tmp_path)] == [(None, None), (1.0, 1.0)]
    assert [point.step for point in board(tmp_path).Scalars("train/loss")] == [2]


def test_after_a_resume_every_step_occurs_once(tmp_path):
    killed = Monitor.open(tmp_path, max_steps=10, from_step=0)
    for step in range(1, 8):
        killed.log(step, {"loss": float(step)})
    killed.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 8, "lo')
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=5)
    for step in range(6, 11):
        monitor.log(step, {"loss": 100.0 + step})
    monitor.close()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    assert lines(tmp_path)[6]["loss"] == 107.0
    points = {point.step: point.value for point in board(tmp_path).Scalars("train/loss")}
    assert points == {
        **{step: float(step) for step in range(1, 6)},
        **{step: 100.0 + step for step in range(6, 11)},
    }


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not JSON"):
        Monitor.open(tmp_path, max_steps=10, from_step=5)


def test_records_that_cannot_be_written_are_told_once_and_written_when_they_can_be(tmp_path):
    failures: list[str] = []
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0, on_failure=failures.append)
    (tmp_path / "metrics.jsonl").mkdir()
    monitor.log(1, {"loss": 0.5})
    monitor.log(2, {"loss": 0.25})
    assert failures == [monitor.files.failure]
    assert f"{tmp_path}/metrics.jsonl cannot be written (Is a directory); make room" in failures[0]
    assert str(monitor.files.agreed()) == failures[0]
    (tmp_path / "metrics.jsonl").rmdir()
    monitor.catch_up()
    monitor.close()
    assert [line["loss"] for line in lines(tmp_path)] == [0.5, 0.25]


@pytest.mark.parametrize("taken", ["samples", "tensorboard"])
def test_media_that_cannot_be_written_are_named_and_cut_the_evaluation_short(tmp_path, taken):
    failures: list[str] = []
    (tmp_path / taken).touch()
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0, on_failure=failures.append)
    media = monitor.media(1)
    media.audio("x", torch.zeros(8), 8000)
    assert media.is_cut and len(failures) == 1 and f"{tmp_path}/{taken}" in failures[0]
    monitor.evaluation(1, {"a": (0.0, 0.0, 0.0)}, [], 0.0)
    monitor.close()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert len(failures) == 1


def test_a_line_that_does_not_fit_leaves_no_piece_of_itself(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from enhancer.engine import records\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "path = Path(sys.argv[1])\n"
        "records.append(path, ['1' * 60])\n"
        "try: records.append(path, ['2' * 60])\n"
        "except OSError as error: print(error.strerror)\n"
        "records.append(path, ['3' * 30])\n"
    )
    path = tmp_path / "lines"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert path.read_text() == "1" * 60 + "\n" + "3" * 30 + "\n"


def test_what_the_thread_of_tensorboard_meets_is_told_at_the_latest_when_it_is_closed(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from enhancer.engine.board import Board\n"
        "from enhancer.engine.own_files import OwnFiles\n"
        "files = OwnFiles(); board = Board(Path(sys.argv[1]), 1, files)\n"
        "board.write(lambda writer: writer.add_scalar('before', 1.0, 1))\n"
        "assert not files.failure\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
        "board.write(lambda writer: writer.add_scalar('after', 1.0, 2))\n"
        "board.close(); print(files.failure)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path}/tensorboard cannot be written (File too large); make room")


def test_a_console_that_cannot_be_written_is_a_failure_like_any_other(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from enhancer.engine.monitor import Monitor\n"
        "monitor = Monitor.open(Path(sys.argv[1]), max_steps=10, from_step=0)\n"
        "monitor.say('hello'); monitor.close()\n"
        "sys.stderr.write(monitor.files.failure); sys.stderr.flush(); os._exit(0)\n"
    )
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr.startswith("standard output cannot be written (No space left on device); make room")


def test_a_console_that_nobody_reads_any_more_is_not_told_to_make_room(tmp_path):
    failures: list[str] = []
    files = OwnFiles(failures.append)
    reader, writer = os.pipe()
    os.close(reader)
    with files.kept("standard output"):
        os.write(writer, b"hello")
    os.close(writer)
    assert failures == [files.failure]
    assert "standard output cannot be written (Broken pipe); what read it has ended" in failures[0]
    assert "room" not in failures[0] and "disk" not in failures[0]


def test_what_comes_after_the_end_of_a_board_is_dropped(tmp_path):
    files = OwnFiles(lambda text: pytest.fail(text))
    for folder in ("fresh", "used"):
        board = Board(tmp_path / folder, 1, files)
        if folder == "used":
            board.write(lambda writer: writer.add_scalar("x", 1.0, 1))
        board.close()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*tfevents*")}
        board.write(lambda writer: writer.add_scalar("x", 2.0, 2))
        board.close()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*tfevents*")} == before
    assert len(before) == 1


def test_an_evaluation_has_the_means_the_intervals_and_every_item(tmp_path, capsys):
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    monitor.evaluation(4, {"si_sdr_db": (3.0, 2.0, 4.0)}, [{"si_sdr_db": 2.5}, {"si_sdr_db": 3.5}], 1.5)
    monitor.event(4, "saved", "saved step 4")
    monitor.close()
    record, event = lines(tmp_path)
    assert record["kind"] == "evaluation"
    assert record["summary"] == {"si_sdr_db": {"mean": 3.0, "low": 2.0, "high": 4.0}}
    assert [row["si_sdr_db"] for row in record["rows"]] == [2.5, 3.5]
    assert (event["kind"], event["name"], event["step"]) == ("event", "saved", 4)
    assert board(tmp_path).Scalars("valid/si_sdr_db")[0].value == 3.0
    printed = capsys.readouterr().out
    assert "si_sdr_db 3 (2 .. 4)" in printed and "saved step 4" in printed


def test_an_evaluation_that_is_done_again_after_a_resume_occurs_once(tmp_path):
    for value in (3.0, 3.5):
        monitor = Monitor.open(tmp_path, max_steps=10, from_step=4)
        monitor.evaluation(4, {"si_sdr_db": (value, 2.0, 4.0)}, [], 1.5)
        monitor.close()
    assert [line["summary"]["si_sdr_db"]["mean"] for line in lines(tmp_path)] == [3.5]


# libsndfile gives float files a PEAK chunk, of which scipy warns.
@pytest.mark.filterwarnings("ignore:Chunk:scipy.io.wavfile.WavFileWarning")
@pytest.mark.parametrize(("peak", "dtype"), [(0.5, np.int16), (1.5, np.float32)])
def test_audio_is_kept_as_a_file_and_in_tensorboard(tmp_path, peak, dtype):
    wave = peak * torch.sin(torch.arange(800) * 0.1)
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    monitor.media(500).audio("3/mixture", wave, 8000)
    monitor.close()
    rate, samples = wavfile.read(tmp_path / "samples" / "step-0000500" / "3_mixture.wav")
    assert (rate, samples.dtype) == (8000, dtype)
    scale = 32768 if dtype == np.int16 else 1
    assert np.abs(samples / scale - wave.numpy()).max() <= 1 / 32768
    (entry,) = board(tmp_path).Audio("3/mixture")
    heard_rate, heard = wavfile.read(io.BytesIO(entry.encoded_audio_string))
    assert (entry.step, heard_rate) == (500, 8000)
    assert np.abs(heard / 32767 - wave.clamp(-1, 1).numpy()).max() < 2 / 32767


def test_audio_of_another_shape_is_refused(tmp_path):
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    with pytest.raises(ValueError, match=r"\(2, 800\); needed one channel"):
        monitor.media(1).audio("x", torch.zeros(2, 800), 8000)
    monitor.close()


def test_a_media_name_cannot_leave_the_folder(tmp_path):
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    monitor.media(1).audio("../../../x", torch.zeros(8), 8000)
    monitor.close()
    assert [path.parent.name for path in tmp_path.rglob("*.wav")] == ["step-0000001"]


def test_a_figure_is_kept_as_png_and_in_tensorboard(tmp_path):
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure = Figure(figsize=(2, 1), dpi=100)
    figure.subplots().plot([0, 1])
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    monitor.media(2).figure("spectrogram", figure)
    monitor.close()
    assert imread(tmp_path / "samples" / "step-0000002" / "spectrogram.png").shape[:2] == (100, 200)
    assert [entry.step for entry in board(tmp_path).Images("spectrogram")] == [2]


def test_pictures_after_a_stop_request_are_not_drawn(tmp_path):
    from matplotlib.figure import Figure

    requests: list[str] = []
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    media = monitor.media(2, lambda: bool(requests))
    media.audio("before", torch.zeros(8), 8000)
    assert not media.is_cut
    requests.append("SIGTERM")
    media.audio("after", torch.zeros(8), 8000)
    media.figure("picture", Figure())
    monitor.close()
    assert media.is_cut
    assert [path.name for path in (tmp_path / "samples").rglob("*.*")] == ["before.wav"]


def test_other_ranks_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(monitor_module.distributed, "is_main", lambda: False)
    monitor = Monitor.open(tmp_path, max_steps=10, from_step=0)
    monitor.log(1, {"loss": 1.0})
    monitor.event(1, "saved", "text")
    monitor.evaluation(1, {"a": (0.0, 0.0, 0.0)}, [], 0.0)
    monitor.media(1).audio("x", torch.zeros(8), 8000)
    monitor.say("hello")
    monitor.progress(1)
    monitor.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_at_least_every_ten_seconds_and_not_much_more_often():
    clock, printed = Clock(), []
    console = PlainConsole(100, 0, printed.append, clock)
    times = []
    for step in range(1, 101):
        clock.now += 0.7
        console.values(step, {"loss": 1.0})
        times += [clock.now] * (len(printed) - len(times))
    gaps = np.diff(times)
    assert times[0] < 1 and gaps.max() <= 10.7 and gaps.min() >= 10
    assert "step 1/100  loss 1" in printed[0] and "0:01:09 left" in printed[0]


def test_lines_of_text_come_at_once():
    clock, printed = Clock(), []
    console = PlainConsole(100, 0, printed.append, clock)
    clock.now = 3.0
    console.line("saving")
    assert printed == ["[    3.0 s] saving"]


def test_the_values_shown_leave_out_timings():
    values = {"loss": 1.0, "draws": 16, "step_seconds": 2.0, "examples_per_second": 31.5, "skipped": 2}
    assert values_text(values) == "loss 1  31.5 examples/s  2 skipped"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_anything_else_plain_lines(capsys):
    console = open_console(100, 5, Terminal())
    console.values(6, {"loss": 1.0})
    console.line("saving [step 6]")
    console.progress(7)
    console.close()
    assert isinstance(console, BarConsole)
    assert "saving [step 6]" in capsys.readouterr().out
    assert isinstance(open_console(100, 5, io.StringIO()), PlainConsole)


def test_progress_is_nearly_free():
    for console in (PlainConsole(10**6, 0, lambda text: None), BarConsole(10**6, 0)):
        begun = time.perf_counter()
        for step in range(2000):
            console.progress(step)
        console.close()
        assert (time.perf_counter() - begun) / 2000 < 1e-3, type(console)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, enhancer.engine.monitor; print([n for n in ('tensorboard', 'rich', 'matplotlib', "
    code += "'soundfile', 'deepspeed') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_time_left_is_that_of_the_pace_so_far_and_never_below_none():
    assert left_text(30, 10, 100, 40.0) == "  0:02:20 left"
    # Batches of eleven updates end beyond the last step.
    assert [left_text(step, 0, 100, 5.0) for step in (0, 100, 105)] == ["", "", ""]
