"""ONNX files in fp32, fp16 and int8, within the opset and IR version that a device's runtime takes.

The fp32 file is made by torch's TorchScript exporter (`dynamo=False`), because devices cap the opset and it
writes the one asked for. The newer exporter (`dynamo=True`) implements opset 18 and up; its conversion to 13
or 17 left all of 11 torchvision CNNs at 18 (torch 2.13), and it takes 3 to 15 times as long. Both agree
with torch to about 1e-6.
"""

import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Artifact, Precision
from fsrp_edge.exporting.frozen import frozen_copy
from fsrp_edge.files import atomic_path, sha256_file
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track
from fsrp_edge.runtimes import require
from fsrp_edge.tool_output import captured_output

Int8Activation = Literal["uint8", "int8"]
"""Number type of activations beside int8 weights.

onnxruntime's kernels for x86 with VNNI gain from uint8 only; those for Arm and other runtimes take int8."""

INPUT, OUTPUT = "pixels", "logits"
NEWEST_OPSET = 20
"""The last opset the exporter writes; a device that takes more takes it too."""
OLDEST_INT8_OPSET = 13
"""QuantizeLinear has per-channel scales from here on."""


def export_onnx(
    classifier: Classifier,
    path: Path,
    *,
    opset: int,
    ir_version: int,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Write a network as fp32 ONNX, batch 1, simplified and checked; the same network gives the same bytes.

    The input `pixels` is float32 (1, C, H, W) in [0, 1], the output `logits` float32 (1, classes).

    Args:
        classifier: the network; it is left as it is.
        path: file to write, by rename.
        opset: the highest ONNX opset the device takes.
        ir_version: the highest ONNX IR version the device takes.
        metadata: facts written into the file.

    Returns:
        What was written; `path` of it is the file's name.

    Raises:
        BadInputError: the opset needs a newer IR version than the device takes.
        ToolFailedError: an exporter is missing or failed.
    """
    _require_ir_version(min(opset, NEWEST_OPSET), ir_version)
    with captured_output(f"exporting {classifier.spec.architecture} to onnx fp32"):
        model = _simplified(_traced(classifier, min(opset, NEWEST_OPSET)))
        return _write(model, path, "fp32", opset, metadata)


def convert_to_fp16(source: Path, path: Path, *, metadata: Mapping[str, str] | None = None) -> Artifact:
    """Write an fp32 ONNX file in half precision; its input and output stay float32.

    Args:
        source: a file that `export_onnx` wrote.
        path: file to write, by rename.
        metadata: facts written into the file.

    Raises:
        ToolFailedError: the converter is missing or failed.
    """
    onnx, float16 = require("onnx"), require("onnxconverter_common.float16")
    with captured_output(f"converting {source.name} to fp16"):
        model = onnx.load(source)
        half = float16.convert_float_to_float16(model, keep_io_types=True)
        return _write(half, path, "fp16", _opset_of(model), metadata)


def quantize_to_int8(
    source: Path,
    path: Path,
    *,
    activation: Int8Activation,
    calibration: ImageSet,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Write an fp32 ONNX file with int8 weights (per channel, symmetric) and 8-bit activations (per tensor).

    Quantize and dequantize nodes (QDQ) stand around every operator; input and output stay float32. The range
    of an activation goes from the smallest to the largest value seen during calibration.

    Args:
        source: a file that `export_onnx` wrote.
        path: file to write, by rename.
        activation: number type of the activations, which the device's runtime decides.
        calibration: images like those the device will see; all are used, one at a time.
        metadata: facts written into the file.

    Raises:
        BadInputError: the opset is too old for int8, or there are no calibration images.
        ToolFailedError: the quantizer is missing or failed.
    """
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    model = onnx.load(source)
    opset = _opset_of(model)
    if opset < OLDEST_INT8_OPSET:
        raise BadInputError(
            f"int8 ONNX needs opset {OLDEST_INT8_OPSET} or newer, not {opset}; leave int8 out"
        )
    if not len(calibration):
        raise BadInputError(
            "int8 needs calibration images, and there are none; give a data set or leave int8 out"
        )
    batches = (
        {INPUT: pixels.numpy()}
        for pixels, _ in track(calibration.batches(1), f"calibrating {path.name}", len(calibration))
    )
    with (
        captured_output(f"quantizing {source.name} to int8"),
        tempfile.TemporaryDirectory() as folder,
    ):
        quantized = Path(folder) / path.name
        quantization.quantize_static(
            source,
            quantized,
            _reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=getattr(quantization.QuantType, {"uint8": "QUInt8", "int8": "QInt8"}[activation]),
            weight_type=quantization.QuantType.QInt8,
        )
        return _write(onnx.load(quantized), path, "int8", opset, metadata)


def _traced(classifier: Classifier, opset: int) -> Any:
    onnx, buffer = require("onnx"), io.BytesIO()
    frozen = frozen_copy(classifier)
    torch.onnx.export(
        frozen,
        (frozen.example_pixels(),),
        buffer,  # type: ignore[arg-type] # takes a stream, though only `dynamo=False` does
        dynamo=False,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
    return onnx.load_from_string(buffer.getvalue())


def _simplified(model: Any) -> Any:
    simplified, agrees = require("onnxsim").simplify(model)
    if not agrees:
        raise RuntimeError("onnxsim's own check found that the simplified network computes something else")
    return simplified


def _reader(batches: Iterator[dict[str, np.ndarray]]) -> Any:
    """Calibration images in the shape onnxruntime asks for: an object with `get_next`, None at the end."""
    quantization = require("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    return Reader()


def _write(
    model: Any, path: Path, precision: Precision, opset: int, metadata: Mapping[str, str] | None
) -> Artifact:
    """Clean, check and write a model; read back what the file says of itself."""
    onnx = require("onnx")
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    # The lowest IR version that the operators need: quantizers write the newest they know.
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted((metadata or {}).items())))
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
        written = onnx.load(temporary)
        onnx.checker.check_model(written, full_check=True)
    if _opset_of(written) > opset or any(entry.domain for entry in written.opset_import):
        raise RuntimeError(f"the file needs {list(written.opset_import)}, more than plain ONNX opset {opset}")
    return Artifact(
        path=Path(path.name),
        format="onnx",
        precision=precision,
        layout="NCHW",
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        opset=_opset_of(written),
        ir_version=written.ir_version,
    )


def _opset_of(model: Any) -> int:
    """Opset of the standard operators."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _require_ir_version(opset: int, ir_version: int) -> None:
    helper = require("onnx").helper
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    if needed > ir_version:
        raise BadInputError(
            f"ONNX opset {opset} needs IR version {needed}, but the target takes {ir_version} at most; "
            "lower the opset of the target"
        )
