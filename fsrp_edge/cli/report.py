"""`fsrp-edge report`: shows a finished run again, from its report.json, and judges it by gates."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.gates import finish
from fsrp_edge.errors import BadInputError

if TYPE_CHECKING:
    from fsrp_edge.report.schema import RunReport


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--page",
    type=options.NewFile,
    help="Of several runs: also write the comparison as an HTML page to this file.",
)
@options.gate_options
@options.output_options
def report(
    runs: tuple[Path, ...],
    page: Path | None,
    gates: tuple[str, ...],
    baseline: Path | None,
    max_regression: tuple[str, ...],
) -> None:
    """Show finished runs, judge them by gates, compare them.

    Nothing is run; the pages of a run directory are rendered again.

    RUN is a run directory or a report.json, which stays as it is. --require is judged instead of
    the run's own gates, --baseline beside them.

    \b
    fsrp-edge report resnet18-jetson-nano
    fsrp-edge report resnet18-jetson-nano --require "robust_accuracy>=40%" --require "size<=2MB"
    fsrp-edge report new-run --baseline last/report.json --max-regression latency_p50=5%
    fsrp-edge report half quarter tenth --page compared.html    # several runs side by side
    """
    if max_regression and baseline is None:
        raise click.UsageError("--max-regression is judged by an earlier run; name it with --baseline")
    if baseline is not None and not max_regression:
        raise click.UsageError(
            "--baseline alone judges nothing; say how much worse a figure may be with --max-regression, such as "
            "robust_accuracy=1"
        )
    if len(runs) > 1:
        if gates or baseline:
            raise click.UsageError("gates judge one run; give one RUN with --require and --baseline")
        _side_by_side(runs, page)
        return
    if page is not None:
        raise click.UsageError("--page compares several runs; a single one has its report.html")
    (run,) = runs
    from fsrp_edge.cli.console import shown_as_json
    from fsrp_edge.cli.report_table import print_report
    from fsrp_edge.pipeline.rundir import STAGES
    from fsrp_edge.report.gates import judge, judge_regressions
    from fsrp_edge.report.store import load_report

    found = load_report(run)
    directory = run if run.is_dir() else run.parent
    try:
        judged = judge(found, gates) if gates else found.gates
        if baseline is not None:
            judged += judge_regressions(found, load_report(baseline), max_regression)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found = found.model_copy(update={"gates": judged})
    if run.is_dir() or (directory / STAGES).is_dir():  # a report copied elsewhere lies beside files of others
        _render(found, directory)
    if not shown_as_json(found):
        print_report(found, directory)
    finish(found, found.gates)


def _render(found: "RunReport", directory: Path) -> None:
    """Renew a run's pages; a run that may only be read is shown and judged all the same."""
    from fsrp_edge.cli.console import show_progress
    from fsrp_edge.progress import log
    from fsrp_edge.report.store import write_renderings

    with show_progress():
        try:
            write_renderings(found, directory)
        except (OSError, BadInputError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log(f"the pages in {directory} could not be renewed: {reason}")


def _side_by_side(runs: tuple[Path, ...], page: Path | None) -> None:
    from fsrp_edge.cli.console import next_step, show_result
    from fsrp_edge.report import summary
    from fsrp_edge.report.store import load_report

    reports = [load_report(run) for run in runs]
    if page is not None:
        _write_page(page, [run if run.is_dir() else run.parent for run in runs], reports)
    titles = [f"{run}\n{summary.title(report)}" for run, report in zip(runs, reports, strict=True)]
    footer = "" if page is None else next_step("xdg-open", page)
    show_result(reports, ("", *titles), summary.side_by_side(reports), footer=footer)


def _write_page(page: Path, folders: list[Path], reports: list["RunReport"]) -> None:
    from fsrp_edge.files import write_text
    from fsrp_edge.report.html import render_runs
    from fsrp_edge.report.schema import DENSE
    from fsrp_edge.report.store import REPORT_HTML
    from fsrp_edge.report.sweep import SideBySide, attack_of, basis_of, dense_point, measure_of, point_of

    first, *others = map(basis_of, reports)
    if differ := [what for what, value in first.items() if any(other[what] != value for other in others)]:
        raise BadInputError(
            f"--page ranks runs, but these differ in {' and '.join(differ)}; leave it out to see their figures"
        )
    names = [folder.resolve().name for folder in folders]
    if len({DENSE, *names}) <= len(names):  # some are the same, or one is called as the dense network's row is
        names = [f"{folder}/" for folder in folders]
    points = [
        point_of(name, os.path.relpath(folder, page.parent), report)
        for name, folder, report in zip(names, folders, reports, strict=True)
    ]
    if len({report.source.sha256 for report in reports}) == 1:
        points.insert(0, dense_point(reports[0]))
    judged = SideBySide.of(attack_of(reports[0]), points, measure=measure_of(reports[0]))
    by_name = dict(zip(names, reports, strict=True))
    pages = [name for name, folder in zip(names, folders, strict=True) if (folder / REPORT_HTML).is_file()]
    write_text(page, render_runs(f"{len(reports)} runs side by side", judged, by_name, pages))
