"""Classes found on a device, and the cores it is kept on: the agent itself, on this machine."""

import os

import numpy as np
import pytest
import torch

from fsrp_edge.bench import recognition
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure, measure_on
from fsrp_edge.bench.results import BenchResults
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError

SHORT = Method(warmup_runs=1, warmup_seconds=0, runs=2, seconds=0, rounds=1)


def write_means(path, given=(1, 3, 16, 16), made=(1, 3), axes=(2, 3)):
    """An ONNX file that puts out means over two axes."""
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    from onnx import TensorProto, helper

    nodes = [helper.make_node("ReduceMean", ["pixels"], ["logits"], axes=axes, keepdims=int(len(made) == 4))]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, given)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, made)]
    graph = helper.make_graph(nodes, "means", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture
def classifier(tmp_path):
    """An ONNX file whose class is the brightest channel."""
    return write_means(tmp_path / "brightest.onnx")


@pytest.fixture
def images(tmp_path):
    """Twelve images, of whose labels one is wrong."""
    labels = np.arange(12) % 3
    pixels = np.full((12, 3, 16, 16), 10, np.uint8)
    pixels[np.arange(12), labels] = 200
    labels[0] = 1
    path = tmp_path / "images.npz"
    np.savez(path, x_train=255 - pixels, y_train=labels, x_test=pixels, y_test=labels)
    return path


def test_images_are_recognized_there(classifier, images, tmp_path, capfd):
    out = tmp_path / "results.json"
    command = ["bench", str(classifier), "--sustained", "0.2s", "--evaluate", str(images), "--out", str(out)]
    assert run(cli, command) == 0
    (measurement,) = BenchResults.load(out).measurements
    assert measurement.recognition.model_dump() == {
        "data": "images/test", "images": 12, "correct": 11, "same_as_here": 12,
    }  # fmt: skip
    assert "91.7%" in capfd.readouterr().out


def test_images_that_a_file_does_not_take_are_refused_before_anything_is_measured(
    classifier, images, write_onnx, tmp_path, capfd
):
    larger = write_onnx(tmp_path / "larger.onnx", (1, 3, 24, 24))
    command = ["bench", str(classifier), str(larger), "--sustained", "0.2s", "--evaluate", str(images)]
    assert run(cli, command) == 2
    said = capfd.readouterr()
    assert "larger.onnx takes images 3x24x24 (CHW), not 3x16x16" in said.err and not said.out
    of_another_size = ImageSet.of("small", ArraySource(np.zeros((2, 3, 8, 8), np.uint8)), torch.zeros(2))
    with pytest.raises(BadInputError, match=r"not 3x8x8.* and bench brightest\.onnx alone"):
        measure_on(parse_address("local"), [classifier], Setup(images=of_another_size), method=SHORT)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"given": (1, 16, 16, 3), "axes": (1, 2)}, "takes images 16x16x3, which looks like channels last"),
        ({"given": (1, 48, 64, 3), "axes": (1, 2)}, "takes images 48x64x3, which looks like channels last"),
        ({"made": (1, 3, 1, 1)}, "does not put out logits"),
    ],
)
def test_files_of_others_that_cannot_be_fed_or_judged_are_told(images, tmp_path, capfd, written, told):
    path = write_means(tmp_path / "others.onnx", **written)
    assert run(cli, ["bench", str(path), "--sustained", "0.2s", "--evaluate", str(images)]) == 2
    assert f"error: others.onnx {told}" in capfd.readouterr().err


def test_benchmark_programs_recognize_nothing(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(b"")
    images = ImageSet.of("two", ArraySource(np.zeros((2, 3, 8, 8), np.uint8)), torch.zeros(2))
    message = "benchmark_model recognizes no images; leave --evaluate out, or take --runtime litert"
    with pytest.raises(BadInputError, match=message):
        measure_on(parse_address("local"), [path], Setup("tflite-benchmark", images=images), method=SHORT)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process on a core")
def test_stays_on_one_core(classifier):
    cores = os.sched_getaffinity(0)
    core = str(min(cores))
    (measurement,) = measure_on(parse_address("local"), [classifier], Setup(affinity=core), method=SHORT)
    assert measurement.latency.affinity == core
    assert measurement.latency.device.endswith(f", {len(cores)} cores")  # of the machine
    with pytest.raises(ToolFailedError, match="no cores 4000; this machine has 0 to"):
        measure_on(parse_address("local"), [classifier], Setup(affinity="4000"), method=SHORT)
    for text in ("fast", ""):
        with pytest.raises(BadInputError, match=f"saw cores '{text}'; write them as 0,2,4-7"):
            measure_on(parse_address("local"), [classifier], Setup(affinity=text), method=SHORT)


def test_files_of_no_runtime_are_refused(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"")
    with pytest.raises(BadInputError, match=r"unknown suffix '\.pt'; allowed: \.onnx, \.tflite, \.ncnn"):
        measure(path)


def test_images_are_recognized_here_a_few_at_a_time(tmp_path, monkeypatch):
    seen = []
    images = np.zeros((70, 3, 4, 4), np.uint8)
    np.savez(tmp_path / "images.npz", pixels=images)

    class Session:
        def run(self, pixels):
            seen.append(len(pixels))
            return np.zeros((len(pixels), 2), np.float32)

    monkeypatch.setattr(recognition, "open_session", lambda path: Session())
    assert len(recognition.recognize_here(tmp_path / "a.onnx", tmp_path / "images.npz")) == 70
    assert max(seen) <= 32


def test_a_file_that_fails_here_recognizes_nothing_here(write_onnx, tmp_path):
    path = write_onnx(tmp_path / "size.onnx", (1, 3, "height", "width"))
    np.savez(tmp_path / "images.npz", pixels=np.zeros((1, 3, 2, 2), np.uint8))  # less than its filters
    assert recognition.recognize_here(path, tmp_path / "images.npz") is None
