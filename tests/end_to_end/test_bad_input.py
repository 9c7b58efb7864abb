"""What a user can get wrong: each ends with its exit code, a text that names the thing and what to do, and no debris.

All go through the commands themselves. Elsewhere:

- killed with -9 while saving, 20 times: `tests/engine/test_checkpoint.py`
- a NaN in the loss of one rank of two: `tests/end_to_end/test_engine_ranks.py`
- one changed byte at many places of every file of a checkpoint: `tests/engine/test_checkpoint.py`; in the weights that
  `launch/apply.py` uses: `tests/test_inference.py`
- a save that fails on one rank of two: `tests/engine/test_checkpoint.py`
- no compiler under the `deepspeed` launcher with two ranks: `tests/end_to_end/test_engine_ranks.py`
- other mistakes in hyper-parameters and preset files: `tests/hparams/test_hparams_load.py`
- other ways a corpus is damaged or is none: `tests/data_shards/`
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from enhancer.engine.manifest import verify
from launch import build_shards
from launch.train import main

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "launch" / "train.py"
RATE_HZ = 44_100
TIMEOUT_SECONDS = 300
SCHEDULE = ("max_steps=3", "warmup_steps=1", "save_every=2", "eval_every=100", "log_every=1", "nj=0")
SIZES = ("batch_size_per_gpu=3", "training_seconds=0.2", "valid_fraction=0.5", "task.width=1")
LISTS = ("task.valid_items=2", "task.valid_seconds=0.2")


def write_audio(folder: Path, count: int, decay_samples: float = np.inf) -> Path:
    """`count` recordings of noise, half a second each; with a decay they are like rooms."""
    folder.mkdir(parents=True)
    for number in range(count):
        wave = 0.2 * np.random.default_rng(number).uniform(-1, 1, RATE_HZ // 2)
        wave *= np.exp(-np.arange(len(wave)) / decay_samples)
        soundfile.write(folder / f"take{number}.wav", wave, RATE_HZ)
    return folder


def build(kind: str, source: Path, output: Path, *more: str) -> int:
    return build_shards.main([kind, "--input", str(source), "--output", str(output), "--workers", "1", *more])


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """Folders `audio/fg` and so on, and the corpora fg, bg and rir built from them."""
    root = tmp_path_factory.mktemp("corpora")
    for kind, decay_samples in (("fg", np.inf), ("bg", np.inf), ("rir", 300.0)):
        source = write_audio(root / "audio" / kind, 4, decay_samples)
        # Small shards, so that there is a second one to be damaged or taken for another.
        assert build(kind, source, root / kind, "--shard-mb", "0.05") == 0
    return root


@pytest.fixture
def corpora(healthy, tmp_path) -> Path:
    """Corpora of this test's own, to be damaged."""
    for kind in ("fg", "bg", "rir"):
        shutil.copytree(healthy / kind, tmp_path / kind)
    return tmp_path


def command(corpora: Path, run: Path, *values: str) -> list[str]:
    folders = [f"{kind}_dir={corpora / kind}" for kind in ("fg", "bg", "rir")]
    return ["--run-dir", str(run), "--set", *folders, *SCHEDULE, *SIZES, *LISTS, *values]


@pytest.fixture(scope="module")
def trained(healthy, tmp_path_factory) -> Path:
    """A finished run of three steps with the checkpoints of steps 2 and 3."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(command(healthy, run)) == 0
    assert steps_of(run) == [2, 3]
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run of this test's own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def steps_of(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, each of them whole; nothing else may lie beside them."""
    folders = sorted((run / "checkpoints").iterdir())
    steps = [verify(folder).state.step for folder in folders if folder.is_dir()]
    assert [path.name for path in folders] == ["BEST", "LATEST", *(f"step-{step:07d}" for step in steps)]
    return steps


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but the lock, which says who held it last, by its name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def assert_said(error: str, *texts: str) -> None:
    assert "Traceback" not in error
    for text in texts:
        assert text in error


def assert_refused(arguments: list[str], capfd, *texts: str) -> None:
    """The command exits with 2 and one error that holds `texts`."""
    capfd.readouterr()
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.count("error: ") == 1
    assert_said(error, *texts)


def assert_never_began(run: Path, *texts: str) -> None:
    """Of a run that never began only its status is left, so that a corrected command is free to start it."""
    assert set(content(run)) == {"status.json"}
    assert (status(run)["state"], status(run)["step"], status(run)["exit_code"]) == ("failed", 0, 2)
    for text in texts:
        assert text in status(run)["reason"]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


def remove(corpus: Path) -> None:
    shutil.rmtree(corpus)


def empty(corpus: Path) -> None:
    shutil.rmtree(corpus)
    corpus.mkdir()


def plain_audio(corpus: Path) -> None:
    shutil.rmtree(corpus)
    write_audio(corpus / "deep", 1)


def cut(corpus: Path) -> None:
    shard = corpus / f"{corpus.name}-000001.tar"
    os.truncate(shard, shard.stat().st_size - 512)


def lose_sidecar(corpus: Path) -> None:
    (corpus / f"{corpus.name}-000001.tar.json").unlink()


def swap_sidecar(corpus: Path) -> None:
    shutil.copy(corpus / f"{corpus.name}-000000.tar.json", corpus / f"{corpus.name}-000001.tar.json")


def flip_in_a_room(corpus: Path) -> None:
    flip(corpus / "rir-000000.tar", 512 + 44 + 101)


BUILD = "python launch/build_shards.py"


@pytest.mark.parametrize(
    ("kind", "damage", "texts"),
    [
        ("fg", remove, ("fg does not exist", f"{BUILD} fg --input DIR --output ")),
        ("bg", remove, ("bg does not exist", f"{BUILD} bg --input DIR --output ")),
        ("rir", empty, ("rir is empty", f"{BUILD} rir --input DIR --output ")),
        ("fg", plain_audio, ("holds plain audio", f"{BUILD} fg --input ", "/fg --output data/fg")),
        ("bg", cut, ("bg-000001.tar is cut short", "Copy it again")),
        ("fg", lose_sidecar, ("fg-000001.tar.json is missing", "run the build again")),
        ("fg", swap_sidecar, ("fg-000001.tar.json is the sidecar of another file", "Copy the right one")),
        ("rir", flip_in_a_room, ("rir-000000.tar", "00000000.wav", "byte 512", "its bytes changed")),
    ],
)
def test_a_corpus_that_cannot_be_used(corpora, tmp_path, capfd, kind, damage, texts):
    damage(corpora / kind)
    run = tmp_path / "new"
    assert_refused(command(corpora, run), capfd, *texts)
    assert_never_began(run, *texts)


def test_a_corpus_at_another_rate_and_the_corrected_command_starts_the_run(healthy, tmp_path, capfd):
    run, slow = tmp_path / "new", tmp_path / "slow"
    assert build("fg", healthy / "audio" / "fg", slow, "--rate", "22050") == 0
    texts = (f"{slow} is at 22050 Hz, but 44100 Hz is needed", "--rate 44100")
    assert_refused(command(healthy, run, f"fg_dir={slow}"), capfd, *texts)
    assert_never_began(run, *texts)
    # A seed is a value that no run may change once it has begun.
    assert main(command(healthy, run, "seed=1")) == 0


def test_a_flipped_byte_in_audio_that_is_judged_ends_training_and_verify_names_it(corpora, tmp_path, capfd):
    shards = sorted((corpora / "fg").glob("*.tar"))
    for shard in shards:
        flip(shard, 512 + 44 + 1001)
    run = tmp_path / "new"
    assert_refused(command(corpora, run), capfd, "fg-00000", "00000", "byte 512", "its bytes changed")
    assert (status(run)["state"], status(run)["step"], status(run)["exit_code"]) == ("failed", 3, 2)
    assert verify(run / "checkpoints" / "step-0000002").state.step == 2
    assert build_shards.main(["verify", str(corpora / "fg")]) == 2
    error = capfd.readouterr().err
    texts = [f"{shard.name} member 0000000{row}.wav byte 512: audio" for row, shard in enumerate(shards)]
    assert_said(error, f"damaged in {len(shards)} places", *texts, "Copy these shards")


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN or infinite sample at frame 7"), (0.0, "silent")]
)
def test_unusable_recordings_are_rejected_with_their_reason(healthy, tmp_path, capfd, value, reason):
    source = Path(shutil.copytree(healthy / "audio" / "fg", tmp_path / "in"))
    wave = np.zeros(4000, np.float32) if value == 0 else np.full(4000, 0.1, np.float32)
    wave[7] = value
    soundfile.write(source / "broken.wav", wave, RATE_HZ, subtype="FLOAT")
    assert build("fg", source, tmp_path / "out") == 2
    texts = ("1 of 5 files cannot be used", f"broken.wav: {reason}", "--max-reject 0.1")
    assert_said(capfd.readouterr().err, *texts)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert build("fg", source, tmp_path / "out", "--max-reject", "0.2") == 0
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["source"] == "broken.wav" and reason in reject["reason"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("max_lrr=1e-3", ("there is no key max_lrr; did you mean max_lr?", "number > 0")),
        ("task.widht=4", ("there is no key task.widht; did you mean task.width?", "integer >= 1")),
        ("max_steps=many", ("max_steps is many; needed integer > 0", "--set")),
        ("load_fg_only=1", ("load_fg_only is 1; needed true or false",)),
    ],
)
def test_a_misspelt_key_and_a_wrong_type(healthy, tmp_path, capfd, value, texts):
    assert_refused(command(healthy, tmp_path / "new", value), capfd, *texts)
    assert not (tmp_path / "new").exists()


def test_fewer_steps_than_the_run_has_behind_it(healthy, run, capfd):
    before = content(run)
    text = ("max_steps is 2, below the resumed step", "has 3 steps behind it", "Set max_steps to 3 or more")
    assert_refused(command(healthy, run, "max_steps=2"), capfd, *text)
    assert content(run) == before


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_written(healthy, tmp_path, capfd, place):
    (tmp_path / "file").write_text("kept")
    folder = tmp_path / place
    texts = (f"the run folder {folder} cannot be written", "another --run-dir or make it writable")
    assert_refused(command(healthy, folder), capfd, *texts)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_of_other_values_shows_the_difference(healthy, run, capfd):
    before = content(run)
    texts = (
        f"{run} holds a run of other hyper-parameters",
        "seed: the run has 0, the command gives 7",
        "task.width: the run has 1, the command gives 2",
        "another --run-dir",
    )
    assert_refused(command(healthy, run, "seed=7", "task.width=2"), capfd, *texts)
    assert content(run) == before


@pytest.mark.parametrize("name", ["denoiser.safetensors", "denoiser.rank0.state", "manifest.json"])
def test_a_checkpoint_with_one_byte_changed_is_refused_and_the_one_before_it_used(healthy, run, capfd, name):
    path = run / "checkpoints" / "step-0000003" / name
    flip(path, path.stat().st_size // 2)
    assert main(command(healthy, run)) == 0
    said = capfd.readouterr()
    assert_said(said.err, "checkpoint step-0000003 is refused", name, "going on from step-0000002")
    assert "going on from step-0000002" in said.out
    assert steps_of(run) == [2, 3]


def test_no_whole_checkpoint_is_left(healthy, run, capfd):
    for step in (2, 3):
        flip(run / "checkpoints" / f"step-{step:07d}" / "denoiser.safetensors", -1)
    before = content(run / "checkpoints")
    texts = ("has no whole checkpoint", "step-0000002", "step-0000003", "Restore one from a backup")
    assert_refused(command(healthy, run), capfd, *texts)
    assert content(run / "checkpoints") == before


def started(arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **options.pop("environment", {})}
    line = [sys.executable, str(TRAIN), *arguments]
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS, **options
    )


@pytest.mark.multi
def test_a_full_disk_while_saving_leaves_the_checkpoints_and_the_next_start_goes_on(healthy, run):
    size = (run / "checkpoints" / "step-0000003" / "denoiser.rank0.state").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = started(command(healthy, run, "max_steps=5"), preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    texts = (
        "step-0000004 could not be written",
        "The last checkpoint, step-0000003, is untouched",
        "Make room",
    )
    assert_said(done.stderr, *texts)
    assert steps_of(run) == [2, 3]
    # Written beside training, which may be one step on when it hears of it.
    assert status(run)["state"] == "failed" and status(run)["step"] in (4, 5)
    assert main(command(healthy, run, "max_steps=5")) == 0
    assert steps_of(run)[-1] == 5


@pytest.mark.multi
def test_without_a_compiler_deepspeed_trains(healthy, tmp_path):
    tools, run = tmp_path / "tools", tmp_path / "new"
    tools.mkdir()
    arguments = [*command(healthy, run), "--backend", "deepspeed"]
    done = started(arguments, environment={"PATH": str(tools)})
    assert done.returncode == 0, done.stderr
    assert status(run)["state"] == "finished"


@pytest.mark.multi
def test_ranks_that_cannot_share_the_batch_of_the_run(healthy, run):
    before = content(run / "checkpoints")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        line = [sys.executable, str(TRAIN), *command(healthy, run)]
        environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **place, **meeting}
        ranks.append(
            subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    texts = [rank.communicate(timeout=TIMEOUT_SECONDS) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], texts
    assert_said(texts[0][1], "a global batch of 3 examples, which 2 ranks cannot share", "start 1 or 3 ranks")
    assert "error" not in texts[1][1]
    assert content(run / "checkpoints") == before
