"""Keeps what libraries print off the console, and shows it when they fail."""

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import BinaryIO, TextIO

from fsrp_edge.errors import FsrpEdgeError, ToolFailedError

LINES_SHOWN = 8

_logger = logging.getLogger(__name__)
_alone = threading.RLock()
"""Held while descriptors are redirected: of two threads at once, one would put the other's file back in their place."""


@contextmanager
def captured_output(work: str) -> Iterator[None]:
    """Run noisy library code: its output goes to this module's logger (DEBUG), or into the error if it fails.

    Standard output and standard error are redirected as file descriptors, for the whole process, because
    converters print from C++. A console that shall stay alive meanwhile has to write to a duplicate of its
    descriptor. Threads take turns.

    Args:
        work: what is being done, such as `exporting torchvision:resnet18 to onnx fp32`; begins the error.

    Raises:
        ToolFailedError: the code in the block raised anything but an error of this package.
    """
    with _alone, _output_file() as stream:
        try:
            with _descriptors_to(stream), _logging_kept(), _warnings_to(stream):
                yield
        except FsrpEdgeError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or ["no message"]
            said = "\n".join(_text(stream).splitlines()[-LINES_SHOWN:])
            raise ToolFailedError(
                f"{work} failed: {type(error).__name__}: {reason[0][:400]}"
                + (f"\nlast lines of the tool's own output:\n{said}" if said else "")
            ) from error
        else:
            if text := _text(stream):
                _logger.debug("%s: %s", work, text)


def _output_file() -> BinaryIO:
    """A file for what tools print; it must not have the number of a standard stream that is closed, as by `2>&-`.

    Whatever file took the number afterwards would get what tools print, so the null device keeps it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    return tempfile.TemporaryFile()


@contextmanager
def _descriptors_to(stream: BinaryIO) -> Iterator[None]:
    _flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    try:
        for number in saved:
            os.dup2(stream.fileno(), number)
        # Python's own streams may not be the descriptors (in notebooks and tests).
        with redirect_stdout(_python_stream(1)), redirect_stderr(_python_stream(2)):
            yield
    finally:
        _flush()
        for number, original in saved.items():
            os.dup2(original, number)
            os.close(original)


def _python_stream(number: int) -> TextIO:
    """A text stream onto a descriptor that never closes it: a log handler that keeps hold of it works on."""
    return open(number, "w", buffering=1, errors="replace", closefd=False)


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Undo what libraries do to the root logger: `logging.warning()` alone gives it a handler."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _warnings_to(stream: BinaryIO) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for warning in seen:
                stream.write(f"{warning.category.__name__}: {warning.message}\n".encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as under `2>&-`, or pythonw
            stream.flush()


def _text(stream: BinaryIO) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace").strip()
