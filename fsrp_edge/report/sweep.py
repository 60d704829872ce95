"""Sweep: several runs of one network side by side, which of them are worth having, and the knee."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from fsrp_edge import plots, wording
from fsrp_edge.records import Document, Record
from fsrp_edge.report.schema import LedgerRow, RunReport

SWEEP_JSON, SWEEP_PICTURE, SWEEP_PAGE = "sweep.json", "sweep.png", "sweep.html"


class Point(Record):
    """One run, or the dense network that all of them started from."""

    name: str
    """`latency=50%`; `dense` for the network that was handed in."""
    directory: str | None
    """Of the run, relative to that of the sweep."""
    problem: str | None = None
    """Why there is no result; figures are None then."""
    within: str | None = None
    """That nothing had to be done, as the dense network is within its budgets; figures are None then, too."""
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    """Under the first attack; of the network in torch, as is the clean one."""
    file: str | None = None
    """Ledger row of the fastest file, whose figures the next three are."""
    latency_ms: float | None = None
    """Measured median."""
    valid: bool = True
    """Whether nothing disturbed that measurement; the run's report says what did."""
    estimated_ms: float | None = None
    """Estimated latency on the target; None where it was measured there, or where too little is known."""
    bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    gates_passed: bool | None = None
    """Budgets among them; None where there were none."""
    pareto: bool = False
    """Whether no other run is at least as good in accuracy, latency and size, and better in one."""


class SideBySide(Record):
    """Several runs, and what they say together."""

    accuracy: Annotated[str, Field(min_length=1)]
    """What points are judged by: the attack, or `clean`."""
    measure: str = "accuracy"
    """What the figures are: accuracy, or without true labels agreement with the dense network."""
    points: tuple[Point, ...]
    """The dense network first, where all of them started from one."""
    knee: str | None
    """Name of the suggested point; None where no run lies above the line from the fastest to the most accurate."""

    @classmethod
    def of(cls, accuracy: str, points: Sequence[Point], **more: Any) -> Self:
        """The points, those marked that are worth having, and the knee.

        The knee is the run farthest above the straight line from the worst to the best accuracy on the front, latency
        and accuracy each on a scale from 0 to 1 (after Satopää et al., "Kneedle", 2011).
        """
        having = [point for point in points if point.latency_ms is not None and point.directory is not None]
        front = [point for point in having if not any(_beats(other, point) for other in having)]
        front.sort(key=lambda point: point.latency_ms or 0)
        names = {point.name for point in front}
        marked = tuple(point.model_copy(update={"pareto": point.name in names}) for point in points)
        if len(having) < 2:
            return cls(accuracy=accuracy, points=marked, knee=None, **more)
        times = np.log([point.latency_ms or 1 for point in front])
        above = _scaled(np.array([judged_by(point) for point in front])) - _scaled(times)
        best = int(above.argmax())
        knee = front[best].name if above[best] > 0 else None  # the ends of the front lie on the line
        return cls(accuracy=accuracy, points=marked, knee=knee, **more)

    @property
    def measured(self) -> list[Point]:
        """Points with a latency, which can be drawn."""
        return [point for point in self.points if point.latency_ms is not None]


class Sweep(SideBySide, Document):
    """The content of sweep.json."""

    called = "a sweep"

    schema_version: Literal[1] = 1
    checkpoint: str
    target: str
    over: str
    """The option that was varied."""


def point_of(name: str, directory: str, report: RunReport) -> Point:
    """The figures of one run."""
    rows = {row.name: row for row in report.ledger}
    files = [row for row in report.ledger if not row.is_dense and row.latency]
    return _point(name, directory, rows["recovered"], files).model_copy(
        update={"gates_passed": all(gate.passed for gate in report.gates) if report.gates else None}
    )


def dense_point(report: RunReport) -> Point:
    """The dense network of a run, and its fastest file."""
    files = [row for row in report.ledger if row.is_dense and row.latency]
    return _point("dense", None, report.ledger[0], files)


def attack_of(report: RunReport) -> str:
    """What runs are judged by: the first attack, or `clean` without one."""
    return next((each.attack for each in report.ledger[0].accuracies if each.eps is not None), "clean")


def measure_of(report: RunReport) -> str:
    """Accuracy, or without true labels agreement with the dense network."""
    return wording.measure(report.ledger[0].accuracies[0])


def basis_of(report: RunReport) -> dict[str, object]:
    """What two runs have to share before their points can be held against each other."""
    attacks = [(each.attack, each.norm, each.eps) for each in report.ledger[0].accuracies if each.eps is not None]
    devices = sorted({latency.device for row in report.ledger for latency in row.latency})
    return {"attack": attacks[:1], "evaluation images": report.data.evaluation.sha256, "device": devices}


def _point(name: str, directory: str | None, network: LedgerRow, files: Sequence[LedgerRow]) -> Point:
    clean = next((each.accuracy for each in network.accuracies if each.eps is None), None)
    robust = next((each.accuracy for each in network.accuracies if each.eps is not None), None)
    fastest = min(files, key=lambda row: row.latency[0].p50_ms, default=None)
    return Point(
        name=name,
        directory=directory,
        clean_accuracy=clean,
        robust_accuracy=robust,
        file=fastest and fastest.name,
        latency_ms=fastest and fastest.latency[0].p50_ms,
        valid=fastest is None or fastest.latency[0].valid,
        estimated_ms=fastest and fastest.estimate and fastest.estimate.milliseconds,
        bytes=fastest and fastest.bytes,
        parameters=network.parameters,
        macs=network.macs,
    )


def judged_by(point: Point) -> float:
    """Robust accuracy, or the clean one where nothing attacked."""
    found = point.clean_accuracy if point.robust_accuracy is None else point.robust_accuracy
    return 0.0 if found is None else found


def _beats(first: Point, second: Point) -> bool:
    def costs(point: Point) -> tuple[float, ...]:
        return -judged_by(point), point.latency_ms or 0, point.bytes or 0

    pairs = list(zip(costs(first), costs(second), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _scaled(values: np.ndarray) -> np.ndarray:
    span = float(np.ptp(values))
    scaled: np.ndarray = (values - values.min()) / span if span else np.zeros(len(values))
    return scaled


def draw_front(runs: SideBySide) -> Any:
    """Accuracy against latency, the size as the area of each dot, the front as a line; a matplotlib figure."""
    figure, axes = plots.new(3.4)
    having = runs.measured
    front = sorted((point for point in having if point.pareto), key=lambda point: point.latency_ms or 0)
    largest = max((point.bytes or 1 for point in having), default=1)
    axes.plot([p.latency_ms for p in front], [100 * judged_by(p) for p in front], color=plots.MUTED, zorder=1)
    middle = np.mean(np.log([point.latency_ms or 1 for point in having]))
    for point in having:
        place = point.latency_ms or 0, 100 * judged_by(point)
        area = 20 + 180 * (point.bytes or 0) / largest
        colour = plots.FIRST if point.directory is None else plots.SECOND
        edge = plots.INK if point.name == runs.knee else colour
        axes.scatter(*place, s=area, color=colour, edgecolors=edge, linewidths=1.6, zorder=2)
        left = np.log(place[0]) > middle  # names go towards the middle, where there is room, on either side of the line
        axes.annotate(
            plots.shortened(point.name), place, xytext=(-9, 6) if left else (9, -11), textcoords="offset points",
            ha="right" if left else "left", fontsize=8,
        )  # fmt: skip
    axes.set(
        xlabel="latency of the fastest file, ms", ylabel=f"{runs.accuracy} {runs.measure.split()[0]}, %", xscale="log"
    )
    axes.margins(0.12, 0.18)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.set_ylim(max(axes.get_ylim()[0], -4), min(axes.get_ylim()[1], 104))
    low, high = axes.get_xlim()
    # First digits whose labels do not touch each other on a logarithmic axis.
    roomy = "23457" if high > 2 * low else "123456789"
    axes.xaxis.set_minor_formatter(lambda value, _place: f"{value:g}" if f"{value:e}"[0] in roomy else "")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    return figure
