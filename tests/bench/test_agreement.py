"""What a device computed, held against the same file here and the network that it was made from."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsrp_edge.bench import agreement
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.agreement import Expected, Origin
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.ncnn import export_ncnn
from fsrp_edge.exporting.parity import Probe, probe_pixels
from tests.nets import as_classifier

SHAPE = (3, 16, 16)


@pytest.fixture
def origin(onnx_file: Path) -> Origin:
    """What a manifest would say of the file, whose network is a convolution that onnxruntime computes here."""
    from fsrp_edge.runtimes import open_session

    pixels = probe_pixels(SHAPE, 2, seed=1).numpy()
    logits = open_session(onnx_file).run(pixels).reshape(2, -1)
    probe = Probe(shape=SHAPE, seed=1, logits=tuple(tuple(map(float, row)) for row in logits))
    facts = {"bytes": 1, "sha256": "0" * 64, "layout": "NCHW", "format": "onnx", "precision": "fp32"}
    return Origin(Artifact.model_validate({"path": onnx_file.name, **facts}), probe)


def test_the_inputs_are_the_images_of_the_manifest_and_both_comparisons_pass(onnx_file, origin):
    expected = Expected(onnx_file, "onnxruntime", origin)
    assert (expected.pixels == probe_pixels(SHAPE, 2, seed=1).numpy()).all()
    found = expected.compare(origin.probe.logits)
    assert (found.inputs, found.passed) == (2, True)
    assert found.relative_error <= 1e-6 and found.network_error <= 1e-6


def test_a_file_that_computes_here_what_its_network_never_did_is_found(onnx_file, origin):
    other = origin.probe.model_copy(update={"logits": tuple(tuple(-v for v in row) for row in origin.probe.logits)})
    found = Expected(onnx_file, "onnxruntime", Origin(origin.artifact, other)).compare(origin.probe.logits)
    assert found.relative_error <= 1e-6 and found.network_error > 1 and not found.passed


@pytest.mark.parametrize(
    "damage", [lambda row: [math.nan, *row[1:]], lambda row: row[1:], lambda row: [2 * v for v in row]]
)
def test_other_outputs_fail(onnx_file, origin, damage):
    assert not Expected(onnx_file, "onnxruntime", origin).compare([damage(row) for row in origin.probe.logits]).passed


def test_without_the_runtime_here_the_network_alone_decides(onnx_file, origin, monkeypatch):
    def missing(path: Path) -> None:
        raise ToolFailedError("not installed")

    monkeypatch.setattr(agreement, "open_session", missing)
    found = Expected(onnx_file, "onnxruntime", origin).compare(origin.probe.logits)
    assert (found.relative_error, found.passed) == (None, True)
    with pytest.raises(ToolFailedError):
        Expected(onnx_file, "onnxruntime")


@pytest.mark.parametrize(("runtime", "passed"), [("tensorrt", True), ("onnxruntime", False)])
def test_a_runtime_that_rounds_by_itself_is_held_to_what_rounding_does(onnx_file, origin, runtime, passed):
    logits = np.array(origin.probe.logits)
    rounded, wrong = logits.astype(np.float16), logits[:, ::-1]
    expected = Expected(onnx_file, runtime, origin)
    assert expected.compare(rounded.tolist()).passed == passed
    assert not expected.compare(wrong.tolist()).passed


def test_ncnn_may_compute_in_half_precision(server, tmp_path):
    """As it does here with the weights of linear layers; three of them are further from fp32 than fp32 files may be."""
    pytest.importorskip("ncnn"), pytest.importorskip("pnnx")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()]
    layers += [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10, bias=False)]
    classifier = as_classifier(nn.Sequential(*layers), shape=SHAPE)
    artifact = export_ncnn(classifier, tmp_path / "net.ncnn", "fp32")
    setup = Setup(input_shape=SHAPE, origins={artifact.sha256: Origin(artifact, Probe.of(classifier))})
    method = Method(warmup_runs=0, warmup_seconds=0, runs=1, seconds=0, rounds=1)
    (measured,) = measure_on(parse_address(server.address()), [tmp_path / "net.ncnn"], setup, method=method)
    assert measured.agreement.passed and measured.agreement.network_error < 1e-2
