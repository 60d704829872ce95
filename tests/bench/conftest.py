"""Tiny real files: one convolution in ONNX, one ReLU in TFLite."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SHAPE = (1, 3, 16, 16)


@pytest.fixture(scope="session")
def write_onnx() -> Callable[..., Path]:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    from onnx import helper, numpy_helper

    def write(path: Path, shape: tuple[int | str, ...] = SHAPE, kind: int = onnx.TensorProto.FLOAT) -> Path:
        weight = np.random.default_rng(0).random((8, 3, 3, 3), dtype=np.float32)
        nodes = [
            helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Conv", ["floats", "weight"], ["logits"]),
        ]
        inputs = [helper.make_tensor_value_info("pixels", kind, shape)]
        outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)]
        graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(weight, "weight")])
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path

    return write


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory, write_onnx) -> Path:
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="session")
def tflite_file(tmp_path_factory) -> Path:
    """Written straight into the file format, which takes milliseconds where a converter takes seconds."""
    reason = "needs the tflite extra"
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason=reason)
    flatbuffers = pytest.importorskip("flatbuffers", reason=reason)
    tensors = []
    for name in (b"pixels", b"logits"):
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, schema.TensorType.FLOAT32, 0
        tensor.shape, tensor.shapeSignature = [1, 16, 16, 3], [-1, 16, 16, 3]
        tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [1], [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes, model.buffers = (
        3,
        [graph],
        [code],
        [schema.BufferT()],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path_factory.mktemp("tflite") / "tiny.tflite"
    path.write_bytes(bytes(builder.Output()))
    return path
