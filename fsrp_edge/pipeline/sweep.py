"""sweep(): compress() several times, each a resumable run of its own; what does not change is done once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsrp_edge import plots, progress
from fsrp_edge.errors import FsrpEdgeError, WithinBudgetsError
from fsrp_edge.files import write_text
from fsrp_edge.pipeline.compress import compress
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pipeline.rundir import RunDirectory
from fsrp_edge.report.html import render_runs
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.sweep import (
    SWEEP_JSON,
    SWEEP_PAGE,
    SWEEP_PICTURE,
    Point,
    Sweep,
    attack_of,
    dense_point,
    draw_front,
    measure_of,
    point_of,
)

SHARED = ("baseline", "score", "evaluate-dense*", "export-dense")
"""Stages that say nothing of the ratio or the budget; a record is used only where its inputs are the same."""
TRIALS = "budgets"
"""Of the dense network's files: they differ between kinds of budgets, so that a run keeps its own."""


@dataclass(frozen=True)
class Variant:
    """One run of a sweep.

    Args:
        name: such as `latency=50%`.
        options: of its run; `out` is decided by the sweep.
    """

    name: str
    options: CompressOptions


def sweep(variants: Sequence[Variant], over: str, out: Path) -> Sweep:
    """Run all variants; one that fails, or that the dense network meets, is noted, and the others go on.

    Args:
        variants: at least one, of one checkpoint and one target.
        over: the option that they vary.
        out: folder with a run directory for each, sweep.json, sweep.html and, where something was measured, sweep.png.

    Raises:
        FsrpEdgeError: not one of them ended with files; the class is that of the first one's error.
        BadInputError: another process is working in one of the folders.
    """
    with RunDirectory(out).locked():
        return _sweep(variants, over, out)


def _sweep(variants: Sequence[Variant], over: str, out: Path) -> Sweep:
    points: list[Point] = []
    dense: Point | None = None
    target = ""
    reports: dict[str, RunReport] = {}
    finished: list[Path] = []
    accuracy, measure = "clean", "accuracy"
    first_error: FsrpEdgeError | None = None
    for variant in progress.track(variants, f"sweep over {over}", len(variants)):
        directory = out / variant.name.replace("%", "pct").replace("=", "-")
        run = RunDirectory(directory)
        with run.locked():  # here, as another run's lock ends the sweep: it says nothing of what was asked for
            for other in finished:
                run.adopt(other, SHARED if run.has(TRIALS) else (*SHARED, TRIALS))
        progress.log(f"sweep: {variant.name} in {directory}")
        try:
            report = compress(variant.options.model_copy(update={"out": directory})).report
        except FsrpEdgeError as error:
            progress.log(f"sweep: {variant.name}: {error}")
            why = "within" if isinstance(error, WithinBudgetsError) else "problem"
            points.append(Point.model_validate({"name": variant.name, "directory": None, why: str(error)}))
            first_error = first_error or error
            continue
        finished = [directory]
        reports[variant.name] = report
        dense = dense or dense_point(report)
        accuracy, measure, target = attack_of(report), measure_of(report), report.request.target.name
        points.append(point_of(variant.name, directory.name, report))
    if dense is None:
        assert first_error is not None, "a sweep has variants"
        raise type(first_error)(f"nothing of the sweep can be run: {first_error}")
    checkpoint = variants[0].options.checkpoint.name
    result = Sweep.of(accuracy, (dense, *points), measure=measure, checkpoint=checkpoint, target=target, over=over)
    result.save(out / SWEEP_JSON)
    (out / SWEEP_PICTURE).unlink(missing_ok=True)
    if result.measured:
        plots.save_png(draw_front(result), out / SWEEP_PICTURE)
    title = f"{checkpoint} → {target}: sweep over {over}"
    write_text(out / SWEEP_PAGE, render_runs(title, result, reports, reports))
    return result
