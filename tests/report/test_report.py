"""The report as its command writes it: what is in it, against the files of the run, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from enhancer.charts import EXCESS_FROM_HZ
from enhancer.report.examples import EXCERPT_SECONDS
from enhancer.string_metrics import JUDGED
from enhancer.tasks import TASKS
from launch.report import main
from tests.report.document import Document
from tests.report.run_folders import HOSTILE, RATE_HZ, VALID_SECONDS, Runs, hparams_of, make_run


def report(output: Path, *words: object) -> Document:
    """The report of a command that must succeed."""
    assert main([*map(str, words), "--output", str(output), "--device", "cpu"]) == 0
    return Document(output)


def sounds(document: Document) -> list[tuple[np.ndarray, int]]:
    addresses = [str(attributes["src"]) for attributes in document.of("audio")]
    assert all(address.startswith("data:audio/flac;base64,") for address in addresses)
    return [soundfile.read(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in addresses]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_run_of_every_task_has_its_report(task: str, runs: Runs, tmp_path: Path) -> None:
    document = report(tmp_path / "report.html", runs[task])
    records = [json.loads(line) for line in (runs[task] / "metrics.jsonl").read_text().splitlines()]
    *_, best = [record for record in records if record["kind"] == "evaluation"]
    metric = best["summary"][TASKS[task].best_metric]
    for part in ("mean", "low", "high"):
        assert f"{metric[part]:.4g}" in document.text
    for row in best["rows"]:
        assert f"{row[TASKS[task].best_metric]:.4g}" in document.texts
    assert "by step-0000040" in document.text
    played = sounds(document)
    # Of a string the plain linear filter is played too, of the enhancer Griffin-Lim or the denoiser.
    assert len(played) == (4 if task in ("string", "enhance", "restore") else 3) * min(3, len(best["rows"]))
    for title in ("Loss", "Gradient norm", "Frequency response", "Estimate against target"):
        assert title in document.texts
    pictures = [str(attributes["href"]) for attributes in document.of("image")]
    assert len(pictures) == len(played)
    assert all(address.startswith("data:image/webp;base64,") for address in pictures)
    paths = [attributes["d"] for attributes in document.of("path")]
    assert paths and not any("nan" in str(path) or "inf" in str(path) for path in paths)


def test_a_string_has_its_decay_curves_and_its_failures_in_words(runs: Runs, tmp_path: Path) -> None:
    document = report(tmp_path / "report.html", runs["string"])
    assert document.texts.count("Decay") == 3
    assert "Decay in the octave around 250 Hz" in document.texts
    assert "T60 error" in document.texts and "End DC (dBFS)" in document.texts
    assert "linear filter" in document.texts and "Linear T60 worst error" in document.texts
    assert "in words" in document.texts and "no failure" in document.texts


def test_a_string_is_told_beside_the_plain_filter_and_by_what_its_beginning_foretells(
    runs: Runs, tmp_path: Path
) -> None:
    document = report(tmp_path / "report.html", runs["string"])
    records = [json.loads(line) for line in (runs["string"] / "metrics.jsonl").read_text().splitlines()]
    *_, best = [record for record in records if record["kind"] == "evaluation"]
    rows = best["rows"]
    for prefix, whose in JUDGED.items():
        at = document.texts.index(whose)
        notes = [
            row for row in rows if row[f"{prefix}t60_worst_error"] <= 0.2 and not row[f"{prefix}num_failures"]
        ]
        bands = sum(row[f"{prefix}t60_bands_within"] for row in rows)
        total = sum(row["t60_bands"] for row in rows)
        told = [f"{len(notes)} of {len(rows)}", f"{bands:.0f} of {total:.0f}"]
        assert document.texts[at + 1 : at + 3] == told


def test_one_evaluation_makes_no_curves(runs: Runs, tmp_path: Path) -> None:
    once = shutil.copytree(runs["string"], tmp_path / "once")
    lines = (once / "metrics.jsonl").read_text().splitlines()
    first = next(line for line in lines if json.loads(line)["kind"] == "evaluation")
    kept = [line for line in lines if json.loads(line)["kind"] != "evaluation" or line != first]
    (once / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    twice = report(tmp_path / "twice.html", runs["string"]).texts.count("Spectral distance")
    assert report(tmp_path / "once.html", once).texts.count("Spectral distance") == twice - 1


@pytest.mark.parametrize("task", sorted(TASKS))
def test_it_needs_nothing_beside_itself(task: str, runs: Runs, tmp_path: Path) -> None:
    document = report(tmp_path / "report.html", runs[task])
    for tag, attributes in document.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
    style = (tmp_path / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_what_is_played_is_what_the_checkpoint_makes_of_the_end_of_the_recording(
    runs: Runs, tmp_path: Path
) -> None:
    """Dry and target are cut out of the files that the corpus was made of; five seconds of six."""
    document = report(tmp_path / "report.html", runs["pedal"])
    files = {
        name: soundfile.read(runs["pedal"].parent / f"{name}.wav")[0]
        for name in ("dry-0", "wet-0", "dry-1", "wet-1")
    }
    played = sounds(document)
    assert len(played) == 6
    for (dry, rate_hz), (target, _), (estimate, _) in zip(
        played[::3], played[1::3], played[2::3], strict=True
    ):
        assert rate_hz == RATE_HZ and len(dry) == len(target) == len(estimate) == EXCERPT_SECONDS * RATE_HZ
        places = {number: _place(files[f"dry-{number}"], dry) for number in (0, 1)}
        number = min(places, key=lambda each: places[each][1])
        start, distance = places[number]
        assert distance <= 2 / 32768
        assert start >= len(files["dry-0"]) - VALID_SECONDS * RATE_HZ
        wet = files[f"wet-{number}"][start : start + len(target)]
        np.testing.assert_allclose(target, wet, atol=2 / 32768)


def _place(whole: np.ndarray, piece: np.ndarray) -> tuple[int, float]:
    """Where in `whole` the `piece` fits best, and the greatest difference there."""
    start = int(np.argmax(signal.correlate(whole, piece, "valid", "fft")))
    return start, float(np.abs(whole[start : start + len(piece)] - piece).max())


def test_the_excess_above_10_khz_is_the_ratio_of_energies(runs: Runs, tmp_path: Path) -> None:
    """Of the denoised items, which are played whole: from the sounds in the file, by numpy."""
    document = report(tmp_path / "report.html", runs["denoise"])
    played = sounds(document)
    said = [text for text in document.texts if text.startswith("Excess above 10 kHz")]
    assert len(said) == 3
    for text, (target, _), (estimate, _) in zip(said, played[1::3], played[2::3], strict=True):
        is_high = np.fft.rfftfreq(len(target), 1 / RATE_HZ) >= EXCESS_FROM_HZ
        energies = [np.sum(np.abs(np.fft.rfft(wave)[is_high]) ** 2) for wave in (estimate, target)]
        value = float(text.split()[-2])
        # The sounds are rounded to 16 bit.
        assert value == pytest.approx(10 * np.log10(energies[0] / energies[1]), abs=0.05)


def test_runs_are_compared_on_the_same_items(tmp_path: Path, runs: Runs) -> None:
    hp = hparams_of("pedal", {"pair_dir": runs["pedal"].parent / "pair"}, hidden_size=3, max_lr=0.5)
    other = make_run(tmp_path / "run-other", hp, seed=9)
    document = report(tmp_path / "report.html", runs["pedal"], other)
    played = sounds(document)
    assert len(played) == 2 * 4  # two items: dry, target, and what each run makes of it
    assert "estimate of run-other" in document.texts and "estimate of run-pedal" in document.texts
    differing = document.text.partition("Differences")[2].partition("All values")[0]
    assert "task.hidden_size" in differing and "max_lr" in differing and "0.5" in differing
    assert "gradient_clipping" not in differing


def test_runs_of_different_tasks_share_a_report(runs: Runs, tmp_path: Path) -> None:
    document = report(tmp_path / "report.html", *runs.values())
    assert {f"run-{task}" for task in TASKS} <= set(document.texts)


def test_out_of_reach_corpora_leave_the_kept_sounds_and_a_note(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["pedal"], run)
    text = (run / "hparams.yaml").read_text().replace("/pair\n", "/gone\n")
    (run / "hparams.yaml").write_text(text)
    document = report(tmp_path / "report.html", run)
    kept, _ = soundfile.read(run / "samples/step-0000040/0_target.wav")
    played = sounds(document)
    assert len(played) == 3
    np.testing.assert_allclose(played[1][0], kept, atol=1.1 / 32768)
    assert "kept when judged at step-0000040" in document.text
    assert "run: the validation list was not computed, its kept samples are shown" in document.text
    assert "/gone" in capsys.readouterr().err

    found = report(tmp_path / "found.html", run, "--pair-dir", runs["pedal"].parent / "pair")
    assert "was not computed" not in found.text and len(sounds(found)) == 6

    shutil.rmtree(run / "samples")
    silent = report(tmp_path / "silent.html", run)
    assert "there is nothing to hear of it" in silent.text and not sounds(silent)


def test_a_damaged_checkpoint_and_a_damaged_sound_are_named(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["denoise"], run)
    for weights in run.rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (run / "samples/step-0000040/1_target.wav").write_bytes(b"RIFF")
    document = report(tmp_path / "report.html", run)
    assert "no whole checkpoint" in document.text
    assert "step-0000040/1_target.wav cannot be read" in document.text
    assert len(sounds(document)) == 9  # items 0, 2 and 3


def test_no_text_from_outside_becomes_markup(hostile_run: Path, tmp_path: Path) -> None:
    document = report(tmp_path / "report.html", hostile_run)
    assert not document.of("img") and len(document.of("script")) == 1
    for tag, attributes in document.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    for owner in (f"run{HOSTILE}", HOSTILE):
        assert owner in document.texts
    assert f"dry {HOSTILE}-1.wav" in document.text and f"{HOSTILE}/pair" in document.text
    (policy,) = [tag["content"] for tag in document.of("meta") if tag.get("http-equiv")]
    assert "default-src 'none'" in str(policy) and "unsafe" not in str(policy)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_what_is_no_run_is_refused_in_words(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no run folder" in refusal(capsys, tmp_path / "nowhere")
    assert "holds no hparams.yaml, so it is not a run folder" in refusal(capsys, tmp_path)
    early = tmp_path / "early"
    early.mkdir()
    shutil.copy(runs["pedal"] / "hparams.yaml", early)
    text = refusal(capsys, early)
    assert "has no evaluation in metrics.jsonl yet" in text and "eval_every" in text
    assert "given twice" in refusal(capsys, runs["pedal"], runs["pedal"], "--output", tmp_path / "x.html")
    (early / "metrics.jsonl").write_text("no json\n{}\n")
    assert "metrics.jsonl:1 is not JSON" in refusal(capsys, early)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["denoise"]
    assert "is a folder; name the file to write" in refusal(capsys, run, "--output", tmp_path)
    assert "say where the report of 2 runs goes" in refusal(capsys, run, runs["pedal"])
    (tmp_path / "file").touch()
    text = refusal(capsys, run, "--output", tmp_path / "file" / "report.html")
    assert "cannot be written" in text and "Traceback" not in text
    assert "step-0000040 on items" not in capsys.readouterr().out
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "cannot be written" in refusal(capsys, run, "--output", tmp_path / "closed" / "report.html")


def test_a_run_has_its_report_in_its_folder_by_default(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["denoise"], run)
    assert main([str(run), "--samples-only", "--examples", "1"]) == 0
    assert len(sounds(Document(run / "report.html"))) == 3
    assert not list(run.glob(".report*"))
    assert main([str(run), "--examples", "0"]) == 0
    assert not sounds(Document(run / "report.html"))


def test_mix_corpora_are_named_by_what_they_are(runs: Runs, tmp_path: Path) -> None:
    document = report(tmp_path / "report.html", runs["denoise"])
    assert "fg voice-" in document.text and "bg bg-" in document.text
