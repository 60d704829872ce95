"""sweep(): compress() several times, each a resumable run of its own; what does not change is done once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsrp_edge import progress
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import write_json
from fsrp_edge.pipeline.compress import compress
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pipeline.rundir import RunDirectory
from fsrp_edge.report.sweep import (
    SWEEP_JSON,
    SWEEP_PICTURE,
    Point,
    Sweep,
    dense_point,
    draw_sweep,
    point_of,
    with_verdicts,
)

SHARED = ("baseline", "score", "sensitivity", "budgets", "evaluate-dense*", "export-dense")
"""Stages that say nothing of the ratio or the budget; a record is used only where its inputs are the same."""


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
    """Run all variants; one that cannot be met is noted, and the others go on.

    Args:
        variants: at least one, of one checkpoint and one target.
        over: the option that they vary.
        out: folder with a run directory for each, sweep.json and sweep.png.

    Raises:
        BadInputError: not one of them can be run.
    """
    points: list[Point] = []
    dense: Point | None = None
    finished: list[Path] = []
    accuracy = "clean"
    for variant in progress.track(variants, f"sweep over {over}", len(variants)):
        directory = out / variant.name.replace("%", "pct").replace("=", "-")
        for other in finished:
            RunDirectory(directory).adopt(other, SHARED)
        progress.log(f"sweep: {variant.name} in {directory}")
        try:
            report = compress(variant.options.model_copy(update={"out": directory})).report
        except BadInputError as error:
            progress.log(f"sweep: {variant.name}: {error}")
            points.append(Point(name=variant.name, directory=None, problem=str(error)))
            continue
        finished = [directory]
        dense = dense or dense_point(report)
        accuracy = next((a.attack for a in report.ledger[0].accuracies if a.eps is not None), "clean")
        points.append(point_of(variant.name, directory.name, report))
    if dense is None:
        raise BadInputError(f"nothing of the sweep can be run: {points[0].problem}")
    judged, knee = with_verdicts((dense, *points))
    options = variants[0].options
    result = Sweep(
        checkpoint=options.checkpoint.name, target=Path(options.target).stem, over=over, accuracy=accuracy,
        points=judged, knee=knee,
    )  # fmt: skip
    write_json(out / SWEEP_JSON, result.model_dump(mode="json"))
    draw_sweep(result, out / SWEEP_PICTURE)
    return result
