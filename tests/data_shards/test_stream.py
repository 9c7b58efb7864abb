"""Batches are the same however they are made, resume at any draw, and report what breaks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_shards import loader_pool, stream
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError, DataError
from data_shards.format import WAV_HEADER_BYTES
from data_shards.stream import WorkerDied, open_stream, worker_count
from hparams.errors import UserError
from tests.data_shards import mix_corpora


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return mix_corpora.build_all(tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def damaged(hp, tmp_path):
    """Hyper-parameters whose foreground corpus may be damaged."""
    shutil.copytree(hp.fg_dir, tmp_path / "fg")
    return mix_corpora.with_task(replace(hp, fg_dir=tmp_path / "fg"), silence_prob=0.0)


def take(hp, count, *, draw=0, **arguments):
    batches = open_stream(hp, **arguments).from_draw(draw)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_a_batch_has_the_documented_keys_types_and_shapes(hp):
    (batch,) = take(hp, 1, num_workers=0)
    wave, number, flag = torch.int16, torch.float32, torch.bool
    expected = {
        "draw": torch.int64,
        "fg": wave,
        "bg": wave,
        "is_pair": flag,
        "rir": torch.int64,
        **dict.fromkeys(["snr_db", "level_db", "eq_hz", "eq_gain_db", "eq_q", "lowpass_hz"], number),
        **dict.fromkeys(["highpass_hz", "drive_db", "noise_snr_db"], number),
        "noise_seed": torch.int64,
    }
    assert {name: value.dtype for name, value in batch.items()} == expected
    for name, value in batch.items():
        assert value.shape == ((8, 2000) if name in ("fg", "bg") else (8,)), name
    assert batch["draw"].tolist() == list(range(8))


@pytest.mark.multi
def test_batches_are_bit_identical_for_any_number_of_workers(hp):
    alone = take(hp, 7, num_workers=0)
    for num_workers in (1, 2, 3):
        for one, other in zip(alone, take(hp, 7, num_workers=num_workers), strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("draw", [8, 24, 13, 10**9])
def test_a_stream_goes_on_from_any_draw(hp, draw):
    through = joined(take(hp, 3, draw=draw, num_workers=0))
    resumed = joined(take(hp, 2, draw=draw + 8, num_workers=0))
    assert_equal({name: value[8:] for name, value in through.items()}, resumed)
    assert through["draw"].tolist() == list(range(draw, draw + 24))


@pytest.mark.multi
def test_a_stream_with_workers_goes_on_from_any_draw(hp):
    through = take(hp, 5, draw=40, num_workers=0)
    for one, other in zip(through[3:], take(hp, 2, draw=64, num_workers=2), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_draws_of_one(hp, world_size):
    whole = take(hp, 4, num_workers=0, batch_size=8)
    shares = [
        take(hp, 4, num_workers=0, rank=rank, world_size=world_size, batch_size=8 // world_size)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert_equal(batch, joined([share[step] for share in shares]))


@pytest.mark.parametrize("world_size,batch_size", [(1, 8), (2, 4), (3, 2), (4, 8), (1, 64)])
def test_the_validation_list_is_the_same_for_any_world_size_and_batch(hp, world_size, batch_size):
    reference = joined(list(open_stream(hp, num_workers=0, batch_size=1).validation()))
    assert reference["item"].tolist() == list(range(21))
    shares = [
        list(
            open_stream(
                hp, rank=rank, world_size=world_size, batch_size=batch_size, num_workers=0
            ).validation()
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    rows = joined([batch for share in shares for batch in share])
    assert all(len(batch["fg"]) == batch_size for share in shares for batch in share)
    listed = rows["item"] >= 0
    order = torch.argsort(rows["item"][listed])
    assert_equal(reference, {name: value[listed][order] for name, value in rows.items()})


def test_the_fingerprint_names_the_corpora_in_use(hp, damaged):
    pair_dir = hp.fg_dir.parent / "pair"
    base = open_stream(hp, num_workers=0).fingerprint
    assert base == open_stream(replace(hp, seed=5), rank=1, world_size=2, num_workers=2).fingerprint
    assert base == open_stream(damaged, num_workers=0).fingerprint
    others = {
        open_stream(replace(hp, load_fg_only=True), num_workers=0).fingerprint,
        open_stream(replace(hp, pair_dir=pair_dir), num_workers=0).fingerprint,
        open_stream(mix_corpora.with_task(replace(hp, pair_dir=pair_dir), pair_fraction=0.5)).fingerprint,
    }
    assert len(others | {base}) == 4


def test_a_missing_corpus_is_named_before_anything_starts(hp, tmp_path):
    with pytest.raises(CorpusError, match=str(tmp_path / "none")):
        open_stream(replace(hp, bg_dir=tmp_path / "none"))
    assert issubclass(CorpusError, UserError)


def test_one_room_for_training_and_validation_is_told(hp, tmp_path):
    from data_shards.build import build_corpus
    from data_shards.options import BuildOptions

    mix_corpora.write_wav(tmp_path / "audio/only.wav", np.array([9000, 3000, -1000] * 400, np.int16))
    options = BuildOptions("rir", rate_hz=mix_corpora.RATE_HZ, workers=1)
    build_corpus("rir", [tmp_path / "audio"], tmp_path / "rir", options)
    (line,) = open_stream(replace(hp, rir_dir=tmp_path / "rir"), num_workers=0).warnings
    assert str(tmp_path / "rir") in line


def cut_header(hp, row=None) -> Corpus:
    """Overwrite the WAV header of a training sample."""
    corpus = Corpus.open(hp.fg_dir, "fg")
    row = int(corpus.split(hp.valid_fraction).train[0]) if row is None else row
    with corpus.shards[corpus.shard[row]].open("r+b") as file:
        file.seek(int(corpus.members["wav"].offset[row]))
        file.write(bytes(WAV_HEADER_BYTES))
    return corpus


@pytest.mark.multi
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_damage_met_in_a_worker_is_raised_with_shard_member_draw_and_rank(damaged, num_workers):
    corpus = cut_header(damaged)
    batches = open_stream(damaged, rank=1, world_size=2, num_workers=num_workers).from_draw(0)
    with pytest.raises(DataError, match="header") as caught:
        for _ in range(20):
            next(batches)
    batches.close()
    error = caught.value
    assert error.rank == 1 and error.draw is not None and error.draw % 16 >= 8
    assert error.shard in {str(path) for path in corpus.shards} and error.member is not None
    for part in (error.shard, error.member, f"draw {error.draw}", "rank 1"):
        assert str(part) in str(error)


def test_damage_in_the_samples_of_a_validation_item_is_seen(damaged):
    corpus = Corpus.open(damaged.fg_dir, "fg")
    row = int(corpus.split(damaged.valid_fraction).valid[0])
    place = int(corpus.members["wav"].offset[row] + corpus.members["wav"].size[row] - 1)
    path = corpus.shards[corpus.shard[row]]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="crc32"):
        list(open_stream(damaged, num_workers=0).validation())


@pytest.mark.multi
def test_a_killed_worker_is_named(hp):
    batches = open_stream(hp, num_workers=2).from_draw(0)
    next(batches)
    pid = batches.worker_pids[1]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        WorkerDied, match=rf"worker 1 of 2 \(pid {pid}\) of rank 0 was killed by SIGKILL"
    ) as caught:
        for _ in range(10):
            next(batches)
    assert "draws" in str(caught.value)
    batches.close()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


@pytest.mark.multi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_ignore_signals_meant_for_the_main_process(hp):
    batches = open_stream(hp, num_workers=1).from_draw(0)
    first = next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(batches.worker_pids[0], number)
    assert [next(batches)["draw"][0].item() for _ in range(6)] == [8, 16, 24, 32, 40, 48]
    assert first["draw"][0] == 0
    pids = batches.worker_pids
    batches.close()
    assert wait_until_gone(pids)


@pytest.mark.multi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_the_iterator_is_dropped(hp):
    batches = open_stream(hp, num_workers=2).from_draw(0)
    pids = batches.worker_pids
    del batches
    assert wait_until_gone(pids)


MAIN_THAT_IS_KILLED = """
import pickle, sys, time
from data_shards.stream import open_stream
batches = open_stream(pickle.loads(bytes.fromhex(sys.argv[1])), num_workers=2).from_draw(0)
next(batches)
print(*batches.worker_pids, flush=True)
time.sleep(60)
"""


@pytest.mark.multi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_the_main_process_is_killed(hp):
    import pickle

    command = [sys.executable, "-c", MAIN_THAT_IS_KILLED, pickle.dumps(hp).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        process.kill()
    assert wait_until_gone(pids)


class _Stalled:
    """A source that never has a batch."""

    def next_arrays(self, timeout_seconds):
        time.sleep(timeout_seconds)

    def close(self):
        pass


def test_bounded_waiting_returns_and_the_whole_wait_is_bounded():
    batches = stream.BatchIterator(_Stalled(), timeout_seconds=0.3)
    start = time.monotonic()
    assert batches.next_batch(0.1) is None
    assert time.monotonic() - start < 0.25
    with pytest.raises(TimeoutError, match=r"data_timeout_seconds=0\.3"):
        for _ in range(10):
            batches.next_batch(0.1)
    with pytest.raises(TimeoutError):
        next(stream.BatchIterator(_Stalled(), timeout_seconds=0.05))


@pytest.mark.multi
def test_a_stopped_worker_runs_into_the_timeout(hp):
    batches = open_stream(replace(hp, data_timeout_seconds=1.0), num_workers=1).from_draw(0)
    # Starting the worker counts as waiting too, so the first batch gets more time on a busy machine.
    batches._timeout_seconds = 30.0
    next(batches)
    batches._timeout_seconds = 1.0
    os.kill(batches.worker_pids[0], signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        for _ in range(5):
            next(batches)
    batches.close()


def test_workers_import_neither_torch_nor_pydantic():
    """Their start is a part of the wait for the first step."""
    code = (
        "import sys, data_shards.loader_worker as _; print({'torch', 'pydantic', 'scipy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_opening_a_stream_imports_no_trainer():
    code = (
        "import sys, data_shards.stream; print({'deepspeed', 'accelerate', 'torchaudio'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_worker_count_is_bounded_by_cores_and_by_nj(hp, monkeypatch):
    for cores, ranks, nj, praat, expected in [
        (2, 1, 64, 0.0, 2),
        (2, 2, 64, 0.0, 1),
        (2, 4, 64, 0.0, 1),
        (128, 8, 64, 0.0, stream.MOST_USEFUL_WORKERS),
        (128, 8, 64, 0.5, 16),
        (16, 1, 3, 0.0, 3),
        (16, 1, 0, 0.0, 0),
    ]:
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False
        )
        monkeypatch.setattr(sys, "platform", "linux")
        assert worker_count(replace(hp, nj=nj, praat_augment_prob=praat), ranks) == expected


def test_exit_descriptions_name_signals_and_codes():
    assert "SIGKILL" in loader_pool._describe_exit(-9) and "memory" in loader_pool._describe_exit(-9)
    assert "SIGSEGV" in loader_pool._describe_exit(-11)
    assert "exit code 1" in loader_pool._describe_exit(1)
