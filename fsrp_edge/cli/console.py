"""Progress on stderr, results on stdout. Imported when a command runs, not for `--help`: rich is slow."""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import click
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fsrp_edge import progress, wording
from fsrp_edge.cli import cores
from fsrp_edge.cli.options import remembered, speaks

Item = TypeVar("Item")
NAME_LENGTH = 40
"""Names of layers and files up to this length stay in one piece; the other columns make room."""
READING = {"architecture", "input_size", "mean", "std", "trust_pickle", "data"}
"""Parameters that say how a checkpoint is read, and with which images."""
_WORD = re.compile(r"[^\W\d_]{4}")
"""More than a unit or a yes."""


class Screen(Console):
    """rich's console, which leaves it to `errors.run` what it means that the reader of a pipe has left."""

    def on_broken_pipe(self) -> None:
        """Raise what the write raised; rich would end the process with exit code 1, that of a failed gate."""
        raise BrokenPipeError


class TerminalListener:
    """Draws a bar with the time left for every track, nested ones below it; a finished bar disappears.

    Args:
        bars: a running rich Progress.
    """

    def __init__(self, bars: Progress) -> None:
        self.bars = bars

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        """See progress.Listener."""
        task = self.bars.add_task(wording.printable(description), total=_length(items, total))
        try:
            for item in items:
                yield item
                self.bars.advance(task)
        finally:
            self.bars.remove_task(task)

    def log(self, message: str) -> None:
        """See progress.Listener."""
        self.bars.console.print(Text(wording.printable(message)))


class LineListener:
    """Writes plain lines, for logs: one when a track turns out long, one a minute, one at its end.

    Args:
        stream: a text stream, such as stderr.
        short_seconds: a track that ends sooner is not worth a line.
        pause_seconds: between two lines of one track.
    """

    def __init__(self, stream: TextIO, short_seconds: float = 2, pause_seconds: float = 60) -> None:
        self.stream = stream
        self.short_seconds = short_seconds
        self.pause_seconds = pause_seconds
        self.depth = 0

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        """See progress.Listener."""
        count, of = 0, _length(items, total)
        start = time.monotonic()
        next_line = start + self.short_seconds
        self.depth += 1
        try:
            for item in items:
                yield item
                count, now = count + 1, time.monotonic()
                if now >= next_line and count != of:
                    self._write(f"{description}: {count}{'' if of is None else f' of {of}'}")
                    next_line = now + self.pause_seconds
        finally:
            self.depth -= 1
        if time.monotonic() - start >= self.short_seconds:
            self._write(f"{description}: done in {wording.seconds(time.monotonic() - start)}")

    def log(self, message: str) -> None:
        """See progress.Listener."""
        self._write(message)

    def _write(self, line: str) -> None:
        print("  " * self.depth + wording.printable(line), file=self.stream, flush=True)


def _length(items: Iterable[object], total: int | None) -> int | None:
    if total is not None:
        return total
    return len(items) if isinstance(items, Sized) else None


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the progress of the work inside the block on stderr, and keep stdout free for the result.

    Bars with the time left on a terminal, occasional plain lines elsewhere; with --quiet nothing, with --verbose a line
    for every step and what libraries print.
    """
    quiet, verbose = remembered("quiet"), remembered("verbose")
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    with _stdout_sent_to_stderr(), _own_stderr() as stderr:
        if quiet or not speaks():
            yield
        elif verbose:
            listener = LineListener(stderr, short_seconds=0, pause_seconds=10)
            with progress.tool_output_to(listener.log), progress.listen(listener):
                yield
        elif stderr.isatty() and os.environ.get("TERM") != "dumb":
            with _bars(stderr) as bars, progress.listen(TerminalListener(bars)):
                yield
        else:
            with progress.listen(LineListener(stderr)):
                yield


@contextmanager
def show_computing() -> Iterator[None]:
    """`show_progress` for work on many images, which tells where torch's threads would stand in others' way.

    It does so when the work begins: what is refused before needs no advice about cores.
    """
    with show_progress(), progress.when_work_begins(_advise):
        yield


def _advise() -> None:
    import torch

    if torch.cuda.is_available():
        return
    if hint := cores.advice(torch.get_num_threads(), cores.free_cores()):
        progress.log(hint)


def _bars(stderr: TextIO) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Screen(file=stderr),
        transient=True,
        refresh_per_second=4,
        # rich would put its own objects in their place, past which `tool_output` could not capture them.
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """A second way to where stderr leads: it stays open while `tool_output` captures the descriptor."""
    with os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace") as stream:
        yield stream


@contextmanager
def _stdout_sent_to_stderr() -> Iterator[None]:
    """Libraries print to stdout, in Python, in C and in child processes; none of it belongs into `--json`."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def shown_as_json(value: Any) -> bool:
    """Write the result of a command to stdout as JSON where --json asks for it; tells whether it does.

    The value may hold models and dataclasses; NaN and infinity become null.
    """
    from pydantic_core import to_json

    wanted = bool(remembered("json"))
    if wanted:
        print(to_json(value, indent=1, inf_nan_mode="null").decode(), flush=True)
    return wanted


def show_result(value: Any, header: Sequence[str], rows: Iterable[Sequence[object]], *, footer: str = "") -> None:
    """Write the result of a command to stdout: `value` as JSON under --json, else the table."""
    if not shown_as_json(value):
        print_rows(header, rows, footer=footer)


def next_step(*words: object) -> str:
    """The line that ends a table: a command to paste, whatever the names of files in it."""
    return "Next: " + shlex.join(map(str, words))


def read_alike() -> list[str]:
    """What the user said of the checkpoint and the data, for a next command on the same checkpoint."""
    context = click.get_current_context()
    words = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in READING and value not in (None, False):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], text]
    return words


def read_saved(architecture: str | None, data: str | None) -> list[str]:
    """The same for a network that was saved here: its file holds all but the user's own code and the data."""
    from fsrp_edge.models.registry import is_user_code, normalize_name

    own = architecture is not None and is_user_code(normalize_name(architecture))
    return [*(["--arch", str(architecture)] if own else []), *(["--data", data] if data else [])]


def print_rows(header: Sequence[str], rows: Iterable[Sequence[object]], *, footer: str = "") -> None:
    """Write a table to stdout: figures to the right, the first column and whatever has words to the left.

    Args:
        header: one title a column.
        rows: one cell a column; shown by `str`.
        footer: lines below the table, unwrapped, so that paths and commands can be copied.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    cells = [[wording.printable(str(cell)) for cell in row] for row in rows]
    for number, title in enumerate(header):
        is_text = number == 0 or any(_WORD.search(row[number]) for row in cells)
        shown = "\n".join(map(wording.printable, title.splitlines()))
        is_name = number == 0 and all(len(row[0]) <= NAME_LENGTH for row in cells)
        table.add_column(Text(shown), justify="left" if is_text else "right", overflow="fold", no_wrap=is_name)
    for row in cells:
        table.add_row(*map(Text, row))
    console = Screen(file=sys.stdout)
    if Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum > console.width:
        table.padding = (0, 0)  # before a word is broken
    console.print(table)
    for line in footer.splitlines():
        console.print(Text(wording.printable(line)), soft_wrap=True)
