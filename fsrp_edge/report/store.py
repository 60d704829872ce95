"""Reports on disk."""

from pathlib import Path

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import read_json, write_text
from fsrp_edge.report import summary
from fsrp_edge.report.html import render_html
from fsrp_edge.report.junit import render_junit
from fsrp_edge.report.markdown import render_markdown
from fsrp_edge.report.schema import RunReport

REPORT_JSON = "report.json"
REPORT_MARKDOWN = "report.md"
REPORT_HTML = "report.html"
JUNIT = "junit.xml"
BENCH_JSON = "bench.json"
"""Every raw latency of the run, as `fsrp-edge bench --out` writes them."""
RENDERED = (REPORT_JSON, REPORT_MARKDOWN, REPORT_HTML, JUNIT)
"""All that `write_report` may write."""


def write_report(report: RunReport, directory: Path) -> None:
    """Write report.json and its renderings into `directory`, each by rename."""
    # Pydantic writes a loss that became NaN as null, so a diverged recovery still leaves a valid report.
    write_text(directory / REPORT_JSON, report.model_dump_json(indent=1) + "\n")
    write_renderings(report, directory)


def write_renderings(report: RunReport, directory: Path) -> None:
    """Write report.md and report.html into `directory`, and junit.xml where there are gates; else that is removed."""
    write_text(directory / REPORT_MARKDOWN, render_markdown(report))
    write_text(directory / REPORT_HTML, render_html(report, directory))
    if report.gates:
        write_text(directory / JUNIT, render_junit(report.gates, summary.title(report)))
    else:  # an earlier one would speak of gates that this report does not know
        (directory / JUNIT).unlink(missing_ok=True)


def load_report(path: Path) -> RunReport:
    """Read a report from its file, or from the run directory that holds it.

    Raises:
        BadInputError: no such file, not a report, or a report of another schema version.
    """
    if path.is_dir():
        if not (path / REPORT_JSON).is_file():
            raise BadInputError(f"{path} has no {REPORT_JSON}; give the directory of a finished run of compress")
        path = path / REPORT_JSON
    content = read_json(path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise BadInputError(f"{path} is not a report: it has no schema_version; give a run's {REPORT_JSON}")
    seen, readable = content["schema_version"], RunReport.model_fields["schema_version"].default
    if seen != readable:
        newer = isinstance(seen, int) and seen > readable
        fix = "upgrade fsrp-edge to read it" if newer else "run compress again to make a new one"
        raise BadInputError(f"{path} has schema version {seen!r}; this fsrp-edge reads version {readable}: {fix}")
    return RunReport.load(path)
