"""Artifact: one deployable file and what is known of it."""

from pathlib import Path
from typing import Any, Literal, Self, cast

from fsrp_edge.files import bytes_of, sha256_file
from fsrp_edge.records import Record
from fsrp_edge.runtimes import LAYOUTS, Layout

Format = Literal["onnx", "tflite", "saved_model", "ncnn"]
"""`saved_model` and `ncnn` are folders."""
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic"]
"""`int8-dynamic` has int8 weights; ranges of activations are found while it runs, so nothing is calibrated."""

OLDEST_INT8_OPSET = 13
"""QuantizeLinear has per-channel scales from here on."""


class Artifact(Record):
    """A file, or a folder of files that belong together, that a device can load.

    `path` is relative to the run directory. Images go in in `layout`, as float32 pixels in [0, 1] or as bytes; logits
    come out.
    """

    path: Path
    format: Format
    precision: Precision
    layout: Layout
    input: Literal["float32", "uint8"] = "float32"
    dynamic_batch: bool = False
    bytes: int
    sha256: str
    opset: int | None = None
    """ONNX opset as read back from the written file."""
    ir_version: int | None = None
    transposes: int | None = None
    """TRANSPOSE operators left in a TFLite graph."""
    transpose_reasons: tuple[str, ...] = ()
    """What each of them is for."""
    kept_in_float: tuple[str, ...] = ()
    """Layers of an int8 file that are not quantized, to keep its accuracy."""

    @classmethod
    def at(cls, path: Path, precision: Precision, **known: Any) -> Self:
        """What stands at a path whose suffix says the format, and what else is known of it."""
        return cls(
            path=Path(path.name),
            format=cast(Format, path.suffix[1:]),
            precision=precision,
            layout=LAYOUTS[path.suffix],
            bytes=bytes_of(path),
            sha256=sha256_file(path),
            **known,
        )

    @property
    def name(self) -> str:
        """Short name for tables, such as `onnx fp32`."""
        return f"{self.format} {self.precision}"
