"""Templates of what a report is rendered to; they stand in `templates/`."""

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, shown: Callable[[object], object], *, html: bool) -> Template:
    """A template by its file's name.

    Args:
        name: of the file.
        shown: what becomes of every value that enters the text.
        html: whether values are escaped for HTML after that.
    """
    environment = Environment(
        loader=PackageLoader("fsrp_edge.report"),
        autoescape=html,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
