import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import check_parity, require_parity
from fsrp_edge.exporting.tflite import convert_to_fp16, export_tflite, quantize_to_int8
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import open_session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tflite")


@pytest.fixture(scope="module")
def fp32(classifier: Classifier, folder: Path) -> Artifact:
    return export_tflite(classifier, folder / "fp32.tflite")


def test_file_takes_channels_last(fp32: Artifact, folder: Path) -> None:
    # One TRANSPOSE has a reason: the head reads a 2x1 map flattened channel by channel.
    assert (fp32.layout, fp32.transposes) == ("NHWC", 1)
    session = open_session(folder / fp32.path)
    assert session.input.shape == (1, 48, 64, 3)
    assert session.output.shape == (1, 5)


def test_every_precision_agrees_in_litert_and_tensorflow(
    classifier: Classifier, images: ImageSet, fp32: Artifact, folder: Path
) -> None:
    fp16 = convert_to_fp16(folder / "fp32.tflite", folder / "fp16.tflite")
    int8 = quantize_to_int8(folder / "fp32.tflite", folder / "int8.tflite", calibration=images)
    for artifact in (fp32, fp16, int8):
        parities = check_parity(classifier, folder / artifact.path, artifact, images)
        assert {parity.runtime for parity in parities} == {"litert", "tensorflow"}
        require_parity(parities)
        session = open_session(folder / artifact.path)
        assert (session.input.dtype, session.output.dtype) == (np.float32, np.float32)
    assert int8.bytes < fp16.bytes < fp32.bytes


def test_same_network_gives_the_same_bytes(
    classifier: Classifier, images: ImageSet, fp32: Artifact, folder: Path
) -> None:
    assert export_tflite(classifier, folder / "again.tflite").sha256 == fp32.sha256
    first, second = (
        quantize_to_int8(folder / "fp32.tflite", folder / name, calibration=images.first(4))
        for name in ("one.tflite", "two.tflite")
    )
    assert first.sha256 == second.sha256
    assert str(folder).encode() not in (folder / "one.tflite").read_bytes()


def test_memory_layout_of_the_weights_does_not_matter(
    classifier: Classifier, fp32: Artifact, folder: Path
) -> None:
    strided = copy.deepcopy(classifier).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert export_tflite(strided, folder / "strided.tflite").sha256 == fp32.sha256


def test_int8_without_images_is_refused(images: ImageSet, fp32: Artifact, folder: Path) -> None:
    with pytest.raises(BadInputError, match="calibration images"):
        quantize_to_int8(folder / fp32.path, folder / "none.tflite", calibration=images.first(0))
