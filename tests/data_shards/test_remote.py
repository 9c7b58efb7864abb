"""Corpora at URLs: the same batches as from a folder, shards fetched once and whole, and every way to fail in words."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from data_shards import stream
from data_shards.cache import CachedShard, ShardCache
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError, DataError
from data_shards.stream import open_stream
from hparams.schema import HParams
from launch import evaluate
from tests.data_shards import mix_corpora

KINDS = ("fg", "bg", "rir", "pair")
pause = {"seconds": 0.0}
"""How long the HTTP server rests within each answer."""


@pytest.fixture(scope="module")
def hp(tmp_path_factory) -> HParams:
    hp = mix_corpora.build_all(tmp_path_factory.mktemp("corpora"))
    return mix_corpora.with_task(replace(hp, pair_dir=hp.fg_dir.parent / "pair"), pair_fraction=0.4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder, not yet made."""
    monkeypatch.setenv("WAVEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WAVEWRIGHT_CACHE_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(hp, tmp_path) -> Path:
    """A copy of the foreground corpus that may be damaged."""
    return shutil.copytree(hp.fg_dir, tmp_path / "remote/fg")


@pytest.fixture
def memory(hp) -> Iterator[str]:
    """A URL in this process's memory below which all corpora lie."""
    system = fsspec.filesystem("memory")
    for kind in KINDS:
        system.put(str(hp.fg_dir.parent / kind), f"/corpora/{kind}", recursive=True)
    yield "memory://corpora"
    system.rm("/corpora", recursive=True)


@pytest.fixture
def served(hp) -> Iterator[tuple[str, Counter[str]]]:
    """An HTTP URL below which all corpora lie, and how often each path was asked for."""
    asked: Counter[str] = Counter()
    pause["seconds"] = 0.0

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            super().do_GET()

        def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
            data = source.read()
            outputfile.write(data[:1000])
            time.sleep(pause["seconds"])
            outputfile.write(data[1000:])

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(hp.fg_dir.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def below(url: str, hp: HParams) -> HParams:
    """`hp` with its corpora below `url`."""
    return replace(hp, **{f"{kind}_dir": f"{url}/{kind}" for kind in KINDS})


def batches_of(hp: HParams, num_workers: int, count: int = 5) -> list[dict[str, torch.Tensor]]:
    stream = open_stream(hp, num_workers=num_workers)
    batches = stream.from_draw(16)
    try:
        return [next(batches) for _ in range(count)] + [stream.constants()] + list(stream.validation())
    finally:
        batches.close()


def assert_same(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def shards_of(url: str) -> list[CachedShard]:
    shards = Corpus.open(url, "fg").shards
    assert len(shards) >= 4, "the tests below want a few shards"
    return [shard for shard in shards if isinstance(shard, CachedShard)]


def whole(cache: Path) -> dict[str, int]:
    """Name and size of the whole shards in the cache, each of which is what its name says."""
    for path in cache.glob("*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    return {path.name: path.stat().st_size for path in cache.glob("*.tar")}


def content(file: int) -> bytes:
    data = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    return data


@pytest.mark.multi
def test_batches_are_those_of_the_local_corpora(hp, memory, cache):
    expected = batches_of(hp, 0)
    remote = below(f"file://{hp.fg_dir.parent}", hp)
    assert_same(batches_of(remote, 2), expected)
    assert not list(cache.glob("*.tmp"))
    kept = {path.name: path.stat().st_ino for path in cache.glob("*.tar")}
    assert_same(batches_of(remote, 0), expected)
    assert_same(batches_of(below(memory, hp), 0), expected)
    assert kept == {path.name: path.stat().st_ino for path in cache.glob("*.tar")}, "equal shards are shared"
    assert open_stream(remote).fingerprint == open_stream(hp).fingerprint


@pytest.mark.multi
def test_over_http_each_shard_is_asked_for_once_by_all_processes(hp, served):
    url, asked = served
    assert_same(batches_of(below(url, hp), 2), batches_of(hp, 0))
    shards = Counter({path: count for path, count in asked.items() if path.endswith(".tar")})
    assert len(shards) > 4 and set(shards.values()) == {1}
    with pytest.raises(CorpusError, match=rf"The fg corpus {url}/none has no dataset\.json, or is not there"):
        Corpus.open(f"{url}/none", "fg")


def test_a_long_transfer_over_http_is_not_cut_off(hp, served, monkeypatch):
    import aiohttp

    url, _ = served
    shard = shards_of(f"{url}/fg")[0]
    # What aiohttp allows a transfer by default, 300 s, made short; the file system must not have a session yet.
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    fsspec.get_filesystem_class("http").clear_instance_cache()
    pause["seconds"] = 0.6
    assert content(shard.open()) == (hp.fg_dir / shard.tar).read_bytes()
    fsspec.get_filesystem_class("http").clear_instance_cache()


# A protocol whose fetches are written down and take their time.
SLOW = """
import os, sys, time, fsspec
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from data_shards.corpus import Corpus

class Slow(LocalFileSystem):
    protocol = "slow"
    def get_file(self, source, target, **_):
        data = Path(source).read_bytes()
        with open(target, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            print("half", Path(source).name, flush=True)
            time.sleep(float(sys.argv[2]))
            file.write(data[len(data) // 2 :])

fsspec.register_implementation("slow", Slow)
for shard in Corpus.open(sys.argv[1], "fg").shards[:2]:
    os.close(shard.open())
"""


def slow(folder: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SLOW, f"slow://{folder}", str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.multi
def test_processes_that_race_for_a_shard_fetch_it_once(folder, cache):
    racers = [slow(folder, 0.5) for _ in range(3)]
    lines = sorted("".join(racer.communicate(timeout=60)[0] for racer in racers).splitlines())
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert lines == ["half fg-000000.tar", "half fg-000001.tar"]
    assert len(whole(cache)) == 2


@pytest.mark.multi
def test_a_process_killed_while_fetching_leaves_nothing_that_is_taken_for_whole(folder, cache):
    with slow(folder, 60) as process:
        assert process.stdout is not None and process.stdout.readline() == "half fg-000000.tar\n"
        process.kill()
    assert not whole(cache) and len(list(cache.glob("*.tmp"))) == 1
    first, second, *_ = shards_of(f"file://{folder}")
    # The fetch of another shard takes the leaving away, the fetch of the same one is not misled by it.
    assert content(second.open()) == (folder / second.tar).read_bytes()
    assert not list(cache.glob("*.tmp"))
    assert content(first.open()) == (folder / first.tar).read_bytes()
    assert set(whole(cache)) == {f"{first.sha256}.tar", f"{second.sha256}.tar"}


def test_a_flipped_byte_is_refused_with_both_hashes_and_is_not_kept(hp, folder, cache):
    damaged = folder / "fg-000001.tar"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    remote = replace(hp, fg_dir=f"file://{folder}", pair_dir=None)
    with pytest.raises(DataError) as caught:
        batches_of(remote, 0, count=20)
    text, found = str(caught.value), hashlib.sha256(damaged.read_bytes()).hexdigest()
    for part in (f"shard file://{damaged}", found, hashlib.sha256(good).hexdigest(), "rank 0"):
        assert part in text
    assert f"{hashlib.sha256(good).hexdigest()}.tar" not in whole(cache) and not list(cache.glob("*.tmp"))
    damaged.write_bytes(good)
    assert_same(batches_of(remote, 0), batches_of(replace(hp, pair_dir=None), 0))


@pytest.mark.multi
def test_damage_met_in_a_loader_worker_names_the_url(hp, folder):
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    remote = mix_corpora.with_task(replace(hp, fg_dir=f"file://{folder}", pair_dir=None), silence_prob=0.0)
    batches = open_stream(remote, num_workers=1).from_draw(0)
    with pytest.raises(
        DataError, match=rf"shard file://{folder}/fg-\d+\.tar, draw 0, rank 0: was fetched as"
    ):
        next(batches)
    batches.close()


def test_a_cached_shard_that_was_cut_is_fetched_again(folder, cache):
    shard = shards_of(f"file://{folder}")[0]
    os.close(shard.open())
    os.truncate(cache / f"{shard.sha256}.tar", 1000)
    assert content(shard.open()) == (folder / shard.tar).read_bytes()


def test_the_cache_stays_within_its_bound_and_keeps_what_was_used_last(folder, cache, monkeypatch):
    sizes = [shard.size for shard in shards_of(f"file://{folder}")[:4]]
    # Any three fit, four do not.
    bound = sum(sorted(sizes)[1:])
    assert bound < sum(sizes)
    monkeypatch.setenv("WAVEWRIGHT_CACHE_GB", repr(bound / 1e9 + 1e-12))
    first, second, third, fourth = shards_of(f"file://{folder}")[:4]
    held = second.open()
    for age, shard in enumerate((first, second, third)):
        os.close(shard.open())
        os.utime(cache / f"{shard.sha256}.tar", ns=(age, age))
    os.close(first.open())
    os.close(fourth.open())
    assert sum(whole(cache).values()) <= bound
    kept = {path.stem for path in cache.glob("*.tar")}
    assert {first.sha256, fourth.sha256} <= kept and second.sha256 not in kept
    assert content(held) == (folder / second.tar).read_bytes(), (
        "a removed shard stays readable where it is open"
    )
    for shard in (second, third, second, first, fourth):
        assert content(shard.open()) == (folder / shard.tar).read_bytes()
        assert sum(whole(cache).values()) <= bound


def test_a_cache_smaller_than_the_corpora_is_told_and_one_smaller_than_a_shard_refused(hp, monkeypatch):
    remote = replace(hp, fg_dir=f"file://{hp.fg_dir}")
    assert open_stream(remote).warnings == open_stream(hp).warnings
    monkeypatch.setenv("WAVEWRIGHT_CACHE_GB", "0.0002")
    (line,) = set(open_stream(remote).warnings) - set(open_stream(hp).warnings)
    assert "0.0002 GB" in line and "again and again" in line
    monkeypatch.setenv("WAVEWRIGHT_CACHE_GB", "0.00001")
    with pytest.raises(CorpusError, match=r"has a shard of .* \$WAVEWRIGHT_CACHE_GB higher"):
        open_stream(remote)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many"])
def test_a_cache_size_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("WAVEWRIGHT_CACHE_GB", text)
    with pytest.raises(CorpusError, match=f"WAVEWRIGHT_CACHE_GB is '{text}'"):
        ShardCache.of_environment()


def test_too_small_a_disk_is_told_before_fetching(folder, cache, monkeypatch):
    shard = shards_of(f"file://{folder}")[0]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, shard.size - 1)
    )
    monkeypatch.setattr(LocalFileSystem, "get_file", None)
    with pytest.raises(
        DataError, match=rf"MB in the cache {cache}, whose disk has .* MB free\. Set \$WAVEWRIGHT_CACHE"
    ):
        shard.open()


def test_a_cache_folder_that_cannot_be_written_is_named(folder, cache):
    shard = shards_of(f"file://{folder}")[0]
    cache.write_text("a file")
    with pytest.raises(DataError, match=f"the cache {cache} cannot be used: .*File exists"):
        shard.open()


def refused(url: str, *texts: str) -> None:
    with pytest.raises(CorpusError) as caught:
        Corpus.open(url, "fg")
    for text in texts:
        assert text in str(caught.value)


def test_what_is_not_there_is_named_by_its_url(folder, tmp_path):
    url = f"file://{folder}"
    refused(
        f"file://{tmp_path}/none",
        f"The fg corpus file://{tmp_path}/none has no dataset.json",
        "--output data/fg",
    )
    (folder / "fg-000001.tar").rename(tmp_path / "tar")
    refused(url, f"{url}/fg-000001.tar is missing. Check the URL")
    (tmp_path / "tar").rename(folder / "fg-000001.tar")
    os.truncate(folder / "fg-000001.tar", 100)
    refused(url + "/", f"{url}/fg-000001.tar is cut short: 100 bytes")
    (folder / "fg-000000.tar.json").write_bytes((folder / "fg-000001.tar.json").read_bytes())
    refused(url, f"{url}/fg-000000.tar.json is the sidecar of another file")
    (folder / "fg-000000.tar.json").unlink()
    refused(url, f"{url}/fg-000000.tar.json is missing")


def test_a_corpus_that_goes_away_while_training_is_named(folder):
    shard = shards_of(f"file://{folder}")[0]
    (folder / shard.tar).unlink()
    with pytest.raises(DataError, match=f"shard file://{folder}/{shard.tar}: is missing"):
        shard.open()


class Unlucky(LocalFileSystem):
    """A protocol whose package raises errors of its own."""

    protocol = "unlucky"
    calls = 0

    def cat_file(self, *_: object, **__: object) -> bytes:
        Unlucky.calls += 1
        raise LookupError("no route to bucket")


def test_an_error_of_a_protocols_package_is_told_at_once_with_the_url(monkeypatch):
    fsspec.register_implementation("unlucky", Unlucky, clobber=True)
    refused("unlucky://b/fg", "unlucky://b/fg/dataset.json cannot be read: LookupError: no route to bucket")
    assert Unlucky.calls == 1


def test_a_missing_package_and_an_unknown_protocol_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused("s3://bucket/fg", "s3://bucket/fg needs the Python package s3fs", "pip install s3fs")
    refused("nonsense://bucket/fg", "nonsense://bucket/fg cannot be used: Protocol not known: nonsense")


class Fetching:
    """A source without a batch, whose first nine waits of a second see a shard grow; and the clock of the waits."""

    def __init__(self, cache: Path) -> None:
        self.growing = cache / "a.tmp"
        self.waits: list[float] = []

    def next_arrays(self, timeout_seconds: float) -> None:
        self.waits.append(timeout_seconds)
        if len(self.waits) < 10:
            self.growing.write_bytes(bytes(len(self.waits)))

    def awaited(self) -> str:
        return "a shard"

    def monotonic(self) -> float:
        return sum(self.waits)


def test_a_wait_in_which_shards_arrive_is_not_counted(cache, monkeypatch):
    cache.mkdir()
    source = Fetching(cache)
    monkeypatch.setattr(stream, "time", source)
    batches = stream.BatchIterator(source, 2.5, ShardCache.of_environment())
    with pytest.raises(TimeoutError, match="data_timeout_seconds"):
        while True:
            assert batches.next_batch(1.0) is None
    assert source.waits == [*[1.0] * 9, 1.0, 1.0, 0.5]


def test_evaluate_takes_a_url_as_it_is_written():
    words = ["--run", "runs/base", "--fg-dir", "s3://bucket/fg", "--bg-dir", "data/bg"]
    args = evaluate._parser().parse_args(words)
    assert (args.fg_dir, args.bg_dir, args.rir_dir) == ("s3://bucket/fg", Path("data/bg"), None)


@pytest.mark.parametrize("url", ["reference://::file:///tmp/index.json", "zip://fg::http://localhost/a.zip"])
def test_a_chain_of_urls_is_refused(url):
    with pytest.raises(CorpusError, match="is a chain of URLs"):
        Corpus.open(url, "fg")
