"""What a device computed, held against the same file here and the network that it was made from."""

import math
from pathlib import Path

import pytest

from fsrp_edge.bench import agreement
from fsrp_edge.bench.agreement import Expected, Origin
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Probe, probe_pixels

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
    expected = Expected(onnx_file, origin)
    assert (expected.pixels == probe_pixels(SHAPE, 2, seed=1).numpy()).all()
    found = expected.compare(origin.probe.logits)
    assert (found.inputs, found.passed) == (2, True)
    assert found.relative_error <= 1e-6 and found.network_error <= 1e-6


def test_a_file_that_computes_here_what_its_network_never_did_is_found(onnx_file, origin):
    other = origin.probe.model_copy(update={"logits": tuple(tuple(-v for v in row) for row in origin.probe.logits)})
    found = Expected(onnx_file, Origin(origin.artifact, other)).compare(origin.probe.logits)
    assert found.relative_error <= 1e-6 and found.network_error > 1 and not found.passed


@pytest.mark.parametrize(
    "damage", [lambda row: [math.nan, *row[1:]], lambda row: row[1:], lambda row: [2 * v for v in row]]
)
def test_other_outputs_fail(onnx_file, origin, damage):
    assert not Expected(onnx_file, origin).compare([damage(row) for row in origin.probe.logits]).passed


def test_without_the_runtime_here_the_network_alone_decides(onnx_file, origin, monkeypatch):
    def missing(path: Path) -> None:
        raise ToolFailedError("not installed")

    monkeypatch.setattr(agreement, "open_session", missing)
    found = Expected(onnx_file, origin).compare(origin.probe.logits)
    assert (found.relative_error, found.passed) == (None, True)
    with pytest.raises(ToolFailedError):
        Expected(onnx_file)
