"""What a network asks of whatever runs it: one row of quantities an operator, which a device's costs multiply.

While the model was made, sums estimated networks left out of the fit better than compute and memory time that
overlap (the root of the sum of their squares); the larger of the two was not tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.targets.graph_cost import Operator, OperatorClass

COSTS = (
    "winograd", "pointwise", "depthwise", "convolution", "attention", "pooling",
    "activations", "passes", "weights", "streamed", "operator", "group",
)  # fmt: skip
"""Nanoseconds of: a multiply-accumulate of five classes, an element read by pooling, a byte of activations, one
that element-wise operators move on a GPU, a byte of weights, one that does not fit an accelerator's own memory, an
operator, and one group of a convolution of several (runtimes loop over them)."""

RATE: dict[OperatorClass, str] = {
    "winograd": "winograd",
    "pointwise": "pointwise",
    "depthwise": "depthwise",
    "convolution": "convolution",
    "dense": "pointwise",
    "attention": "attention",
    "pooling": "pooling",
}

TILE = 16.0
"""A convolution of this depth or width runs at half its rate: SIMD tiles are filled badly, packing weighs more.
Without it, families left out were estimated 2 points worse. Chosen on those same families, most of them run by Arm
cores; a calibration chooses its own."""

BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1, "int8-dynamic": 1}


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


@dataclass(frozen=True)
class Unit:
    """What computes.

    Args:
        kind: as `runs_on` of a profile's runtime. A CPU uses Winograd's algorithm within groups, too, and pads what
            depthwise convolutions read. On a GPU every element-wise operator is a pass over memory of its own; an
            NPU's matrix unit runs 3×3 convolutions no faster than 1×1.
        on_chip_bytes: of weights that an NPU keeps; it streams the rest at every inference, as the Edge TPU does.
    """

    kind: Literal["cpu", "gpu", "npu"] = "cpu"
    on_chip_bytes: float = 0.0


CPU = Unit()


def quantities(work: Work, precision: Precision, unit: Unit = CPU, tile: float = TILE) -> np.ndarray:
    """What each operator asks for, (…, operators, costs); the sum over operators describes the network.

    Args:
        work: of one network, or of variants of it.
        precision: that the runtime computes in.
        unit: that runs it.
        tile: as `TILE`.
    """
    rows = np.zeros((*work.macs.shape, len(COSTS)))
    kinds = np.array(work.kinds)
    kinds = np.where(kinds == "grouped", "winograd" if unit.kind == "cpu" else "convolution", kinds)
    macs = work.macs * _overhang(work, kinds, unit, tile)
    if unit.kind == "npu":
        kinds = np.where(kinds == "winograd", "pointwise", kinds)
    for kind, name in RATE.items():
        rows[..., kinds == kind, COSTS.index(name)] = macs[..., kinds == kind]
    traffic, weights = work.traffic * BYTES[precision], work.weights * BYTES[precision]
    passes = kinds == ("elementwise" if unit.kind == "gpu" else "")
    rows[..., COSTS.index("activations")] = np.where(passes, 0, traffic)
    rows[..., COSTS.index("passes")] = np.where(passes, traffic, 0)
    rows[..., COSTS.index("weights")] = weights
    if unit.kind == "npu":
        streamed = (1 - unit.on_chip_bytes / weights.sum(-1, keepdims=True).clip(1)).clip(0)
        rows[..., COSTS.index("weights")] = weights * (1 - streamed)
        rows[..., COSTS.index("streamed")] = weights * streamed
    rows[..., COSTS.index("operator")] = 1
    rows[..., COSTS.index("group")] = np.where((work.groups > 1) & (kinds != "depthwise"), work.groups, 0)
    return rows


def _overhang(work: Work, kinds: np.ndarray, unit: Unit, tile: float) -> np.ndarray:
    """How much work edges add: of tiles where channels are few, of small maps that a CPU pads beforehand."""
    tiled = np.isin(kinds, ("winograd", "pointwise", "convolution"))
    depth = np.where(kinds == "winograd", work.inside, work.inside * work.kernels)
    channels = np.where(tiled, (1 + tile / depth) * (1 + tile / work.outside), 1.0)
    pixels = (work.macs / (work.kernels * work.inside * work.outside * work.groups)).clip(1)
    border = (1 + (np.sqrt(work.kernels) - 1) / np.sqrt(pixels)) ** 2
    return np.where((kinds == "depthwise") & (unit.kind == "cpu"), border, channels)
