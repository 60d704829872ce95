"""Artifact: one deployable file and what is known of it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fsrp_edge.errors import BadInputError

Format = Literal["onnx", "tflite", "saved_model", "ncnn"]
"""`saved_model` and `ncnn` are folders."""
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic"]
"""`int8-dynamic` has int8 weights; ranges of activations are found while it runs, so nothing is calibrated."""


def format_of(path: Path) -> Format:
    """The format that a file's suffix says.

    Raises:
        BadInputError: another suffix than .onnx or .tflite.
    """
    match path.suffix.lower():
        case ".onnx":
            return "onnx"
        case ".tflite":
            return "tflite"
    raise BadInputError(f"{path.name}: unknown suffix '{path.suffix}'; allowed: .onnx, .tflite")


class Artifact(BaseModel):
    """A file, or a folder of files that belong together, that a device can load.

    `path` is relative to the run directory. Images go in in `layout`, as float32 pixels in [0, 1] or as bytes; logits
    come out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    format: Format
    precision: Precision
    layout: Literal["NCHW", "NHWC"]
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

    @property
    def name(self) -> str:
        """Short name for tables, such as `onnx fp32`."""
        return f"{self.format} {self.precision}"
