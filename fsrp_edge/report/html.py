"""report.html: one file that opens offline, rendered from a RunReport and what its run directory holds."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fsrp_edge.report import summary, wording
from fsrp_edge.report.figures import Sources, examples, figures
from fsrp_edge.report.schema import RunReport


def render_html(report: RunReport, directory: Path | None = None) -> str:
    """The report as a page.

    Plots are matplotlib's SVG with CSS variables for colours: a few kB each, crisp and selectable, light and dark from
    one rendering, and no script in the page; plotly would put 4 MB of script into every report.

    Args:
        report: what is known of the run.
        directory: its run directory, for the pictures; without it there are few.
    """
    environment = Environment(
        loader=PackageLoader("fsrp_edge.report"),
        autoescape=True,
        finalize=lambda value: wording.printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    sources = Sources.of(directory)
    magnified, pictures = examples(report, sources.pictured)
    return environment.get_template("report.html.j2").render(
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
