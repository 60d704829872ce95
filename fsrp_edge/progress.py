"""Progress of long work, told to whoever listens: the command line draws bars, a library user hears nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
