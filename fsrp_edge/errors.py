"""What can go wrong, by whose move it is; each class carries the exit code of the command line."""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class FsrpEdgeError(Exception):
    """Base of every error this package raises on purpose; its text is one clear line for the user."""

    exit_code: ClassVar[int] = 3


class GateFailedError(FsrpEdgeError):
    """The work was done, but a promise was not kept: accuracy, latency, size or parity."""

    exit_code: ClassVar[int] = 1


class BadInputError(FsrpEdgeError):
    """Wrong use or bad input. The text says what was seen, what is allowed and how to fix it."""

    exit_code: ClassVar[int] = 2


class WithinBudgetsError(BadInputError):
    """The dense network meets its budgets already, so that nothing has to be removed."""


class ToolFailedError(FsrpEdgeError):
    """A tool, runtime or device that is needed is missing or failed."""

    exit_code: ClassVar[int] = 3


class NotInstalledError(ToolFailedError):
    """A package of an extra can't be imported here."""


class Terminated(BaseException):
    """A signal that ends the program: the blocks that it leaves clean up.

    Args:
        number: SIGTERM, as `kill` and `timeout` send it, or SIGHUP, as a terminal or a session does that goes away.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_problem(error: "ValidationError", *, place: bool = True) -> str:
    """What pydantic says in one line: where the first problem is, what it is, and how many more there are."""
    first, *others = error.errors(include_url=False)
    where = ".".join(map(str, first["loc"])) if place else ""
    more = f" (and {len(others)} more)" if others else ""
    return f"{where}: {first['msg']}{more}".removeprefix(": ").replace("Value error, ", "", 1)
