"""launch/apply.py on files: what it keeps of them, what it refuses, and what it needs of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import save_file

from enhancer.engine.manifest import write_manifest
from enhancer.engine.state import State
from enhancer.inference import load_run
from hparams.load import dump
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams
from launch.apply import main
from tests.models.test_denoiser import perturbed

REPOSITORY = Path(__file__).resolve().parents[2]


def make_run(folder: Path, model: torch.nn.Module) -> Path:
    """A run folder with nothing but what using the model may need."""
    checkpoint = folder / "checkpoints" / "step-0000007"
    checkpoint.mkdir(parents=True)
    (folder / "hparams.yaml").write_text(dump(HParams(task=DenoiseHParams(width=2))))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        checkpoint / "denoiser.safetensors",
    )
    write_manifest(checkpoint, State(step=7), {})
    (folder / "checkpoints" / "LATEST").write_text("step-0000007\n")
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), perturbed())


@pytest.fixture(scope="module")
def identity_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from enhancer.models.denoiser import MaskUNet

    return make_run(tmp_path_factory.mktemp("identity"), MaskUNet(2))


def tone(seconds: float, rate_hz: int, channels: int) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.stack([0.2 * np.sin(2 * np.pi * 330 * (c + 1) * time) for c in range(channels)], axis=1)


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels", "subtype"),
    [
        ("a.wav", 44_100, 1, "PCM_16"),
        ("b.wav", 48_000, 2, "FLOAT"),
        ("c.flac", 16_000, 1, "PCM_24"),
        ("d.aiff", 22_050, 2, "PCM_16"),
        ("e.ogg", 44_100, 1, "VORBIS"),
        ("f.wav", 96_000, 3, "PCM_24"),
    ],
)
def test_rate_length_channels_and_subtype_are_kept(
    identity_run: Path, tmp_path: Path, name: str, rate_hz: int, channels: int, subtype: str
) -> None:
    """An identity model gives the file back: resampled there and back, without delay or lost end."""
    wave = tone(1.7, rate_hz, channels)
    sf.write(tmp_path / name, wave, rate_hz, subtype)
    target = tmp_path / f"out_{name}"
    assert main(["--run", str(identity_run), "--input", str(tmp_path / name), "--output", str(target)]) == 0
    before, after = sf.info(tmp_path / name), sf.info(target)
    assert (after.samplerate, after.frames, after.channels, after.subtype) == (
        before.samplerate,
        before.frames,
        before.channels,
        before.subtype,
    )
    if subtype == "VORBIS":
        # What a second encoding costs by itself is not the model's doing.
        sf.write(tmp_path / "again.ogg", sf.read(tmp_path / name)[0], rate_hz)
        name = "again.ogg"
    heard, _ = sf.read(tmp_path / name, always_2d=True)
    restored, _ = sf.read(target, always_2d=True)
    edge = rate_hz // 20
    assert np.abs(restored - heard)[edge:-edge].max() < 1e-3


def test_a_file_in_chunks_is_the_model_on_the_whole_file(run_dir: Path, tmp_path: Path) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal((44_100 * 25, 1)).astype(np.float32)
    sf.write(tmp_path / "in.wav", wave, 44_100, "FLOAT")
    arguments = [
        "--run",
        str(run_dir),
        "--input",
        str(tmp_path / "in.wav"),
        "--output",
        str(tmp_path / "out.wav"),
    ]
    assert main([*arguments, "--chunk-seconds", "6"]) == 0
    restored, _ = sf.read(tmp_path / "out.wav", dtype="float32")
    with torch.no_grad():
        whole = load_run(run_dir).module(torch.from_numpy(wave.T.copy()))[0].numpy()
    assert np.abs(restored - whole).max() < 1e-4


def test_a_quiet_file_is_heard_at_a_trained_level_and_given_back_at_its_own(
    identity_run: Path, tmp_path: Path
) -> None:
    sf.write(tmp_path / "in.wav", 1e-3 * tone(1.0, 44_100, 1), 44_100, "FLOAT")
    assert (
        main(
            [
                "--run",
                str(identity_run),
                "--input",
                str(tmp_path / "in.wav"),
                "--output",
                str(tmp_path / "o.wav"),
            ]
        )
        == 0
    )
    heard, restored = (sf.read(tmp_path / name)[0] for name in ("in.wav", "o.wav"))
    np.testing.assert_allclose(restored, heard, atol=1e-7)


def test_folders_are_walked_and_their_tree_is_kept(identity_run: Path, tmp_path: Path) -> None:
    for name in ("one.wav", "deep/er/two.flac", "deep/empty.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        length = 0 if "empty" in name else 0.3
        sf.write(tmp_path / "in" / name, tone(length, 44_100, 1), 44_100)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    assert (
        main(["--run", str(identity_run), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
        == 0
    )
    written = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert written == ["deep/empty.wav", "deep/er/two.flac", "one.wav"]


def cut_flac(path: Path) -> None:
    """A FLAC file that tells three seconds of noise and ends in the middle of them."""
    sf.write(path, 0.1 * np.random.default_rng(0).standard_normal((3 * 44_100, 1)), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_files_of_a_folder_that_fail_are_named_counted_and_do_not_stop_the_others(
    identity_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    (target / "blocked.wav").mkdir(parents=True)
    for name in ("a.wav", "blocked.wav", "deep/z.flac"):
        sf.write(source / name, tone(0.3, 44_100, 1), 44_100)
    cut_flac(source / "cut.flac")
    (source / "deep" / "text.wav").write_text("not audio")
    sf.write(source / "nan.wav", np.full(100, np.nan), 44_100, "FLOAT")
    assert main(["--run", str(identity_run), "--input", str(source), "--output", str(target)]) == 2
    told = capsys.readouterr()
    first, *others, last = told.err.splitlines()
    assert first.startswith(f"[2/6] failed: {source / 'blocked.wav'}: ") and "Is a directory" in first
    assert others[0].startswith(f"[3/6] failed: {source / 'cut.flac'} cannot be read to its end: ")
    assert others[1].startswith(f"[4/6] failed: {source / 'deep/text.wav'} cannot be read as audio: ")
    assert others[2].startswith(f"[6/6] failed: {source / 'nan.wav'} holds NaN or infinite samples")
    assert last == "error: 4 of 6 files failed"
    assert "2 files, 0.6 s of audio" in told.out
    written = sorted(path for path in target.rglob("*") if path.is_file())
    assert written == [target / "a.wav", target / "deep" / "z.flac"]
    for path in written:
        heard, restored = (sf.read(folder / path.relative_to(target))[0] for folder in (source, target))
        np.testing.assert_allclose(restored, heard, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--input", "absent.wav", "--output", "o.wav"], "--input absent.wav does not exist"),
        (["--input", "in.wav", "--output", "o.xyz"], "no known audio suffix"),
        (["--input", "in.wav", "--output", "in.wav"], "is the input itself"),
        (["--input", "empty", "--output", "out"], "holds no audio"),
        (["--input", ".", "--output", "out"], "--output out lies in --input ."),
        (["--input", "text.wav", "--output", "o.wav"], "cannot be read as audio"),
        (["--input", "nan.wav", "--output", "o.wav"], "NaN or infinite"),
        (["--input", "huge.wav", "--output", "o.wav"], "huge.wav holds absurdly large samples"),
        (["--input", "cut.flac", "--output", "o.wav"], "error: cut.flac cannot be read to its end"),
        (["--input", "in.wav", "--output", "o.wav", "--chunk-seconds", "0"], "--chunk-seconds is 0"),
        (
            ["--input", "in.wav", "--output", "o.wav", "--checkpoint", "step-9"],
            "has no checkpoint step-9; it has step-0000007",
        ),
        (["--input", "in.wav", "--output", "o.wav", "--device", "tpu"], "--device tpu is not to be had here"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    sf.write("in.wav", tone(0.1, 44_100, 1), 44_100)
    sf.write("nan.wav", np.full(100, np.nan), 44_100, "FLOAT")
    sf.write("huge.wav", np.full(100, 3e38), 44_100, "FLOAT")
    Path("text.wav").write_text("not audio")
    cut_flac(Path("cut.flac"))
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["--run", str(run_dir), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("hparams.yaml", "holds no hparams.yaml"),
        (
            "checkpoints/step-0000007/denoiser.safetensors",
            "denoiser.safetensors cannot be read (No such file",
        ),
        ("checkpoints/step-0000007/manifest.json", "manifest.json cannot be read (No such file"),
        ("checkpoints", "no finished checkpoint"),
        ("", "there is no run folder"),
    ],
)
def test_a_run_without_what_is_needed_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, text: str
) -> None:
    run = make_run(tmp_path / "run", perturbed())
    (run / missing).rename(tmp_path / "gone")
    sf.write(tmp_path / "in.wav", tone(0.1, 44_100, 1), 44_100)
    arguments = ["--input", str(tmp_path / "in.wav"), "--output", str(tmp_path / "o.wav")]
    assert main(["--run", str(run), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.multi
def test_applying_imports_neither_deepspeed_nor_the_training_engine(
    identity_run: Path, tmp_path: Path
) -> None:
    sf.write(tmp_path / "in.wav", tone(0.2, 44_100, 1), 44_100)
    script = (
        "import sys; from launch.apply import main; "
        f"code = main(['--run', {str(identity_run)!r}, '--input', {str(tmp_path / 'in.wav')!r}, "
        f"'--output', {str(tmp_path / 'o.wav')!r}]); "
        "bad = {'deepspeed', 'accelerate', 'tensorboard', 'data_shards'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_refused(
    tmp_path: Path, identity_run: Path, capsys: pytest.CaptureFixture[str], rate_hz: int
) -> None:
    source = tmp_path / "in.wav"
    sf.write(source, tone(0.1, 8000, 2), 8000)
    data = bytearray(source.read_bytes())
    data[24:28] = rate_hz.to_bytes(4, "little")
    source.write_bytes(data)
    assert (
        main(["--run", str(identity_run), "--input", str(source), "--output", str(tmp_path / "o.wav")]) == 2
    )
    assert f"implausible sample rate of {rate_hz} Hz" in capsys.readouterr().err


def test_what_is_plausible_is_what_a_corpus_is_built_from() -> None:
    from data_shards import ingest
    from launch import common

    assert common.SOURCE_RATES_HZ == (ingest.MIN_SOURCE_HZ, ingest.MAX_SOURCE_HZ)
    assert common.MOST_FRAMES_PER_BYTE == ingest.MAX_FRAMES_PER_BYTE
    assert common.HIGHEST_LEVEL == ingest.MAX_FLOAT_LEVEL
