"""`fsrp-edge report`: shows a finished run again, from its report.json."""

from pathlib import Path

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@options.output_options
@traceback_option
def report(run: Path, as_json: bool, quiet: bool) -> None:
    """Show a run's table, and write its report.md again, without running anything.

    RUN is a run directory or its report.json.

    \b
    fsrp-edge report resnet18-jetson-nano
    """
    from fsrp_edge.cli.console import print_json
    from fsrp_edge.cli.report_table import print_report
    from fsrp_edge.report.store import load_report, write_report

    found = load_report(run)
    directory = run if run.is_dir() else run.parent
    write_report(found, directory)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_report(found, directory)
