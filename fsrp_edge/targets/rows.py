"""What a profile says, as rows: for the command line, and for the documentation."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.targets.profile import (
    Accelerator,
    Cache,
    CpuCluster,
    Runtime,
    Sourced,
    Target,
)

Row = tuple[str, str, str]
"""What, its value, and the key of its source."""


def value_rows(target: Target) -> list[Row]:
    """Every sourced value of a profile in its order, and the peaks that follow from them."""
    peaks = [
        (
            f"{cluster.name} {precision} peak, 10⁹ operations/s",
            f"{peak:.4g}",
            "cores × clock × operations a cycle",
        )
        for cluster in target.cpu
        for precision in get_args(Precision)
        for peak in [cluster.peak_gops(precision)]
        if peak is not None
    ]
    return [*_rows(target, ""), *peaks]


def choice_rows(target: Target) -> list[Row]:
    """What the pipeline takes over: the choice, its value, the reason."""
    return [(name.replace("_", " "), str(choice.value), choice.reason) for name, choice in target.choices]


def file_rows(target: Target) -> list[Row]:
    """Every file that could be made: which, whether it is, the reason."""
    return [
        (
            f"{offer.format} {offer.precision}",
            "by default" if offer.default else "on request" if offer.offered else "no",
            offer.reason,
        )
        for offer in target.offers
    ]


LABELS = {
    "bandwidth_gb_per_s": "bandwidth, GB/s",
    "caches": "",
    "clock_ghz": "clock, GHz",
    "kib": "KiB",
    "link_gb_per_s": "link, GB/s",
    "max_onnx_ir_version": "newest ONNX IR version",
    "max_onnx_opset": "newest ONNX opset",
    "on_chip_mib": "on-chip memory, MiB",
    "operations_per_cycle": "operations a cycle and core",
    "peak_gops": "peak, 10⁹ operations/s",
    "power_watts": "power budget, W",
    "simd": "SIMD",
    "size_gib": "size, GiB",
    "soc": "SoC",
}
"""Fields whose names are not what a reader calls them."""


def _rows(node: Any, label: str) -> Iterator[Row]:
    if isinstance(node, Sourced):
        yield label, _text(node), node.source
    elif isinstance(node, BaseModel):
        for field in type(node).model_fields:
            words = LABELS.get(field, field.replace("_", " "))
            yield from _rows(getattr(node, field), f"{_name(node, label)} {words}".strip())
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _rows(child, f"{label}, {key}")
    elif isinstance(node, tuple):
        for child in node:
            yield from _rows(child, label)


def _name(node: BaseModel, label: str) -> str:
    """What the values of a node are called by, where its field's name says nothing new."""
    match node:
        case CpuCluster() | Runtime():
            return node.name
        case Accelerator():
            return node.kind.upper()
        case Cache():
            shared = f" shared by {node.cores_sharing}" if node.cores_sharing > 1 else ""
            return f"{label} L{node.level} data cache{shared},"
        case _:
            return label


def _text(sourced: Sourced[Any]) -> str:
    match sourced.value:
        case tuple():
            value = ", ".join(map(str, sourced.value))
        case float():
            value = f"{sourced.value:g}"
        case _:
            value = str(sourced.value)
    return f"{value} ({sourced.note})" if sourced.note else value
