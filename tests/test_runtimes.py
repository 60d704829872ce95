import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.runtimes import Port, all_cores, open_session, require


def write_mean_over_width(path: Path, batch: int | str) -> None:
    """An ONNX file whose logits are the first row of every image's first channel, means over the width."""
    shape = [batch, 2, 3, 4]
    starts, ends, axes = (
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("starts", 0), ("ends", 1), ("axes", 1))
    )
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[3], keepdims=0),
        helper.make_node("Slice", ["means", "starts", "ends", "axes"], ["first"]),
        helper.make_node("Flatten", ["first"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [starts, ends, axes],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=7), path)


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_any_number_of_images_through_any_batch_size(tmp_path: Path, batch: int | str) -> None:
    path = tmp_path / "m.onnx"
    write_mean_over_width(path, batch)
    pixels = np.random.default_rng(0).random((5, 2, 3, 4), dtype=np.float32)
    session = open_session(path)
    np.testing.assert_allclose(session.run(pixels), pixels[:, 0].mean(2), rtol=1e-6)
    assert session.run(pixels[:0]).shape == (0, 3)


def test_wrong_image_size_is_told_in_the_file_s_own_layout(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_mean_over_width(path, "N")
    with pytest.raises(BadInputError, match=r"m\.onnx takes images 2x3x4 \(CHW\), not 2x4x3"):
        open_session(path).run(np.zeros((1, 2, 4, 3), np.float32))


@given(
    scale=st.floats(1e-3, 1.0),
    zero_point=st.integers(-128, 127),
    steps=st.lists(st.integers(-128, 127), min_size=1, max_size=20),
)
def test_quantized_port_decodes_what_it_encodes(scale: float, zero_point: int, steps: list[int]) -> None:
    port = Port((1,), np.dtype(np.int8), scale, zero_point)
    numbers = np.array(steps, np.int8)
    np.testing.assert_array_equal(port.encode(port.decode(numbers)), numbers)


def test_quantized_port_clips_instead_of_wrapping() -> None:
    port = Port((1,), np.dtype(np.uint8), 1 / 255, 0)
    assert port.encode(np.array([-0.1, 0.0, 1.0, 1.1], np.float32)).tolist() == [0, 0, 255, 255]


def test_bad_files_are_told_plainly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "m.pb").write_bytes(b"x")
    with pytest.raises(BadInputError, match=r"unknown suffix '\.pb'; allowed: \.onnx, \.tflite"):
        open_session(tmp_path / "m.pb")
    for name in ("m.onnx", "m.tflite"):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ToolFailedError, match=f"loading {name} with .* failed"):
            open_session(tmp_path / name)
    with pytest.raises(BadInputError, match=r"litert can't run m\.onnx; for \.onnx use: onnxruntime"):
        open_session(tmp_path / "m.onnx", runtime="litert")
    assert capfd.readouterr() == ("", "")


def test_what_a_runtime_says_while_it_runs_a_file_is_told(tmp_path: Path) -> None:
    """A kernel's own check of the values that it is given: an axis for a place that the images do not have."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("pixels", [1, 1, "height", 4]), ("logits", [1, 4]))
    ]
    fifth = helper.make_tensor("fifth", TensorProto.INT64, [], [5])
    nodes = [
        helper.make_node("Gather", ["pixels", "fifth"], ["row"], axis=2),
        helper.make_node("Flatten", ["row"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [fifth])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), tmp_path / "m.onnx")
    with pytest.raises(ToolFailedError, match=r"^m\.onnx: onnxruntime loads it, but cannot run it: .*Gather"):
        open_session(tmp_path / "m.onnx").run(np.zeros((1, 1, 3, 4), np.float32))


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (1, 2)])
def test_several_inputs_or_outputs_are_told_with_their_number(tmp_path: Path, inputs: int, outputs: int) -> None:
    takes, gives = ([f"{name}{index}" for index in range(2)] for name in ("in", "out"))
    nodes = [helper.make_node("Add", [takes[0], takes[inputs - 1]], [name]) for name in gives]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in names]
        for names in (takes[:inputs], gives[:outputs])
    ]
    graph = helper.make_graph(nodes[:outputs], "g", *ports)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    message = rf"m\.onnx has {inputs} inputs and {outputs} outputs; one of each is needed"
    with pytest.raises(BadInputError, match=message):
        open_session(path)


class TestNcnn:
    """Folders that others made; what ncnn cannot compute has no values, and reading them ends a process."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        pytest.importorskip("ncnn", reason="needs the ncnn extra")
        path = tmp_path / "m.ncnn"
        path.mkdir()
        (path / "model.bin").write_bytes(b"")
        return path

    def test_blobs_have_any_name(self, folder: Path) -> None:
        (folder / "model.param").write_text("7767517\n2 2\nInput in 0 1 data\nReLU relu 1 1 data prob\n")
        pixels = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
        np.testing.assert_array_equal(open_session(folder).run(pixels), pixels)

    def test_several_outputs_are_told_with_their_number(self, folder: Path) -> None:
        (folder / "model.param").write_text("7767517\n2 3\nInput in 0 1 data\nSplit split 1 2 data one two\n")
        with pytest.raises(BadInputError, match=r"m\.ncnn has 1 inputs and 2 outputs; one of each is needed"):
            open_session(folder)

    def test_images_that_it_cannot_compute(self, folder: Path) -> None:
        (folder / "model.param").write_text("7767517\n2 2\nInput in 0 1 data\nPixelShuffle up 1 1 data prob 0=5\n")
        with pytest.raises(ToolFailedError, match=r"m\.ncnn: ncnn cannot run it on images 3x4x4 \(CHW\)"):
            open_session(folder).run(np.zeros((1, 3, 4, 4), np.float32))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.delitem(sys.modules, "ai_edge_litert.interpreter", raising=False)
    with pytest.raises(ToolFailedError, match=r'pip install "fsrp-edge\[tflite\]"'):
        require("ai_edge_litert.interpreter")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_wait_for_an_import_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"slow_to_import_{name}"
    (tmp_path / f"{module}.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.{name})\nfor _ in range(1000): pass\nDONE = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    number = signal.Signals[name]
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            require(module)
    finally:
        signal.signal(number, before)
    assert sys.modules[module].DONE


def test_files_get_the_threads_that_torch_has() -> None:
    """More than the cores we may use wait for one another: 64 threads on one core took 68 times as long as one."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert all_cores() == before + 1
    finally:
        torch.set_num_threads(before)
