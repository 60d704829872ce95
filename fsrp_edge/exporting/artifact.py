"""Artifact: one deployable file and what is known of it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fsrp_edge.errors import BadInputError

Format = Literal["onnx", "tflite"]
Precision = Literal["fp32", "fp16", "int8"]


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
    """A file that a device can load.

    `path` is relative to the run directory. Images go in as float32 pixels in [0, 1] in `layout`, logits come out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    format: Format
    precision: Precision
    layout: Literal["NCHW", "NHWC"]
    bytes: int
    sha256: str
    opset: int | None = None
    """ONNX opset as read back from the written file."""
    ir_version: int | None = None
    transposes: int | None = None
    """TRANSPOSE operators left in a TFLite graph."""

    @property
    def name(self) -> str:
        """Short name for tables, such as `onnx fp32`."""
        return f"{self.format} {self.precision}"
