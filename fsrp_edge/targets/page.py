"""What a profile says, as rows, and the page of the documentation that is made of all packaged profiles.

`python -m fsrp_edge.targets.page docs` writes docs/targets.md and docs/target.schema.json again.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.files import write_json, write_text
from fsrp_edge.targets.load import load_variants, target_names
from fsrp_edge.targets.profile import (
    Accelerator,
    Cache,
    CpuCluster,
    Runtime,
    Sourced,
    Target,
    profile_json_schema,
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


def markdown(profiles: Iterable[Sequence[Target]]) -> str:
    """The page: a list of all profiles, then one section each.

    Args:
        profiles: each a profile followed by its variants.
    """
    profiles = list(profiles)
    listed = [
        (
            f"[{base.name}](#{base.name})",
            base.description,
            ", ".join(f"`@{_mode(variant)}`" for variant in variants),
        )
        for base, *variants in profiles
    ]
    return "\n".join(
        [INTRODUCTION, *_table(("profile", "device", "variants"), listed), *map(_section, profiles)]
    )


INTRODUCTION = """\
# Device profiles

<!-- Made from profiles/*.yaml by `python -m fsrp_edge.targets.page docs`; change those. -->

A profile says what a device accepts and what is fast on it. Each value names its source; what nobody could source is
absent. `fsrp-edge targets new NAME` writes one for the machine it runs on, and
[target.schema.json](target.schema.json) describes the files.
"""


def _section(targets: Sequence[Target]) -> str:
    base, *variants = targets
    lines = ["", f"## {base.name}", "", f"{base.description[0].upper()}{base.description[1:]}.", ""]
    lines += _table(("value", "", "source"), [_linked(row, base) for row in value_rows(base)])
    lines += ["", *_table(("choice", "value", "reason"), choice_rows(base))]
    lines += ["", *_table(("file", "made", "reason"), file_rows(base))]
    for runtime in base.runtimes:
        lines += [f"- {runtime.name} on the {runtime.runs_on.upper()}: {note}" for note in runtime.notes]
    for variant in variants:
        same = {(label, value) for label, value, _ in value_rows(base)}
        changed = [_linked(row, variant) for row in value_rows(variant) if row[:2] not in same]
        lines += ["", f"### {variant.name}", "", f"{variant.description}. Changed:", ""]
        lines += _table(("value", "", "source"), changed)
    return "\n".join(lines)


def _linked(row: Row, target: Target) -> Row:
    label, value, key = row
    source = target.sources.get(key, key)
    address = re.search(r"https?://\S+", source)
    return label, value, f"[{key}]({address[0].rstrip(',;)')})" if address else source


def _mode(variant: Target) -> str:
    return variant.name.partition("@")[2]


def _table(header: Row, rows: Iterable[Row]) -> list[str]:
    cells = [header, ("---", "---", "---"), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").strip() for cell in row) + " |" for row in cells]


def packaged_page() -> str:
    """The page of the packaged profiles."""
    return markdown(load_variants(name) for name in target_names()) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]) / "targets.md", packaged_page())
    write_json(Path(sys.argv[1]) / "target.schema.json", profile_json_schema())
