"""All files that a run asks for, each precision derived from one fp32 conversion a format."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting import ncnn, onnx, saved_model, tflite
from fsrp_edge.exporting.artifact import Artifact, Format, Precision
from fsrp_edge.exporting.calibration import require_images
from fsrp_edge.exporting.mixed import LayerError, Quantizer, layer_errors, quantize_within
from fsrp_edge.exporting.options import DEFAULTS, ExportOptions
from fsrp_edge.exporting.parity import Reference, require_parity
from fsrp_edge.exporting.tensorrt import takes_tensorrt
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track
from fsrp_edge.runtimes import all_cores, open_session
from fsrp_edge.targets.profile import IMPLIED, Target, WeightBits

UINT8_SINCE = (8, 5)
"""The first TensorRT that takes uint8 inputs (github.com/NVIDIA/TensorRT/issues/1503)."""
JUDGED_IMAGES = 1000
"""Images that the accuracy of int8 files is held to `int8_max_drop` on."""


@dataclass(frozen=True)
class ArtifactRequest:
    """A file that is wanted."""

    format: Format
    precision: Precision

    @property
    def file(self) -> str:
        """`model-int8.tflite`."""
        return f"model-{self.precision}.{self.format}"


@dataclass(frozen=True)
class ExportPlan:
    """What files are made with.

    Args:
        target: the device, whose opset, IR version and int8 types ONNX files keep to.
        options: calibration, input and batch.
        calibration: images for int8; never those of the evaluation.
        judged: images that int8 files are held to `options.int8_max_drop` on.
        pixels: batches of images whose activations fp16 ONNX files have to hold, float32 (N, C, H, W) in [0, 1].
        list_errors: tell for int8 files how much each layer's quantization alone does, also where no drop is given.
        metadata: facts written into ONNX and TFLite files.
        close: whether an int8 file's outputs are close enough to the network's, for `options.int8_max_drop`.
    """

    target: Target
    options: ExportOptions = DEFAULTS
    calibration: ImageSet | None = None
    judged: ImageSet | None = None
    pixels: Sequence[Tensor] = ()
    list_errors: bool = False
    metadata: Mapping[str, str] | None = None
    close: Callable[[Path, Artifact], bool] = lambda _path, _artifact: True


def export_artifacts(
    classifier: Classifier,
    requests: Sequence[ArtifactRequest],
    directory: Path,
    plan: ExportPlan,
    *,
    report: Callable[[Artifact, tuple[LayerError, ...]], object] | None = None,
) -> tuple[Artifact, ...]:
    """Write every file asked for, such as `model-int8.tflite`, each by rename.

    Args:
        classifier: the network; it is left as it is.
        requests: formats and precisions; the order decides that of the result.
        directory: where the files go.
        plan: what they are made with.
        report: told the errors of single layers of each int8 file, where they were found.

    Returns:
        One artifact a request; their `path` is relative to `directory`.

    Raises:
        BadInputError: int8 without calibration images, or as for `require_possible`.
        GateFailedError: an int8 file can't keep to `int8_max_drop`, or an fp16 file can't hold its activations.
        ToolFailedError: an exporter is missing or failed.
    """
    require_possible(requests, plan.target, plan.options)
    if any(request.precision == "int8" for request in requests):
        require_images(plan.calibration)
    made: dict[ArtifactRequest, Artifact] = {}
    directory.mkdir(parents=True, exist_ok=True)
    # Not where temporary files are: that may be memory, and what a killed process leaves there stays.
    with tempfile.TemporaryDirectory(prefix=".scratch.", dir=directory) as scratch:
        # fp32 first: the other precisions of ONNX and TFLite are derived from that file.
        ordered = sorted(requests, key=lambda request: request.precision != "fp32")
        sources: dict[Format, Path] = {}
        for request in track(ordered, "exporting"):
            path = directory / request.file
            if request.format == "saved_model":
                made[request] = saved_model.export_saved_model(classifier, path)
                continue
            if request.format == "ncnn":
                made[request] = ncnn.export_ncnn(classifier, path, request.precision)
                continue
            if request.format not in sources:
                fp32 = request.precision == "fp32"
                sources[request.format] = path if fp32 else Path(scratch) / f"fp32.{request.format}"
                source = _convert(classifier, request.format, sources[request.format], plan)
                if fp32:
                    made[request] = source
                    continue
            made[request], errors = _derive(request, sources[request.format], path, Path(scratch), plan)
            if errors and report is not None:
                report(made[request], errors)
    return tuple(made[request] for request in requests)


def require_possible(requests: Sequence[ArtifactRequest], target: Target, options: ExportOptions) -> None:
    """Refuse files that can't be made whatever the network is; costs nothing, so it can be asked before long work.

    Raises:
        BadInputError: nothing is asked for, something twice, or a precision or an option that a format does not have,
            at the target's opset at least.
    """
    if not requests or len(set(requests)) != len(requests):
        raise BadInputError("ask for at least one file, and for each format and precision once")
    if ArtifactRequest("onnx", "int8") in requests:
        onnx.require_int8_opset(target.choices.onnx_opset.value)
    for request in requests:
        row = IMPLIED.get((request.format, request.precision))
        if row is not None and row.status == "refused":
            raise BadInputError(f"{request.precision} is not made for {request.format}: {row.reason}")
    for option, having in (("uint8_input", {"onnx", "tflite"}), ("dynamic_batch", {"onnx"})):
        lacking = sorted({request.format for request in requests} - having)
        if getattr(options, option) and lacking:
            raise BadInputError(
                f"{', '.join(lacking)} has no {option.replace('_', ' ')} here; allowed with: "
                f"{', '.join(sorted(having))}. Name the formats with --format"
            )
    if options.uint8_input:
        _require_uint8_input(target, {request.format for request in requests})


def _require_uint8_input(target: Target, formats: Set[Format]) -> None:
    """Raise BadInputError where a runtime of the target cannot take bytes."""
    for runtime in target.runtimes:
        found = re.match(r"(\d+)\.(\d+)", runtime.version.value) if runtime.version else None
        if runtime.name == "tensorrt" and "onnx" in formats and found and (int(found[1]), int(found[2])) < UINT8_SINCE:
            raise BadInputError(
                f"TensorRT {found[0]} of {target.name} takes no uint8 input, 8.5 and newer do; leave --uint8-input out"
            )
        if runtime.operators and "tflite" in formats and "CAST" not in runtime.operators.value:
            raise BadInputError(
                f"{target.name} has no CAST, with which a uint8 input begins: all behind it would run on the CPU; "
                "leave --uint8-input out"
            )


def _convert(classifier: Classifier, format_: Format, path: Path, plan: ExportPlan) -> Artifact:
    """The fp32 file of a format."""
    if format_ == "tflite":
        return tflite.export_tflite(classifier, path, options=plan.options, metadata=plan.metadata)
    return onnx.export_onnx(
        classifier,
        path,
        opset=plan.target.choices.onnx_opset.value,
        ir_version=plan.target.choices.onnx_ir_version.value,
        options=plan.options,
        metadata=plan.metadata,
    )


def _derive(
    request: ArtifactRequest, source: Path, path: Path, scratch: Path, plan: ExportPlan
) -> tuple[Artifact, tuple[LayerError, ...]]:
    """A file of lower precision from the fp32 file of its format, and its layers' errors where they are asked for."""
    if request.precision in ("fp16", "int8-dynamic"):
        if request.format == "onnx":
            onnx.require_half_range(source, scratch, plan.pixels)
            return onnx.convert_to_fp16(source, path, metadata=plan.metadata), ()
        return tflite.convert_weights(source, path, request.precision, metadata=plan.metadata), ()
    quantizer = _quantizer(request.format, source, scratch, plan)
    calibration, drop = require_images(plan.calibration), plan.options.int8_max_drop
    errors = layer_errors(quantizer, calibration) if plan.list_errors else ()
    if drop is None:
        return quantizer.quantize(path), errors
    judged = (plan.judged or calibration).first(JUDGED_IMAGES)

    def accuracy(file: Path) -> float:
        return _accuracy(file, judged)

    # Where a runtime takes a few operators only, all behind a layer in float would run on the CPU.
    few = request.format == "tflite" and any(
        runtime.name == "litert" and runtime.operators for runtime in plan.target.runtimes
    )
    return quantize_within(quantizer, path, calibration, accuracy, drop, plan.close, errors, wholly_int8=few)


def _quantizer(format_: Format, source: Path, scratch: Path, plan: ExportPlan) -> Quantizer:
    calibration, method = require_images(plan.calibration), plan.options.calibration_method
    if format_ == "tflite":
        return tflite.Int8Quantizer(source, calibration=calibration, method=method, metadata=plan.metadata)
    for_tensorrt = takes_tensorrt(plan.target)
    return onnx.Int8Quantizer(
        source,
        scratch,
        # What a profile says of its CPU, as one that extends a PC's does, is nothing to TensorRT.
        activation="int8" if for_tensorrt else plan.target.choices.int8_activation.value,
        weight_bits=int8_weight_bits([ArtifactRequest("onnx", "int8")], plan.target),
        for_tensorrt=for_tensorrt,
        calibration=calibration,
        method=method,
        metadata=plan.metadata,
    )


def int8_weight_bits(requests: Sequence[ArtifactRequest], target: Target) -> WeightBits:
    """The fewest bits that weights have in the int8 files asked for, but those of depthwise convolutions."""
    if ArtifactRequest("onnx", "int8") not in requests or takes_tensorrt(target):
        return 8
    return target.choices.int8_weight_bits.value


def _accuracy(path: Path, images: ImageSet) -> float:
    session = open_session(path, threads=all_cores())
    batches = images.tracked(32, f"accuracy of {path.name}")
    right = sum(int((session.predict(pixels).argmax(1) == labels).sum()) for pixels, labels in batches)
    return right / len(images)


def smoke_test(
    classifier: Classifier,
    target: Target,
    formats: Sequence[Format] = ("onnx",),
    options: ExportOptions = DEFAULTS,
    *,
    half_range_of: ImageSet | None = None,
) -> None:
    """Export a network as fp32, run the file once and compare: finds a network that can't be exported early.

    ONNX takes a second; TFLite 3 to 20.

    Args:
        classifier: the network; it is left as it is.
        target: the device.
        formats: of the files.
        options: what the files take.
        half_range_of: images whose activations half precision has to hold; None where no fp16 ONNX file will be made.

    Raises:
        GateFailedError: the file computes something else than the network, or fp16 cannot hold its activations.
        ToolFailedError: the network can't be exported.
    """
    requests = [ArtifactRequest(format_, "fp32") for format_ in formats]
    reference = Reference.of(classifier)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        for artifact in export_artifacts(classifier, requests, directory, ExportPlan(target, options)):
            require_parity(reference.check(directory / artifact.path, artifact))
            if half_range_of is not None and artifact.format == "onnx":
                pixels = (pixels for pixels, _ in half_range_of.batches(32))
                onnx.require_half_range(directory / artifact.path, directory, pixels)
