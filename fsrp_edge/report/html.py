"""Pages that open offline, each one file: of a run, and of several side by side."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fsrp_edge import wording
from fsrp_edge.report import summary
from fsrp_edge.report.figures import Sources, examples, figures, front_figure
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.sweep import Point


def render_html(report: RunReport, directory: Path | None = None) -> str:
    """The report as a page.

    Plots are matplotlib's SVG with CSS variables for colours: a few kB each, crisp and selectable, light and dark from
    one rendering, and no script in the page; plotly would put 4 MB of script into every report.

    Args:
        report: what is known of the run.
        directory: its run directory, for the pictures; without it there are few.
    """
    sources = Sources.of(directory)
    magnified, pictures = examples(report, sources.pictured)
    return _template("report.html.j2").render(
        report=report,
        columns=summary.columns(report.ledger),
        speed_ups={(s.name, s.runtime, s.threads): s for s in report.speed_ups},
        figures=list(figures(report, sources)),
        examples=pictures,
        magnified=magnified,
        example_eps=sources.pictured.evidence.example_eps,
        summary=summary,
        wording=wording,
    )


def render_runs(
    title: str,
    points: Sequence[Point],
    knee: str | None,
    accuracy: str,
    reports: Mapping[str, RunReport],
    links: Mapping[str, str],
) -> str:
    """Several runs side by side as a page: the front, a row a run, every figure.

    Args:
        title: heading.
        points: of `with_verdicts`, a dense network among them if wanted.
        knee: likewise.
        accuracy: what points are judged by.
        reports: of the points that are runs with a result, by their names.
        links: where each run's own page is, by its name.
    """
    drawn = sum(point.latency_ms is not None for point in points) > 1
    return _template("runs.html.j2").render(
        title=title,
        points=points,
        knee=knee,
        accuracy=accuracy,
        front=[point.name for point in points if point.pareto],
        missed=[point for point in points if point.problem or point.gates_passed is False],
        links=dict.fromkeys((point.name for point in points), None) | dict(links),
        figure=front_figure(points, knee, accuracy) if drawn else None,
        names=list(reports),
        figures=summary.side_by_side(list(reports.values())),
        wording=wording,
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("fsrp_edge.report"),
        autoescape=True,
        finalize=lambda value: _written(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMG]?B|[kMG]|ms|J|W)(?:\W|$))")


def _written(text: str) -> str:
    """Text for a page: no control characters, and a figure on one line with its unit."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", wording.printable(text))
