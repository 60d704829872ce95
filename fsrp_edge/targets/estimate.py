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
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.targets.graph_cost import GraphCost, Operator, OperatorClass
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
        calibrated: whether measurements of this device, runtime, threads and precision were published.
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


def quantities(operators: Sequence[Operator], precision: Precision) -> np.ndarray:
    """What each operator asks for, (operators, costs); the sum over rows describes the network."""
    rows = np.zeros((len(operators), len(COSTS)))
    column = {name: index for index, name in enumerate(COSTS)}
    for row, each in zip(rows, operators, strict=True):
        if each.kind in RATE:
            row[column[RATE[each.kind]]] = each.macs * _overhang(each)
        row[column["activations"]] = (each.inputs + each.outputs) * BYTES[precision]
        row[column["weights"]] = each.weights * BYTES[precision]
        row[column["operator"]] = 1
        row[column["group"]] = each.groups if each.kind == "grouped" else 0
    return rows


def _overhang(operator: Operator) -> float:
    """How much work the edges of a matrix kernel's tiles add where a convolution has few channels."""
    if operator.kind not in ("winograd", "pointwise", "convolution", "grouped"):
        return 1.0
    inside, outside = operator.channels
    depth = inside if operator.kind == "winograd" else inside * operator.kernel
    return (1 + TILE / depth) * (1 + TILE / outside)


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
    threads = threads or target.threads
    names = [each.name for each in target.runtimes]
    if runtime is not None and runtime not in names:
        raise BadInputError(f"{target.name} has no runtime {runtime!r}; allowed: {', '.join(names)}")
    group = _published(target, [runtime] if runtime else names, threads, precision)
    if group is not None:
        costs = np.array([group.costs[name] for name in COSTS])
        factor = group.factor_90
        basis = (
            f"{group.measurements} published measurements ({group.runtime}: {group.version}, {group.statistic}), "
            f"mean error {group.mape:.0%} on networks left out"
        )
        if group.precision != precision:
            basis += f"; {group.runtime} computes {precision} files in {group.precision} here"
    else:
        costs = _generic_costs(target, runtime or names[0], threads, precision)
        factor = UNCALIBRATED_FACTOR
        basis = (
            "UNCALIBRATED: nothing published for this device, runtime, threads and precision; from its peak"
        )
    times = quantities(graph.operators, group.precision if group else precision) * costs * 1e-6
    total = float(times.sum())
    weights, arena = graph.parameters * BYTES[precision], graph.peak_elements * BYTES[precision]
    memory = target.memory.size_gib
    return Estimate(
        milliseconds=total,
        interval=(total / factor, total * factor),
        calibrated=group is not None,
        basis=basis,
        runtime=group.runtime if group else runtime or names[0],
        threads=threads,
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


def _published(target: Target, runtimes: Sequence[str], threads: int, precision: Precision) -> Group | None:
    """The group of the first runtime that has one; of several, the one with most measurements, then the newest."""
    base = target.name.partition("@")[0]
    for runtime in runtimes:
        found = [
            group
            for group in load_coefficients().groups
            if (group.target, group.runtime) == (base, runtime)
            and group.precision in _arithmetic(runtime, precision)
            and group.threads in (threads, 0)
        ]
        if found:
            return max(found, key=lambda each: (each.precision == precision, each.measurements, each.version))
    return None


def _arithmetic(runtime: str, precision: Precision) -> tuple[Precision, ...]:
    """Precisions that a file may be computed in: ncnn takes fp32 files to fp16 where the cores can."""
    return ("fp32", "fp16") if runtime == "ncnn" and precision == "fp32" else (precision,)


def _generic_costs(target: Target, runtime: str, threads: int, precision: Precision) -> np.ndarray:
    """The pool's mean costs, moved together until 1×1 convolutions reach the usual share of the peak."""
    pools = load_coefficients().pools
    same = [name for name in pools if name.startswith(f"{runtime} ") and name.endswith(precision)]
    pool = pools[same[0] if same else f"ncnn cpu {precision}"]
    costs = np.exp(np.array(pool.mean))
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
