"""A checkpoint appears whole or not at all, and restores exactly or is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backend import RECORD, TinyBackend, checkpoints_in, state_at

from enhancer.engine import host_rng
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.manifest import MANIFEST, DamagedCheckpoint, verify
from enhancer.engine.publisher import SaveError
from enhancer.engine.retention import Retention
from hparams.errors import UserError

HERE = Path(__file__).parent
EVALUATED = replace(state_at(5), evaluated=5, best=1.0, best_step=5, stale=0)


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    checkpoints = checkpoints_in(folder, keep)
    backend = TinyBackend()
    for step in steps:
        backend.values = torch.full((100,), float(step))
        checkpoints.save(state_at(step), backend)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def draw_from_all() -> list[float]:
    return [*torch.randn(3).tolist(), *np.random.randn(3).tolist(), random.gauss(0, 1), random.random()]


def test_a_restored_run_has_the_state_the_values_and_the_random_numbers(tmp_path):
    checkpoints = saved(tmp_path)
    backend = TinyBackend()
    backend.values = torch.randn(100)
    random.gauss(0, 1)  # leaves a pending normal variate in Python's generator
    np.random.randn()
    checkpoints.save(state_at(7), backend)
    expected = draw_from_all()
    draw_from_all()

    other = TinyBackend()
    found = checkpoints_in(tmp_path).latest_valid()
    assert found is not None
    assert checkpoints.restore(found, other) == state_at(7)
    assert torch.equal(other.values, backend.values)
    assert draw_from_all() == expected
    assert found.record == {**RECORD, **backend.describe()}


def test_versions_are_recorded_when_none_are_given(tmp_path):
    given = {key: value for key, value in RECORD.items() if key != "versions"}
    checkpoints = Checkpoints(tmp_path, Retention(1), given)
    checkpoints.save(state_at(1), TinyBackend())
    found = checkpoints.latest_valid()
    assert found is not None
    assert found.record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_fresh_run_has_no_checkpoint(tmp_path):
    assert checkpoints_in(tmp_path).latest_valid() is None


def test_the_manifest_lists_what_sha256sum_finds(tmp_path):
    saved(tmp_path, 3)
    folder = tmp_path / "checkpoints" / "step-0000003"
    files = json.loads((folder / MANIFEST).read_text())["files"]
    others = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    assert sorted(files) == others
    told = subprocess.run(
        ["sha256sum", *others], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1]: line.split()[0] for line in told.splitlines()} == {
        name: entry["sha256"] for name, entry in files.items()
    }


@pytest.mark.parametrize("file_name", ["tiny-0.safetensors", "rng-rank00000.safetensors", MANIFEST])
def test_one_changed_byte_is_named_and_the_checkpoint_before_is_used(tmp_path, file_name):
    saved(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-0000002" / file_name
    content = path.read_bytes()
    for place in random.Random(0).sample(range(len(content)), 40):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        checkpoints = checkpoints_in(tmp_path)
        found = checkpoints.latest_valid()
        assert found is not None and found.state == state_at(1), f"byte {place}"
        text = " ".join(checkpoints.skipped)
        assert "step-0000002 is refused" in text and file_name in text and "step-0000001" in text


@pytest.mark.parametrize("damage", ["cut", "gone", "folder"])
def test_a_file_that_is_not_whole_is_refused(tmp_path, damage):
    saved(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-0000001" / "tiny-0.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    if damage == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=r"no whole checkpoint.*tiny-0\.safetensors.*backup"):
        checkpoints_in(tmp_path).latest_valid()


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "link", "a/../../outside", "a\0b", "a\nb", ".", "", "pipe"]
)
def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path, name):
    saved(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step-0000001"
    (folder / "link").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe")
    content = json.loads((folder / MANIFEST).read_text())
    content.pop("checksum")
    content["files"][name] = {"bytes": 0, "sha256": "0" * 64}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    signed = {**content, "checksum": hashlib.sha256(canonical).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(signed, indent=1) + "\n")
    with pytest.raises(DamagedCheckpoint, match=r"not a file of the folder|is a link"):
        verify(folder)


def test_a_renamed_checkpoint_is_refused(tmp_path):
    checkpoints = saved(tmp_path, 1)
    os.rename(checkpoints.folder / "step-0000001", checkpoints.folder / "step-0000009")
    with pytest.raises(UserError, match=r"is of step 1, not of step-0000009"):
        checkpoints.latest_valid()


def test_saving_the_same_step_again_changes_nothing_but_best(tmp_path):
    checkpoints = saved(tmp_path, 5)
    folder = checkpoints.folder / "step-0000005"
    before = (folder.stat().st_ino, (folder / MANIFEST).stat().st_mtime_ns)
    assert checkpoints.save(state_at(5), TinyBackend(), is_best=True) == folder
    assert (folder.stat().st_ino, (folder / MANIFEST).stat().st_mtime_ns) == before
    assert (checkpoints.folder / "BEST").read_text() == "step-0000005\n"


def test_a_whole_checkpoint_is_never_replaced_by_one_of_the_same_step(tmp_path):
    checkpoints = saved(tmp_path, 5)
    checkpoints.save(EVALUATED, TinyBackend(before_write=full_disk), is_best=True)
    other = TinyBackend()
    checkpoints.restore(checkpoints.latest_valid(), other)
    assert torch.equal(other.values, torch.full((100,), 5.0))


def looked_at(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change of every file but the manifest."""
    stats = {path.name: path.stat() for path in folder.iterdir() if path.name != MANIFEST}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.mark.parametrize("is_best", [False, True])
@pytest.mark.parametrize("is_restored", [False, True])
def test_an_evaluation_after_the_save_is_written_into_the_manifest_alone(tmp_path, is_best, is_restored):
    checkpoints = saved(tmp_path, 5)
    folder = checkpoints.folder / "step-0000005"
    before, record = looked_at(folder), verify(folder).record
    if is_restored:
        checkpoints = checkpoints_in(tmp_path)
        checkpoints.restore(checkpoints.latest_valid(), TinyBackend())
    if is_best:
        checkpoints.save(EVALUATED, TinyBackend(), is_best=True)
    else:
        checkpoints.amend(EVALUATED)
    assert looked_at(folder) == before
    assert (verify(folder).state, verify(folder).record) == (EVALUATED, record)
    # What it was trained on since is another matter: those steps were skipped, and are taken again from here.
    checkpoints.amend(replace(EVALUATED, draws=999, skipped=1))
    assert verify(folder).state == EVALUATED
    assert names(tmp_path) == ["BEST"] * is_best + ["LATEST", "step-0000005"]


def test_an_evaluation_at_a_step_without_a_checkpoint_changes_none(tmp_path):
    checkpoints = saved(tmp_path, 4)
    checkpoints.amend(EVALUATED)
    assert checkpoints.latest_valid().state == state_at(4)
    assert names(tmp_path) == ["LATEST", "step-0000004"]


def test_a_manifest_that_cannot_be_amended_stays_as_it_was(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr("enhancer.engine.atomic.os.fsync", lambda descriptor: full_disk())
        with pytest.raises(SaveError, match=r"step-0000005 is saved, but .* No space left.*evaluate again"):
            checkpoints.amend(EVALUATED)
    assert checkpoints.latest_valid().state == state_at(5)
    checkpoints.amend(EVALUATED)
    assert checkpoints.latest_valid().state == EVALUATED


@pytest.mark.parametrize("num_renames", range(4))
def test_a_kill_at_any_moment_of_amending_is_mended_by_evaluating_again(tmp_path, num_renames):
    """Manifest, BEST and LATEST are renamed one after another; the next one is where the process dies."""
    saved(tmp_path, 3, 4, 5).save(replace(state_at(3), evaluated=3, best=2.0, best_step=3), TinyBackend())
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(state_at(3), TinyBackend(), is_best=True)
    child = os.fork()
    if child == 0:
        left, rename = [None] * num_renames, os.replace

        def replace_or_die(source, target):
            if not left:
                os._exit(9)
            left.pop()
            rename(source, target)

        os.replace = replace_or_die
        checkpoints_in(tmp_path).save(EVALUATED, TinyBackend(), is_best=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if num_renames < 3 else 0)

    checkpoints = checkpoints_in(tmp_path)
    state = checkpoints.restore(checkpoints.latest_valid(), TinyBackend())
    assert state == (EVALUATED if num_renames else state_at(5))
    if state.evaluated < state.step:
        checkpoints.save(EVALUATED, TinyBackend(), is_best=True)
    assert checkpoints.latest_valid().state == EVALUATED
    assert (checkpoints.folder / "BEST").read_text() == "step-0000005\n"
    assert not list(checkpoints.folder.rglob(".*.tmp-*"))


def test_a_kill_between_a_checkpoint_and_its_pointer_is_mended_by_the_restart(tmp_path):
    checkpoints = saved(tmp_path, 3)
    checkpoints.save(EVALUATED, TinyBackend(), is_best=True)
    for found in ("step-0000003\n", "step-00\x10", None):
        if found is None:
            (checkpoints.folder / "BEST").unlink()
        else:
            (checkpoints.folder / "BEST").write_text(found)
        checkpoints.restore(checkpoints.latest_valid(), TinyBackend())
        assert (checkpoints.folder / "BEST").read_text() == "step-0000005\n"


def test_a_later_best_of_an_evaluation_that_the_manifest_was_not_told_is_kept(tmp_path):
    """As versions left it that did not amend manifests; what lies beyond the checkpoint or is gone, it cannot be."""
    checkpoints = saved(tmp_path, 3, 4, 5)
    checkpoints.save(replace(state_at(6), evaluated=3, best=2.0, best_step=3), TinyBackend())
    saved(tmp_path, 7)
    (checkpoints.folder / "step-0000007" / "tiny-0.safetensors").write_bytes(b"damaged")
    shutil.rmtree(checkpoints.folder / "step-0000004")
    for found, expected in ((5, 5), (6, 6), (7, 3), (4, 3)):
        (checkpoints.folder / "BEST").write_text(f"step-{found:07d}\n")
        checkpoints.restore(checkpoints.latest_valid(), TinyBackend())
        assert (checkpoints.folder / "BEST").read_text() == f"step-{expected:07d}\n"


def test_a_damaged_step_is_written_anew_when_training_comes_by_again(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    (checkpoints.folder / "step-0000002" / "tiny-0.safetensors").write_bytes(b"")
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(state_at(2), TinyBackend())
    assert checkpoints.latest_valid().state == state_at(2)
    assert names(tmp_path) == ["LATEST", "step-0000001", "step-0000002"]


def test_a_damaged_step_stays_until_the_new_one_stands(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    (checkpoints.folder / "step-0000002" / "tiny-0.safetensors").write_bytes(b"damaged")
    with pytest.raises(SaveError):
        checkpoints_in(tmp_path).save(state_at(2), TinyBackend(before_write=full_disk))
    assert (checkpoints.folder / "step-0000002" / "tiny-0.safetensors").read_bytes() == b"damaged"


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = checkpoints_in(tmp_path, 2)
    for step in range(1, 7):
        checkpoints.save(state_at(step), TinyBackend(), is_best=step == 2)
    assert names(tmp_path) == ["BEST", "LATEST", "step-0000002", "step-0000005", "step-0000006"]
    assert (checkpoints.folder / "LATEST").read_text() == "step-0000006\n"


def test_a_damaged_newer_checkpoint_does_not_count_as_kept(tmp_path):
    checkpoints = saved(tmp_path, 10, 50, keep=1)
    (checkpoints.folder / "step-0000050" / MANIFEST).write_text("{}")
    checkpoints.save(state_at(11), TinyBackend())
    found = checkpoints.latest_valid()
    assert found is not None and found.state == state_at(11)


def test_only_what_was_published_is_seen_and_debris_is_removed(tmp_path):
    checkpoints = saved(tmp_path, 1)
    debris = checkpoints.folder / ".step-0000002.tmp-1-0"
    shutil.copytree(checkpoints.folder / "step-0000001", debris)
    (checkpoints.folder / ".LATEST.tmp-1-1").write_text("step-0000002\n")
    (checkpoints.folder / "LATEST").write_text("step-0000077\n")
    found = checkpoints.latest_valid()
    assert found is not None and found.state == state_at(1)
    assert names(tmp_path) == ["LATEST", "step-0000001"]


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def quota_used_up() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize(
    ("refuse", "words"), [(full_disk, "No space left"), (quota_used_up, "Disk quota exceeded")]
)
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path, refuse, words):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(SaveError, match=rf"step-0000002.*{words}.*step-0000001, is untouched.*Make room"):
        checkpoints.save(state_at(2), TinyBackend(before_write=refuse))
    assert names(tmp_path) == ["LATEST", "step-0000001"]
    assert checkpoints.latest_valid().state == state_at(1)


def test_too_little_room_is_found_out_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    backend = TinyBackend(before_write=lambda: pytest.fail("wrote"))
    with pytest.raises(SaveError, match=r"0\.0 MB free"):
        checkpoints.save(state_at(2), backend)
    assert names(tmp_path) == ["LATEST", "step-0000001"]


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tiny_backend import TinyBackend, checkpoints_in, state_at
from enhancer.engine.publisher import SaveError
checkpoints = checkpoints_in(Path(sys.argv[1]))
checkpoints.save(state_at(1), TinyBackend())
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(state_at(2), TinyBackend(size=200_000))
except SaveError as error:
    print(error)
print(checkpoints.latest_valid().state.step)
"""


def test_a_write_that_the_system_refuses_is_survived(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(HERE)], capture_output=True, text=True, check=True
    )
    assert "step-0000002 could not be written" in done.stdout and "File too large" in done.stdout
    assert done.stdout.splitlines()[-1] == "1"
    assert names(tmp_path) == ["LATEST", "step-0000001"]


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("way", ["beside", "waiting"])
def test_killed_while_saving_the_last_published_checkpoint_always_loads(tmp_path, way):
    seed = random.SystemRandom().randrange(10**6)
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_while_saving.py"), str(tmp_path), "20", str(seed), way],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    assert int(done.stdout) >= 5, f"seed {seed}: too few kills fell into a save: {done.stdout}"


TWO_RANKS = """
import errno, os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
import torch.distributed as dist
from tiny_backend import TinyBackend, checkpoints_in, state_at
from enhancer.engine.publisher import SaveError
rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(rank)
checkpoints = checkpoints_in(Path(sys.argv[1]))
backend = TinyBackend()
backend.values += rank
checkpoints.save(state_at(1), backend)
expected = torch.randn(2).tolist()
def full():
    if rank == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
try:
    checkpoints.save(state_at(2), TinyBackend(before_write=full))
except SaveError as error:
    assert "rank 1" in str(error) and "step-0000001, is untouched" in str(error), error
else:
    raise SystemExit("saved on a full disk")
other = TinyBackend()
found = checkpoints.latest_valid()
assert checkpoints.restore(found, other) == state_at(1)
assert torch.equal(other.values, backend.values) and torch.randn(2).tolist() == expected
assert found.record["world_size"] == 2
dist.destroy_process_group()
"""


@pytest.mark.multi
def test_ranks_save_together_and_fail_together(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(tmp_path), str(HERE), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert names(tmp_path) == ["LATEST", "step-0000001"]


@pytest.mark.parametrize("position", [-1, 625, 10**6, 2**40])
def test_a_state_of_numpy_beyond_its_array_is_refused(position):
    states = host_rng.capture()
    states["numpy"][-2] = position
    before = np.random.get_state()[2]
    with pytest.raises(ValueError, match="a generator of 624 words"):
        host_rng.restore(states)
    assert np.random.get_state()[2] == before


def test_a_linked_checkpoint_is_named_and_not_taken_for_a_fresh_run(tmp_path):
    checkpoints = saved(tmp_path, 1)
    (checkpoints.folder / "step-0000001").rename(tmp_path / "elsewhere")
    (checkpoints.folder / "step-0000001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"step-0000001 is a link"):
        checkpoints.latest_valid()


def test_where_best_says_nothing_no_checkpoint_is_removed(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, keep=1)
    (checkpoints.folder / "BEST").write_text("../../etc")
    checkpoints.save(state_at(3), TinyBackend())
    assert names(tmp_path) == ["BEST", "LATEST", "step-0000002", "step-0000003"]
    checkpoints.save(state_at(4), TinyBackend(), is_best=True)
    assert names(tmp_path) == ["BEST", "LATEST", "step-0000004"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", "3"),
        ("step", 2**62),
        ("draws", None),
        ("best", "1"),
        ("skipped", True),
        ("new", 0),
    ],
)
def test_a_state_that_no_run_is_in_is_refused_though_the_checksum_fits(tmp_path, key, value):
    saved(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step-0000001"
    content = json.loads((folder / MANIFEST).read_text())
    content.pop("checksum")
    content["state"][key] = value
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    signed = {**content, "checksum": hashlib.sha256(canonical).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(signed, indent=1) + "\n")
    with pytest.raises(DamagedCheckpoint):
        verify(folder)
