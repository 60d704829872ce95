"""Budgets: the most that a pruned network may cost, in place of the share that is to go."""

from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from fsrp_edge import wording
from fsrp_edge.records import Record
from fsrp_edge.units import BYTES, COUNT, SHARE, TIME, parse_amount

BudgetKind = Literal["latency", "macs", "parameters", "size", "memory"]
KINDS: tuple[BudgetKind, ...] = get_args(BudgetKind)
UNITS: dict[BudgetKind, dict[str, float]] = {
    "latency": TIME, "macs": COUNT, "parameters": COUNT, "size": BYTES, "memory": BYTES,
}  # fmt: skip


class Limit(Record):
    """The most that is allowed: an amount, or a share of what the dense network has."""

    amount: float = Field(gt=0)
    """Milliseconds, MACs, parameters or bytes; a share in (0, 1) where `of_dense`."""
    of_dense: bool = False

    def of(self, dense: float) -> float:
        """The amount that is allowed where the dense network has `dense`."""
        return self.amount * dense if self.of_dense else self.amount


def parse_limit(kind: BudgetKind, text: str) -> Limit:
    """Read `20ms`, `500KB`, `12M`, `30%`, or a bare share such as `0.3`.

    Raises:
        ValueError: none of these, or not above 0 and, for a share, below 1.
    """
    amount, share = parse_amount(text, UNITS[kind] | SHARE | {"": 1.0}), text.strip().endswith("%")
    bare = text.strip().replace(".", "", 1).isdigit()
    if bare and amount >= 1 and "" not in UNITS[kind]:
        units = ", ".join(UNITS[kind])
        raise ValueError(f"{text!r} has no unit ({units}) and is no share of the dense network's such as 0.5")
    if amount <= 0 or (share and amount >= 1):
        raise ValueError(f"{text!r} is not above 0 and, as a share of the dense network's, below 100 %")
    return Limit(amount=amount, of_dense=share or (bare and amount < 1))


def _reader(kind: BudgetKind) -> Any:
    return BeforeValidator(lambda value: parse_limit(kind, value) if isinstance(value, str) else value)


class Budgets(Record):
    """The most that the result may cost; what is None is not limited."""

    latency: Annotated[Limit | None, _reader("latency")] = None
    """Of one image, milliseconds on the target."""
    macs: Annotated[Limit | None, _reader("macs")] = None
    parameters: Annotated[Limit | None, _reader("parameters")] = None
    size: Annotated[Limit | None, _reader("size")] = None
    """Of the largest file that is made, bytes."""
    memory: Annotated[Limit | None, _reader("memory")] = None
    """Weights and the activations alive at the worst moment, bytes."""

    @property
    def asked(self) -> dict[BudgetKind, Limit]:
        """The limits that were given."""
        limits: dict[BudgetKind, Limit | None] = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: limit for kind, limit in limits.items() if limit is not None}


class Budgeted(Record):
    """One budget and what a plan comes to."""

    kind: BudgetKind
    limit: float
    """Milliseconds, MACs, parameters or bytes."""
    dense: float
    least: float
    """With one step of channels left in every group that may be pruned."""
    planned: float
    basis: str
    """How it was found."""

    @property
    def told(self) -> str:
        """One line for the user."""
        dense, planned, limit, least = (
            show(self.kind, value) for value in (self.dense, self.planned, self.limit, self.least)
        )
        return f"{self.kind} {dense} → {planned}, at most {limit} asked, {least} the least ({self.basis})"


def show(kind: BudgetKind, value: float, more: int = 0) -> str:
    """`20.0 ms`, `12.3 M`, `500 kB`; with `more` digits, `20.00 ms`."""
    match kind:
        case "latency":
            return f"{wording.digits(value, more)} ms"
        case "macs" | "parameters":
            return wording.count(value, more)
    return wording.size(value, more)


def show_apart(kind: BudgetKind, first: float, second: float) -> tuple[str, str]:
    """Two amounts, with as many digits as tell them apart: `40.04 kB` and `40.00 kB`."""
    more = wording.more_digits(partial(show, kind), first, second)
    return show(kind, first, more), show(kind, second, more)
