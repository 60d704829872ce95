"""The latency estimate: what a graph's operators cost a runtime on a device, and how sure that is.

Time is a sum over fused operators: multiply-accumulates at the rate of the operator's class, bytes of
activations and of weights, and a fixed cost an operator. So a network is a row of quantities, a runtime on a
device is a column of costs, and the estimate is their product.

While the model was made, sums estimated networks left out of the fit better than compute and memory time that
overlap (the root of the sum of their squares); the larger of the two was not tried.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fsrp_edge.errors import BadInputError, first_problem
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.files import read_json
from fsrp_edge.targets.graph_cost import GraphCost, Operator, OperatorClass
from fsrp_edge.targets.load import own_folder
from fsrp_edge.targets.profile import Target

COSTS = (
    "winograd", "pointwise", "depthwise", "convolution", "attention", "pooling",
    "activations", "weights", "operator", "group",
)  # fmt: skip
"""Nanoseconds of: a multiply-accumulate of five classes, an element read by pooling, a byte of activations, a
byte of weights, an operator, and one group of a grouped convolution (runtimes loop over them)."""

RATE: dict[OperatorClass, str] = {
    "winograd": "winograd",
    "pointwise": "pointwise",
    "depthwise": "depthwise",
    "grouped": "convolution",
    "convolution": "convolution",
    "dense": "pointwise",
    "attention": "attention",
    "pooling": "pooling",
}

TILE = 16
"""A convolution of this depth or width runs at half its rate: SIMD tiles are filled badly, packing weighs more.
Without it, families left out were estimated 2 points worse. Chosen on those same families."""

BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
COEFFICIENTS = Path(__file__).with_name("coefficients.json")

UNCALIBRATED_FACTOR = 2.5
"""Half-width of the interval, as a factor, where nothing was published for the device and runtime."""
GENERIC_EFFICIENCY = 0.35
"""Share of the theoretical peak that 1×1 convolutions are assumed to reach where nothing was published."""


class Group(BaseModel):
    """Costs of one runtime on one device, fitted on published measurements, and their validation error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    measurements: int
    networks: int
    validation: str
    """How the error was found."""
    mape: float
    """Mean absolute error, as a fraction, on networks left out of the fit."""
    factor_90: float
    """Nine of ten of those measurements lie within estimate ÷ and × this factor."""
    origin: Literal["published", "your own"] = "published"


class Pool(BaseModel):
    """What one runtime reaches over all devices: the start and the spread of a new group's log costs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


class Coefficients(BaseModel):
    """All fitted costs, as shipped in coefficients.json, which benchmarks/latency_estimate.py writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[Group, ...]
    pools: dict[str, Pool]
    """By `RUNTIME BACKEND PRECISION`."""


@dataclass(frozen=True)
class OperatorTime:
    """One row of the breakdown.

    Args:
        operator: what it is.
        milliseconds: estimated.
        share: of the whole, 0 to 1.
        mostly: the cost that takes most of its time, one of COSTS.
    """

    operator: Operator
    milliseconds: float
    share: float
    mostly: str


@dataclass(frozen=True)
class Estimate:
    """An estimated latency of batch 1, never a measurement.

    Args:
        milliseconds: the estimate.
        interval: low and high, within which nine of ten measurements are expected.
        calibrated: whether measurements of this device, runtime, threads and precision are known.
        basis: one line that says what the estimate rests on.
        operators: the breakdown, in the order they run.
        arena_bytes: activations alive at the worst moment.
        weight_bytes: all weights.
        fits: whether both fit the device's memory; None where the profile names no size.
    """

    milliseconds: float
    interval: tuple[float, float]
    calibrated: bool
    basis: str
    runtime: str
    threads: int
    precision: Precision
    operators: tuple[OperatorTime, ...]
    arena_bytes: int
    weight_bytes: int
    fits: bool | None


@dataclass(frozen=True)
class Work:
    """What operators ask for, as arrays (…, operators): the leading axes are variants of one network.

    Args:
        kinds: class of each operator.
        macs: as in `Operator`.
        inside: input channels of one group.
        outside: output channels of one group.
        kernels: elements of a convolution's window.
        traffic: elements of activations read and written.
        weights: elements of weights and biases.
        groups: of a convolution.
    """

    kinds: tuple[OperatorClass, ...]
    macs: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    kernels: np.ndarray
    traffic: np.ndarray
    weights: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, operators: Sequence[Operator]) -> "Work":
        """The work of one network."""
        columns = np.array(
            [
                (
                    each.macs,
                    *each.channels,
                    each.kernel,
                    each.inputs + each.outputs,
                    each.weights,
                    each.groups,
                )
                for each in operators
            ],
            dtype=float,
        ).reshape(-1, 7)
        return cls(tuple(each.kind for each in operators), *columns.T)


def quantities(work: Work, precision: Precision) -> np.ndarray:
    """What each operator asks for, (…, operators, costs); the sum over operators describes the network."""
    rows = np.zeros((*work.macs.shape, len(COSTS)))
    kinds = np.array(work.kinds)
    macs = work.macs * _overhang(work, kinds)
    for kind, name in RATE.items():
        rows[..., kinds == kind, COSTS.index(name)] = macs[..., kinds == kind]
    rows[..., COSTS.index("activations")] = work.traffic * BYTES[precision]
    rows[..., COSTS.index("weights")] = work.weights * BYTES[precision]
    rows[..., COSTS.index("operator")] = 1
    rows[..., COSTS.index("group")] = np.where(kinds == "grouped", work.groups, 0)
    return rows


def _overhang(work: Work, kinds: np.ndarray) -> np.ndarray:
    """How much work the edges of a matrix kernel's tiles add where a convolution has few channels."""
    tiled = np.isin(kinds, ("winograd", "pointwise", "convolution", "grouped"))
    depth = np.where(kinds == "winograd", work.inside, work.inside * work.kernels)
    return np.where(tiled, (1 + TILE / depth) * (1 + TILE / work.outside), 1.0)


@dataclass(frozen=True)
class DeviceCosts:
    """What work costs a runtime on a device.

    Args:
        nanoseconds: by COSTS.
        computed_in: the precision that the runtime computes in.
        factor: nine of ten measurements lie within estimate ÷ and × this.
        calibrated: whether measurements of this device, runtime, threads and precision are known.
        basis: one line that says what an estimate rests on.
    """

    nanoseconds: np.ndarray
    computed_in: Precision
    factor: float
    calibrated: bool
    basis: str
    runtime: str
    threads: int

    def milliseconds(self, work: Work) -> np.ndarray:
        """Of each operator, (…, operators)."""
        times: np.ndarray = quantities(work, self.computed_in) @ self.nanoseconds * 1e-6
        return times


def device_costs(
    target: Target, precision: Precision, *, runtime: str | None = None, threads: int | None = None
) -> DeviceCosts:
    """The costs to estimate with.

    Args:
        target: a device profile.
        precision: of the file.
        runtime: one of the profile's; by default the first with known measurements in this precision.
        threads: at least 1; by default the profile's.

    Raises:
        BadInputError: the runtime is not the target's, or nothing at all is known to estimate with.
    """
    threads = threads or target.threads
    names = [each.name for each in target.runtimes]
    if runtime is not None and runtime not in names:
        raise BadInputError(f"{target.name} has no runtime {runtime!r}; allowed: {', '.join(names)}")
    group = _measured(target, [runtime] if runtime else names, threads, precision)
    if group is None:
        return DeviceCosts(
            generic_costs(target, runtime or names[0], threads, precision), precision, UNCALIBRATED_FACTOR, False,
            "UNCALIBRATED: nothing published for this device, runtime, threads and precision; from its peak",
            runtime or names[0], threads,
        )  # fmt: skip
    basis = (
        f"{group.measurements} {group.origin} measurements ({group.runtime}: {group.version}, {group.statistic}), "
        f"mean error {group.mape:.0%} on networks left out"
    )
    if group.precision != precision:
        basis += f"; {group.runtime} computes {precision} files in {group.precision} here"
    costs = np.array([group.costs[name] for name in COSTS])
    return DeviceCosts(costs, group.precision, group.factor_90, True, basis, group.runtime, threads)


def estimate(
    graph: GraphCost,
    target: Target,
    *,
    precision: Precision = "fp32",
    runtime: str | None = None,
    threads: int | None = None,
) -> Estimate:
    """Estimate the latency of a graph on a device.

    Args:
        graph: of `graph_cost.read_graph`.
        target: a device profile.
        precision: the arithmetic; a quantized graph is int8 whatever it says.
        runtime: one of the profile's; by default the first with published measurements in this precision.
        threads: at least 1; by default the profile's.

    Raises:
        BadInputError: the runtime is not the target's, or nothing at all is known to estimate with.
    """
    precision = "int8" if graph.quantized else precision
    device = device_costs(target, precision, runtime=runtime, threads=threads)
    times = quantities(Work.of(graph.operators), device.computed_in) * device.nanoseconds * 1e-6
    total = float(times.sum())
    weights, arena = graph.parameters * BYTES[precision], graph.peak_elements * BYTES[precision]
    memory = target.memory.size_gib
    return Estimate(
        milliseconds=total,
        interval=(total / device.factor, total * device.factor),
        calibrated=device.calibrated,
        basis=device.basis,
        runtime=device.runtime,
        threads=device.threads,
        precision=precision,
        operators=tuple(
            OperatorTime(each, float(row.sum()), float(row.sum()) / total, COSTS[int(row.argmax())])
            for each, row in zip(graph.operators, times, strict=True)
        ),
        arena_bytes=arena,
        weight_bytes=weights,
        fits=None if memory is None else weights + arena <= memory.value * 2**30,
    )


@cache
def load_coefficients() -> Coefficients:
    """The packaged coefficients."""
    return Coefficients.model_validate(json.loads(COEFFICIENTS.read_text(encoding="utf-8")))


def calibration_file(target: str) -> Path:
    """Where the costs that a user calibrated for a target are kept, beside the user's own profiles."""
    return own_folder() / f"{target.partition('@')[0]}.calibration.json"


def calibrated_groups(target: str) -> tuple[Group, ...]:
    """What a user calibrated for a target; none where there is no file.

    Raises:
        BadInputError: the file holds something else.
    """
    path = calibration_file(target)
    if not path.exists():
        return ()
    try:
        return TypeAdapter(tuple[Group, ...]).validate_python(read_json(path))
    except ValidationError as error:
        raise BadInputError(
            f"{path} holds no calibration: {first_problem(error)}; remove it or calibrate again"
        ) from None


def _measured(target: Target, runtimes: Sequence[str], threads: int, precision: Precision) -> Group | None:
    """The group of the first runtime that has one; the user's own first, then the largest, then the newest."""
    base = target.name.partition("@")[0]
    for groups in (calibrated_groups(base), load_coefficients().groups):
        for runtime in runtimes:
            found = [
                group
                for group in groups
                if (group.target, group.runtime) == (base, runtime)
                and group.precision in _arithmetic(runtime, precision)
                and group.threads in (threads, 0)
            ]
            if found:
                return max(
                    found, key=lambda each: (each.precision == precision, each.measurements, each.version)
                )
    return None


def _arithmetic(runtime: str, precision: Precision) -> tuple[Precision, ...]:
    """Precisions that a file may be computed in: ncnn takes fp32 files to fp16 where the cores can."""
    return ("fp32", "fp16") if runtime == "ncnn" and precision == "fp32" else (precision,)


def pool(runtime: str, precision: Precision) -> Pool:
    """The pool of a runtime, or ncnn's where nothing was published for it."""
    pools = load_coefficients().pools
    same = [name for name in pools if name.startswith(f"{runtime} ") and name.endswith(precision)]
    return pools[same[0] if same else f"ncnn cpu {precision}"]


def pool_costs(runtime: str, precision: Precision) -> np.ndarray:
    """Mean costs of a pool in nanoseconds: their proportions, on no device in particular."""
    costs: np.ndarray = np.exp(np.array(pool(runtime, precision).mean))
    return costs


def generic_costs(target: Target, runtime: str, threads: int, precision: Precision) -> np.ndarray:
    """The pool's mean costs, moved together until 1×1 convolutions reach the usual share of the peak."""
    costs = pool_costs(runtime, precision)
    peak = _peak_gops(target, runtime, threads, precision)
    pointwise = 2 / (GENERIC_EFFICIENCY * peak)
    scaled: np.ndarray = costs * (pointwise / costs[COSTS.index("pointwise")])
    return scaled


def _peak_gops(target: Target, runtime: str, threads: int, precision: Precision) -> float:
    if runtime == "tensorrt":
        for accelerator in target.accelerators:
            if precision in accelerator.peak_gops:
                return accelerator.peak_gops[precision].value
    for cluster in target.cpu:
        peak = cluster.peak_gops(precision) or cluster.peak_gops("fp32")
        if peak is not None:
            cores = cluster.cores.value
            return peak * min(threads, cores) / cores
    raise BadInputError(
        f"{target.name}: nothing was published for {runtime}, {threads} threads, {precision}, and the profile "
        "names no peak to estimate from; measure it with `fsrp-edge bench` and calibrate"
    )
