"""PruningPlan: which channels stay, as a file that people can review and that always gives the same network."""

import itertools
import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from fsrp_edge.files import sha256_json
from fsrp_edge.pruning.budgets import Budgeted
from fsrp_edge.records import Document, Record

MOST_CHANNELS = 2**20
"""More than any layer has; a plan that names more must not fill the memory."""

_RUN = re.compile(r"(\d{1,7})(?:-(\d{1,7}))?", re.ASCII)


def format_channels(channels: tuple[int, ...]) -> str:
    """Ascending channel numbers as runs: (0, 1, 2, 5) → `0-2 5`."""
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_channels(text: object) -> object:
    """The inverse of `format_channels`; anything but text is left to the model's own validation."""
    if not isinstance(text, str):
        return text
    channels: list[int] = []
    for run in text.split():
        match = _RUN.fullmatch(run)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, MOST_CHANNELS)
        if not first <= last < MOST_CHANNELS:
            raise ValueError(f"{run!r} is neither a channel such as 5 nor a run of channels such as 0-2")
        channels.extend(range(first, last + 1))
    return tuple(channels)


Channels = Annotated[tuple[int, ...], BeforeValidator(parse_channels), PlainSerializer(format_channels)]


Allocation = Literal["uniform", "global", "knapsack"]
"""How much goes of each group. `uniform`: the same share; `global`: what lies below one threshold on scores that were
divided by their group's root mean square, so that groups of other scales can be compared; `knapsack`: what loses least
for what it saves (`pruning.allocation`)."""
Strategy = Literal["one-shot", "sequential", "gradual"]
"""When filters are scored. `one-shot`: once; `sequential`: again before each layer; `gradual`: again in each round."""


class GroupPlan(Record):
    """What stays of one group of coupled channels."""

    root: str
    """Layer whose output channels number the group's."""
    layers: tuple[str, ...]
    """All layers that lose these output channels, the root among them."""
    channels: int
    """Before pruning."""
    kept: Channels
    """Written as runs: `0-2 5`."""
    note: str | None = None
    """Why the group is not pruned, or not at the ratio that was asked for."""

    @model_validator(mode="after")
    def _keeps_what_is_there(self) -> Self:
        if any(after <= before for before, after in itertools.pairwise(self.kept)):
            raise ValueError(f"group {self.root}: kept channels must ascend without repeats")
        if not self.kept or not 0 <= self.kept[0] <= self.kept[-1] < self.channels:
            seen = f"{self.kept[0]} to {self.kept[-1]}" if self.kept else "none"
            raise ValueError(
                f"group {self.root}: the kept channels are {seen}; at least one is needed, of 0 to {self.channels - 1}"
            )
        return self


class Terms(Record):
    """By which rule channels are chosen, as plan and report tell it."""

    criterion: str
    ratio: float = Field(ge=0, lt=1)
    """Share that was asked to be removed …"""
    ratio_of: Literal["channels", "parameters", "macs"] = "channels"
    """… of each group's channels, or of all parameters or MACs of the network; under budgets, what they come to."""
    budgets: tuple[Budgeted, ...] = ()
    channel_multiple: int = Field(ge=1)
    allocation: Allocation = "uniform"


class PruningPlan(Terms, Document):
    """A plan for one network; applied to the same checkpoint it always gives the same smaller network."""

    called = "a pruning plan"

    schema_version: Literal[1] = 1
    architecture: str
    model_sha256: str
    """Digest of the weights that the plan was made for."""
    scores_sha256: str
    strategy: Strategy = "one-shot"
    groups: tuple[GroupPlan, ...]

    @model_validator(mode="after")
    def _groups_once(self) -> Self:
        roots = [group.root for group in self.groups]
        repeated = sorted({root for root in roots if roots.count(root) > 1})
        if repeated:
            raise ValueError(f"group {repeated[0]} stands more than once")
        return self

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the plan's content."""
        return sha256_json(self.model_dump(mode="json"))
