"""Pages that open offline, each one file: of a run, and of several side by side."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from jinja2 import Template

from fsrp_edge import wording
from fsrp_edge.report import summary
from fsrp_edge.report.figures import Sources, examples, figures, front_figure
from fsrp_edge.report.rendering import template
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.sweep import SideBySide


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
        figures=list(figures(report, sources)),
        examples=pictures,
        magnified=magnified,
        example_eps=sources.pictured.evidence.example_eps,
        summary=summary,
        wording=wording,
    )


def render_runs(title: str, runs: SideBySide, reports: Mapping[str, RunReport], pages: Collection[str]) -> str:
    """Several runs side by side as a page: the front, a row a run, every figure.

    Args:
        title: heading.
        runs: the directory of each is relative to where the page lies.
        reports: of the points that are runs with a result, by their names.
        pages: names of those that have a report.html to link to.
    """
    return _template("runs.html.j2").render(
        title=title,
        runs=runs,
        front=[point.name for point in runs.points if point.pareto],
        missed=[point for point in runs.points if point.problem or point.gates_passed is False],
        figure=front_figure(runs) if len(runs.measured) > 1 else None,
        names=list(reports),
        pages=pages,
        figures=summary.side_by_side(list(reports.values())),
        wording=wording,
    )


def _template(name: str) -> Template:
    return template(name, lambda value: _written(value) if type(value) is str else value, html=True)


_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMG]?B|[kMG]|ms|J|W)(?:\W|$))")


def _written(text: str) -> str:
    """Text for a page: no control characters, and a figure on one line with its unit."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", wording.printable(text))
