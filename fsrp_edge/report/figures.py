"""The pictures of report.html, each an SVG with a sentence that says what it shows."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fsrp_edge import plots, wording
from fsrp_edge.bench.results import BenchResults
from fsrp_edge.errors import BadInputError
from fsrp_edge.plots import FIRST, INK, MUTED, SECOND, shortened
from fsrp_edge.progress import log
from fsrp_edge.report.evidence import Evidence, Pictured
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.sweep import SideBySide, draw_front, judged_by
from fsrp_edge.scoring.scores import FilterScores

Part = TypeVar("Part")

MOST_CLASSES = 20
"""Of more classes, those that changed most are drawn."""


@dataclass(frozen=True)
class Figure:
    """One picture.

    Args:
        title: heading.
        text: what it shows, in a sentence or two; stands below it and is its accessible text.
        svg: the picture.
    """

    title: str
    text: str
    svg: str


@dataclass(frozen=True)
class ExamplePicture:
    """An adversarial example; the pictures are data URIs of PNG files."""

    label: str
    clean: str
    adversarial: str
    pictures: tuple[str, str, str]
    """The image, the image under attack, and the magnified difference around grey."""


@dataclass(frozen=True)
class Sources:
    """What a run directory holds to draw from; each part may be missing."""

    pictured: Pictured
    scores: FilterScores | None
    bench: BenchResults | None

    @classmethod
    def of(cls, directory: Path | None) -> "Sources":
        """Read a run directory; files that are missing or of another kind are left out, the latter with a note."""
        nothing = Pictured(Evidence(), {})
        if directory is None:
            return cls(nothing, None, None)
        scores, bench = directory / "scores.json", directory / "bench.json"
        return cls(
            _unless_bad(Pictured.load, directory) or nothing,
            _unless_bad(FilterScores.load, scores) if scores.is_file() else None,
            _unless_bad(BenchResults.load, bench) if bench.is_file() else None,
        )


def _unless_bad(load: Callable[[Path], Part], path: Path) -> Part | None:
    try:
        return load(path)
    except BadInputError as error:
        log(f"pictures are left out of the report: {error}")
        return None


def figures(report: RunReport, sources: Sources) -> Iterator[Figure]:
    """All pictures that the sources allow, in the order of the page."""
    yield channels(report)
    if sources.pictured.evidence.curve:
        yield curve(sources.pictured)
    if sources.pictured.evidence.classes:
        yield classes(report, sources.pictured)
    if sources.bench is not None and sources.bench.measurements:
        yield latencies(report, sources.bench)
    if sources.pictured.evidence.breakdown:
        yield operators(sources.pictured, report.request.target.name)
    if sources.scores is not None:
        yield score_distribution(sources.scores)
    yield from layer_spectra(sources.pictured)


def channels(report: RunReport) -> Figure:
    """Channels of each group before and after."""
    groups = report.pruning.groups
    figure, axes = plots.new(0.8 + 0.17 * len(groups))
    places = np.arange(len(groups))
    axes.barh(places, [group.before for group in groups], color=FIRST, alpha=0.35, label="before")
    axes.barh(places, [group.after for group in groups], color=SECOND, label="kept")
    names = [group.layers[0] + (f" +{len(group.layers) - 1}" if len(group.layers) > 1 else "") for group in groups]
    axes.set_yticks(places, [shortened(wording.printable(name)) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("output channels")
    plots.legend_above(axes)
    before, after = report.pruning.before.channels, report.pruning.after.channels
    least = min(groups, key=lambda group: group.after / max(group.before, 1), default=None)
    extreme = f" {least.layers[0]} kept least, {least.after} of {least.before}." if least and least.before else ""
    text = f"{after} of {before} channels were kept in {len(groups)} groups of coupled layers.{extreme}"
    return _figure("Channels kept", text, figure)


def curve(pictured: Pictured) -> Figure:
    """Robust accuracy against the radius."""
    figure, axes = plots.new(2.9)
    sentences = []
    for network, colour, marker in (("dense", FIRST, "s"), ("recovered", SECOND, "o")):
        points = [point for point in pictured.evidence.curve if point.network == network]
        x = [255 * point.eps for point in points]
        y = np.array([100 * point.accuracy.accuracy for point in points])
        low, high = (np.array([100 * point.accuracy.interval[end] for point in points]) for end in (0, 1))
        axes.errorbar(x, y, [y - low, high - y], color=colour, marker=marker, capsize=2, label=network)
        sentences.append(f"{network} " + ", ".join(f"{b:.0f} % at {a:g}/255" for a, b in zip(x, y, strict=True)))
    first = pictured.evidence.curve[0].accuracy
    axes.set(
        xlabel="eps, in 255ths of the pixel range",
        ylabel=f"{wording.measure(first).split()[0]}, %",
        ylim=(0, 102),
    )
    axes.grid(axis="y", linewidth=0.5)
    plots.legend_above(axes)
    attack = next(point.accuracy.attack for point in pictured.evidence.curve if point.eps).upper()
    text = f"{attack} on {first.images} images, with 95 % intervals: {'; '.join(sentences)}."
    return _figure("Robustness against the radius of the attack", text, figure)


def classes(report: RunReport, pictured: Pictured) -> Figure:
    """Accuracy of each class, dense and recovered."""
    counts = pictured.evidence.classes
    shown = sorted(counts, key=lambda each: -abs(each.dense - each.recovered) / each.images)[:MOST_CLASSES]
    shown = sorted(shown, key=lambda each: each.label)
    figure, axes = plots.new(0.8 + 0.2 * len(shown))
    places = np.arange(len(shown))
    dense = [100 * each.dense / each.images for each in shown]
    recovered = [100 * each.recovered / each.images for each in shown]
    axes.hlines(places, dense, recovered, color=MUTED, linewidth=1)
    axes.plot(dense, places, "s", color=FIRST, markersize=8, label="dense", linestyle="none")
    axes.plot(recovered, places, "o", color=SECOND, markersize=5, label="recovered", linestyle="none")
    axes.set_yticks(places, [shortened(_class_name(report, each.label), 18) for each in shown])
    axes.set_xlabel(f"clean {'accuracy' if report.data.label_kind == 'ground truth' else 'agreement'}, %")
    axes.invert_yaxis()
    plots.legend_above(axes)
    worst = min(counts, key=lambda each: (each.recovered - each.dense) / each.images)
    which = "" if len(shown) == len(counts) else f" The {len(shown)} of {len(counts)} classes that changed most."
    verdict = "Most was lost on" if worst.recovered < worst.dense else "No class has lost; least was gained on"
    text = (
        f"{verdict} {_class_name(report, worst.label)}: {100 * worst.dense / worst.images:.0f} % → "
        f"{100 * worst.recovered / worst.images:.0f} % of {worst.images} images.{which}"
    )
    return _figure("Each class", text, figure)


def latencies(report: RunReport, bench: BenchResults) -> Figure:
    """Distribution of every file's latency, without the slowest twentieth."""
    names = {latency.sha256: row.name for row in report.ledger for latency in row.latency}
    found = {
        names[each.latency.sha256]: np.array(each.times_ms)
        for each in bench.measurements
        if each.latency.sha256 in names
    }
    figure, axes = plots.new(0.8 + 0.42 * len(found))
    kept = [times[times <= np.quantile(times, 0.95)] for times in found.values()]
    for place, (name, times) in enumerate(zip(found, kept, strict=True)):
        colour = FIRST if name.startswith("dense ") else SECOND
        parts = axes.violinplot([times], [place], orientation="horizontal", widths=0.8, showmedians=True)
        for part in parts["bodies"]:
            part.set(facecolor=colour, edgecolor=colour, alpha=0.45)
        for line in ("cmedians", "cbars", "cmins", "cmaxes"):
            parts[line].set(color=INK if line == "cmedians" else colour, linewidth=1)
    axes.set_yticks(range(len(found)), [shortened(name) for name in found])
    axes.set(xlabel="ms, batch 1", xlim=(0, None))
    axes.invert_yaxis()
    medians = "; ".join(f"{name} {wording.digits(float(np.median(times)))} ms" for name, times in found.items())
    return _figure("Latency, measured", f"Medians: {medians}. The slowest twentieth is not drawn.", figure)


def operators(pictured: Pictured, target: str) -> Figure:
    """Estimated time of the slowest operators."""
    breakdown = pictured.evidence.breakdown
    assert breakdown is not None
    slowest = breakdown.operators
    figure, axes = plots.new(0.8 + 0.2 * len(slowest))
    places = np.arange(len(slowest))
    axes.barh(places, [each.milliseconds for each in slowest], color=SECOND)
    axes.set_yticks(places, [shortened(wording.printable(each.name)) for each in slowest])
    axes.invert_yaxis()
    axes.set_xlabel("estimated ms")
    top = slowest[0]
    text = (
        f"Estimated, not measured: {breakdown.file} on {target} by {breakdown.runtime}, "
        f"{wording.digits(breakdown.milliseconds)} ms in all, from {breakdown.basis}. {top.name} ({top.kind}) takes "
        f"most, {100 * top.milliseconds / breakdown.milliseconds:.0f} %."
    )
    return _figure("Where the time goes", text, figure)


def front_figure(runs: SideBySide) -> Figure:
    """What several runs cost and keep."""
    seen = "; ".join(
        f"{point.name} {wording.percent(judged_by(point))} in {wording.digits(point.latency_ms or 0)} ms"
        for point in runs.measured
    )
    marked = f", {runs.knee} (circled) is the knee" if runs.knee else ""
    text = (
        f"{runs.measure.capitalize()} ({runs.accuracy}) against the median latency of the fastest file; areas are "
        f"sizes, the line is the front of the runs worth having{marked}. {seen}."
    )
    return _figure(f"{runs.measure.split()[0].capitalize()} against latency", text, draw_front(runs))


def score_distribution(scores: FilterScores) -> Figure:
    """The spread of the filters' scores in every layer."""
    figure = plots.score_boxes({name: layer.scores for name, layer in scores.layers.items()})
    text = (
        f"Scores by {scores.criterion} of the filters of {len(scores.layers)} layers on {scores.images} images: "
        "range, quartiles and median. Scores are only compared inside a layer."
    )
    dead = sum(
        value <= plots.DEAD * float(np.median(layer.scores))
        for layer in scores.layers.values()
        for value in layer.scores
    )
    if dead and scores.criterion == "fsrp":
        text += f" {dead} filters are dead: they score next to nothing and stand at the left end."
    return _figure("Scores of the filters", text, figure)


def layer_spectra(pictured: Pictured) -> Iterator[Figure]:
    """Mean log-spectra of the worst and the best filters of some layers."""
    for each in pictured.evidence.spectra:
        power = pictured.arrays[f"spectra/{each.layer}"]
        figure = plots.spectra(each.filters, each.scores, power, radius=each.radius, region=each.region)
        size = "×".join(map(str, power.shape[1:]))
        text = (
            f"Mean power of the feature maps of {size} on adversarial examples, logarithmic, DC in the middle; axes in "
            f"fractions of the band. Inside the white line is the low-frequency region. Above, the filters that are "
            f"removed first (scores from {min(each.scores):.3g}), below, those kept (to {max(each.scores):.3g})."
        )
        yield _figure(f"Spectra of {wording.printable(each.layer)}", text, figure)


def examples(report: RunReport, pictured: Pictured) -> tuple[int, list[ExamplePicture]]:
    """By how much the differences are magnified, and the adversarial examples."""
    evidence = pictured.evidence
    if not evidence.examples:
        return 0, []
    factor = max(1, round(0.5 / evidence.example_eps))
    found = []
    for example, clean, adversarial in zip(
        evidence.examples,
        pictured.arrays["examples/clean"],
        pictured.arrays["examples/adversarial"],
        strict=True,
    ):
        difference = 0.5 + factor * (adversarial.astype(np.float32) - clean.astype(np.float32))
        pictures = (_png(clean), _png(adversarial), _png(difference))
        names = [_class_name(report, index) for index in (example.label, example.clean, example.adversarial)]
        found.append(ExamplePicture(names[0], names[1], names[2], pictures))
    return factor, found


def _figure(title: str, text: str, figure: object) -> Figure:
    return Figure(title, wording.printable(text), plots.to_svg(figure, wording.printable(text)))


def _class_name(report: RunReport, label: int) -> str:
    names = report.source.model.class_names
    return wording.printable(names[label]) if names and label < len(names) else f"class {label}"


def _png(pixels: np.ndarray) -> str:
    """(C, H, W) in [0, 1] as a data URI, small images enlarged without smoothing."""
    from PIL import Image

    values = (pixels.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    values = values[:, :, 0] if values.shape[2] != 3 else values
    factor = max(1, 128 // max(values.shape[:2]))
    values = values.repeat(factor, axis=0).repeat(factor, axis=1)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
