"""PruningPlan: which channels stay, as a file that people can review and that always gives the same network."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from fsrp_edge.errors import BadInputError, first_problem
from fsrp_edge.files import read_json, sha256_json, write_json


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
        first, _, last = run.partition("-")
        channels.extend(range(int(first), int(last or first) + 1))
    if any(after <= before for before, after in itertools.pairwise(channels)):
        raise ValueError(f"channels must ascend without repeats: {text!r}")
    return tuple(channels)


Channels = Annotated[tuple[int, ...], BeforeValidator(parse_channels), PlainSerializer(format_channels)]


class GroupPlan(BaseModel):
    """What stays of one group of coupled channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class PruningPlan(BaseModel):
    """A plan for one network; applied to the same checkpoint it always gives the same smaller network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    architecture: str
    model_sha256: str
    """Digest of the weights that the plan was made for."""
    criterion: str
    scores_sha256: str
    ratio: float
    """Share of each group's channels that was asked to be removed."""
    channel_multiple: int
    groups: tuple[GroupPlan, ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the plan's content."""
        return sha256_json(self.model_dump(mode="json"))

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan written by `save`.

        Raises:
            BadInputError: not such a file.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise BadInputError(f"{path} is not a pruning plan: {first_problem(error)}") from None
