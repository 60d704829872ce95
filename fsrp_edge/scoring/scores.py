"""FilterScores: what scoring hands to planning, one number a filter, readable and diffable."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fsrp_edge.errors import BadInputError, first_problem
from fsrp_edge.files import read_json, write_json


class LayerScores(BaseModel):
    """Scores of one layer's output channels: the lowest is pruned first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[float, ...]
    map_size: tuple[int, int] | None = None
    """(height, width) of the feature map, for criteria that read one."""


class FilterScores(BaseModel):
    """Scores of every scored layer of one network, and what they were made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    criterion: str
    options: dict[str, str | int | float | bool | None]
    architecture: str
    model_sha256: str
    """Digest of the scored network's weights (`models.saved.weights_sha256`)."""
    data_sha256: str | None
    images: int
    seed: int
    layers: dict[str, LayerScores]
    """By the layer's name in the network, in the order of execution."""

    def save(self, path: Path) -> None:
        """Write the scores as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> "FilterScores":
        """Read scores written by `save`.

        Raises:
            BadInputError: not such a file.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise BadInputError(f"{path} is not a file of filter scores: {first_problem(error)}") from None
