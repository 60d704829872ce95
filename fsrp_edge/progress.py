"""Progress of long work, told to whoever listens: the command line draws bars, a library user hears nothing."""

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Listener(Protocol):
    """Receives progress; the command line implements it with rich."""

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        """Yield every item while showing how far the work is."""
        ...

    def log(self, message: str) -> None:
        """Show one line."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class _Beginning:
    """A listener that calls `begin` before the first track, and passes everything on."""

    def __init__(self, following: Listener, begin: Callable[[], None]) -> None:
        self.following = following
        self.begin: Callable[[], None] | None = begin

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        begin, self.begin = self.begin, None
        if begin is not None:
            begin()
        return self.following.track(items, description, total)

    def log(self, message: str) -> None:
        self.following.log(message)


@contextmanager
def when_work_begins(begin: Callable[[], None]) -> Iterator[None]:
    """Call `begin` before the first track inside the block, where anybody listens."""
    following = _listener.get()
    if following is None:
        yield
    else:
        with listen(_Beginning(following, begin)):
            yield


class _LogFile:
    """A listener that appends lines with the time to a file, and passes everything on."""

    def __init__(self, path: Path, following: Listener | None) -> None:
        self.path = path
        self.following = following

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        start = time.monotonic()
        yield from items if self.following is None else self.following.track(items, description, total)
        self.write(f"{description}: {time.monotonic() - start:.1f} s")

    def log(self, message: str) -> None:
        self.write(message)
        if self.following is not None:
            self.following.log(message)

    def write(self, line: str) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{now} {line}\n")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also append the progress of everything inside the block to a file, whoever else listens, or nobody.

    What libraries print goes there too.
    """
    file = _LogFile(path, _listener.get())
    with tool_output_to(file.write), listen(file):
        yield


@contextmanager
def tool_output_to(write: Callable[[str], None]) -> Iterator[None]:
    """Also hand what `tool_output` captured inside the block, and this package's other messages, to `write`."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for line in record.getMessage().splitlines():
                write(line)

    logger, handler = logging.getLogger("fsrp_edge"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, reporting each; `total` is needed where `items` has no length."""
    listener = _listener.get()
    if listener is None:
        yield from items
    else:
        yield from listener.track(items, description, total)


def log(message: str) -> None:
    """Tell the listener one line, such as the accuracy after an epoch."""
    listener = _listener.get()
    if listener is not None:
        listener.log(message)
