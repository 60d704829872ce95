"""What a device says, as records: taken apart here, so that what is not as agreed is the device's failure."""

import reprlib
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from fsrp_edge.bench.results import Round
from fsrp_edge.errors import ToolFailedError, first_problem
from fsrp_edge.records import Record

Events = dict[str, dict[str, Any]]
"""The last event of each kind, as the agent says it."""


class _Reply(Record):
    """Agents also say what nobody here reads."""

    model_config = ConfigDict(extra="ignore")


class Hello(_Reply):
    """Who measures."""

    cpu: str
    cores: int
    runtime: str
    runtime_version: str


class Fault(_Reply):
    """Why nothing was measured; `install` names a package that is missing."""

    message: str
    install: str | None = None


class Result(Round):
    """A round, and what is told besides; fields as in `Latency`."""

    model_config = ConfigDict(extra="ignore")

    times_ms: tuple[FiniteFloat, ...] = Field(min_length=1)
    averaged: int = Field(1, ge=1)
    init_ms: FiniteFloat | None
    first_ms: FiniteFloat | None
    outputs: tuple[tuple[float, ...], ...]
    """For each input that was sent; not every one is a number."""
    classes: tuple[int, ...] | None = None
    """For each image that was sent."""

    @field_validator("outputs")
    @classmethod
    def _of_one_length(cls, outputs: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if len({len(each) for each in outputs}) > 1:
            raise ValueError("outputs of several lengths")
        return outputs

    @property
    def round(self) -> Round:
        """The part that results keep."""
        return Round(**{name: getattr(self, name) for name in Round.model_fields})


AnyReply = TypeVar("AnyReply", bound=Record)


def read(kind: type[AnyReply], events: Events, name: str, work: str) -> AnyReply:
    """An event as a record.

    Args:
        kind: of the record.
        events: what the device said.
        name: of the event.
        work: what it is about, and on which device; begins the error.

    Raises:
        ToolFailedError: it is missing, or not as agreed.
    """
    if name not in events:
        raise ToolFailedError(f"{work}: the measuring process said no {name!r}, but {', '.join(events) or 'nothing'}")
    try:
        return kind.model_validate({field: value for field, value in events[name].items() if field != "event"})
    except ValidationError as error:
        seen = reprlib.repr(error.errors(include_url=False)[0]["input"])
        raise ToolFailedError(
            f"{work}: the measuring process said a {name!r} that makes no sense: {first_problem(error)}; saw {seen}"
        ) from None
