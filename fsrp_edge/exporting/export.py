"""All files that a run asks for, each precision derived from one fp32 conversion a format."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting import onnx, tflite
from fsrp_edge.exporting.artifact import Artifact, Format, Precision
from fsrp_edge.exporting.parity import check_parity, require_parity
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track

_SUFFIX: dict[Format, str] = {"onnx": ".onnx", "tflite": ".tflite"}


@dataclass(frozen=True)
class ArtifactRequest:
    """A file that is wanted."""

    format: Format
    precision: Precision


def export_artifacts(
    classifier: Classifier,
    requests: Sequence[ArtifactRequest],
    directory: Path,
    *,
    opset: int,
    ir_version: int,
    int8_activation: onnx.Int8Activation = "uint8",
    calibration: ImageSet | None = None,
    stem: str = "model",
    metadata: Mapping[str, str] | None = None,
) -> tuple[Artifact, ...]:
    """Write every file asked for, such as `model-int8.tflite`, each by rename.

    Args:
        classifier: the network; it is left as it is.
        requests: formats and precisions; the order decides that of the result.
        directory: where the files go.
        opset: the highest ONNX opset the device takes.
        ir_version: the highest ONNX IR version the device takes.
        int8_activation: number type of activations in int8 ONNX files.
        calibration: images for int8; never those of the evaluation.
        stem: first part of the file names.
        metadata: facts written into ONNX files.

    Returns:
        One artifact a request; their `path` is relative to `directory`.

    Raises:
        BadInputError: nothing is asked for, something twice, or int8 without calibration images.
        ToolFailedError: an exporter is missing or failed.
    """
    if not requests or len(set(requests)) != len(requests):
        raise BadInputError("ask for at least one file, and for each format and precision once")
    if calibration is None and any(request.precision == "int8" for request in requests):
        raise BadInputError("int8 needs calibration images; give a data set or leave int8 out")

    paths = {
        request: directory / f"{stem}-{request.precision}{_SUFFIX[request.format]}" for request in requests
    }
    made: dict[ArtifactRequest, Artifact] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for format_ in track(tuple(dict.fromkeys(request.format for request in requests)), "exporting"):
            fp32 = ArtifactRequest(format_, "fp32")
            source = paths.get(fp32, Path(scratch) / f"fp32{_SUFFIX[format_]}")
            if format_ == "onnx":
                made[fp32] = onnx.export_onnx(
                    classifier, source, opset=opset, ir_version=ir_version, metadata=metadata
                )
            else:
                made[fp32] = tflite.export_tflite(classifier, source)
            for request in requests:
                if request.format != format_ or request == fp32:
                    continue
                made[request] = _derive(
                    request,
                    source,
                    paths[request],
                    int8_activation=int8_activation,
                    calibration=calibration,
                    metadata=metadata,
                )
    return tuple(made[request] for request in requests)


def _derive(
    request: ArtifactRequest,
    source: Path,
    path: Path,
    *,
    int8_activation: onnx.Int8Activation,
    calibration: ImageSet | None,
    metadata: Mapping[str, str] | None,
) -> Artifact:
    """A file of lower precision from the fp32 file of its format."""
    if request.precision == "fp16":
        if request.format == "onnx":
            return onnx.convert_to_fp16(source, path, metadata=metadata)
        return tflite.convert_to_fp16(source, path)
    assert calibration is not None, "checked before the first conversion"
    if request.format == "onnx":
        return onnx.quantize_to_int8(
            source, path, activation=int8_activation, calibration=calibration, metadata=metadata
        )
    return tflite.quantize_to_int8(source, path, calibration=calibration)


def smoke_test(
    classifier: Classifier, formats: Sequence[Format] = ("onnx",), *, opset: int, ir_version: int
) -> None:
    """Export a network as fp32, run the file once and compare: finds a network that can't be exported early.

    ONNX takes a second; TFLite 3 to 20.

    Raises:
        GateFailedError: the file computes something else than the network.
        ToolFailedError: the network can't be exported.
    """
    requests = [ArtifactRequest(format_, "fp32") for format_ in formats]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        for artifact in export_artifacts(classifier, requests, directory, opset=opset, ir_version=ir_version):
            require_parity(check_parity(classifier, directory / artifact.path, artifact))
