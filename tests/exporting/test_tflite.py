import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.parity import Reference, require_parity
from fsrp_edge.exporting.tflite import (
    METADATA,
    Int8Quantizer,
    convert_weights,
    export_tflite,
)
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import open_session
from tests.nets import as_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tflite")


@pytest.fixture(scope="module")
def fp32(classifier: Classifier, folder: Path) -> Artifact:
    return export_tflite(classifier, folder / "fp32.tflite")


def test_file_takes_channels_last(fp32: Artifact, folder: Path) -> None:
    # One TRANSPOSE has a reason: the head reads a 2x1 map flattened channel by channel.
    assert (fp32.layout, fp32.transposes) == ("NHWC", 1)
    assert fp32.transpose_reasons == (
        "1×2×1×37 to 1×37×2×1 before RESHAPE: the network reads a map channel by channel",
    )
    session = open_session(folder / fp32.path)
    assert session.input.shape == (1, 48, 64, 3)
    assert session.output.shape == (1, 5)


def test_every_precision_agrees_in_litert_and_tensorflow(
    classifier: Classifier, images: ImageSet, fp32: Artifact, folder: Path
) -> None:
    fp16 = convert_weights(folder / "fp32.tflite", folder / "fp16.tflite", "fp16")
    int8 = Int8Quantizer(folder / "fp32.tflite", calibration=images).quantize(folder / "int8.tflite")
    dynamic = convert_weights(folder / "fp32.tflite", folder / "dynamic.tflite", "int8-dynamic")
    for artifact in (fp32, fp16, int8, dynamic):
        parities = Reference.of(classifier, images).check(folder / artifact.path, artifact)
        assert {parity.runtime for parity in parities} == {"litert", "tensorflow"}
        require_parity(parities)
        session = open_session(folder / artifact.path)
        assert (session.input.dtype, session.output.dtype) == (np.float32, np.float32)
    assert max(int8.bytes, dynamic.bytes) < fp16.bytes < fp32.bytes


def test_same_network_gives_the_same_bytes(
    classifier: Classifier, images: ImageSet, fp32: Artifact, folder: Path
) -> None:
    assert export_tflite(classifier, folder / "again.tflite").sha256 == fp32.sha256
    first, second = (
        Int8Quantizer(folder / "fp32.tflite", calibration=images.first(4)).quantize(folder / name)
        for name in ("one.tflite", "two.tflite")
    )
    assert first.sha256 == second.sha256
    assert str(folder).encode() not in (folder / "one.tflite").read_bytes()


def test_memory_layout_of_the_weights_does_not_matter(classifier: Classifier, fp32: Artifact, folder: Path) -> None:
    strided = copy.deepcopy(classifier).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert export_tflite(strided, folder / "strided.tflite").sha256 == fp32.sha256


def test_int8_without_images_is_refused(images: ImageSet, fp32: Artifact, folder: Path) -> None:
    with pytest.raises(BadInputError, match="calibration images"):
        Int8Quantizer(folder / fp32.path, calibration=images.first(0))


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_ranges_by_every_method_give_a_file_that_agrees(
    classifier: Classifier, images: ImageSet, fp32: Artifact, folder: Path, method: Any
) -> None:
    quantizer = Int8Quantizer(folder / fp32.path, calibration=images.first(24), method=method)
    artifact = quantizer.quantize(folder / f"{method}.tflite")
    assert (
        artifact.sha256
        != Int8Quantizer(folder / fp32.path, calibration=images.first(24)).quantize(folder / "plain.tflite").sha256
    )
    require_parity(Reference.of(classifier, images).check(folder / artifact.path, artifact))


@pytest.mark.parametrize("layer", ["widen.0", "depthwise.0", "head"])
def test_filters_of_zeros_keep_their_bias_in_int8(
    classifier: Classifier, images: ImageSet, folder: Path, layer: str
) -> None:
    """As masking leaves them. 32 bits at the scale of such weights would hold next to nothing of the bias."""
    masked = copy.deepcopy(classifier)
    module: Any = masked.network.get_submodule(layer)
    with torch.no_grad():
        module.weight[:2], module.bias[:2] = 0, 5
    export_tflite(masked, folder / "masked.tflite")
    Int8Quantizer(folder / "masked.tflite", calibration=images).quantize(folder / "masked8.tflite")
    pixels, _ = next(images.batches(48))
    with torch.no_grad():
        logits = masked(pixels)
    found = open_session(folder / "masked8.tflite").predict(pixels)
    assert F.cosine_similarity(found.flatten(), logits.flatten(), dim=0) > 0.995


def read_metadata(path: Path) -> dict[str, str]:
    """As a zip archive, which is where TensorFlow Lite's own metadata keeps files."""
    with zipfile.ZipFile(path) as archive:
        facts: dict[str, str] = json.loads(archive.read(METADATA))
    return facts


def test_facts_are_in_the_file_in_every_precision(classifier: Classifier, images: ImageSet, folder: Path) -> None:
    facts, source = {"seed": "0", "labels": '["a", "ü"]'}, folder / "facts.tflite"
    export_tflite(classifier, source, metadata=facts)
    convert_weights(source, folder / "facts16.tflite", "fp16", metadata=facts)
    Int8Quantizer(source, calibration=images.first(4), metadata=facts).quantize(folder / "facts8.tflite")
    for name in ("facts", "facts16", "facts8"):
        assert read_metadata(folder / f"{name}.tflite") == facts
    assert not zipfile.is_zipfile(folder / "fp32.tflite")


def test_input_of_bytes_is_the_same_network(classifier: Classifier, images: ImageSet, folder: Path) -> None:
    options = ExportOptions(uint8_input=True)
    source = folder / "bytes.tflite"
    fp32 = export_tflite(classifier, source, options=options)
    int8 = Int8Quantizer(source, calibration=images).quantize(folder / "bytes8.tflite")
    for artifact in (fp32, int8):
        assert artifact.input == "uint8"
        assert open_session(folder / artifact.path).input.dtype == np.uint8
        parities = Reference.of(classifier, images).check(folder / artifact.path, artifact)
        assert {parity.runtime for parity in parities} == {"litert", "tensorflow"}
        require_parity(parities)


def test_averages_of_what_is_no_padding_are_quantized(classifier: Classifier, images: ImageSet, folder: Path) -> None:
    """The converter writes those with padding as operators within an operator, which nothing is calibrated for."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    as_in_resnet_d = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    padded = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 8, 5))
    network = Classifier(nn.Sequential(stem, as_in_resnet_d, padded, head), classifier.spec).eval()
    export_tflite(network, folder / "averages.tflite")
    quantizer = Int8Quantizer(folder / "averages.tflite", calibration=images)
    int8 = quantizer.quantize(folder / "averages-int8.tflite")
    require_parity(Reference.of(network, images).check(folder / int8.path, int8))
    assert "AVERAGE_POOL_2D" in operators(folder / int8.path), "no padding is needed for the first"
    assert as_in_resnet_d.ceil_mode, "the network itself stays as it is"


def operators(path: Path) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from ai_edge_litert.tools.flatbuffer_utils import read_model

    names = {code: name for name, code in vars(BuiltinOperator).items()}
    return [names[code.builtinCode] for code in read_model(path).operatorCodes]


class LargestOfQuarters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x, 2).flatten(1)


def test_an_operator_that_the_converter_lacks_is_named_with_its_line_and_a_way_out(folder: Path) -> None:
    classifier = as_classifier(LargestOfQuarters(), shape=(3, 8, 8), classes=12)
    with pytest.raises(ToolFailedError, match=r"no adaptive_max_pool2d .*return F\.adap.*--format onnx") as seen:
        export_tflite(classifier, folder / "lacks.tflite")
    assert "test_tflite.py:" in str(seen.value) and "\n" not in str(seen.value)
