"""Nothing that is read of a run can execute code, also where whoever changed it has signed the manifest again."""

from __future__ import annotations

import json
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch
import yaml

from enhancer.engine.manifest import MANIFEST, _measure
from enhancer.engine.status import read_status
from hparams.errors import UserError
from launch import apply, export, report
from tests.end_to_end.payloads import payloads
from tests.fuzz.targets_run import make_run, sign, use

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
from ranks import run_ranks

_unpickled: list[str] | None = None


def _listen(event: str, arguments: tuple) -> None:
    if event == "pickle.find_class" and _unpickled is not None:
        _unpickled.append(".".join(arguments))


@pytest.fixture
def unpickled(monkeypatch) -> list[str]:
    """Names that any unpickling looked up since, told by the interpreter itself."""
    names: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "_unpickled", names)
    sys.addaudithook(_listen)  # It cannot be taken away again, but hears nothing outside of these tests.
    return names


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file of a run, with a manifest that fits where it is a checkpoint's."""
    path.write_bytes(content)
    manifest = path.parent / MANIFEST
    if manifest.exists() and path != manifest:
        listed = json.loads(manifest.read_bytes())
        size, digest = _measure(path)
        listed["files"][path.name] = {"bytes": size, "sha256": digest}
        sign(path.parent, listed)


def use_all_commands(run: Path, folder: Path) -> None:
    """All ways in which a run is read; those that cannot be used say so."""
    soundfile.write(folder / "in.wav", 0.1 * np.sin(np.arange(4410)), 44_100)
    given = ["--run", str(run)]
    codes = [
        apply.main([*given, "--input", str(folder / "in.wav"), "--output", str(folder / "out.wav")]),
        export.main([*given, "--format", "nam", "--output", str(folder / "out.nam")]),
        report.main([str(run), "--samples-only", "--output", str(folder / "out.html")]),
    ]
    assert set(codes) <= {0, 2}
    for read in (use, read_status):
        with suppress(UserError):
            read(run)


def test_every_payload_executes_code_where_it_is_obeyed(tmp_path):
    """Else the other tests would prove nothing."""
    marker = tmp_path / "marker"
    found = payloads(marker)
    path = tmp_path / "file"
    for name, obey in {
        "pickle": lambda: pickle.loads(found["pickle"]),
        "old pickle": lambda: pickle.loads(found["old pickle"]),
        "torch": lambda: torch.load(path, weights_only=False),
        "old torch": lambda: torch.load(path, weights_only=False),
        "numpy": lambda: np.load(path, allow_pickle=True),
        "yaml": lambda: yaml.unsafe_load(found["yaml"]),
    }.items():
        path.write_bytes(found[name])
        obey()
        assert marker.exists(), name
        marker.unlink()


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def test_no_file_of_a_run_executes_code(tmp_path, unpickled, capsys):
    marker = tmp_path / "marker"
    contents = payloads(marker)
    names = files_of(make_run(tmp_path / "first"))
    assert {name.rpartition("/")[2].split(".", 1)[-1] for name in names} >= {
        "safetensors",
        "rank0.state",
        "json",
    }
    for number, name in enumerate(names):
        # A good part of all pairs; each payload meets each kind of file in one run of the tests or the other.
        for kind in Random(number).sample(sorted(contents), 2):
            run = make_run(tmp_path / f"{number}-{kind}".replace(" ", "-"))
            replace_file(run / name, contents[kind])
            use_all_commands(run, tmp_path)
            assert not marker.exists() and not unpickled, f"{kind} in {name}: {unpickled}"


@pytest.mark.multi
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_no_file_of_a_deepspeed_checkpoint_executes_code(tmp_path, zero_stage):
    program = Path(__file__).with_name("poisoned.py")
    (ended,) = run_ranks("deepspeed", 1, tmp_path, "--set", f"zero_stage={zero_stage}", program=program)
    assert ended.code == 0, ended.text
    assert "files were refused" in ended.text
    assert not (tmp_path / "marker").exists()
