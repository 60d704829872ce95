"""ONNX files in fp32, fp16 and int8, within the opset and IR version that a device's runtime takes.

The fp32 file is made by torch's TorchScript exporter (`dynamo=False`), because devices cap the opset and it
writes the one asked for. The newer exporter (`dynamo=True`) implements opset 18 and up; its conversion to 13
or 17 left all of 11 torchvision CNNs at 18 (torch 2.13), and it takes 3 to 15 times as long. Both agree
with torch to about 1e-6.
"""

import copy
import io
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError, GateFailedError
from fsrp_edge.exporting.artifact import OLDEST_INT8_OPSET, Artifact, Precision
from fsrp_edge.exporting.calibration import Histograms, require_images
from fsrp_edge.exporting.frozen import as_exported
from fsrp_edge.exporting.options import DEFAULTS, CalibrationMethod, ExportOptions
from fsrp_edge.files import atomic_path
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import all_cores, onnx_port, require
from fsrp_edge.targets.profile import WeightBits
from fsrp_edge.tool_output import captured_output

Int8Activation = Literal["uint8", "int8"]
"""Number type of activations beside int8 weights.

onnxruntime's kernels for x86 with VNNI gain from uint8 only; those for Arm and other runtimes take int8."""

INPUT, OUTPUT = "pixels", "logits"
NEWEST_OPSET = 20
"""The last opset the exporter writes; a device that takes more takes it too."""
TENSORRT = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
LARGEST_HALF = float(np.finfo(np.float16).max)
LARGEST_CONSTANT = 1e4
"""Finite constants beyond it are made this large by the converter to fp16."""
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def export_onnx(
    classifier: Classifier,
    path: Path,
    *,
    opset: int,
    ir_version: int,
    options: ExportOptions = DEFAULTS,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Write a network as fp32 ONNX, simplified and checked; the same network gives the same bytes.

    The input `pixels` is float32 (1, C, H, W) in [0, 1], or uint8 with `options.uint8_input`; the output `logits`
    float32 (1, classes). With `options.dynamic_batch` the first axes are open.

    Args:
        classifier: the network; it is left as it is.
        path: file to write, by rename.
        opset: the highest ONNX opset the device takes.
        ir_version: the highest ONNX IR version the device takes.
        options: number type of the input, and whether the batch is open.
        metadata: facts written into the file.

    Returns:
        What was written; `path` of it is the file's name.

    Raises:
        BadInputError: the opset needs a newer IR version than the device takes.
        ToolFailedError: an exporter is missing or failed.
    """
    _require_ir_version(min(opset, NEWEST_OPSET), ir_version)
    with captured_output(f"exporting {classifier.spec.architecture} to onnx fp32"):
        model = _simplified(_traced(classifier, min(opset, NEWEST_OPSET), options))
        return _write(model, path, "fp32", opset, metadata)


def named_model(classifier: Classifier) -> Any:
    """The network as an onnx ModelProto whose weights have their names in torch: to count with, not to ship.

    Raises:
        ToolFailedError: onnx is missing, or the network cannot be exported.
    """
    with captured_output(f"reading the operators of {classifier.spec.architecture}"):
        # In this mode the exporter neither folds batch norm nor renames what it folds.
        return _traced(classifier, 17, DEFAULTS, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)


def convert_to_fp16(source: Path, path: Path, *, metadata: Mapping[str, str] | None = None) -> Artifact:
    """Write an fp32 ONNX file in half precision; its input and output stay what they are.

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
        _cast_to_half(half)
        return _write(half, path, "fp16", _opset_of(model), metadata)


def require_half_range(source: Path, folder: Path, pixels: Iterable[Tensor]) -> None:
    """Refuse a network whose activations half precision can't hold.

    Parity would not see it: onnxruntime computes fp16 files in float32 on most processors.

    Args:
        source: a file that `export_onnx` wrote.
        folder: for a file that is used here only.
        pixels: batches of images, float32 (N, C, H, W) in [0, 1]; without any nothing is refused.

    Raises:
        GateFailedError: an activation is too large; the text tells the largest.
        ToolFailedError: onnxruntime's calibrator is missing or failed.
    """
    images = [image for batch in pixels for image in batch.split(1)]
    if not images:
        return
    with captured_output(f"looking whether fp16 holds {source.name}"):
        clipped = _with_clipped_constants(source, folder / "clipped.onnx")
        ranges = _calibrated(clipped, folder / "half.onnx", images, "min-max").items()
        reached = {name: float(np.abs(found.range_value).max()) for name, found in ranges}
    # What is infinite in float32, as a mask is, may be so in half precision.
    beyond = {name: most for name, most in reached.items() if LARGEST_HALF < most < math.inf}
    if beyond:
        name = max(beyond, key=beyond.__getitem__)
        raise GateFailedError(
            f"fp16 holds numbers up to {LARGEST_HALF:.0f}, and {name} reaches {beyond[name]:.3g}; name other "
            "precisions with --precision"
        )


def _with_clipped_constants(source: Path, path: Path) -> Path:
    """The file, its constants as the converter to fp16 makes them, which are what a large mask is in the end."""
    onnx = require("onnx")
    model = onnx.load(str(source))
    nodes = (node.attribute for node in model.graph.node if node.op_type == "Constant")
    inside = (each.t for attributes in nodes for each in attributes if each.name == "value")
    for constant in (*model.graph.initializer, *inside):
        values = onnx.numpy_helper.to_array(constant)
        if values.dtype == np.float32 and (np.abs(values) > LARGEST_CONSTANT).any():
            limited = np.where(np.isinf(values), values, values.clip(-LARGEST_CONSTANT, LARGEST_CONSTANT))
            constant.CopyFrom(onnx.numpy_helper.from_array(limited, constant.name))
    onnx.save(model, str(path))
    return path


def _cast_to_half(model: Any) -> None:
    """Let casts from bytes make what the converter took their outputs for; it leaves them casts to float32."""
    kinds = require("onnx").TensorProto
    made = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "Cast" and made.get(node.output[0]) == kinds.FLOAT16:
            next(each for each in node.attribute if each.name == "to").i = kinds.FLOAT16


def require_int8_opset(opset: int) -> None:
    """Refuse an opset that int8 files can't be written in.

    Raises:
        BadInputError: it is too old.
    """
    if opset < OLDEST_INT8_OPSET:
        raise BadInputError(f"int8 ONNX needs opset {OLDEST_INT8_OPSET} or newer, not {opset}; leave int8 out")


class Int8Quantizer:
    """Makes int8 files of an fp32 ONNX file: weights per channel and symmetric, 8-bit activations per tensor.

    Quantize and dequantize nodes (QDQ) stand around every operator; input and output stay as they are. The activations'
    ranges are calibrated once, for as many files as are made.

    Args:
        source: a file that `export_onnx` wrote.
        folder: for the ranges; has to last as long as the quantizer.
        activation: number type of the activations, which the device's runtime decides.
        weight_bits: how many of the weights' 8 bits are used, but by depthwise convolutions. In its default mode
            onnxruntime on x86 without VNNI adds two products in 16 bits, which those of 8 bits overflow:
            EfficientNet-Lite0's logits have a cosine of 0.910 with the network's then, with 7 bits 0.985, and where
            nothing overflows 0.995 (benchmarks/int8_weight_bits.py). Depthwise convolutions are computed otherwise.
        for_tensorrt: keep to what its parser takes: zero points of 0, float biases, weights quantized in the graph.
        calibration: images like those the device will see; all are used, one at a time.
        method: how ranges are chosen.
        metadata: facts written into the files.

    Raises:
        BadInputError: the opset is too old for int8, or there are no calibration images.
        ToolFailedError: the quantizer is missing or failed.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        *,
        activation: Int8Activation,
        calibration: ImageSet,
        weight_bits: WeightBits = 8,
        for_tensorrt: bool = False,
        method: CalibrationMethod = "min-max",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.activation, self.metadata = source, activation, dict(metadata or {})
        self._weight_bits = weight_bits
        self._extra: dict[str, Any] = dict(TENSORRT if for_tensorrt else {})
        model = require("onnx").load(source)
        self.opset = _opset_of(model)
        require_int8_opset(self.opset)
        require_images(calibration)
        self.layers = tuple(node.name for node in model.graph.node if node.op_type in LAYERS)
        """Names of the nodes with weights, which can be kept in float."""
        if weight_bits == 7:
            self.metadata["fsrp_edge.int8_weight_bits"] = "7"  # the agent of `bench` asks for it
            kind = require("onnxruntime.quantization").QuantType.QInt8
            full = {"quant_type": kind, "symmetric": True, "axis": 0, "reduce_range": False}
            self._extra["TensorQuantOverrides"] = {name: [full] for name in _depthwise_weights(model)}
        self._ranges = folder / f"{source.stem}-ranges.json"
        with captured_output(f"calibrating {source.name}"):
            calibrate = require("onnxruntime.quantization.calibrate")
            images = (pixels for pixels, _ in calibration.tracked(1, f"calibrating {source.name}"))
            data = _calibrated(source, folder / "augmented.onnx", images, method)
            calibrate.save_tensors_data(data, self._ranges)

    def quantize(self, path: Path, *, keep: Sequence[str] = (), only: str | None = None) -> Artifact:
        """Write the file by rename.

        Args:
            path: file to write.
            keep: layers that stay in float.
            only: the single layer to quantize, everything else staying in float.
        """
        onnx, quantization = require("onnx"), require("onnxruntime.quantization")
        types = quantization.QuantType
        with (
            captured_output(f"quantizing {self.source.name} to int8"),
            tempfile.TemporaryDirectory(dir=self._ranges.parent) as folder,
        ):
            quantized = Path(folder) / path.name
            quantization.quantize_static(
                self.source,
                quantized,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=types.QUInt8 if self.activation == "uint8" else types.QInt8,
                weight_type=types.QInt8,
                reduce_range=self._weight_bits == 7,
                nodes_to_quantize=None if only is None else [only],
                nodes_to_exclude=list(keep),
                calibration_cache_path=self._ranges,
                extra_options=copy.deepcopy(self._extra),  # it is changed
            )
            return _write(onnx.load(quantized), path, "int8", self.opset, self.metadata)


def _depthwise_weights(model: Any) -> list[str]:
    """Names of the weights of convolutions whose filters read one channel of several; not of computed weights."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    groups = {
        node.input[1]: next((one.i for one in node.attribute if one.name == "group"), 1)
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    return [name for name, count in groups.items() if count > 1 and name in shapes and shapes[name][1] == 1]


def _calibrated(source: Path, augmented: Path, images: Iterable[Tensor], method: CalibrationMethod) -> Any:
    """Ranges of all activations over images, each float32 (1, C, H, W), as onnxruntime's quantizer takes them."""
    calibrate = require("onnxruntime.quantization.calibrate")
    methods = calibrate.CalibrationMethod
    # For the others, whatever is chosen here only puts every activation among the outputs.
    chosen = methods.MinMax if method == "min-max" else methods.Percentile
    calibrator = calibrate.create_calibrator(source, None, str(augmented), chosen)
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = all_cores()  # its own session takes all of the machine, also where we may use one
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(augmented), options, providers=["CPUExecutionProvider"])
    calibrator.infer_session = session
    given = session.get_inputs()[0]
    feeds = ({given.name: onnx_port(given).encode(image.numpy())} for image in images)
    if method == "min-max":
        calibrator.collect_data(SimpleNamespace(get_next=lambda: next(feeds, None)))
        return calibrator.compute_data()
    histograms, names = Histograms(method), [output.name for output in session.get_outputs()]
    for feed in feeds:
        made = zip(names, session.run(None, feed), strict=True)
        histograms.add({name: value for name, value in made if name in calibrator.tensors_to_calibrate})
    return calibrate.TensorsData(methods.MinMax, histograms.ranges())


def _traced(classifier: Classifier, opset: int, options: ExportOptions, **settings: Any) -> Any:
    onnx, buffer = require("onnx"), io.BytesIO()
    # An example of one image would silently fix the batch size of some networks.
    batch = 2 if options.dynamic_batch else 1
    frozen, example = as_exported(classifier, uint8_input=options.uint8_input, batch=batch)
    with compute.attention_step_by_step():
        torch.onnx.export(
            frozen,
            (example,),
            buffer,  # type: ignore[arg-type] # takes a stream, though only `dynamo=False` does
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}} if options.dynamic_batch else None,
            **settings,
        )
    return onnx.load_from_string(buffer.getvalue())


def _simplified(model: Any) -> Any:
    # Its own check is not asked for: every file is compared with the network before it is published.
    simplified, _unchecked = require("onnxsim").simplify(model)
    return simplified


def _write(model: Any, path: Path, precision: Precision, opset: int, metadata: Mapping[str, str] | None) -> Artifact:
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
    takes = written.graph.input[0].type.tensor_type
    return Artifact.at(
        path,
        precision,
        dynamic_batch=bool(takes.shape.dim[0].dim_param),
        input="uint8" if takes.elem_type == onnx.TensorProto.UINT8 else "float32",
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
