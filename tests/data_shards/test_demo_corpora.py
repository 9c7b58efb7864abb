"""The demo corpora are built once, and never in place of corpora that are there."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from data_shards.corpus import Corpus
from launch import demo_corpora
from tests.data_shards import mix_corpora


@pytest.fixture
def small_audio(monkeypatch):
    """A stand-in for the synthesis, which would take ten seconds; counts its calls."""
    calls = []

    def write(folder, *, seed, rate_hz, report):
        calls.append(folder)
        rng = np.random.default_rng(seed)
        for name in ("fg/voice-00/0", "fg/voice-01/0", "bg/0", "bg/1", "rir/0", "rir/1"):
            mix_corpora.write_wav(folder / f"{name}.wav", mix_corpora.tone_and_noise(rng, 0.5))
        report("synthesised")

    monkeypatch.setattr(demo_corpora, "write_demo_audio", write)
    return calls


def run(tmp_path):
    return demo_corpora.main(["--data", str(tmp_path), "--rate", str(mix_corpora.RATE_HZ)])


def test_all_three_corpora_are_built_and_open(small_audio, tmp_path, capsys):
    assert run(tmp_path) == 0
    for kind in ("fg", "bg", "rir"):
        assert len(Corpus.open(tmp_path / kind, kind, mix_corpora.RATE_HZ)) == 2
    assert Corpus.open(tmp_path / "fg", "fg").groups == ("voice-00", "voice-01")
    assert "demo corpora written" in capsys.readouterr().out


def test_a_corpus_that_is_there_stays_as_it_is(small_audio, tmp_path, capsys):
    run(tmp_path)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "fg").iterdir())}
    shutil.rmtree(tmp_path / "bg")
    assert run(tmp_path) == 0
    assert "stays as it is" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in sorted((tmp_path / "fg").iterdir())} == before
    assert len(Corpus.open(tmp_path / "bg", "bg")) == 2
    assert len(small_audio) == 1


def test_audio_of_an_interrupted_run_is_made_again(small_audio, tmp_path):
    leftover = tmp_path / f"demo-audio-{mix_corpora.RATE_HZ}hz-seed0.unfinished"
    mix_corpora.write_wav(leftover / "fg/half/half.wav", np.full(4000, 999, np.int16))
    assert run(tmp_path) == 0
    assert Corpus.open(tmp_path / "fg", "fg").groups == ("voice-00", "voice-01")


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_corpora, "write_demo_audio", interrupted)
    assert run(tmp_path) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_what_the_user_must_mend_is_one_line_and_exit_code_2(small_audio, tmp_path, capsys):
    (tmp_path / "fg").write_text("a file where a folder is needed")
    assert run(tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: ")
