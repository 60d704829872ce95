"""From exceptions to a line on stderr and an exit code. Imports nothing heavy: `--help` goes through here."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from fsrp_edge.errors import FsrpEdgeError
from fsrp_edge.wording import printable

UNEXPECTED = 3
INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 + SIGPIPE, as a shell reports it: 1 would read as a failed gate."""

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
    except click.exceptions.Exit as wanted:
        return wanted.exit_code
    except BrokenPipeError:
        # Python flushes stdout once more at exit; without a reader that would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort, Exception) as error:
        return _report(error, can_resume=_RESUMABLE in meta)
    return 0


def _report(error: BaseException, *, can_resume: bool) -> int:
    if os.environ.get(_TRACEBACK):
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        how = "; run the same command again to resume" if can_resume else ""
        click.echo(f"\ninterrupted{how}", err=True)
        return INTERRUPTED
    if _disk_is_full(error):
        click.echo("error: the disk is full; free some space and run the same command again", err=True)
        return UNEXPECTED
    if isinstance(error, FsrpEdgeError):
        click.echo(f"error: {_lines(error)}", err=True)
        return error.exit_code
    click.echo(f"error: unexpected {type(error).__name__}: {_lines(error)}", err=True)
    click.echo(f"To see where, set {_TRACEBACK}=1 or give --traceback.", err=True)
    return UNEXPECTED


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
