"""The end of a run on the console: its report as a table, the paths of the artifacts, the next commands."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fsrp_edge import wording
from fsrp_edge.cli.console import Screen
from fsrp_edge.report import summary
from fsrp_edge.report.schema import LedgerRow, RunReport

WIDE = 100
"""From this many columns on, accuracies are shown with their intervals."""


def print_report(report: RunReport, directory: Path, next_commands: Sequence[str] = ()) -> None:
    """Write the end of a run to stdout: the table, the paths of the artifacts, the commands to try next.

    Args:
        report: what is known of the run.
        directory: the run directory, put before the artifacts' paths.
        next_commands: commands ready to be pasted, quoted for a shell.
    """
    console = Screen(file=sys.stdout)
    console.print(render_report(report, console.width))
    # Unwrapped, so that paths and commands can be copied whatever the width.
    for heading, lines in (
        ("Files", [str(directory / artifact.path) for artifact in report.artifacts]),
        ("Next", list(next_commands)),
    ):
        if lines:
            console.print(Text(f"\n{heading}", style="bold"))
            for line in lines:
                console.print(Text(f"  {wording.printable(line)}"), soft_wrap=True)


def render_report(report: RunReport, width: int) -> Group:
    """The table of a run with its legend, totals and warnings, for any width from 80 columns on."""
    wide = width >= WIDE
    return Group(_table(report, wide=wide), *_below(report, wide=wide))


def _table(report: RunReport, *, wide: bool) -> Table:
    table = Table(
        title=Text(wording.printable(summary.title(report)), style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1) if wide else (0, 0),
        pad_edge=False,
    )
    columns = summary.columns(report.ledger)
    table.add_column("file", overflow="fold")
    table.add_column("status", justify="center")
    table.add_column("size", justify="right")
    for column in columns:
        words = (*column.attack.replace("+", "+\n").split(" ", 1), f"{column.measure.split()[0]} %")
        table.add_column(Text("\n".join(words)), justify="right")
    table.add_column("latency\np50 (ms)", justify="right")
    table.add_column("speed-up", justify="right")
    for row in report.ledger:
        first = row.latency[0] if row.latency else None
        speed_up = first and report.speed_up(row, first)
        table.add_row(
            Text(wording.printable(row.name)),
            _status(row),
            wording.size(row.bytes),
            *(_share(row, column, wide=wide) for column in columns),
            wording.marked(wording.digits(first.p50_ms), valid=first.valid) if first else wording.NONE,
            wording.marked(wording.ratio(speed_up.latency_ratio), valid=speed_up.valid) if speed_up else wording.NONE,
        )
    return table


def _status(row: LedgerRow) -> Text:
    if row.parity_passed is None:
        return Text(wording.NONE)
    return Text("✓", style="green") if row.parity_passed else Text("✗", style="bold red")


def _share(row: LedgerRow, column: summary.Column, *, wide: bool) -> str:
    accuracy = column.of(row)
    if accuracy is None:
        return wording.NONE
    figure = f"{100 * accuracy.accuracy:.1f}"
    return f"{figure} ({wording.interval(accuracy)})" if wide else figure


def _below(report: RunReport, *, wide: bool) -> Iterator[Text]:
    passed, parity = summary.parity_verdict(report)
    style = {True: "green", False: "bold red", None: "yellow"}[passed]
    yield Text(wording.printable(parity), style=style)
    for gate in report.gates:
        mark, colour = ("✓", "green") if gate.passed else ("✗", "bold red")
        yield Text(wording.printable(f"{mark} {gate.gate}: {gate.message}"), style=colour)
    yield Text(wording.printable(f"asked: {summary.asked(report)}"))
    for what, before, after, change in summary.totals(report):
        yield Text(f"{what} {before} → {after} ({change})")
    for speed_up in report.speed_ups:
        yield Text(wording.printable(f"latency of {summary.speed_verdict(speed_up)}"))
    for line in summary.estimates(report):
        yield Text(wording.printable(f"estimated, not measured: {line}"))
    for line in _legend(report, wide=wide):
        yield Text(wording.printable(line), style="dim")
    for note in summary.notes(report):
        yield Text(wording.printable(f"note: {note}"), style="yellow")


def _legend(report: RunReport, *, wide: bool) -> Iterator[str]:
    yield "status: parity of the file with the network in torch"
    intervals = "95 % intervals in brackets" if wide else "95 % intervals in report.md"
    for column in summary.columns(report.ledger):
        numbers = sorted({found.images for row in report.ledger if (found := column.of(row)) is not None})
        yield f"{column.title}: n={' and '.join(map(str, numbers))}, {intervals}"
    measured = [row.latency[0] for row in report.ledger if row.latency]
    how = dict.fromkeys(f"{found.runtime}, {wording.threads(found.threads)}" for found in measured)
    for device in dict.fromkeys(found.device for found in measured):
        yield f"latency: measured at batch 1 on {device}; {'; '.join(how)}"
    if not all(found.valid for found in measured):
        yield "✗ behind a latency or a speed-up: something disturbed the measurement, see the notes"
    estimated = [(row.estimate.basis, row.name) for row in report.ledger if row.estimate and not row.is_dense]
    if estimated:
        yield "estimates: nine of ten measurements are expected within the brackets"
    for basis in dict.fromkeys(basis for basis, _ in estimated):
        files = ", ".join(name for its, name in estimated if its == basis)
        yield f"basis of the estimate of {files}: {basis}"
