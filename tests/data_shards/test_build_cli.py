"""The command line: exit codes, what it says, and that it runs as a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shard_inputs as audio

from data_shards.corpus import Corpus
from launch.build_shards import main

ROOT = Path(__file__).resolve().parents[2]


def build(kind: str, source: Path, out: Path, *more: str) -> int:
    rate = ("--rate", str(audio.RATE_HZ), "--workers", "1")
    return main([kind, "--input", str(source), "--output", str(out), *rate, *more])


@pytest.mark.parametrize("kind", ["fg", "bg", "rir"])
def test_a_build_ends_with_a_summary_and_a_second_one_says_up_to_date(tmp_path, capsys, kind):
    source = audio.folder_of(tmp_path / "in", count=12)
    audio.write(source / "silent.wav", np.zeros(800))
    assert build(kind, source, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "1 shard built" in text and "12 of 13 files" in text and "12 samples" in text
    assert "1 file and 0 parts of other files rejected" in text and "rejects.jsonl" in text
    assert build(kind, source, tmp_path / "out") == 0
    assert "up to date" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "every byte is as it was built" in capsys.readouterr().out


def test_pairs_are_built_from_two_folders(tmp_path, capsys):
    audio.folder_of(tmp_path / "noisy", count=3)
    audio.folder_of(tmp_path / "clean", count=3)
    assert build("pair", tmp_path / "noisy", tmp_path / "out", "--target", str(tmp_path / "clean")) == 0
    assert "3 samples" in capsys.readouterr().out
    assert tuple(Corpus.open(tmp_path / "out", "pair").members) == ("input.wav", "target.wav")


def test_options_reach_the_corpus(tmp_path):
    source = audio.folder_of(tmp_path / "in/anna", count=2, seconds=2.0).parent
    more = ("--codec", "flac", "--segment-seconds", "1", "--group-by", "folder", "--shard-mb", "0.02")
    assert build("fg", source, tmp_path / "out", *more) == 0
    corpus = Corpus.open(tmp_path / "out", "fg", audio.RATE_HZ)
    assert (corpus.codec, corpus.groups, len(corpus), len(corpus.shards)) == ("flac", ("anna",), 4, 2)


def fails(capsys, arguments: list[str], *texts: str) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    for text in texts:
        assert text in error


def test_what_the_user_got_wrong_is_said_with_exit_2(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    out = ["--output", str(tmp_path / "out")]
    missing = str(tmp_path / "missing")
    fails(capsys, ["fg", "--input", missing, *out], "input folder", missing, "does not exist")
    fails(capsys, ["fg", "--input", str(tmp_path / "in"), *out], "No audio below", ".wav", ".mp3", ".aiff")
    file = audio.write(tmp_path / "in/a.wav", audio.noise(1.0))
    fails(capsys, ["fg", "--input", str(file), *out], "is a file; give the folder")
    fails(capsys, ["fg", "--input", str(tmp_path / "in"), "--output", str(file)], "is a file; give a folder")
    fails(capsys, ["fg", "--input", str(tmp_path / "in"), "--output", str(tmp_path)], "holds other things")
    fails(capsys, ["fg", "--input", str(tmp_path / "in"), *out, "--rate", "1"], "--rate is 1; needed")
    pair = ["pair", "--input", str(tmp_path / "in"), "--target", missing, *out]
    fails(capsys, pair, missing, "does not exist")
    pair = ["pair", "--input", str(tmp_path / "in"), "--target", str(tmp_path / "in/."), *out]
    fails(capsys, pair, "both --input and --target")
    fails(capsys, ["verify", str(tmp_path / "in")], "plain audio", "--output data/fg")
    assert not (tmp_path / "out").exists()


def test_a_url_is_named_as_such_and_makes_no_folder(tmp_path, capsys, monkeypatch):
    audio.folder_of(tmp_path / "in", count=1)
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["fg", "--input", "s3://bucket/voices", "--output", "out"], "s3://bucket/voices is a URL")
    fails(
        capsys, ["fg", "--input", "in", "--output", "gs://bucket/fg"], "gs://bucket/fg is a URL", "mount it"
    )
    fails(capsys, ["verify", "https://host/fg"], "https://host/fg is a URL")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_too_many_rejects_end_with_2_and_the_first_few(tmp_path, capsys):
    source = audio.folder_of(tmp_path / "in", count=1)
    for number in range(7):
        audio.write(source / f"silent{number}.wav", np.zeros(800))
    assert build("fg", source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "7 of 8 files cannot be used" in error and "--max-reject 0.1" in error
    assert error.count(": silent") == 5 and "and 2 more" in error
    assert build("fg", source, tmp_path / "out", "--max-reject", "0.9") == 0


def test_an_output_that_cannot_be_made_is_exit_2(tmp_path, capsys):
    source = audio.folder_of(tmp_path / "in", count=1)
    out = str(source / "take00.wav" / "out")
    fails(capsys, ["fg", "--input", str(source), "--output", out], "Not a directory", out)


def test_damage_is_listed_with_exit_2(tmp_path, capsys):
    build("fg", audio.folder_of(tmp_path / "in", count=2), tmp_path / "out")
    shard = tmp_path / "out/fg-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "damaged in 1 place" in error
    assert "fg-000000.tar member 00000000.wav byte 512: audio" in error


def test_an_interrupt_ends_with_75_and_a_way_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.build_shards.build_corpus", interrupted)
    assert build("fg", audio.folder_of(tmp_path / "in", count=1), tmp_path / "out") == 75
    assert "run the same command to go on" in capsys.readouterr().err


@pytest.mark.multi
def test_ctrl_c_while_workers_start_is_told_once(tmp_path):
    """The terminal sends it to the whole process group, and workers that still import must not print tracebacks."""
    audio.folder_of(tmp_path / "in", count=60, seconds=4.0)
    # The signal comes at the moment at which the first worker has been started, which no sleep would find.
    code = (
        "import os, signal, sys\n"
        "from concurrent.futures import ProcessPoolExecutor as Pool\n"
        "from launch.build_shards import main\n"
        # A test run in the background of a shell is born deaf to this signal, and so are its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "submit = Pool.submit\n"
        "def submit_and_interrupt(*arguments):\n"
        "    future = submit(*arguments)\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "    return future\n"
        "Pool.submit = submit_and_interrupt\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["fg", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--shard-mb", "1", "--workers", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert done.stderr.strip() == "stopped; finished shards are kept, run the same command to go on"


@pytest.mark.multi
def test_it_runs_as_a_script_from_the_root_without_torch(tmp_path):
    audio.folder_of(tmp_path / "in", count=1)
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'deepspeed', 'scipy', 'matplotlib'} & set(sys.modules)\n"
    )
    arguments = [
        "launch/build_shards.py",
        "fg",
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 shard built" in done.stdout
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert "up to date" in done.stdout


@pytest.mark.multi
def test_a_terminal_shows_a_bar(tmp_path):
    import pty

    audio.folder_of(tmp_path / "in", count=4)
    leader, follower = pty.openpty()
    command = [sys.executable, "launch/build_shards.py", "fg", "--input", str(tmp_path / "in")]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], cwd=ROOT, stderr=follower, check=False
    )
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "building shards" in shown and "100 %" in shown
