"""report.md: for pull requests and terminals, rendered from a RunReport alone."""

import html
import re

from jinja2 import Template

from fsrp_edge import wording
from fsrp_edge.report import summary
from fsrp_edge.report.rendering import template
from fsrp_edge.report.schema import RunReport

# What Markdown and GitHub's extensions of it (tables, strikethrough, math) take for markup inside a line.
_MARKUP = re.compile(r"[\\`*_\[\]|~$]")


def escape(value: object) -> str:
    """A value as Markdown text that stands for itself: one line, with markup and HTML escaped."""
    text = wording.printable(str(value))
    return html.escape(_MARKUP.sub(r"\\\g<0>", text), quote=False)


def markdown_template(name: str) -> Template:
    """A template that writes Markdown: every value that enters it is escaped."""
    return template(name, escape, html=False)


def render_markdown(report: RunReport) -> str:
    """The report as GitHub-flavoured Markdown.

    Every value that enters the template is escaped: names of classes, files and layers come from the user.
    """
    columns = summary.columns(report.ledger)
    context = {"report": report, "columns": columns, "summary": summary, "wording": wording}
    return markdown_template("report.md.j2").render(context)
