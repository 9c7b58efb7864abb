"""Examples as the page shows them: players, spectrograms, frequency responses and waveforms over each other."""

from __future__ import annotations

from enhancer.charts import (
    EXCESS_FROM_HZ,
    Wave,
    decay_charts,
    difference_chart,
    moments,
    overlay_chart,
    overlay_samples,
    response_chart,
    spectrograms,
)
from enhancer.metrics import excess_db
from enhancer.report import inline, svg, words
from enhancer.report.examples import Example, Heard
from enhancer.report.markup import Markup, element
from enhancer.report.record import metric_names, number
from enhancer.report.tables import run_label, table


def example_section(example: Example) -> Markup:
    """Everything about one item."""
    first = example.first
    start, count = example.excerpt()
    cut = [Wave(wave.name, wave.tone, wave.samples[start : start + count]) for wave in example.waves()]
    whole_seconds = example.target.shape[-1] / first.rate_hz
    seconds, at = count / first.rate_hz, start / first.rate_hz
    around = "" if first.run.hp.task.name == "string" else ", around the worst moment"
    said = (
        f"All {whole_seconds:.1f} s."
        if count == example.target.shape[-1]
        else f"Sounds and spectrograms: {seconds:.1f} s from {at:.1f} s on{around}; all else: the "
        f"whole {whole_seconds:.1f} s."
    )
    said += " Estimates: " + "; ".join(f"{each.run.name} {each.origin}" for each in example.heard) + "."
    return element(
        "article",
        element("h3", first.title),
        _values(example),
        element("p", said, class_="note"),
        _players(cut, first.rate_hz),
        _decays(example),
        _responses(example),
        _overlays(example),
        class_="example",
    )


def excess_text(example: Example) -> str:
    """How much more energy than the target each estimate has above 10 kHz."""
    rate_hz = example.first.rate_hz
    if rate_hz / 2 <= EXCESS_FROM_HZ:
        return f"There is nothing above 10 kHz at a rate of {rate_hz} Hz."
    target = example.target[None]
    parts = []
    for each in example.heard:
        value = float(excess_db(each.waves["estimate"][None], target, rate_hz, EXCESS_FROM_HZ))
        parts.append(f"{each.run.name} {value:+.2f} dB")
    return "Excess above 10 kHz, energy against the target's: " + ", ".join(parts) + "."


def _players(waves: list[Wave], rate_hz: int) -> Markup:
    """A player for each wave with its spectrogram below, all on one scale."""
    shown = spectrograms(waves, rate_hz)
    players = []
    for place, wave in enumerate(waves):
        swatch = element("i", class_=f"swatch {svg.tone_class(wave.tone)}")
        clipped = _clipped(wave)
        players.append(
            element(
                "figure",
                element("figcaption", element("strong", swatch, wave.name, class_="key")),
                element("audio", controls=True, preload="metadata", src=inline.sound(wave.samples, rate_hz)),
                element("span", clipped, class_="warning") if clipped else None,
                svg.spectrogram(shown, place),
                class_="chart",
            )
        )
    return element("div", players, class_="players figures three")


def _clipped(wave: Wave) -> str:
    share = float((wave.samples.abs() > 1).double().mean())
    return f"{100 * share:.2g} % beyond full scale, clipped here" if share else ""


def _decays(example: Example) -> Markup | None:
    """How a string's target and estimates die away, whole and in octave bands; nothing for other tasks."""
    if example.first.run.hp.task.name != "string":
        return None
    waves = [Wave("target", "target", example.target), *example.estimates()]
    charts = decay_charts(waves, example.first.rate_hz)
    return element("div", [svg.figure(chart) for chart in charts], class_="figures three")


def _responses(example: Example) -> Markup:
    rate_hz = example.first.rate_hz
    difference = difference_chart(example.estimates(), example.target, rate_hz)
    return element(
        "div",
        svg.figure(response_chart(example.waves(), rate_hz)),
        svg.figure(difference, note=excess_text(example)),
        class_="figures",
    )


def _overlays(example: Example) -> Markup:
    """The loudest moment with all estimates, and the worst of each."""
    rate_hz = example.first.rate_hz
    count = overlay_samples(rate_hz)
    estimates = example.estimates()
    target = Wave("target", "target", example.target)

    def drawn(title: str, start: int, shown: list[Wave]) -> Markup:
        return svg.figure(
            overlay_chart(f"{title}, at {start / rate_hz:.2f} s", [target, *shown], rate_hz, start, count)
        )

    figures = [drawn("Loudest moment", _moment(example.first, "loudest", count), estimates)]
    for each, estimate in zip(example.heard, estimates, strict=False):
        whose = "" if len(example.heard) == 1 else f" of {each.run.name}"
        figures.append(drawn(f"Worst moment{whose}", _moment(each, "worst", count), [estimate]))
    return element("div", figures, class_="figures")


def _moment(heard: Heard, name: str, count: int) -> int:
    return moments(heard.waves["estimate"], heard.waves["target"], count)[name]


def _values(example: Example) -> Markup | None:
    """The metrics of this item at the best evaluation of each run."""
    names = metric_names([each.run for each in example.heard])
    lines = []
    for each in example.heard:
        row = next((row for row in each.run.rows if row.get("item") == each.item), None)
        if row is not None:
            cells = [element("td", words.figure(number(row.get(name))), class_="number") for name in names]
            lines.append(element("tr", element("th", run_label(each.run), scope="row"), cells))
    return table(["run", *(words.label(name) for name in names)], lines) if lines else None
