"""From exceptions to a line on stderr and an exit code. Imports nothing heavy: `--help` goes through here."""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

import click

from fsrp_edge.errors import FsrpEdgeError, Terminated
from fsrp_edge.wording import printable

UNEXPECTED = 3
BROKEN_PIPE = 141
"""128 + SIGPIPE, as a shell reports it: 1 would read as a failed gate."""
SIGNALLED = 128
"""Plus the signal's number: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
SAME_SIGNAL = 1.0
"""Seconds within which a second signal counts as the first."""

_TRACEBACK = "FSRP_EDGE_TRACEBACK"
_RESUMABLE = "fsrp_edge.resumable"


def _ask_for_traceback(_context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        os.environ[_TRACEBACK] = "1"


traceback_option = click.option(
    "--traceback",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_ask_for_traceback,
    help=f"Show the traceback of an error, as {_TRACEBACK}=1 does.",
)


def unwind_when_terminated() -> None:
    """From now on SIGTERM and SIGHUP raise Terminated.

    Once a second: `timeout` sends two, of which the other would end the cleaning up.

    Later ones raise again: where Python swallows what a destructor raises, the first one is lost. A SIGHUP that is
    ignored, as under `nohup`, stays so.

    Forked children end at once, and so do processes of torchrun, which would wait for those that wait for one another.
    """
    own, deaf_until = os.getpid(), 0.0

    def end(number: int, _frame: object) -> None:
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        nonlocal deaf_until
        if (now := time.monotonic()) >= deaf_until:
            deaf_until = now + SAME_SIGNAL
            raise Terminated(number)

    if os.environ.get("WORLD_SIZE", "1") != "1":
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def resumable() -> None:
    """Note that the running command, given again after an interrupt, goes on where it stopped."""
    click.get_current_context().meta[_RESUMABLE] = True


def run(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; every error becomes a line on stderr, not a traceback.

    Args:
        command: the command or group.
        arguments: what follows the program's name; None for those of this process.
    """
    name = "fsrp-edge"
    if "_FSRP_EDGE_COMPLETE" in os.environ:
        command.main(prog_name=name)  # click answers the shell and exits
    for stream in (sys.stdout, sys.stderr):
        _replace_what_it_cannot_show(stream)
    meta: dict[str, Any] = {}
    try:
        # Not `command.main`, which ends a broken pipe and an interrupt with exit code 1.
        with command.make_context(name, list(sys.argv[1:] if arguments is None else arguments)) as context:
            meta = context.meta  # which its subcommands share
            command.invoke(context)
        sys.stdout.flush()
        code = 0
    except click.exceptions.Exit as wanted:
        code = wanted.exit_code
    except BrokenPipeError:
        code = BROKEN_PIPE
    except (KeyboardInterrupt, Terminated, click.Abort, Exception) as error:
        code = _report(error, can_resume=_RESUMABLE in meta)
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    return code


def _report(error: BaseException, *, can_resume: bool) -> int:
    if os.environ.get(_TRACEBACK):
        _tell("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, click.ClickException):
        with suppress(OSError):
            error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | Terminated | click.Abort):
        word, number = ("terminated", error.number) if isinstance(error, Terminated) else ("interrupted", signal.SIGINT)
        how = "; run the same command again to resume" if can_resume else ""
        _tell(f"\n{word}{how}")
        return SIGNALLED + number
    if _disk_is_full(error):
        _tell("error: the disk is full; free some space and run the same command again")
        return UNEXPECTED
    if isinstance(error, FsrpEdgeError):
        _tell(f"error: {_lines(error)}")
        return error.exit_code
    _tell(f"error: unexpected {type(error).__name__}: {_lines(error)}")
    _tell(f"To see where, set {_TRACEBACK}=1 or give --traceback.")
    return UNEXPECTED


def _tell(lines: str) -> None:
    """Write to stderr; where nobody reads it or its disk is full, the exit code is what remains of an error."""
    with suppress(OSError):
        click.echo(lines, err=True)


def _let_go(stream: TextIO) -> None:
    """Python writes what a stream still holds at exit; where that can't be written, its exit code would be 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _disk_is_full(error: BaseException) -> bool:
    """Whether that is what an error, or one that led to it, says: libraries wrap it each in its own way.

    Our own errors may quote a device whose disk is full.
    """
    before = error.__cause__ or error.__context__
    said = not isinstance(error, FsrpEdgeError) and os.strerror(errno.ENOSPC) in str(error)
    return said or (before is not None and _disk_is_full(before))


def _lines(error: BaseException) -> str:
    """An error's text without control characters; lines after the first (a tool's output) are indented."""
    lines = (line.rstrip() for line in str(error).strip().splitlines())
    return "\n  ".join(map(printable, lines)) or "no message"


def _replace_what_it_cannot_show(stream: object) -> None:
    """A terminal without Unicode gets `?` for `✓`, not a UnicodeEncodeError after an hour of work."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
