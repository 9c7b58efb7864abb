"""Charts and spectrograms as inline SVG: crisp at any size, in the colours of the page, marked points with a text.

Colours and widths come from the classes of `page.css`, so the same drawing follows a dark screen and paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from enhancer.charts import Array, Chart, Line, Spectrograms
from enhancer.report import inline
from enhancer.report.markup import Markup, element

NUM_TONES = 6
"""Colours for estimates and runs; from the seventh on they come again."""
WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 42
_BOX = {"x": _LEFT, "y": _TOP, "width": WIDTH - _LEFT - _RIGHT, "height": HEIGHT - _TOP - _BOTTOM}
_NUM_TICKS = 5

Range = tuple[float, float]


def tone_class(tone: str) -> str:
    """The class that colours `tone`."""
    return f"tone-{int(tone) % NUM_TONES}" if tone.isdigit() else f"tone-{tone}"


def figure(chart: Chart, has_legend: bool = True, note: str | None = None) -> Markup:
    """The chart with its title, a legend that wraps, and a note below."""
    lines = [line for line in chart.lines if len(line.x)]
    caption = element("figcaption", element("strong", chart.title), _legend(lines) if has_legend else None)
    return element(
        "figure", caption, drawing(chart), element("p", note, class_="note") if note else None, class_="chart"
    )


def drawing(chart: Chart) -> Markup:
    """The chart alone."""
    lines = [line for line in chart.lines if len(line.x)]
    x_range = chart.x_range or _extent([line.x for line in lines], chart.is_log_x, margin=0)
    y_range = chart.y_range or _extent(list(_heights(lines)), chart.is_log_y, margin=0.06)
    across = _scale(x_range, (_LEFT, WIDTH - _RIGHT), chart.is_log_x)
    up = _scale(y_range, (HEIGHT - _BOTTOM, _TOP), chart.is_log_y)
    inside = [_shade(chart, x_range, across), _zero(chart, y_range, up)]
    inside += [_band(line, across, up) for line in lines] + [_curve(line, across, up) for line in lines]
    return element(
        "svg",
        _x_axis(chart.x_label, x_range, chart.is_log_x, across),
        _y_axis(chart.y_label, y_range, chart.is_log_y, up),
        element("rect", class_="frame", **_BOX),
        # An inner svg clips what it holds.
        element("svg", inside, viewBox=" ".join(str(value) for value in _BOX.values()), **_BOX),
        [_points(line, across, up) for line in lines],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.title}: {chart.y_label} against {chart.x_label} of "
        + ", ".join(line.name for line in lines),
    )


def spectrogram(shown: Spectrograms, number: int) -> Markup:
    """One of the spectrograms."""
    across = _scale((0.0, shown.seconds), (_LEFT, WIDTH - _RIGHT), False)
    highest = shown.highest_hz / 1000
    up = _scale((0.0, highest), (HEIGHT - _BOTTOM, _TOP), False)
    picture = inline.spectrogram(shown.level_db[number])
    return element(
        "svg",
        _x_axis("time (s)", (0.0, shown.seconds), False, across),
        _y_axis("frequency (kHz)", (0.0, highest), False, up),
        element("image", href=picture, preserveAspectRatio="none", **_BOX),
        element("rect", class_="frame", **_BOX),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"spectrogram of {shown.names[number]}",
    )


def _legend(lines: Sequence[Line]) -> Markup | None:
    if not lines:
        return None
    return element(
        "span",
        [
            element("span", element("i", class_=f"swatch {tone_class(line.tone)}"), line.name, class_="key")
            for line in lines
        ],
        class_="legend",
    )


def _heights(lines: Sequence[Line]) -> Iterator[Array]:
    """What decides the range of y: the curves, and the bands where a mark tells of them; not the spikes of others."""
    for line in lines:
        yield line.y
        if len(line.texts) and line.low is not None and line.high is not None:
            yield line.low
            yield line.high


def _extent(values: Sequence[Array], is_log: bool, margin: float) -> Range:
    """The range of all finite values, which are above 0 where `is_log`, with room around it."""
    flat = np.concatenate([np.asarray(each, np.float64) for each in values]) if values else np.zeros(0)
    flat = flat[np.isfinite(flat) & ((flat > 0) | (not is_log))]
    if not len(flat):
        return (1.0, 10.0) if is_log else (0.0, 1.0)
    low, high = (float(edge) for edge in (flat.min(), flat.max()))
    if is_log:
        factor = (high / low) ** margin if high > low else 2.0
        return low / factor, high * factor
    room = (high - low) * margin if high > low else max(abs(low) * 0.1, 0.5)
    return low - room, high + room


def _scale(values: Range, places: Range, is_log: bool) -> Callable[[Array | float], Array]:
    """Where values lie in the drawing."""
    low, high = (math.log(value) for value in values) if is_log else values
    span = high - low or 1.0

    def place(value: Array | float) -> Array:
        at = np.asarray(value, np.float64)
        if is_log:
            at = np.log(np.where(at > 0, at, np.nan))
        return places[0] + (at - low) / span * (places[1] - places[0])

    return place


def _segments(x: Array, y: Array) -> str:
    """The `d` of a path through the points; it is broken where one is not finite."""
    words: list[str] = []
    is_open = False
    for across, up in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(across) and math.isfinite(up):
            words.append(f"{'L' if is_open else 'M'}{across:.1f} {max(-999.0, min(up, 1999.0)):.1f}")
            is_open = True
        else:
            is_open = False
    return "".join(words)


def _curve(line: Line, across: Callable, up: Callable) -> Markup:
    name = element("title", line.name)
    return element(
        "path", name, d=_segments(across(line.x), up(line.y)), class_=f"curve {tone_class(line.tone)}"
    )


def _band(line: Line, across: Callable, up: Callable) -> Markup | None:
    if line.low is None or line.high is None:
        return None
    is_there = np.isfinite(line.low) & np.isfinite(line.high)
    x = across(line.x)[is_there]
    low, high = (
        np.nan_to_num(up(edge)[is_there], nan=float(HEIGHT - _BOTTOM)) for edge in (line.low, line.high)
    )
    around = _segments(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]))
    return element("path", d=around + "Z", class_=f"band {tone_class(line.tone)}") if around else None


def _points(line: Line, across: Callable, up: Callable) -> list[Markup]:
    places = zip(across(line.x).tolist(), up(line.y).tolist(), line.texts, strict=False)
    return [
        element(
            "circle",
            element("title", text),
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r=3.2,
            class_=tone_class(line.tone),
        )
        for x, y, text in places
        if _LEFT <= x <= WIDTH - _RIGHT and _TOP <= y <= HEIGHT - _BOTTOM
    ]


def _shade(chart: Chart, x_range: Range, across: Callable) -> Markup | None:
    if chart.shaded_from is None or chart.shaded_from >= x_range[1]:
        return None
    left = float(across(max(chart.shaded_from, x_range[0])))
    return element(
        "rect", x=f"{left:.1f}", y=_TOP, width=f"{WIDTH - _RIGHT - left:.1f}", height=HEIGHT - _TOP - _BOTTOM,
        class_="shade",
    )  # fmt: skip


def _zero(chart: Chart, y_range: Range, up: Callable) -> Markup | None:
    if not chart.zero_line or not y_range[0] < 0 < y_range[1]:
        return None
    at = f"{float(up(0.0)):.1f}"
    return element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at, class_="zero")


def _x_axis(label: str, values: Range, is_log: bool, across: Callable) -> Markup:
    marks = []
    for value, text in ticks(values, is_log):
        at = f"{float(across(value)):.1f}"
        marks.append(element("line", x1=at, x2=at, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="grid"))
        marks.append(element("text", text, x=at, y=HEIGHT - _BOTTOM + 15, text_anchor="middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return element("g", marks, element("text", label, x=middle, y=HEIGHT - 6, text_anchor="middle"))


def _y_axis(label: str, values: Range, is_log: bool, up: Callable) -> Markup:
    marks = []
    for value, text in ticks(values, is_log):
        at = float(up(value))
        marks.append(
            element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid")
        )
        marks.append(element("text", text, x=_LEFT - 5, y=f"{at + 4:.1f}", text_anchor="end"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f"rotate(-90 12 {middle:.1f})"
    return element("g", marks, element("text", label, x=12, y=middle, text_anchor="middle", transform=turned))


def ticks(values: Range, is_log: bool) -> list[tuple[float, str]]:
    """Round values inside the range with their texts: about five, or those of a decade where `is_log`."""
    low, high = values
    if is_log and high / low >= 8:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if math.log10(high / low) <= 3.5 else (1,)
        at = [factor * 10.0**decade for decade in decades for factor in factors]
        at = at[:: max(1, len(at) // 12)]
    else:
        rough = (high - low) / _NUM_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        at = [
            step * number
            for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        ]
    return [
        (value, tick_text(value))
        for value in at
        if low * (1 - 1e-9) <= value <= high * (1 + 1e-9) or not is_log
    ]


def tick_text(value: float) -> str:
    """A value as short as it can be read: 20k, 0.05, 1e-4."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1000:
        return f"{value / 1000:.4g}k"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"
