"""What a plan is asked for: how much goes, of what, and what stays out of it."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from fsrp_edge.errors import BadInputError
from fsrp_edge.pruning.budgets import Budgets
from fsrp_edge.pruning.plan import Allocation, Strategy
from fsrp_edge.records import Record

RatioOf = Literal["channels", "parameters", "macs"]
Ratio = Annotated[float, Field(gt=0, lt=1)]
LayerRatio = Annotated[float, Field(ge=0, lt=1)]


class ChannelOptions(Record):
    """How a user wants channels to be chosen once they are scored.

    Patterns are names of layers, with `*`, `?` and `[…]` as in file names: `layer1.*.conv2`.
    """

    ratio: Ratio = 0.5
    """Share to remove, in (0, 1)."""
    ratio_of: RatioOf = "channels"
    """`channels`: of each group's channels; `parameters` or `macs`: of the whole network's."""
    budgets: Budgets = Budgets()
    """The most that the result may cost; where one is given, `ratio` and `ratio_of` don't count."""
    allocation: Allocation | None = None
    """None: knapsack under budgets, else uniform."""
    strategy: Strategy = "one-shot"
    rounds: int = Field(3, ge=1)
    """Of the gradual strategy."""
    keep: tuple[str, ...] = ()
    """Layers whose outputs stay."""
    keep_inputs: tuple[str, ...] = ()
    """Layers whose inputs stay."""
    keep_first: bool = False
    """The outputs of the first convolution stay. The last layer's outputs are the classes and always stay."""
    layer_ratios: tuple[tuple[str, LayerRatio], ...] = ()
    """Share of channels to remove from certain layers, whatever `ratio` asks; 0 keeps all."""

    @property
    def chosen_allocation(self) -> Allocation:
        """The allocation, or what it is by default."""
        return self.allocation or ("knapsack" if self.budgets.asked else "uniform")


class PlanOptions(ChannelOptions):
    """What a plan is asked for: the user's wishes, and what the target demands."""

    channel_multiple: int = Field(1, ge=1)
    """Kept channels come in multiples of this, wherever the network allows it."""


def matches(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that fits a layer's name."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def require_known(patterns: Iterable[str], layers: Sequence[str], option: str) -> None:
    """Refuse a pattern that fits none of the layers.

    Raises:
        BadInputError: names the pattern, the option and the nearest layers.
    """
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or layers[:3]
            raise BadInputError(
                f"{option}: no layer is called {pattern!r}; nearest: {', '.join(near)} "
                "(`fsrp-edge inspect` lists all of them)"
            )
