"""TFLite files in fp32, fp16 and int8: litert-torch converts once, ai-edge-quantizer derives the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

PORTION = 32
"""Calibration images in memory at a time."""


def export_tflite(classifier: Classifier, path: Path) -> Artifact:
    """Write a network as fp32 TFLite, batch 1.

    The input is float32 pixels (1, H, W, C) in [0, 1], the output float32 logits (1, classes).

    Args:
        classifier: the network; it is left as it is.
        path: file to write, by rename.

    Returns:
        What was written; `path` of it is the file's name.

    Raises:
        ToolFailedError: the converter is missing or failed.
    """
    with captured_output(f"exporting {classifier.spec.architecture} to tflite fp32"):
        litert_torch = require("litert_torch")
        frozen = frozen_copy(classifier)
        channels_last = litert_torch.to_channel_last_io(frozen, args=[0]).eval()
        pixels = frozen.example_pixels().permute(0, 2, 3, 1).contiguous()
        with torch.no_grad():
            converted = litert_torch.convert(channels_last, (pixels,))
        return _write(lambda file: converted.export(str(file)), path, "fp32")


def convert_to_fp16(source: Path, path: Path) -> Artifact:
    """Write an fp32 TFLite file with half-precision weights; input, output and arithmetic stay float32.

    Runtimes with half-precision arithmetic (XNNPACK on Armv8.2) may compute in it.

    Args:
        source: a file that `export_tflite` wrote.
        path: file to write, by rename.

    Raises:
        ToolFailedError: the quantizer is missing or failed.
    """
    with captured_output(f"converting {source.name} to fp16"):
        quantizer, types = require("ai_edge_quantizer.quantizer"), require("ai_edge_quantizer.qtyping")
        algorithms = require("ai_edge_quantizer.algorithm_manager").AlgorithmName
        half = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
        converter = quantizer.Quantizer(source)
        converter.update_quantization_recipe(
            ".*",
            types.TFLOperationName.ALL_SUPPORTED,
            op_config=types.OpQuantizationConfig(weight_tensor_config=half),
            algorithm_key=algorithms.FLOAT_CASTING,
        )
        return _write_bytes(converter.quantize().quantized_model, path, "fp16")


def quantize_to_int8(source: Path, path: Path, *, calibration: ImageSet) -> Artifact:
    """Write an fp32 TFLite file with int8 weights (per channel) and activations.

    Input and output stay float32. The range of an activation goes from the smallest to the largest value
    seen while the calibration images run through.

    Args:
        source: a file that `export_tflite` wrote.
        path: file to write, by rename.
        calibration: images like those the device will see; all are used, one at a time.

    Raises:
        BadInputError: there are no calibration images.
        ToolFailedError: the quantizer is missing or failed.
    """
    if not len(calibration):
        raise BadInputError(
            "int8 needs calibration images, and there are none; give a data set or leave int8 out"
        )
    with captured_output(f"quantizing {source.name} to int8"):
        quantizer, recipe = require("ai_edge_quantizer.quantizer"), require("ai_edge_quantizer.recipe")
        operations = require("ai_edge_quantizer.qtyping").TFLOperationName
        algorithms = require("ai_edge_quantizer.algorithm_manager").AlgorithmName
        converter = quantizer.Quantizer(source)
        converter.load_quantization_recipe(recipe.static_wi8_ai8())
        for port in (operations.INPUT, operations.OUTPUT):
            converter.update_quantization_recipe(".*", port, algorithm_key=algorithms.NO_QUANTIZE)
        ranges = _activation_ranges(source, converter.get_quantization_recipe(), calibration, path.name)
        return _write_bytes(converter.quantize(ranges).quantized_model, path, "int8")


def _activation_ranges(source: Path, recipe: Any, calibration: ImageSet, name: str) -> Any:
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
    manager.load_quantization_recipe(recipe)
    interpreter = require("ai_edge_litert.interpreter").Interpreter(model_path=str(source))
    ((signature, ports),) = interpreter.get_signature_list().items()
    # In portions, because the calibrator puts all it is given into a list.
    batches = track(
        calibration.batches(PORTION), f"calibrating {name}", total=calibration.batch_count(PORTION)
    )
    for pixels, _ in batches:
        channels_last = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        images = [{ports["inputs"][0]: image[None]} for image in channels_last]
        calibrator.calibrate({signature: images}, manager)
    return calibrator.get_model_qsvs()


def _write_bytes(content: Any, path: Path, precision: Precision) -> Artifact:
    return _write(lambda file: file.write_bytes(bytes(content)), path, precision)


def _write(write: Callable[[Path], object], path: Path, precision: Precision) -> Artifact:
    with atomic_path(path) as temporary:
        write(temporary)
        transposes = count_transposes(temporary)
    return Artifact(
        path=Path(path.name),
        format="tflite",
        precision=precision,
        layout="NHWC",
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        transposes=transposes,
    )


def count_transposes(path: Path) -> int:
    """Number of TRANSPOSE operators in a TFLite file: what is left of the change from NCHW to NHWC."""
    schema = require("ai_edge_litert.schema_py_generated")
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    graphs = [model.Subgraphs(number) for number in range(model.SubgraphsLength())]
    operators = [graph.Operators(number) for graph in graphs for number in range(graph.OperatorsLength())]
    codes = [model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() for operator in operators]
    return codes.count(schema.BuiltinOperator.TRANSPOSE)
