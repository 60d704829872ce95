"""`fsrp-edge verify`: recheck a folder of files against its manifest."""

from pathlib import Path

import click

from fsrp_edge.cli import options

_PASSED = {True: "yes", False: "NO", None: "not checked"}


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.output_options
def verify(directory: Path) -> None:
    """Recheck the files of a run, an export or an unpacked bundle.

    Digests are those of manifest.json. Each file is loaded into every runtime that is installed and compared with what
    the float network answered; neither the network nor data are needed. The exit code is 1 where a check fails, and 3
    where no runtime for a file is installed, so that it could not be checked.

    \b
    fsrp-edge verify resnet18-jetson-nano
    """
    from fsrp_edge.cli.console import show_progress, show_result
    from fsrp_edge.errors import GateFailedError, ToolFailedError
    from fsrp_edge.report.verify import verify as run

    with show_progress():
        findings = run(directory)
    show_result(
        findings,
        ("file", "check", "passed", "found"),
        [(found.path, found.check, _PASSED[found.passed], found.detail) for found in findings],
    )
    for passed, what, kind in ((False, "failed", GateFailedError), (None, "could not be made", ToolFailedError)):
        those = [finding for finding in findings if finding.passed is passed]
        if those:
            first = f"{those[0].path}, {those[0].check}: {those[0].detail}"
            raise kind(f"{len(those)} of {len(findings)} checks {what}; the first: {first}")
