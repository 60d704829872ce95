"""Costs as they were fitted: on published measurements, shipped with the package, or on a user's own.

`benchmarks/latency_estimate.py` fits the published ones and writes coefficients.json; `targets calibrate` the user's.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.records import Document, Record
from fsrp_edge.targets.load import own_folder
from fsrp_edge.targets.work import COSTS, TILE

COEFFICIENTS = Path(__file__).with_name("coefficients.json")
FEWEST = 3
"""Networks below which a fit would only repeat its prior."""


class Group(Record):
    """Costs of one runtime on one device, fitted on published measurements, and their validation error."""

    target: str
    runtime: str
    version: str
    backend: str
    threads: int
    """0 where threads don't matter: on a GPU."""
    precision: Precision
    statistic: str
    costs: dict[str, Annotated[float, Field(ge=0)]]
    """Nanoseconds by the names in COSTS."""
    tile: float = Field(TILE, ge=0)
    """As `work.TILE`."""
    measurements: int
    networks: int
    validation: str
    """How the error was found."""
    mape: float
    """Mean absolute error, as a fraction, on networks left out of the fit."""
    factor_90: float
    """Nine of ten of those measurements lie within estimate ÷ and × this factor."""
    origin: Literal["published", "your own"] = "published"
    speed: float | None = Field(None, gt=0)
    """`costs.speed_of` what was calibrated: a user's profile may lie anywhere, packaged ones are looked up."""

    @property
    def setting(self) -> tuple[str, str, int, Precision]:
        """What a new calibration replaces."""
        return self.target, self.runtime, self.threads, self.precision

    @property
    def unit(self) -> str:
        """cpu, gpu or npu."""
        return "npu" if self.backend == "edgetpu" else self.backend[:3]

    @field_validator("costs")
    @classmethod
    def _all_of_them(cls, costs: dict[str, float]) -> dict[str, float]:
        if set(costs) != set(COSTS):
            raise ValueError(f"the costs are {', '.join(COSTS)}")
        return costs


class Pool(Record):
    """What one runtime reaches over all devices: the start and the spread of a new group's log costs."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


class Coefficients(Record):
    """All fitted costs, as shipped in coefficients.json, which benchmarks/latency_estimate.py writes."""

    groups: tuple[Group, ...]
    pools: dict[str, Pool]
    """By `RUNTIME BACKEND PRECISION`."""


class Calibration(Document):
    """What a user measured on a target and its variants."""

    called = "a calibration (remove it, or calibrate again)"

    groups: tuple[Group, ...]


@cache
def load_coefficients() -> Coefficients:
    """The packaged coefficients."""
    return Coefficients.model_validate_json(COEFFICIENTS.read_bytes())


def calibration_file(target: str) -> Path:
    """Where the costs that a user calibrated for a target are kept, beside the user's own profiles."""
    return own_folder() / f"{target.partition('@')[0]}.calibration.json"


def calibrated_groups(target: str) -> tuple[Group, ...]:
    """What a user calibrated for a target; none where there is no file.

    Raises:
        BadInputError: the file holds something else.
    """
    path = calibration_file(target)
    return Calibration.load(path).groups if path.exists() else ()
