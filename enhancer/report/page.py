"""The report as one HTML document that needs nothing beside itself: no network, no fonts, no files.

Its content security policy allows what stands in it and no more, so that neither a file name nor a hyper-parameter
could load or run anything even if it got past the escaping.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from enhancer.charts import OVERLAY_SECONDS
from enhancer.report import strings, svg, tables, words
from enhancer.report.curves import MOST_POINTS, training_charts, validation_charts
from enhancer.report.examples import EXCERPT_SECONDS, Example
from enhancer.report.listening import example_section
from enhancer.report.markup import Markup, element, joined
from enhancer.report.record import RunRecord

_HERE = Path(__file__).resolve().parent
_LIMITS = (
    f"Sounds are 16-bit FLAC of at most {EXCERPT_SECONDS:g} s. Curves of training show means of at most {MOST_POINTS} "
    "groups of logged steps, with the lowest and highest of each group as a band. Bands of validation curves are 95 % "
    "bootstrap intervals over the validation list. Frequency responses are Welch spectra (Hann, 8192 samples) in bands "
    f"of a sixth octave. Waveforms are {1000 * OVERLAY_SECONDS:g} ms long: where the target has most energy, and where "
    f"the error has. Tables of files end after {tables.MOST_ROWS} lines."
)

_OTHER_LISTS = (
    "The runs were not validated on the same list (their corpora, rate, task or valid_... differ), so what differs "
    "between them need not be the models."
)


@dataclass
class Content:
    """What is reported of: runs, examples to hear, and what could not be done."""

    runs: Sequence[RunRecord]
    examples: Sequence[Example] = ()
    names_of_items: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Names of the items of the validation list, by name of the run."""
    notes: Sequence[str] = ()
    made: str = ""
    """When and by what the report was made."""


def document(content: Content) -> str:
    """The whole file."""
    runs = list(content.runs)
    style = (_HERE / "page.css").read_text("utf-8")
    script = (_HERE / "page.js").read_text("utf-8")
    policy = (
        "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    title = "Report: " + ", ".join(run.name for run in runs)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    sections = _sections(content, runs)
    body = element(
        "body",
        element(
            "header",
            element("h1", title),
            element("p", content.made, class_="note"),
            element("nav", [element("a", name, href=f"#{key}") for key, name, _ in sections]),
        ),
        element(
            "main",
            [element("section", element("h2", name), inside, id=key) for key, name, inside in sections],
        ),
        element("footer", element("p", _LIMITS, class_="note")),
        element("script", Markup(script)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _sections(content: Content, runs: list[RunRecord]) -> list[tuple[str, str, Markup]]:
    notes = (
        element("ul", [element("li", note) for note in content.notes], class_="notes")
        if content.notes
        else None
    )
    names = "Run" if len(runs) == 1 else "Runs"
    found = [
        ("runs", names, joined(tables.cards(runs), notes)),
        ("validation", "Validation", _validation(content, runs)),
        ("training", "Training", _training(runs)),
        ("examples", "Listen and look", _examples(content)),
        ("hparams", "Hyper-parameters", _hparams(runs)),
    ]
    if any(run.events for run in runs):
        found.append(("events", "Events", tables.events_table(runs)))
    return found


def _validation(content: Content, runs: list[RunRecord]) -> Markup:
    files, said = [], []
    for run in runs:
        of_run = f" of {run.name}" if len(runs) > 1 else ""
        heading = f"File by file{of_run}, at step {run.best['step']}, the worst {words.label(run.best_metric)} first"
        by_group = tables.groups_table(run)
        if by_group:
            files += [element("h3", f"By group{of_run}"), by_group]
        found = strings.verdict(run)
        if found:
            said.append(joined(element("h3", f"T60 by octave band{of_run}"), found))
        files += [element("h3", heading), tables.items_table(run, content.names_of_items.get(run.name, {}))]
    return joined(
        element("p", "Means over the validation list and 95 % intervals, at the best evaluation.", class_="note"),
        None if tables.have_same_list(runs) else element("p", _OTHER_LISTS, class_="notes"),
        tables.summary_table(runs),
        said,
        _figures(validation_charts(runs)),
        files,
    )  # fmt: skip


def _training(runs: list[RunRecord]) -> Markup:
    norms = tables.norms_table(runs)
    said = element("h3", "Gradient norms before clipping, over the run")
    return joined(_figures(training_charts(runs)), *([said, norms] if norms else []))


def _figures(charts: list) -> Markup:
    return element(
        "div",
        [svg.figure(chart, has_legend=len(chart.lines) > 1) for chart in charts],
        class_="figures three",
    )


def _examples(content: Content) -> Markup:
    if not content.examples:
        return element("p", "There is nothing to hear: see what is said of each run above.")
    scale = element(
        "p", "Spectrograms, dB below the loudest bin of the item: ", element("span", "-90", class_="scale-low"),
        element("span", class_="scale"), "0", class_="note",
    )  # fmt: skip
    shown = len({each.item for example in content.examples for each in example.heard})
    total = max(len(run.rows) for run in content.runs)
    said = element("p", f"{shown} of {total} items of the validation list.", class_="note")
    return joined(said, scale, [example_section(example) for example in content.examples])


def _hparams(runs: list[RunRecord]) -> Markup:
    note = element("p", "What is not the default stands out.", class_="note")
    if len(runs) == 1:
        return joined(note, tables.hparams_table(runs))
    return joined(
        element("h3", "Differences"), tables.differences_table(runs), element("h3", "All values"), note,
        tables.hparams_table(runs),
    )  # fmt: skip


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
