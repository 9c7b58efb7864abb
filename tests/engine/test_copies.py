"""Copies of checkpoints at a URL: whole when the manifest is there, and enough to go on from on an empty disk."""

from __future__ import annotations

import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from ranks import column, records, status
from tiny_backend import RECORD, TinyBackend, checkpoints_in, state_at
from toy import ToyStream, ToyTask, toy_hparams

from data_shards.remote import RemoteError, RemoteFolder
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.copies import Copies, CopyError, fetch_run
from enhancer.engine.manifest import MANIFEST, verify, write_manifest
from enhancer.engine.retention import Retention
from enhancer.engine.session import Options, train
from enhancer.engine.state import State
from hparams.errors import UserError

SECONDS = 60.0


class Recorded(RemoteFolder):
    """A remote folder that tells what was sent, and refuses the names that `refused` is part of."""

    sent: list[str]
    refused: str
    is_stuck = False

    def send(self, source: Path, name: str) -> None:
        while self.is_stuck and name.startswith("checkpoints"):
            time.sleep(0.05)
        if self.refused and self.refused in name:
            raise RemoteError(self.at(name), "cannot be written: the test says so")
        self.sent.append(name)
        super().send(source, name)


def remote_at(url: str, refused: str = "") -> Recorded:
    remote = Recorded(url)
    object.__setattr__(remote, "sent", [])
    object.__setattr__(remote, "refused", refused)
    return remote


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> Iterator[str]:
    """A URL with nothing below it."""
    yield f"file://{tmp_path}/remote" if request.param == "file" else "memory://copies"
    if request.param == "memory" and fsspec.filesystem("memory").exists("/copies"):
        fsspec.filesystem("memory").rm("/copies", recursive=True)


def copied(remote: RemoteFolder, run: Path, *steps: int, keep: int = 9, best: int = 0) -> Checkpoints:
    """Checkpoints of `steps` in `run`, each copied before the next."""
    retention = Retention(keep)
    copies = Copies(remote, run, retention, lambda text: None)
    checkpoints = Checkpoints(run, retention, RECORD, copies=copies)
    for step in steps:
        backend = TinyBackend()
        backend.values = torch.full((100,), float(step))
        checkpoints.save(state_at(step), backend, is_best=step == best)
        assert checkpoints.finish_copies(SECONDS)
    return checkpoints


def fetched(remote: RemoteFolder, run: Path) -> list[str]:
    said: list[str] = []
    fetch_run(remote, run, said.append)
    return said


def test_the_manifest_is_sent_last_and_the_copy_is_the_checkpoint(url, tmp_path):
    remote = remote_at(url)
    copied(remote, tmp_path / "run", 1)
    folder = "checkpoints/step-0000001"
    own = {path.name: path.read_bytes() for path in (tmp_path / "run" / folder).iterdir()}
    of_checkpoint = [name for name in remote.sent if name.startswith(folder)]
    assert of_checkpoint[-1] == f"{folder}/{MANIFEST}"
    assert len(of_checkpoint) == len(own)
    assert remote.sent[-1] == "checkpoints/LATEST"
    assert remote.names(folder) == sorted(own)
    assert dict(zip(own, remote.read([f"{folder}/{name}" for name in own]), strict=True)) == own


def test_an_empty_run_folder_is_filled_with_the_newest_and_the_best(url, tmp_path):
    remote = remote_at(url)
    first = tmp_path / "first"
    copied(remote, first, 1, 2, 3, 4, keep=2, best=2)
    assert fetched(remote, tmp_path / "second") == [
        f"step-0000004 fetched from {url}",
        f"step-0000002 fetched from {url}",
    ]
    second = tmp_path / "second" / "checkpoints"
    assert sorted(path.name for path in second.iterdir()) == [
        "BEST",
        "LATEST",
        "step-0000002",
        "step-0000004",
    ]
    for name in ("step-0000002", "step-0000004"):
        assert verify(second / name) == verify(first / "checkpoints" / name)
    assert (second / "BEST").read_text() == "step-0000002\n"
    assert (second / "LATEST").read_text() == "step-0000004\n"


def test_a_run_folder_with_a_checkpoint_is_left_alone(url, tmp_path):
    remote = remote_at(url)
    copied(remote, tmp_path / "first", 7)
    checkpoints_in(tmp_path / "second").save(state_at(1), TinyBackend())
    assert fetched(remote, tmp_path / "second") == []
    assert not (tmp_path / "second" / "checkpoints" / "step-0000007").exists()
    assert fetched(remote_at(f"{url}/nothing"), tmp_path / "third") == []
    assert not (tmp_path / "third").exists()


def test_old_copies_are_removed_as_old_checkpoints_are(url, tmp_path):
    remote = remote_at(url)
    copied(remote, tmp_path / "run", 1, 2, 3, 4, keep=2, best=1)
    assert remote.names("checkpoints") == ["BEST", "LATEST", "step-0000001", "step-0000003", "step-0000004"]


def test_a_copy_that_was_cut_off_is_no_checkpoint(url, tmp_path):
    copied(remote_at(url), tmp_path / "run", 1)
    broken = remote_at(url, refused=f"step-0000002/{MANIFEST}")
    with pytest.raises(UserError, match=r"step-0000002/manifest.json cannot be written: the test says so"):
        copied(broken, tmp_path / "run", 2)
    # The local checkpoint stands all the same.
    assert checkpoints_in(tmp_path / "run").latest_valid().state == state_at(2)
    said = fetched(remote_at(url), tmp_path / "second")
    assert "step-0000002" in said[0] and "not sent to the end" in said[0]
    assert checkpoints_in(tmp_path / "second").latest_valid().state == state_at(1)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "outside", "renamed"])
def test_a_damaged_copy_is_named_and_the_one_before_is_used(tmp_path, damage):
    remote = remote_at(f"file://{tmp_path}/remote")
    copied(remote, tmp_path / "first", 1, 2)
    folder = tmp_path / "remote" / "checkpoints" / "step-0000002"
    file = folder / "tiny-0.safetensors"
    if damage == "changed":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "outside":
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace("tiny-0.safetensors", "../../outside"))
    else:
        folder.rename(folder.with_name("step-0000009"))
    said = fetched(remote, tmp_path / "second")
    assert "is refused" in said[0] and said[1].startswith("step-0000001 fetched"), said
    assert sorted(path.name for path in (tmp_path / "second" / "checkpoints").iterdir()) == [
        "LATEST",
        "step-0000001",
    ]
    shutil.rmtree(tmp_path / "remote" / "checkpoints" / "step-0000001")
    with pytest.raises(CopyError, match=r"no whole checkpoint.*checkpoint_copy_url"):
        fetched(remote, tmp_path / "third")


def test_too_little_room_for_a_copy_is_found_out_before_it_is_fetched(tmp_path, monkeypatch):
    remote = remote_at(f"file://{tmp_path}/remote")
    copied(remote, tmp_path / "first", 1)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CopyError, match=r"needs 0\.0 MB.*0\.0 MB free.*--run-dir"):
        fetched(remote, tmp_path / "second")
    assert list((tmp_path / "second" / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_another_run_left_under_the_same_name_is_replaced(url, tmp_path):
    copied(remote_at(url), tmp_path / "first", 1)
    other = checkpoints_in(tmp_path / "second")
    other.record["fingerprint"] = "corpora-2"
    backend = TinyBackend()
    backend.values += 5
    other.save(state_at(1), backend)
    copies = Copies(remote_at(url), tmp_path / "second", Retention(9), lambda text: None)
    copies.update()
    copies.finish()
    fetched(remote_at(url), tmp_path / "third")
    manifest = verify(tmp_path / "third" / "checkpoints" / "step-0000001")
    assert manifest.record["fingerprint"] == "corpora-2"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_of_an_amended_checkpoint_the_manifest_alone_is_sent_again(url, tmp_path, is_restarted):
    remote, run = remote_at(url), tmp_path / "run"
    checkpoints = copied(remote, run, 1)
    if is_restarted:
        checkpoints = copied(remote, run)
        checkpoints.restore(checkpoints.latest_valid(), TinyBackend())
        assert checkpoints.finish_copies(SECONDS)
    remote.sent.clear()
    evaluated = replace(state_at(1), evaluated=1, stale=1)
    checkpoints.amend(evaluated)
    assert checkpoints.finish_copies(SECONDS)
    assert [name for name in remote.sent if "step-" in name] == [f"checkpoints/step-0000001/{MANIFEST}"]
    fetched(remote, tmp_path / "second")
    assert checkpoints_in(tmp_path / "second").latest_valid().state == evaluated


def test_an_error_of_the_protocol_can_go_to_other_ranks():
    error = RemoteError("s3://bucket/run", "cannot be read: denied")
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.url, type(other)) == (str(error), error.url, RemoteError)


def session(run: Path, remote: RemoteFolder | None, *values: str, fault: str = "") -> int:
    options = Options(run, backend="accelerate", copies=remote)
    return train(
        toy_hparams(*values),
        options,
        lambda hp, place: (ToyTask(), ToyStream(fault=fault, batch_size=place.batch_size)),
    )


def test_a_run_goes_on_from_the_copy_bit_for_bit_when_its_disk_is_lost(url, tmp_path):
    whole, lost, found = tmp_path / "whole", tmp_path / "lost", tmp_path / "found"
    assert session(whole, None) == 0
    assert session(lost, remote_at(url), fault="term:7:0") == 75
    shutil.rmtree(lost)
    assert session(found, remote_at(url)) == 0
    for kind in ("step", "evaluation"):
        assert records(found, kind) == records(whole, kind)
    weights = [
        load_file(run / "checkpoints" / "step-0000010" / "generator.safetensors") for run in (found, whole)
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert column(found, "step") == list(range(1, 11))


def test_another_run_does_not_go_on_from_the_copy(url, tmp_path, capfd):
    assert session(tmp_path / "first", remote_at(url)) == 0
    assert session(tmp_path / "second", remote_at(url), "max_lr=0.02") == 2
    assert "max_lr: the run has 0.01, the command gives 0.02" in capfd.readouterr().err


def test_a_copy_that_fails_ends_the_run_with_its_reason_and_every_step_saved(tmp_path, capfd):
    remote = remote_at(f"file://{tmp_path}/remote", refused="step-0000005/generator.safetensors")
    run = tmp_path / "run"
    assert session(run, remote, "max_steps=100000", "eval_every=100000", "keep_checkpoints=1") == 2
    ended = status(run)
    assert (ended["state"], ended["exit_code"]) == ("failed", 2)
    assert "cannot be written: the test says so" in ended["reason"]
    found = checkpoints_in(run).latest_valid()
    assert found.state.step == ended["step"] >= 5
    assert session(run, remote_at(f"file://{tmp_path}/remote"), f"max_steps={found.state.step}") == 0
    assert remote.names("checkpoints")[-1] == found.folder.name


def test_a_url_that_does_not_come_further_holds_the_end_of_a_run_for_as_long_as_allowed(url, tmp_path):
    remote, run = remote_at(url), tmp_path / "run"
    object.__setattr__(remote, "is_stuck", True)
    named = f"checkpoint_copy_url={url}"
    assert session(run, remote, named, "copy_timeout_seconds=1", fault="term:7:0") == 75
    assert status(run)["state"] == "preempted"
    reason = status(run)["reason"]
    assert reason.startswith("SIGTERM; ") and url in reason and "copy_timeout_seconds=1" in reason
    object.__setattr__(remote, "is_stuck", False)
    assert session(run, remote_at(url), named, "copy_timeout_seconds=60") == 0
    assert status(run)["reason"] == ""
    assert remote.names("checkpoints")[-1] == "step-0000010"


def test_what_a_run_works_with_is_copied_once_and_comes_back(url, tmp_path):
    run, remote = tmp_path / "run", remote_at(url)
    frozen = run / "frozen"
    frozen.mkdir(parents=True)
    (frozen / "stage1.safetensors").write_bytes(b"weights")
    write_manifest(frozen, State(), {})
    copied(remote, run, 5, 10)
    assert [name for name in remote.sent if name.startswith("frozen")] == [
        "frozen/stage1.safetensors",
        f"frozen/{MANIFEST}",
    ]
    (tmp_path / "other/frozen").mkdir(parents=True)
    (tmp_path / "other/frozen/stage1.safetensors").write_bytes(b"of a start that failed")
    said = fetched(remote, tmp_path / "other")
    assert any("frozen fetched" in text for text in said)
    assert (tmp_path / "other/frozen/stage1.safetensors").read_bytes() == b"weights"
    verify(tmp_path / "other/frozen")


def test_a_damaged_copy_of_what_a_run_works_with_is_refused(tmp_path):
    run, remote = tmp_path / "run", remote_at(f"file://{tmp_path}/remote")
    (run / "frozen").mkdir(parents=True)
    (run / "frozen/stage1.safetensors").write_bytes(b"weights")
    write_manifest(run / "frozen", State(), {})
    copied(remote, run, 5)
    (tmp_path / "remote/frozen/stage1.safetensors").write_bytes(b"another")
    with pytest.raises(CopyError, match="frozen, which the run works with, is not whole"):
        fetched(remote, tmp_path / "other")
