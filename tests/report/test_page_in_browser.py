"""The report in a real browser: what it loads and runs, how it fits a phone and paper, and whether it plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from enhancer.tasks import TASKS
from launch.report import main
from tests.report.browser import NAMES, Page, browser, find
from tests.report.run_folders import HOSTILE, Runs

pytestmark = pytest.mark.slow

PHONE, DESKTOP, PAPER = (
    (360, 740),
    (1280, 900),
    (703, 1000),
)  # paper: A4 less 12 mm at each side, in CSS pixels
KINDS = [*sorted(TASKS), "all", "hostile"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(runs: Runs, hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports on a run of each task, on all of them together, and on the one with markup in every text."""
    folder = tmp_path_factory.mktemp("reports")
    folders = {
        **{task: [run] for task, run in runs.items()},
        "all": list(runs.values()),
        "hostile": [hostile_run],
    }
    for kind, given in folders.items():
        words = [*map(str, given), "--output", str(folder / f"{kind}.html"), "--device", "cpu"]
        assert main(words) == 0
    return {kind: folder / f"{kind}.html" for kind in folders}


@pytest.mark.parametrize("kind", KINDS)
def test_it_asks_for_nothing_and_nothing_goes_wrong(kind: str, page: Page, reports: dict[str, Path]) -> None:
    page.open(reports[kind], *DESKTOP)
    page.value("Promise.all([...document.images].map(image => image.decode()))")
    assert page.requests() == [reports[kind].resolve().as_uri()]
    assert page.complaints() == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_fits_a_phone_a_desk_and_paper(kind: str, page: Page, reports: dict[str, Path]) -> None:
    """Nothing but the inside of tables goes beyond the right edge, and letters in drawings can be read."""
    beyond = """[...document.querySelectorAll("body *")].filter(
        e => !e.closest(".scroll > *") && !e.closest("svg svg") && e.getBoundingClientRect().right > innerWidth + 1
    ).map(e => e.outerHTML.slice(0, 200))"""
    letters = """Math.min(...[...document.querySelectorAll(".chart > svg text")].map(
        e => parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)))"""
    for width, height in (PHONE, DESKTOP, PAPER):
        is_paper = (width, height) == PAPER
        page.call("Emulation.setEmulatedMedia", media="print" if is_paper else "")
        page.open(reports[kind], width, height, is_phone=(width, height) == PHONE)
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(beyond) == []
        assert page.value(letters) >= (6 if is_paper else 9)
    page.call("Emulation.setEmulatedMedia", media="")


def test_wide_tables_scroll_within_themselves_and_are_whole_on_paper(
    page: Page, reports: dict[str, Path]
) -> None:
    page.open(reports["denoise"], *PHONE, is_phone=True)
    wider = '[...document.querySelectorAll(".scroll")].some(e => e.scrollWidth > e.clientWidth)'
    assert page.value(wider) is True
    page.call("Emulation.setEmulatedMedia", media="print")
    page.open(reports["denoise"], *PAPER)
    hidden = """[...document.querySelectorAll(".scroll")].filter(
        e => getComputedStyle(e).overflow !== "visible" || getComputedStyle(e).maxHeight !== "none").length"""
    assert page.value(hidden) == 0
    assert page.value('getComputedStyle(document.querySelector("audio")).display') == "none"
    page.call("Emulation.setEmulatedMedia", media="")
    printed = page.print()
    assert printed.startswith(b"%PDF-") and len(printed) > 20_000


def test_one_player_at_a_time_goes_on_where_the_other_was(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["pedal"], *DESKTOP)
    lengths = """Promise.all([...document.querySelectorAll("audio")].map(a => a.readyState ? a.duration :
        new Promise(done => a.addEventListener("loadedmetadata", () => done(a.duration)))))"""
    assert page.value(lengths) == pytest.approx([5.0] * 6, abs=0.01)
    paused, place, at = page.value(
        """(async () => {
            const [first, second] = document.querySelectorAll("audio");
            await first.play();
            first.currentTime = 2;
            await second.play();
            return [first.paused, first.currentTime, second.currentTime];
        })()"""
    )
    assert paused is True and at == pytest.approx(place, abs=1.0) and at >= 1.9


def test_markup_in_names_and_values_runs_nowhere(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["hostile"], *DESKTOP)
    assert page.value("typeof window.owned") == "undefined"
    assert page.value("document.images.length") == 0
    assert HOSTILE in page.value("document.title")
    # And what got past the escaping would be stopped by the policy of the page.
    page.value(
        "document.body.insertAdjacentHTML('beforeend', " + repr(HOSTILE.replace("x ", "data:, ")) + ")"
    )
    page.value("new Promise(done => setTimeout(done, 300))")
    assert page.value("typeof window.owned") == "undefined"
