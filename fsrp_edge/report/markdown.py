"""report.md: for pull requests and terminals, rendered from a RunReport alone."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fsrp_edge import wording
from fsrp_edge.report import summary
from fsrp_edge.report.schema import RunReport

# What Markdown and GitHub's extensions of it (tables, strikethrough, math) take for markup inside a line.
_MARKUP = re.compile(r"[\\`*_\[\]|~$]")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape(value: object) -> str:
    """A value as Markdown text that stands for itself: one line, with markup and HTML escaped."""
    text = wording.printable(str(value))
    return re.sub(r"[&<>]", lambda found: _HTML[found[0]], _MARKUP.sub(r"\\\g<0>", text))


def markdown_environment() -> Environment:
    """Of templates that write Markdown: every value that enters one is escaped."""
    # Autoescape is for HTML; `finalize` does the same for Markdown, on every expression of the template.
    return Environment(
        loader=PackageLoader("fsrp_edge.report"),
        autoescape=False,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_markdown(report: RunReport) -> str:
    """The report as GitHub-flavoured Markdown.

    Every value that enters the template is escaped: names of classes, files and layers come from the user.
    """
    return markdown_environment().get_template("report.md.j2").render(_context(report))


def _context(report: RunReport) -> dict[str, Any]:
    return {
        "report": report,
        "columns": summary.columns(report.ledger),
        "speed_ups": {(s.name, s.runtime, s.threads): s for s in report.speed_ups},
        "summary": summary,
        "wording": wording,
    }
