"""Test files of a sweep: which pairs a folder holds, and that they are judged as numpy judges what apply.py plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hparams.errors import UserError
from hparams.load import load
from hparams.sweep import Member
from hparams.sweep_settings import Setting
from launch import sweep_files
from launch.apply import main as apply
from launch.grades import FilePair
from launch.sweep_files import check_files, find_pairs, judge_files
from launch.sweep_members import Planned
from tests.export.devices import recurrent
from tests.launch.test_export import make_run

RATE_HZ = 48_000


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """A member that has been trained."""
    run = make_run(tmp_path / "run", recurrent(), "task.hidden_size=16")
    member = Member(Setting((("task.hidden_size", 16),)), 0, run.name, (), ())
    return Planned(member, load(run / "hparams.yaml"), run, ())


@pytest.fixture
def riffs(tmp_path: Path) -> Path:
    folder = tmp_path / "riffs"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name, dry, wet in (("one", "-input.wav", "-target.wav"), ("two", "_dry.flac", "_wet.wav")):
        wave = 0.2 * rng.standard_normal(24_000).cumsum() / 50
        sf.write(folder / f"{name}{dry}", wave.clip(-1, 1), RATE_HZ, "PCM_24")
        sf.write(folder / f"{name}{wet}", np.tanh(2 * wave), RATE_HZ, "FLOAT")
    (folder / "notes.txt").write_text("no sound")
    return folder


def test_both_ways_of_naming_make_pairs(riffs: Path) -> None:
    found = [(pair.name, pair.dry.source, pair.wet.source) for pair in find_pairs(riffs)]
    assert found == [("one", "one-input.wav", "one-target.wav"), ("two", "two_dry.flac", "two_wet.wav")]


def test_files_are_judged_as_apply_plays_them_and_the_sound_is_kept(
    planned: Planned, riffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = find_pairs(riffs)
    found = judge_files(planned, pairs, [])
    for pair in pairs:
        dry = planned.folder / f"{pair.name}-dry.wav"
        sf.write(dry, sf.read(pair.dry.path)[0], RATE_HZ, "FLOAT")
        played = planned.folder / f"{pair.name}-played.wav"
        words = [
            "--run",
            str(planned.folder),
            "--input",
            str(dry),
            "--output",
            str(played),
            "--device",
            "cpu",
        ]
        assert apply(words) == 0
        estimate, target = sf.read(played)[0], sf.read(pair.wet.path)[0]
        assert found[pair.name] == pytest.approx(
            np.sum((estimate - target) ** 2) / np.sum(target**2), rel=1e-4
        )
        kept, rate_hz = sf.read(planned.folder / "files" / f"{pair.name}-estimate.wav")
        assert rate_hz == RATE_HZ and np.abs(kept - estimate).max() <= 1e-6
    # Again: nothing is played, unless a file has changed.
    asked: list[str] = []

    def judge(run: object, pair: FilePair, *rest: object) -> float:
        asked.append(pair.name)
        return 0.5

    monkeypatch.setattr(sweep_files, "judge", judge)
    assert judge_files(planned, pairs, []) == found and not asked
    sf.write(pairs[0].wet.path, 0.9 * sf.read(pairs[0].wet.path)[0], RATE_HZ, "FLOAT")
    assert judge_files(planned, pairs, []) == {"one": 0.5, "two": 0.5} and asked == ["one", "two"]


@pytest.mark.parametrize(
    "change", ["rate", "length", "silence", "stereo", "damage", "knobs", "empty", "none"]
)
def test_what_cannot_be_judged_is_refused_before_any_member_starts(
    planned: Planned, riffs: Path, change: str
) -> None:
    target = riffs / "one-target.wav"
    wave, _ = sf.read(target)
    words = {
        "rate": "one-target.wav is at 44100 Hz and the model at 48000 Hz",
        "length": "has 24000 frames and",
        "silence": "one-target.wav is silent",
        "stereo": "one-target.wav has 2 channels",
        "damage": "one-target.wav: ",
        "knobs": "the model has the knobs none",
        "empty": "holds no pair",
        "none": "is no folder",
    }
    if change == "damage":
        target.unlink()
    if change == "damage":
        target.write_bytes(b"RIFF" + bytes(100))
    rate_hz = 44_100 if change == "rate" else RATE_HZ
    changed = {"rate": wave, "length": wave[:-1], "silence": 0 * wave, "stereo": np.stack([wave, wave], 1)}
    if change in changed:
        sf.write(target, changed[change], rate_hz, "FLOAT")
    if change == "empty":
        for path in riffs.glob("*.*"):
            path.unlink()
    folder = riffs / "elsewhere" if change == "none" else riffs
    with pytest.raises(UserError) as refused:
        check_files([planned], find_pairs(folder), ["drive=0.5"] if change == "knobs" else [])
    assert words[change] in str(refused.value)
