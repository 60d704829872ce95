"""Sweep: several runs of one network side by side, which of them are worth having, and the knee."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fsrp_edge.files import atomic_path
from fsrp_edge.report.schema import RunReport

SWEEP_JSON, SWEEP_PICTURE = "sweep.json", "sweep.png"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Record):
    """One run, or the dense network that all of them started from."""

    name: str
    """`latency=50%`; `dense` for the network that was handed in."""
    directory: str | None
    """Of the run, relative to that of the sweep."""
    problem: str | None = None
    """Why there is no result; figures are None then."""
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    """Under the first attack; of the network in torch, as is the clean one."""
    file: str | None = None
    """Ledger row of the fastest file, whose figures the next two are."""
    latency_ms: float | None = None
    """Measured median."""
    bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    gates_passed: bool | None = None
    """Budgets among them; None where there were none."""
    pareto: bool = False
    """Whether no other run is at least as good in accuracy, latency and size, and better in one."""


class Sweep(_Record):
    """The content of sweep.json."""

    schema_version: Literal[1] = 1
    checkpoint: str
    target: str
    over: str
    """The option that was varied."""
    accuracy: Annotated[str, Field(min_length=1)]
    """What points are judged by: the attack, or `clean`."""
    points: tuple[Point, ...]
    """The dense network first."""
    knee: str | None
    """Name of the suggested point; None where fewer than two runs came out."""


def point_of(name: str, directory: str, report: RunReport) -> Point:
    """The figures of one run."""
    rows = {row.name: row for row in report.ledger}
    files = [row for row in report.ledger if not row.is_dense and row.latency]
    return _point(name, directory, report, rows["recovered"], files).model_copy(
        update={"gates_passed": all(gate.passed for gate in report.gates) if report.gates else None}
    )


def dense_point(report: RunReport) -> Point:
    """The dense network of a run, and its fastest file."""
    files = [row for row in report.ledger if row.is_dense and row.latency]
    return _point("dense", None, report, report.ledger[0], files)


def _point(name: str, directory: str | None, report: RunReport, network: Any, files: Sequence[Any]) -> Point:
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
        bytes=fastest and fastest.bytes,
        parameters=network.parameters,
        macs=network.macs,
    )


def judged_by(point: Point) -> float:
    """Robust accuracy, or the clean one where nothing attacked."""
    found = point.clean_accuracy if point.robust_accuracy is None else point.robust_accuracy
    return 0.0 if found is None else found


def with_verdicts(points: Sequence[Point]) -> tuple[tuple[Point, ...], str | None]:
    """The points, those marked that are worth having, and the name of the knee.

    The knee is the run farthest above the straight line from the worst to the best accuracy on the front, latency and
    accuracy each on a scale from 0 to 1 (after Satopää et al., "Kneedle", 2011).
    """
    having = [point for point in points if point.latency_ms is not None and point.directory is not None]
    front = {point.name for point in having if not any(_beats(other, point) for other in having)}
    marked = tuple(point.model_copy(update={"pareto": point.name in front}) for point in points)
    ends = sorted((point for point in having if point.name in front), key=lambda point: point.latency_ms or 0)
    if len(having) < 2:
        return marked, None
    times = np.log([point.latency_ms or 1 for point in ends])
    accuracies = np.array([judged_by(point) for point in ends])
    above = _scaled(accuracies) - _scaled(times)
    return marked, ends[int(above.argmax())].name


def _beats(first: Point, second: Point) -> bool:
    def costs(point: Point) -> tuple[float, ...]:
        return -judged_by(point), point.latency_ms or 0, point.bytes or 0

    pairs = list(zip(costs(first), costs(second), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _scaled(values: np.ndarray) -> np.ndarray:
    span = float(np.ptp(values))
    scaled: np.ndarray = (values - values.min()) / span if span else np.zeros(len(values))
    return scaled


def draw_sweep(sweep: Sweep, path: Path) -> None:
    """Accuracy against latency, the size as the area of each dot, the front as a line."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    points = [point for point in sweep.points if point.latency_ms is not None]
    front = sorted((point for point in points if point.pareto), key=lambda point: point.latency_ms or 0)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    largest = max((point.bytes or 1 for point in points), default=1)
    axes.plot([p.latency_ms for p in front], [100 * judged_by(p) for p in front], color="0.6", zorder=1)
    for point in points:
        colour = "0.5" if point.directory is None else "tab:red" if point.name == sweep.knee else "tab:blue"
        area = 30 + 270 * (point.bytes or 0) / largest
        axes.scatter(point.latency_ms, 100 * judged_by(point), s=area, color=colour, alpha=0.7, zorder=2)
        axes.annotate(
            point.name, (point.latency_ms, 100 * judged_by(point)), xytext=(6, 6), textcoords="offset points"
        )
    axes.set(
        xlabel="latency of the fastest file, ms", ylabel=f"{sweep.accuracy} accuracy, %",
        title=f"{sweep.checkpoint} → {sweep.target}: area is the file's size, red the knee",
    )  # fmt: skip
    axes.set_xscale("log")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
