"""The plots that reports and `score --explain` draw, by matplotlib; as PNG, or as SVG in a page's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import escape

from fsrp_edge.files import atomic_path

INK, MUTED, GRID, FIRST, SECOND = "#1f2328", "#59636e", "#d1d9e0", "#818b98", "#0969da"
"""Of the light page; in an SVG they stand for CSS variables, so that one rendering serves a dark page, too."""
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", SECOND: "second"}
WIDTH = 4.6
"""Inches, at 72 points: what fits a phone without being scaled down much."""
_STYLE = {
    "svg.fonttype": "none", "font.size": 9, "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "grid.color": GRID,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
}  # fmt: skip


def pyplot() -> Any:
    """matplotlib.pyplot, with the style of this package."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(_STYLE)
    return pyplot


def new(height: float, **options: Any) -> tuple[Any, Any]:
    """A figure of the usual width and its axes."""
    figure, axes = pyplot().subplots(figsize=(WIDTH, height), layout="constrained", **options)
    return figure, axes


def legend_above(axes: Any) -> None:
    """A legend in a line above the axes, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)


DEAD = 1e-3
"""Of the median score of its layer: a filter below that responds to nothing."""


def score_boxes(scores: Mapping[str, Sequence[float]]) -> Any:
    """A box for every layer: median, quartiles and range of its filters' scores, on a logarithmic axis.

    Dead filters score (nearly) 0: what is far below its layer's median stands at the left end, not decades away.
    """
    from matplotlib import ticker

    figure, axes = new(0.8 + 0.17 * len(scores))
    usual = [value for values in scores.values() for value in values if value > DEAD * np.median(values)]
    least = 0.8 * min(usual, default=1.0)
    positive = [np.maximum(values, least) for values in scores.values()]
    line = {"color": SECOND}
    axes.boxplot(
        positive, whis=(0, 100), orientation="horizontal", tick_labels=[shortened(name) for name in scores],
        boxprops=line, whiskerprops=line, capprops=line, medianprops={"color": INK},
    )  # fmt: skip
    axes.set(xscale="log", xlabel="score")
    axes.xaxis.set_major_locator(ticker.LogLocator(numticks=6))  # over many decades labels would overlap
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.xaxis.set_minor_formatter("")
    axes.invert_yaxis()
    return figure


def spectra(filters: Sequence[int], scores: Sequence[float], power: np.ndarray, *, radius: float, region: str) -> Any:
    """Mean log-spectra with the low region drawn, the worst filters above the best.

    Args:
        filters: the worst, then as many of the best.
        scores: of each.
        power: (filters, H, W), DC in the middle.
        radius: of the low region, as a fraction of the band.
        region: disk or square.
    """
    from matplotlib.patches import Circle, Rectangle

    columns = -(-len(filters) // 2)
    figure, axes = new(3.6, nrows=2, ncols=columns, squeeze=False)
    height, width = power.shape[1:]
    logarithms = np.log10(np.maximum(power, power.max() * 1e-8))
    for place, filter_, score, picture in zip(axes.flat, filters, scores, logarithms, strict=False):
        place.imshow(
            picture, cmap="magma", vmin=logarithms.min(), vmax=logarithms.max(), origin="lower",
            extent=(*_edges(width), *_edges(height)),
        )  # fmt: skip
        style: Any = {"fill": False, "color": "white", "linewidth": 1.2}
        square = Rectangle((-radius, -radius), 2 * radius, 2 * radius, **style)
        place.add_patch(Circle((0, 0), radius, **style) if region == "disk" else square)
        place.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        place.set_title(f"filter {filter_}: {score:.3g}", fontsize=8)
    axes[0][0].set_ylabel("worst")
    axes[1][0].set_ylabel("best")
    return figure


def over_time(measured: Mapping[str, tuple[Sequence[float], Sequence[tuple[float, float]]]], parts: int = 200) -> Any:
    """Latency from the first to the last inference of each measurement, and what the device's heat did meanwhile.

    Args:
        measured: by name, every time in milliseconds, in order, and (seconds, degrees Celsius) samples.
        parts: at most so many medians, each with the band from the 10th to the 90th percentile.
    """
    figure, axes = new(1.9 * len(measured), nrows=len(measured), squeeze=False)
    for place, (name, (times_ms, heat)) in zip(axes.flat, measured.items(), strict=True):
        times = np.asarray(times_ms)
        split = np.array_split(np.arange(len(times)), min(parts, len(times)))
        seconds = np.cumsum(times)[[part[-1] for part in split]] / 1e3
        low, median, high = np.array([np.percentile(times[part], [10, 50, 90]) for part in split]).T
        place.fill_between(seconds, low, high, color=SECOND, alpha=0.3, linewidth=0)
        place.plot(seconds, median, color=SECOND)
        place.set(ylabel="ms", xlabel="seconds of inference")
        place.set_title(shortened(name, 60), fontsize=9)
        if heat:
            beside = place.twinx()
            beside.plot(*zip(*heat, strict=True), color=FIRST)
            beside.set_ylabel("°C")
    return figure


def shortened(name: str, length: int = 26) -> str:
    """A name as an axis can hold it, its end kept; `$` would start mathematics."""
    name = name if len(name) <= length else f"…{name[1 - length :]}"
    return name.replace("$", r"\$")


def save_png(figure: Any, path: Path) -> None:
    """Write a figure by rename, on white."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="white")
    pyplot().close(figure)


def to_svg(figure: Any, label: str) -> str:
    """A figure as an `<svg>` element whose colours are CSS variables.

    Args:
        figure: a matplotlib figure; closed afterwards.
        label: what the picture shows, for those who can't see it.
    """
    stream = io.StringIO()
    # A salt of its own: ids of several pictures in one page must differ, and those of one picture must not change.
    with pyplot().rc_context({"svg.hashsalt": label}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot().close(figure)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _edges(length: int) -> tuple[float, float]:
    """Where the outermost bins end, in fractions of the band, so that DC is centred on 0."""
    return (-(length // 2) - 0.5) * 2 / length, ((length - 1) // 2 + 0.5) * 2 / length
