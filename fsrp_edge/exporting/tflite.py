"""TFLite files in fp32, fp16 and int8: litert-torch converts once, ai-edge-quantizer derives the others."""

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.exporting.artifact import Artifact, Precision
from fsrp_edge.exporting.calibration import Histograms, require_images
from fsrp_edge.exporting.frozen import as_exported
from fsrp_edge.exporting.options import DEFAULTS, CalibrationMethod, ExportOptions
from fsrp_edge.files import atomic_path
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import require, tflite_port
from fsrp_edge.tool_output import captured_output

METADATA = "fsrp_edge.json"
"""Name of the archived file that holds the facts."""
HALF = {
    "regex": ".*",
    "operation": "*",
    "algorithm_key": "float_casting",
    "op_config": {"weight_tensor_config": {"num_bits": 16, "dtype": "FLOAT"}},
}
"""Rule of ai-edge-quantizer for half-precision weights, for which it has no recipe."""


def export_tflite(
    classifier: Classifier,
    path: Path,
    *,
    options: ExportOptions = DEFAULTS,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Write a network as fp32 TFLite, batch 1.

    The input is float32 pixels (1, H, W, C) in [0, 1], or uint8 with `options.uint8_input`; the output float32 logits
    (1, classes).

    Args:
        classifier: the network; it is left as it is.
        path: file to write, by rename.
        options: number type of the input.
        metadata: facts written into the file.

    Returns:
        What was written; `path` of it is the file's name.

    Raises:
        ToolFailedError: the converter is missing or failed; an operator that it lacks is named.
    """
    with captured_output(f"exporting {classifier.spec.architecture} to tflite fp32"):
        litert_torch = require("litert_torch")
        network, example = channels_last(classifier, uint8_input=options.uint8_input)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            converted = Path(folder) / path.name
            try:
                litert_torch.convert(network, (example,)).export(str(converted))
            except RuntimeError as error:
                raise _without_kernel(classifier.spec.architecture, str(error)) or error from None
            return _write(converted.read_bytes(), path, "fp32", metadata)


def _without_kernel(architecture: str, message: str) -> ToolFailedError | None:
    """What to say where the converter has no lowering for an operator, with the network's own line that calls it."""
    missing = re.search(r"Lowering not found: aten\.(\w+)", message)
    if missing is None:
        return None
    lines = re.findall(r'File "(.+)", line (\d+), in \w+\n +(.+)', message)
    where = f" ({Path(lines[-1][0]).name}:{lines[-1][1]}: {lines[-1][2]})" if lines else ""
    return ToolFailedError(
        f"{architecture} cannot become a TFLite file: LiteRT's converter has no {missing[1]}{where}; "
        "use another operator there, or leave TFLite out: --format onnx"
    )


def channels_last(classifier: Classifier, *, uint8_input: bool = False) -> tuple[torch.nn.Module, torch.Tensor]:
    """What is exported, taking images (1, H, W, C), and an example of them."""
    network, example = as_exported(classifier, uint8_input=uint8_input)
    wrapped: torch.nn.Module = require("litert_torch").to_channel_last_io(network, args=[0]).eval()
    return wrapped, example.permute(0, 2, 3, 1).contiguous()


def convert_weights(
    source: Path,
    path: Path,
    precision: Literal["fp16", "int8-dynamic"],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Write an fp32 TFLite file with smaller weights; input and output stay float32, and nothing is calibrated.

    `fp16` computes in float32, or in half precision where the runtime can (XNNPACK on Armv8.2). For `int8-dynamic`,
    whose weights are quantized per channel, the runtime quantizes each activation by its own range, computes in
    integers where it has kernels for that, and in float32 otherwise.

    Args:
        source: a file that `export_tflite` wrote.
        path: file to write, by rename.
        precision: of the weights.
        metadata: facts written into the file.

    Raises:
        ToolFailedError: the quantizer is missing or failed.
    """
    with captured_output(f"converting {source.name} to {precision}"):
        converter = require("ai_edge_quantizer.quantizer").Quantizer(source)
        dynamic = require("ai_edge_quantizer.recipe").dynamic_wi8_afp32()
        converter.load_quantization_recipe([HALF] if precision == "fp16" else dynamic)
        return _write(converter.quantize().quantized_model, path, precision, metadata)


class Int8Quantizer:
    """Makes int8 files of an fp32 TFLite file: weights per channel, activations per tensor; float input and output.

    The activations' ranges are calibrated once, for as many files as are made.

    Args:
        source: a file that `export_tflite` wrote.
        calibration: images like those the device will see; all are used, one at a time.
        method: how ranges are chosen.
        metadata: facts written into the files.

    Raises:
        BadInputError: there are no calibration images.
        ToolFailedError: the quantizer is missing or failed.
    """

    def __init__(
        self,
        source: Path,
        *,
        calibration: ImageSet,
        method: CalibrationMethod = "min-max",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.metadata = source, metadata
        require_images(calibration)
        with captured_output(f"calibrating {source.name}"):
            self.layers = _layers(source)
            """Scopes of the operators with weights, which can be kept in float."""
            self._inner = _inner_operators(source)
            self._ranges = _activation_ranges(source, calibration)
            if method != "min-max":
                self._ranges |= _histogram_ranges(source, calibration, method, self._ranges)
            self._ranges |= _weight_ranges(source, self._ranges)

    def quantize(self, path: Path, *, keep: Sequence[str] = (), only: str | None = None) -> Artifact:
        """Write the file by rename.

        Args:
            path: file to write.
            keep: layers that stay in float.
            only: the single layer to quantize, everything else staying in float.
        """
        with captured_output(f"quantizing {self.source.name} to int8"):
            converter = require("ai_edge_quantizer.quantizer").Quantizer(self.source)
            converter.load_quantization_recipe(_rules((*self._inner, *keep), only))
            return _write(converter.quantize(self._ranges).quantized_model, path, "int8", self.metadata)


def _rules(keep: Sequence[str] = (), only: str | None = None) -> list[dict[str, Any]]:
    """What ai-edge-quantizer shall do: all layers or a single one; input, output and `keep` stay as they are."""
    rules = require("ai_edge_quantizer.recipe").static_wi8_ai8()
    untouched = [(".*", "INPUT"), (".*", "OUTPUT"), *((re.escape(scope), "*") for scope in keep)]
    return [
        *(rule if only is None else rule | {"regex": re.escape(only)} for rule in rules),
        *({"regex": scope, "operation": kind, "algorithm_key": "no_quantize"} for scope, kind in untouched),
    ]


def _layers(source: Path) -> tuple[str, ...]:
    scope = require("ai_edge_quantizer.utils.tfl_flatbuffer_utils").get_op_scope
    model = require("ai_edge_litert.tools.flatbuffer_utils").read_model(source)
    return tuple(scope(operator, graph.tensors) for _, operator, graph in _weighted(model))


def _inner_operators(source: Path) -> tuple[str, ...]:
    """Scopes of the operators within others, as the sum of a pooling that averages what is no padding.

    Nothing is calibrated there, and without its ranges the quantizer refuses the whole file.
    """
    scope = require("ai_edge_quantizer.utils.tfl_flatbuffer_utils").get_op_scope
    model = require("ai_edge_litert.tools.flatbuffer_utils").read_model(source)
    return tuple(scope(operator, graph.tensors) for graph in model.subgraphs[1:] for operator in graph.operators)


def _weighted(model: Any) -> Iterator[tuple[int, Any, Any]]:
    """Operators with weights: code, operator and the graph that it is in."""
    builtin = require("ai_edge_litert.schema_py_generated").BuiltinOperator
    weighted = {builtin.CONV_2D, builtin.DEPTHWISE_CONV_2D, builtin.FULLY_CONNECTED, builtin.TRANSPOSE_CONV}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex].builtinCode
            if code in weighted:
                yield code, operator, graph


def _activation_ranges(source: Path, calibration: ImageSet) -> Any:
    """The smallest and largest value of every activation.

    The quantizer's own default, a moving average over images, cuts the largest activations off: cosine 0.975
    in place of 0.998 for an adversarially trained VGG16 on CIFAR-10 (128 calibration images).
    """
    calibrator = require("ai_edge_quantizer.calibrator").Calibrator(
        str(source),
        num_threads=1,
        qsv_update_func=require("ai_edge_quantizer.utils.qsv_utils").min_max_update,
    )
    manager = require("ai_edge_quantizer.recipe_manager").RecipeManager()
    manager.load_quantization_recipe(_rules())
    interpreter = require("ai_edge_litert.interpreter").Interpreter(model_path=str(source))
    ((signature, ports),) = interpreter.get_signature_list().items()
    for image in _images(source, calibration, interpreter):
        calibrator.calibrate({signature: [{ports["inputs"][0]: image}]}, manager)
    return calibrator.get_model_qsvs()


def _histogram_ranges(
    source: Path, calibration: ImageSet, method: CalibrationMethod, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Ranges of the activations that have one, by a method that needs all their values."""
    tools = require("ai_edge_quantizer.utils.tfl_interpreter_utils")
    interpreter = require("ai_edge_litert.interpreter").Interpreter(
        model_path=str(source), experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    constant = set(tools.get_constant_tensor_names(str(source)))
    histograms = Histograms(method)
    for image in _images(source, calibration, interpreter):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        values = tools.get_tensor_name_to_content_map(interpreter)
        histograms.add({name: values[name] for name in known if name in values and name not in constant})
    shapes = {name: np.shape(known[name]["min"]) for name in known}
    return {
        name: {"min": np.reshape(low, shapes[name]), "max": np.reshape(high, shapes[name])}
        for name, (low, high) in histograms.ranges().items()
    }


def _weight_ranges(source: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Ranges of weights with a channel that is too small for its bias; the quantizer finds all others itself.

    A bias is stored in 32 bits, at the scale of the layer's input times that of the channel's weights. Where these are
    almost zero, as those of a masked filter that keeps its batch norm's shift, the quantizer clips the bias without a
    word. In the wider range the bias takes half of the 32 bits' range and leaves the sum of products the other half;
    what that rounds off the weights is less than the bias by a factor of a billion.
    """
    tools = require("ai_edge_quantizer.utils.tfl_flatbuffer_utils")
    model = require("ai_edge_litert.tools.flatbuffer_utils").read_model(source)
    transposed = require("ai_edge_litert.schema_py_generated").BuiltinOperator.TRANSPOSE_CONV
    wider: dict[str, Any] = {}
    for code, operator, graph in _weighted(model):
        places = (2, 1, 3) if code == transposed else (0, 1, 2)
        given, weight, added, _ = tools.parse_fc_bmm_conv_tensors(operator, graph.tensors, *places)
        name, taken = tools.get_tensor_name(weight), known.get(tools.get_tensor_name(given))
        weights = tools.get_tensor_data(weight, model.buffers)
        biases = None if added is None else tools.get_tensor_data(added, model.buffers)
        if weights is None or biases is None or taken is None:
            continue
        channels = tools.TFL_OP_TO_WEIGHT_QUANTIZED_DIM[tools.TFL_OP_CODE_TO_NAME[code]]
        others = tuple({*range(weights.ndim)} - {channels})
        largest = wider[name]["max"] if name in wider else np.abs(weights).max(others, keepdims=True)
        spread = (np.maximum(taken["max"], 0) - np.minimum(taken["min"], 0)).item()
        input_scale = max(spread, 1e-9) / 255  # no scale of the quantizer is less
        needed = np.reshape(127 * np.abs(biases) / (2**30 * input_scale), largest.shape)
        if (needed > largest).any():
            bound = np.maximum(largest, needed, dtype=weights.dtype)
            wider[name] = {"min": -bound, "max": bound}
    return wider


def _images(source: Path, calibration: ImageSet, interpreter: Any) -> Iterator[np.ndarray]:
    """Calibration images, one at a time, as the file takes them."""
    port = tflite_port(interpreter.get_input_details()[0])
    for pixels, _ in calibration.tracked(1, f"calibrating {source.name}"):
        yield port.encode(pixels.permute(0, 2, 3, 1).contiguous().numpy())


def _write(content: Any, path: Path, precision: Precision, metadata: Mapping[str, str] | None) -> Artifact:
    """Write a model with the facts behind it; read back what the file says of itself."""
    schema = require("ai_edge_litert.schema_py_generated")
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes(content))
        if metadata:
            _append(temporary, metadata)
    reasons = transpose_reasons(path)
    graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
    takes = graph.Tensors(graph.Inputs(0)).Type()
    return Artifact.at(
        path,
        precision,
        input="uint8" if takes == schema.TensorType.UINT8 else "float32",
        transposes=len(reasons),
        transpose_reasons=tuple(reasons),
    )


def _append(path: Path, metadata: Mapping[str, str]) -> None:
    """Put facts behind a model as a zip archive, which is where TensorFlow Lite's own metadata keeps files.

    Runtimes do not look there, so not a byte of the model is touched.
    """
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo(METADATA, (1980, 1, 1, 0, 0, 0))
        archive.writestr(entry, json.dumps(metadata, indent=1, sort_keys=True))


def transpose_reasons(path: Path) -> list[str]:
    """What each TRANSPOSE of a TFLite file is for: what is left of the change from NCHW to NHWC."""
    codes = vars(require("ai_edge_litert.schema_py_generated").BuiltinOperator).items()
    model = require("ai_edge_litert.tools.flatbuffer_utils").read_model(path)
    names = {code: name for name, code in codes if isinstance(code, int)}
    reasons = []
    for graph in model.subgraphs:
        kinds = [names[model.operatorCodes[one.opcodeIndex].builtinCode] for one in graph.operators]
        for one, kind in zip(graph.operators, kinds, strict=True):
            if kind != "TRANSPOSE":
                continue
            by = zip(kinds, graph.operators, strict=True)
            users = [user for user, other in by if one.outputs[0] in other.inputs]
            given, made = ("×".join(map(str, graph.tensors[i].shape)) for i in (one.inputs[0], one.outputs[0]))
            reads = "reads a map channel by channel" if "RESHAPE" in users else "permutes axes"
            reasons.append(f"{given} to {made} before {', '.join(users) or 'the output'}: the network {reads}")
    return reasons
