"""The latency estimate of a graph on a device, operator by operator, and how sure that is.

Time is a sum over fused operators: multiply-accumulates at the rate of the operator's class, bytes of
activations and of weights, and a fixed cost an operator. So a network is a row of quantities (`work`), a runtime on a
device is a column of costs (`costs`), and the estimate is their product.
"""

from contextlib import suppress
from dataclasses import dataclass

from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.targets.costs import device_costs
from fsrp_edge.targets.graph_cost import GraphCost, Operator
from fsrp_edge.targets.profile import Target
from fsrp_edge.targets.work import BYTES, COSTS, Work


@dataclass(frozen=True)
class OperatorTime:
    """One row of the breakdown.

    Args:
        operator: what it is.
        milliseconds: estimated.
        share: of the whole, 0 to 1.
        mostly: the cost that takes most of its time, one of COSTS.
        prunable: milliseconds that go with its channels; the rest is what starting it costs.
    """

    operator: Operator
    milliseconds: float
    share: float
    mostly: str
    prunable: float


@dataclass(frozen=True)
class Estimate:
    """An estimated latency of batch 1, never a measurement.

    Args:
        milliseconds: the estimate.
        interval: low and high, within which nine of ten measurements are expected.
        calibrated: whether measurements of this device, runtime, threads and precision are known, of enough networks.
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


def estimate(
    graph: GraphCost,
    target: Target,
    *,
    precision: Precision | None = None,
    runtime: str | None = None,
    threads: int | None = None,
) -> Estimate:
    """Estimate the latency of a graph on a device.

    Args:
        graph: of `graph_cost.read_graph`.
        target: a device profile.
        precision: the arithmetic; a quantized graph is int8 whatever it says. By default fp16 where the file's weights
            are, the device gains from it and something is known of it, else fp32.
        runtime: one of the profile's; by default the first with published measurements in this precision.
        threads: at least 1 and at most the cores; by default the profile's.

    Raises:
        BadInputError: the runtime is not the target's, it has fewer cores than that, or nothing at all is known to
            estimate with.
    """
    precision = "int8" if graph.quantized else precision or _usual_precision(graph, target, runtime, threads)
    device = device_costs(target, precision, runtime=runtime, threads=threads)
    times = device.by_cost(Work.of(graph.operators))
    total = float(times.sum())
    weights, arena = graph.parameters * BYTES[precision], graph.peak_elements * BYTES[precision]
    memory = target.memory.size_gib
    return Estimate(
        milliseconds=total,
        interval=(total / device.factor, total * device.factor),
        calibrated=device.calibrated,
        basis=device.basis + (f"; layers in float, counted as int8: {graph.in_float}" if graph.in_float else ""),
        runtime=device.runtime,
        threads=device.threads,
        precision=precision,
        operators=tuple(
            OperatorTime(
                each,
                float(row.sum()),
                float(row.sum()) / total,
                COSTS[int(row.argmax())],
                float(row.sum() - fixed),
            )
            for each, row, fixed in zip(graph.operators, times, times[:, COSTS.index("operator")], strict=True)
        ),
        arena_bytes=arena,
        weight_bytes=weights,
        fits=None if memory is None else weights + arena <= memory.value * 2**30,
    )


def _usual_precision(graph: GraphCost, target: Target, runtime: str | None, threads: int | None) -> Precision:
    if graph.half and target.precisions.fp16.useful:
        with suppress(BadInputError):  # nothing is known to estimate fp16 with
            device_costs(target, "fp16", runtime=runtime, threads=threads)
            return "fp16"
    return "fp32"
