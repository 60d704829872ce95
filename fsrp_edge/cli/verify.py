"""`fsrp-edge verify`: recheck a folder of files against its manifest."""

from pathlib import Path

import click

from fsrp_edge.cli import options


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.output_options
def verify(directory: Path) -> None:
    """Recheck the files of a run, an export or an unpacked bundle.

    Digests are those of manifest.json. Each file is loaded into every runtime that is installed and compared with what
    the float network answered; neither the network nor data are needed. The exit code is 1 where a check fails.

    \b
    fsrp-edge verify resnet18-jetson-nano
    """
    from fsrp_edge.cli.console import show_progress, show_result
    from fsrp_edge.errors import GateFailedError
    from fsrp_edge.report.verify import verify as run

    with show_progress():
        findings = run(directory)
    show_result(
        findings,
        ("file", "check", "passed", "found"),
        [(found.path, found.check, "yes" if found.passed else "NO", found.detail) for found in findings],
    )
    failed = [finding for finding in findings if not finding.passed]
    if failed:
        first = failed[0]
        raise GateFailedError(
            f"{len(failed)} of {len(findings)} checks failed; the first: {first.path}, {first.check}: {first.detail}"
        )
