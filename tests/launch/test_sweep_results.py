"""What a sweep reads out of its members' folders, and the tables and pictures that are made of it."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from hparams.errors import UserError
from launch import sweep_figures
from launch.sweep import main
from launch.sweep_members import plan, progress_of
from launch.sweep_page import notes, page
from launch.sweep_results import Result, read_results
from launch.sweep_table import make_tables
from tests.launch.sweep_runs import RATE_HZ, SWEEP, sweep_in, write_run, write_status

FAILURE = "RuntimeError: <b>no room</b> & more"


def value(size: int, model: str, seed: int) -> float:
    """A best ESR for each member: larger is better, gru is a little worse, seeds differ."""
    return round(0.4 / size + (0.003 if model == "gru" else 0.0) + 0.002 * seed**2 / size, 6)


@pytest.fixture
def results(tmp_path: Path) -> list[Result]:
    """All members of a sweep, one of them failed and one of them never started."""
    _, members = sweep_in(tmp_path)
    for planned in members:
        setting, seed = dict(planned.member.setting.values), planned.member.seed
        if (setting["task.hidden_size"], setting["task.model"]) == (32, "gru") and seed:
            if seed == 1:
                write_status(planned, "failed", 30, FAILURE)
            continue
        best = value(setting["task.hidden_size"], setting["task.model"], seed)
        write_run(planned, [0.5, best, best + 0.1], 50.0 * setting["task.hidden_size"])
    return read_results(members, "esr")


def test_the_value_is_that_of_the_best_evaluation(results: list[Result], tmp_path: Path) -> None:
    first = results[0]
    assert (first.value, first.best_step, first.step, first.state) == (
        value(8, "lstm", 0),
        200,
        300,
        "finished",
    )
    assert first.valid_curve == [(100, 0.5), (200, 0.05), (300, pytest.approx(0.15))]
    assert first.train_name == "esr" and first.train_curve[0] == (10, 0.1) and len(first.train_curve) == 30
    # 400 examples a second, and a step of 5 examples.
    assert (first.seconds_per_draw, first.seconds_per_step) == (
        pytest.approx(1 / 400),
        pytest.approx(5 / 400),
    )
    # Another metric, at the evaluation that the task takes for the best.
    other = read_results([first.planned], "mae")[0]
    assert (other.value, other.best_step) == (pytest.approx(10 * value(8, "lstm", 0)), 200)


def test_a_metric_that_is_not_there_is_refused_with_those_that_are(results: list[Result]) -> None:
    with pytest.raises(UserError, match="no metric mea; did you mean mae"):
        read_results([results[0].planned], "mea")


def test_a_failure_that_no_status_tells_of_is_taken_from_this_start(results: list[Result]) -> None:
    waiting = next(result for result in results if result.state == "not started").planned
    found = read_results([waiting], "esr", {waiting.member.folder_name: "ended by SIGKILL"})[0]
    assert (found.state, found.reason) == ("failed", "ended by SIGKILL")
    failed = next(result for result in results if result.state == "failed").planned
    assert read_results([failed], "esr", {failed.member.folder_name: "other"})[0].reason == FAILURE


def test_a_finished_run_is_open_again_once_it_should_be_longer(tmp_path: Path) -> None:
    _, members = sweep_in(tmp_path)
    write_run(members[0], [0.5])
    assert progress_of(members[0]).is_over
    longer = replace(members[0], hp=replace(members[0].hp, max_steps=900))
    assert not progress_of(longer).is_over


def test_a_folder_of_another_sweep_is_refused_before_anything_starts(tmp_path: Path) -> None:
    _, members = sweep_in(tmp_path)
    write_status(members[0], "finished", 200)
    with pytest.raises(
        UserError, match=r"hidden_size=8,model=lstm,seed=0: .*max_lr: the run has 0.005, the sweep gives 0.1"
    ):
        sweep_in(tmp_path, SWEEP + "  max_lr: 0.1\n")


def test_all_that_is_wrong_with_the_members_is_said_at_once(tmp_path: Path) -> None:
    bad = SWEEP.replace("[8, 16, 32]", "[8, 0]") + "  max_rl: 0.1\n"
    with pytest.raises(UserError) as refused:
        sweep_in(tmp_path, bad)
    text = str(refused.value)
    assert "mine.yaml:3: task.hidden_size is 0" in text
    assert "did you mean max_lr" in text and "and 5 more" in text


def test_the_table_of_settings_is_that_of_numpy_and_scipy(results: list[Result]) -> None:
    rows = make_tables(results, "esr", "t").settings
    assert [(row["hidden_size"], row["model"]) for row in rows] == [
        (size, model) for size in (8, 16, 32) for model in ("lstm", "gru")
    ]
    for row in rows[:5]:
        values = [value(row["hidden_size"], row["model"], seed) for seed in (0, 1, 2)]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (row["esr_mean"], row["esr_low"], row["esr_high"]) == pytest.approx(
            (np.mean(values), low, high)
        )
        assert row["seconds_per_step"] == pytest.approx(5 / (50 * row["hidden_size"]))
    last = rows[5]
    assert (last["runs"], last["finished"], last["esr_mean"]) == (3, 1, value(32, "gru", 0))
    assert last["esr_low"] is None


def test_settings_are_compared_over_seeds_and_over_files(results: list[Result]) -> None:
    names = ("clean", "crunch", "lead", "solo")
    with_files = [
        replace(result, files={name: (1 + place) * result.value for place, name in enumerate(names)})
        if result.is_finished and result.value
        else result
        for result in results
    ]
    tables = make_tables(with_files, "esr", "wilcoxon")
    over_seeds = [row for row in tables.pairs if row["over"] == "seeds"]
    over_files = [row for row in tables.pairs if row["over"] == "files"]
    assert len(over_seeds) == len(over_files) == 15
    a, b = ([value(size, "lstm", seed) for seed in (0, 1, 2)] for size in (8, 16))
    row = next(each for each in over_seeds if each["b"] == "hidden_size=16, model=lstm")
    assert row["a"] == "hidden_size=8, model=lstm" and row["pairs"] == 3
    assert row["p"] == pytest.approx(stats.wilcoxon(a, b).pvalue)
    t_row = next(
        each for each in make_tables(results, "esr", "t").pairs if each["b"] == "hidden_size=16, model=lstm"
    )
    assert t_row["p"] == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert t_row["a_minus_b"] == pytest.approx(np.mean(a) - np.mean(b))
    # All four files speak for b: of 16 patterns of signs two are that extreme.
    row = next(each for each in over_files if each["b"] == "hidden_size=16, model=lstm")
    assert (row["pairs"], row["p"]) == (4, pytest.approx(2 / 16))
    file_row = next(each for each in tables.files if each["file"] == "lead" and each["hidden_size"] == 8)
    assert file_row["esr_mean"] == pytest.approx(3 * np.mean(a)) and file_row["runs"] == 3


def test_variants_are_compared_with_the_first_one_and_the_page_says_what_they_change(tmp_path: Path) -> None:
    text = SWEEP.replace(
        "grid:\n  task.hidden_size: [8, 16, 32]\n  task.model: [lstm, gru]\n",
        "variants:\n  base: {}\n  gated: {task.model: gru}\n  small & fast: {task.hidden_size: 8, max_lr: 0.01}\n",
    )
    sweep, members = sweep_in(tmp_path, text)
    best = {"base": 0.1, "gated": 0.2, "small & fast": 0.05}
    for planned in members:
        seed = planned.member.seed
        write_run(planned, [0.5, best[planned.member.setting.name] * (1 + 0.1 * seed)])
    results = read_results(members, "esr")
    tables = make_tables(results, "esr", "t")
    assert [row["variant"] for row in tables.settings] == list(best)
    assert [(row["a"], row["b"]) for row in tables.pairs] == [("gated", "base"), ("small & fast", "base")]
    assert tables.pairs[0]["a_minus_b"] == pytest.approx((0.2 - 0.1) * 1.1)
    words = notes(sweep, results, "esr")
    assert (
        "What differs: base: as it is; gated: model=gru; small & fast: hidden_size=8, max_lr=0.01." in words
    )
    assert "max_steps=200" in words[0] and "max_lr" not in words[0] and "3 variants" in words[0]
    found = _Page()
    found.feed(page("mine", words, tables, {}, False))
    head = next(number for number, row in enumerate(found.rows) if row[1:] == ["base"])
    assert found.rows[head + 2][0] == "small & fast" and found.rows[head + 2][1].startswith("-0.055")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.is_in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_in_cell = True
        elif tag == "img":
            self.images.append(base64.b64decode(dict(attrs)["src"].removeprefix("data:image/png;base64,")))  # type: ignore[union-attr]

    def handle_endtag(self, tag: str) -> None:
        self.is_in_cell = self.is_in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.is_in_cell:
            self.rows[-1][-1] += data


def test_the_page_shows_the_failure_and_its_reason_and_holds_its_pictures(results: list[Result]) -> None:
    tables = make_tables(results, "esr", "t")
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    text = page("mine & yours", ["a note"], tables, {"A picture": buffer.getvalue()}, False)
    found = _Page()
    found.feed(text)
    assert "b" not in found.tags and "script" not in found.tags and "http" not in text
    row = next(row for row in found.rows if "failed" in row)
    assert FAILURE in [cell.strip() for cell in row] and row[:3] == ["32", "gru", "1"]
    assert Image.open(io.BytesIO(found.images[0])).size == (3, 2)
    # The best setting stands out.
    assert text.count("class=strong") >= 1
    strong = text.split("<tr class=strong>")[1]
    assert strong.startswith("<td class=number>32</td><td>lstm</td>")


def test_the_page_has_means_with_their_intervals_and_a_table_of_differences(results: list[Result]) -> None:
    tables = make_tables(results, "esr", "t")
    found = _Page()
    found.feed(page("mine", [], tables, {}, False))
    first = tables.settings[0]
    interval = f"{first['esr_mean']:.4g} ({first['esr_low']:.4g} … {first['esr_high']:.4g})"
    assert interval in next(row for row in found.rows if row[:2] == ["8", "lstm"])
    head = next(number for number, row in enumerate(found.rows) if "hidden_size=8, model=gru" in row)
    line = found.rows[head + 1]
    assert line[0] == "hidden_size=8, model=lstm" and len(line) == len(found.rows[head]) == 6
    pair = tables.pairs[1]
    assert line[2] == f"{pair['a_minus_b']:+.3g}p {pair['p_holm']:.2g}"
    # The last setting has one seed: a difference without a test. A setting is not compared with itself.
    assert line[5] == f"{tables.pairs[4]['a_minus_b']:+.3g}" and found.rows[head + 2][1] == ""


def lines_of(axis: object) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label(): list(zip(*line.get_data(), strict=True))
        for line in axis.get_lines()  # type: ignore[attr-defined]
        if not line.get_label().startswith("_")
    }


def test_a_metric_is_drawn_against_a_swept_number_with_a_line_for_each_other_choice(
    results: list[Result],
) -> None:
    points = sweep_figures.metric_points(results, "task.hidden_size", "value")
    figure = sweep_figures.against_figure({"": points}, "hidden_size", "esr")
    (axis,) = figure.axes
    found = lines_of(axis)
    assert list(found) == ["model=lstm", "model=gru"]
    for model in ("lstm", "gru"):
        for (x, y), size in zip(found[f"model={model}"], (8, 16, 32), strict=True):
            seeds = (0,) if (size, model) == (32, "gru") else (0, 1, 2)
            assert (x, y) == (size, pytest.approx(np.mean([value(size, model, seed) for seed in seeds])))
    assert axis.get_xscale() == "log" and [text.get_text() for text in axis.get_xticklabels()] == [
        "8",
        "16",
        "32",
    ]
    low, high = axis.get_ylim()
    assert low < value(32, "lstm", 0) and high > value(8, "gru", 2)


def test_files_curves_and_waves_are_drawn_for_every_setting(results: list[Result]) -> None:
    with_files = [
        replace(result, files={"riff": 0.1, "solo": 0.2}) if result.is_finished else result
        for result in results
    ]
    panels = sweep_figures.file_points(with_files, "task.hidden_size")
    figure = sweep_figures.against_figure(panels, "hidden_size", "ESR")
    assert [axis.get_title() for axis in figure.axes] == ["model=lstm", "model=gru"]
    assert lines_of(figure.axes[0])["solo"] == [
        (8, pytest.approx(0.2)),
        (16, pytest.approx(0.2)),
        (32, pytest.approx(0.2)),
    ]
    curves = sweep_figures.curves_figure(results, "esr")
    assert (
        len(curves.axes) == 6
        and len(curves.axes[0].get_lines()) == 6
        and len(curves.axes[5].get_lines()) == 2
    )
    waves, rate_hz = sweep_figures.validation_waves(results)
    assert rate_hz == RATE_HZ and len(waves) == 6
    drawn = sweep_figures.waves_figure(waves, rate_hz)
    assert drawn.axes[0].get_lines()[0].get_xdata()[0] == 0
    assert float(drawn.get_supxlabel().split()[2]) >= 0.5  # seconds: before that the target is silent
    for each in (figure, curves, drawn):
        assert Image.open(io.BytesIO(sweep_figures.png(each))).width > 500


def test_the_loudest_stretch_is_found() -> None:
    wave = np.zeros(1000)
    wave[700:720] = -0.5
    wave[100] = 0.9
    assert sweep_figures.loudest(wave, 20) == 700
    assert sweep_figures.loudest(wave[:10], 20) == 0


def test_the_command_makes_the_table_of_what_is_there(
    tmp_path: Path, results: list[Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "launch.sweep_results.open_data", lambda hp, **place: type("", (), {"epoch_draws": 1000})
    )
    output = tmp_path / "out"
    assert main([str(tmp_path / "mine.yaml"), "--output", str(output), "--no-runs"]) == 1
    with (output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds_per_epoch"]) for row in rows[::2]] == pytest.approx(
        [1000 / 400, 1000 / 800, 1000 / 1600]
    )
    with (output / "members.csv").open() as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert (states.count("finished"), states.count("failed"), states.count("not started")) == (16, 1, 1)
    names = {path.stem for path in (output / "figures").iterdir()}
    assert names == {
        "esr-against-hidden_size",
        "seconds_per_epoch-against-hidden_size",
        "curves",
        "waves-validation",
    }
    found = _Page()
    found.feed((output / "results.html").read_text())
    assert len(found.images) == 4
    assert "16 of 18 members are done" in (told := capsys.readouterr().out) and FAILURE in told


def test_status_that_is_damaged_is_named(tmp_path: Path) -> None:
    sweep, members = sweep_in(tmp_path)
    write_status(members[0], "finished", 3)
    (members[0].folder / "status.json").write_text(json.dumps(["finished"]))
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        progress_of(members[0])
    assert plan(sweep, tmp_path / "elsewhere", lambda preset, overrides: members[0].hp)
