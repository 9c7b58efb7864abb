"""Pictures of an evaluation for TensorBoard: the charts of `enhancer.charts`, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from enhancer.charts import (
    SPECTROGRAM_FLOOR_DB,
    Chart,
    difference_chart,
    moments,
    overlay_chart,
    overlay_samples,
    response_chart,
    spectrograms,
    waves_of_task,
)

_STYLES: dict[str, dict[str, Any]] = {
    "target": {"linewidth": 3.5, "alpha": 0.45, "color": "tab:blue"},
    "input": {"linewidth": 1.0, "linestyle": "--", "color": "tab:gray"},
    "baseline": {"linewidth": 1.0, "linestyle": ":", "color": "black"},
}


def show_sounds(media: Any, row: int, waves: Mapping[str, Tensor], rate_hz: int) -> None:
    """Put waves [T] of a row of a validation batch into `media` as sounds and spectrograms."""
    for name, wave in waves.items():
        media.audio(f"{row}/{name}", wave.detach().cpu(), rate_hz)
    media.figure(f"{row}/spectrogram", spectrogram_figure(waves, rate_hz))


def show_charts(media: Any, row: int, waves: Mapping[str, Tensor], rate_hz: int) -> None:
    """Put the frequency response of waves [T] and their overlays into `media`.

    `waves` has `estimate`, `target` and what the model hears. The overlays are at the moments where the target is
    loudest and where the estimate is worst.
    """
    media.figure(f"{row}/response", response_figure(waves, rate_hz))
    count = overlay_samples(rate_hz)
    for name, start in moments(waves["estimate"], waves["target"], count).items():
        pieces = {key: waves[key][start : start + count] for key in ("target", "estimate")}
        media.figure(f"{row}/{name}", overlay_figure(pieces, rate_hz, start / rate_hz))


def overlay_figure(waves: Mapping[str, Tensor], rate_hz: int, start_seconds: float = 0.0) -> Any:
    """Matplotlib figure of waves, each [T] from `start_seconds` on, over each other, the target wide and pale."""
    count = max(wave.shape[-1] for wave in waves.values())
    return chart_figure(
        [overlay_chart(f"from {start_seconds:.3f} s on", waves_of_task(waves), rate_hz, 0, count)]
    )


def response_figure(waves: Mapping[str, Tensor], rate_hz: int) -> Any:
    """Matplotlib figure of the levels of waves [T] in bands, and of the estimate's excess over the target's."""
    named = waves_of_task(waves)
    estimates = [wave for wave in named if wave.name == "estimate"]
    difference = difference_chart(estimates, waves["target"], rate_hz)
    return chart_figure([response_chart(named, rate_hz), difference])


def chart_figure(charts: Sequence[Chart]) -> Any:
    """Matplotlib figure with the charts below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(charts)), layout="constrained")
    axes = figure.subplots(len(charts), 1, squeeze=False)[:, 0]
    for axis, chart in zip(axes, charts, strict=True):
        for line in chart.lines:
            style = _STYLES.get(line.tone) or {"linewidth": 1.0, "color": f"C{int(line.tone) + 1}"}
            axis.plot(line.x, line.y, label=line.name, **style)
        if chart.is_log_x:
            axis.set_xscale("log")
        axis.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
        axis.set_xlim(chart.x_range)
        axis.set_ylim(chart.y_range)
        left, right = axis.get_xlim()
        if chart.shaded_from is not None and chart.shaded_from < right:
            axis.axvspan(max(left, chart.shaded_from), right, color="tab:orange", alpha=0.12, linewidth=0)
        if chart.zero_line:
            axis.axhline(0, color="gray", linewidth=0.5)
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def spectrogram_figure(waves: Mapping[str, Tensor], rate_hz: int) -> Any:
    """Matplotlib figure with one spectrogram a wave (each [T]), on one colour scale in dB below the loudest bin."""
    from matplotlib.figure import Figure

    shown = spectrograms(waves_of_task(waves), rate_hz)
    figure = Figure(figsize=(4.2 * len(waves), 3.6), layout="constrained")
    axes = figure.subplots(1, len(waves), sharey=True, squeeze=False)[0]
    for axis, name, level_db in zip(axes, shown.names, shown.level_db, strict=True):
        image = axis.imshow(
            level_db.numpy(),
            origin="lower",
            aspect="auto",
            vmin=SPECTROGRAM_FLOOR_DB,
            vmax=0,
            cmap="magma",
            extent=(0, shown.seconds, 0, shown.highest_hz / 1000),
        )
        axis.set_title(name)
        axis.set_xlabel("time (s)")
    axes[0].set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=axes, label="dB below the loudest bin")
    return figure
