import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import GateFailedError
from fsrp_edge.exporting import mixed
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.onnx import Int8Quantizer, export_onnx
from fsrp_edge.exporting.tflite import Int8Quantizer as TFLiteQuantizer
from fsrp_edge.exporting.tflite import export_tflite
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import log_to
from fsrp_edge.runtimes import open_session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def fragile(classifier: Classifier) -> Classifier:
    """The network with a head that eight bits can't hold: one weight of each class dwarfs the rest, times 0."""
    network = copy.deepcopy(classifier)
    inner: Any = network.network
    with torch.no_grad():
        inner.widen[1].weight[0], inner.widen[1].bias[0] = 0, -10  # hard swish makes 0 of it
        inner.head.weight[:, 0] = 1000
    return network


@pytest.fixture(scope="module")
def quantizer(fragile: Classifier, images: ImageSet, folder: Path) -> Int8Quantizer:
    export_onnx(fragile, folder / "fp32.onnx", opset=13, ir_version=7)
    return Int8Quantizer(folder / "fp32.onnx", folder, activation="uint8", calibration=images)


@pytest.fixture(scope="module")
def errors(quantizer: Int8Quantizer, images: ImageSet) -> tuple[mixed.LayerError, ...]:
    return mixed.layer_errors(quantizer, images)


def accuracy_on(images: ImageSet) -> Callable[[Path], float]:
    def accuracy(path: Path) -> float:
        pixels, labels = next(images.batches(len(images)))
        return float((open_session(path).predict(pixels).argmax(1) == labels).float().mean())

    return accuracy


def test_every_layer_is_listed_the_worst_first(quantizer: Int8Quantizer, errors: tuple[mixed.LayerError, ...]) -> None:
    assert {error.layer for error in errors} == set(quantizer.layers) and len(errors) == 4
    values = [error.relative_error for error in errors]
    assert values == sorted(values, reverse=True)
    assert values[0] > 3 * values[-1] > 0, "layers differ in what they do"


def test_layers_are_kept_in_float_until_the_accuracy_is_kept(
    quantizer: Int8Quantizer, errors: tuple[mixed.LayerError, ...], images: ImageSet, folder: Path
) -> None:
    accuracy, path = accuracy_on(images), folder / "mixed.onnx"
    everything = accuracy(folder / quantizer.quantize(folder / "all.onnx").path)
    assert everything < accuracy(quantizer.source) - 0.2
    artifact, found = mixed.quantize_within(quantizer, path, images, accuracy, 1.0, lambda *_: True)
    assert found == errors
    assert accuracy(path) >= accuracy(quantizer.source) - 0.01
    assert artifact.kept_in_float == tuple(error.layer for error in errors[: len(artifact.kept_in_float)])
    assert len(artifact.kept_in_float) == 1 and "head" in artifact.kept_in_float[0]
    producers = {output: node for node in onnx.load(path).graph.node for output in node.output}
    for node in onnx.load(path).graph.node:
        if node.name in artifact.kept_in_float:
            assert node.input[1] not in producers, "its weights are a float constant"


def test_layers_are_kept_in_float_until_the_outputs_are_close_too(
    quantizer: Int8Quantizer, images: ImageSet, folder: Path
) -> None:
    asked = []

    def close(path: Path, artifact: Artifact) -> bool:
        asked.append(path.stat().st_size)
        return len(asked) > 1

    path = folder / "close.onnx"
    artifact, _ = mixed.quantize_within(quantizer, path, images, accuracy_on(images), 100.0, close)
    assert len(artifact.kept_in_float) == 1 and asked[1] > asked[0], "the second file has a layer in float"
    with pytest.raises(GateFailedError, match="differ too much from the network's"):
        mixed.quantize_within(quantizer, path, images, accuracy_on(images), 100.0, lambda *_: False)
    assert not path.exists()


def test_a_file_that_loses_exactly_what_it_may_is_taken_and_its_layers_are_not_looked_at(
    quantizer: Int8Quantizer, images: ImageSet, folder: Path
) -> None:
    reached = iter([0.8, 0.7])  # 0.8 - 0.1 is more than 0.7 in floating point
    artifact, errors = mixed.quantize_within(
        quantizer, folder / "exact.onnx", images, lambda _: next(reached), 10.0, lambda *_: True
    )
    assert (artifact.kept_in_float, errors) == ((), ())


def test_the_last_try_keeps_half_of_the_layers_in_float():
    assert mixed.numbers_in_float(21) == [0, 1, 2, 4, 8, 11]
    assert [mixed.numbers_in_float(layers) for layers in range(4)] == [[0], [0, 1], [0, 1], [0, 1, 2]]


def test_what_cannot_be_kept_is_said_and_no_file_is_left(
    quantizer: Int8Quantizer, errors: tuple[mixed.LayerError, ...], images: ImageSet, folder: Path
) -> None:
    path = folder / "never.onnx"
    falling = iter([0.9, 0.5, 0.6, 0.7])
    with pytest.raises(GateFailedError, match=r"up to 2 of 4 layers in float it reaches 70.00%, and 89.00%"):
        mixed.quantize_within(quantizer, path, images, lambda _: next(falling), 1.0, lambda *_: True, errors)
    assert not path.exists()


def test_no_layer_is_kept_in_float_where_none_may_be(quantizer: Int8Quantizer, images: ImageSet, folder: Path) -> None:
    falling = iter([0.9, 0.5])
    with pytest.raises(GateFailedError, match=r"up to 0 of 4 layers in float it reaches 50.00%"):
        mixed.quantize_within(
            quantizer, folder / "no.onnx", images, lambda _: next(falling), 1.0, lambda *_: True, wholly_int8=True
        )


def test_the_worst_layers_are_told_whatever_comes_of_the_file(
    quantizer: Int8Quantizer, errors: tuple[mixed.LayerError, ...], images: ImageSet, tmp_path: Path
) -> None:
    with log_to(tmp_path / "run.log"):
        mixed.layer_errors(quantizer, images)
    told = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert all(f"{one.layer} {100 * one.relative_error:.2f} %" in told for one in errors[:3])
    assert errors[3].layer not in told


def test_tflite_has_the_same(classifier: Classifier, images: ImageSet, folder: Path) -> None:
    export_tflite(classifier, folder / "fp32.tflite")
    quantizer = TFLiteQuantizer(folder / "fp32.tflite", calibration=images.first(16))
    errors = mixed.layer_errors(quantizer, images)
    assert [error.layer for error in errors] != [] and set(quantizer.layers) == {e.layer for e in errors}
    assert all(0 < error.relative_error < 0.2 for error in errors)
    whole = quantizer.quantize(folder / "whole.tflite")
    part = quantizer.quantize(folder / "part.tflite", keep=[errors[0].layer])
    assert part.bytes > whole.bytes
