"""What an ONNX graph asks of a device: fused operators with their work and traffic, weights and peak memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fsrp_edge.errors import BadInputError, first_line
from fsrp_edge.runtimes import require
from fsrp_edge.tool_output import captured_output

OperatorClass = Literal[
    "winograd", "pointwise", "depthwise", "grouped", "convolution", "dense", "attention", "pooling", "elementwise"
]  # fmt: skip
"""Kinds of work that devices do at different rates.

`winograd` is a 3×3 convolution of stride 1, which runtimes can compute with fewer multiplications; `grouped` is one
of several groups, though not one a channel; `attention` is a matrix product over more than one row an image.
"""

WINOGRAD_CHANNELS = 8
"""Below this many input channels (the first layer) runtimes don't use Winograd's algorithm."""

_FUSED = {"Relu", "Clip", "LeakyRelu", "PRelu"}
"""Runtimes apply these while they write a convolution's output; the smooth ones pass over memory once more."""
_GATES = {"Sigmoid", "HardSigmoid"}
_FREE = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Cast"}
"""Runtimes do these by renaming a buffer."""
_QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_STANDARD = {"", "ai.onnx"}
"""Domains whose operators are known."""
_UNCOUNTED = {
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DeformConv", "Einsum", "LSTM", "GRU", "RNN"),
    *("If", "Loop", "Scan"),
}
"""Standard operators whose multiply-accumulates are not counted here."""
_HIDDEN = {"Shape", "Constant", "ConstantOfShape", "Range"}
"""Work on shapes, not on images."""
_POOLING = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "LpPool"}


@dataclass(frozen=True)
class Operator:
    """One fused operator of batch 1.

    Args:
        name: of its node in the graph.
        kind: its class.
        macs: multiply-accumulates; for pooling and element-wise work the elements read.
        inputs: elements of activations read.
        outputs: elements written.
        weights: elements of weights and biases read.
        groups: of a convolution, else 1.
        kernel: elements of a convolution's window, else 1.
        channels: input and output channels of one group of a convolution; input and output features of a
            matrix product.
    """

    name: str
    kind: OperatorClass
    macs: int
    inputs: int
    outputs: int
    weights: int
    groups: int = 1
    kernel: int = 1
    channels: tuple[int, int] = (1, 1)

    @property
    def layer(self) -> str:
        """`layer1.0.conv1`, as the network calls it, of torch's `/network/layer1/layer1.0/conv1/Conv`; others stay."""
        if not self.name.startswith("/"):
            return self.name
        parts = self.name[1:].removesuffix("/Conv").removesuffix("/Gemm").split("/")
        named = [part for part, inner in pairwise([*parts, ""]) if not inner.startswith(f"{part}.")]
        return ".".join(named).removeprefix("network.")


@dataclass(frozen=True)
class Link:
    """How an operator hangs together with others.

    Args:
        weight: name of its weight in the file, before the graph transposes it; None where it has none.
        biases: elements that it has one of for each output channel.
        reads: buffers of its inputs.
        writes: buffer of its output.
    """

    weight: str | None
    biases: int
    reads: tuple[str, ...]
    writes: str


@dataclass(frozen=True)
class Buffer:
    """Activations in memory, from the operator that writes them (the first, for the input) to the last reader."""

    name: str
    elements: int
    first: int
    last: int


@dataclass(frozen=True)
class GraphCost:
    """The operators of a file in their order, and the memory it needs.

    Args:
        operators: in the order they run.
        parameters: elements of all weights.
        peak_elements: elements of the activations alive at the worst moment (a planned arena).
        quantized: whether the graph carries quantize and dequantize nodes.
        links: one an operator.
        buffers: all activations.
        batch: images that the file takes at once, which all of this is for.
        half: whether its weights are in half precision.
        in_float: layers of a quantized graph whose weights are not.
    """

    operators: tuple[Operator, ...]
    parameters: int
    peak_elements: int
    quantized: bool = False
    links: tuple[Link, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    batch: int = 1
    half: bool = False
    in_float: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and matrix products."""
        return sum(each.macs for each in self.operators if each.kind not in ("pooling", "elementwise"))


def read_graph(path: Path) -> GraphCost:
    """Walk an ONNX file to its fused operators.

    Batch norm and activation functions that follow a convolution are fused into it, quantize and dequantize
    nodes and reshapes cost nothing, and an open batch dimension counts as 1.

    Raises:
        BadInputError: not an ONNX file, or its shapes cannot be told.
        ToolFailedError: onnx is not installed.
    """
    onnx = require("onnx")
    if not path.is_file():
        raise BadInputError(f"no such file: {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        reason = first_line(error)
        raise BadInputError(f"{path.name} is not a valid ONNX file: {reason}") from None
    if not model.graph.node:
        raise BadInputError(f"{path.name} has no operators")
    return graph_cost(model)


def graph_cost(model: Any) -> GraphCost:
    """The same for an onnx ModelProto in memory, whose open batch dimension is set to 1.

    Raises:
        BadInputError: its shapes cannot be told.
        ToolFailedError: onnx is not installed, or constants cannot be folded.
    """
    _fix_batch(model)
    transposes = _transposes(model.graph)
    try:
        return _walked(model, transposes)
    except _UnknownShape:  # computed inside the graph, as in channel shuffles: constants once folded
        # Transposed weights keep the names in `transposes`, and nothing else gets other names, as it would by fusing.
        return _walked(_folded(model), transposes)


def _walked(model: Any, transposes: Mapping[str, str]) -> GraphCost:
    graph = require("onnx").shape_inference.infer_shapes(model, data_prop=True).graph
    batch = _batch(graph)
    walk = _Walk(_shapes(graph), _constants(graph), transposes, batch)
    for node in graph.node:
        walk.visit(node)
    half = any(tensor.data_type == require("onnx").TensorProto.FLOAT16 for tensor in graph.initializer)
    # Weights in 8 bits stand behind a node that dequantizes them.
    floats = {tensor.name for tensor in graph.initializer} if walk.quantized else set()
    in_float = sum(node.op_type in _WEIGHTED and node.input[1] in floats for node in graph.node)
    return replace(walk.finish({value.name for value in graph.output}), batch=batch, half=half, in_float=in_float)


def _batch(graph: Any) -> int:
    """Of the first input that is no weight, as files of old list those among the inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    dims = (value.type.tensor_type.shape.dim for value in graph.input if value.name not in weights)
    return next((sizes[0].dim_value for sizes in dims if sizes), 1)


def _folded(model: Any) -> Any:
    """The model with what depends on constants alone computed, but no operators fused."""
    with captured_output("folding the constants of a graph"):
        folded, _unchecked = require("onnxsim").simplify(model, perform_optimization=False)
    return folded


def _fix_batch(model: Any) -> None:
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].Clear()
            dims[0].dim_value = 1


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _constants(graph: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of initializers and constants, also behind nodes that only rename, dequantize or transpose them."""
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = _attributes(node).get("value")
            known[node.output[0]] = tuple(tensor.dims) if tensor is not None else ()
        elif node.op_type in _QUANTIZERS | {"Identity"} and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
        elif node.op_type == "Transpose" and node.input[0] in known:
            known[node.output[0]] = _transposed(node, known[node.input[0]])
    return known


def _transposed(node: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    order = _attributes(node).get("perm", range(len(shape))[::-1])
    return tuple(shape[axis] for axis in order)


def _attributes(node: Any) -> dict[str, Any]:
    helper = require("onnx").helper
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _transposes(graph: Any) -> dict[str, str]:
    """What transposes write -> what they read: a linear layer on maps (N, H, W, C) multiplies with its weight's."""
    return {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}


class _UnknownShape(BadInputError):  # noqa: N818 -- never leaves this module by this name
    """An operator whose output size shape inference cannot tell."""


class _Walk:
    """One pass over the nodes, with the buffers as a runtime would hold them."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        constants: Mapping[str, tuple[int, ...]],
        transposes: Mapping[str, str],
        batch: int,
    ) -> None:
        self.shapes = shapes
        self.constants = constants
        self.transposes = transposes
        self.batch = batch
        self.operators: list[dict[str, Any]] = []
        self.links: list[Link] = []
        self.buffer: dict[str, str] = {}  # tensor -> the tensor that names its buffer
        self.maker: dict[str, int] = {}  # buffer -> index of the operator whose first output it is
        self.first: dict[str, int] = {}  # buffer -> index of the operator that writes it
        self.readers: dict[str, list[int]] = {}
        self.gated: dict[str, str] = {}  # sigmoid(x) -> x
        self.used: set[str] = set()  # constants read
        self.folded = 0  # parameters of operators that were fused, such as the biases that batch norm becomes
        self.quantized = False

    def visit(self, node: Any) -> None:
        kind = node.op_type
        if kind in _UNCOUNTED or (node.domain not in _STANDARD and kind not in _QUANTIZERS):
            raise BadInputError(
                f"{kind} is not estimated; export the network with standard operators, int8 with QuantizeLinear and "
                "DequantizeLinear"
            )
        if kind in _HIDDEN or (node.input and all(name in self.constants for name in node.input if name)):
            return
        data = [self._root(name) for name in node.input if name and name not in self.constants]
        data = [name for name in data if name in self.shapes]
        self.quantized |= kind in _QUANTIZERS
        if not data or not self._size(node.output[0]):
            if kind in _WEIGHTED:
                raise _UnknownShape(
                    f"the shape of {node.output[0]!r} ({kind}) cannot be told; export the file with fixed input sizes"
                )
            return
        if kind in _FREE | _QUANTIZERS or self._fuses(node, data):
            self.buffer[node.output[0]] = next((name for name in data if name in self.gated), data[0])
            return
        self._append(node, data)

    def finish(self, outputs: set[str]) -> GraphCost:
        end = len(self.operators) - 1
        kept = {self._root(name) for name in outputs}
        buffers = []
        for name in dict.fromkeys((*self.readers, *self.first)):
            first = self.first.get(name, 0)
            last = end if name in kept else max(self.readers.get(name, [first]))
            buffers.append(Buffer(name, self._size(name), first, last))
        peak = max(
            (sum(each.elements for each in buffers if each.first <= index <= each.last) for index in range(end + 1)),
            default=0,
        )
        parameters = self.folded + sum(math.prod(self.constants[name]) for name in self.used)
        operators = tuple(Operator(**each) for each in self.operators)
        return GraphCost(operators, parameters, peak, self.quantized, tuple(self.links), tuple(buffers))

    def _root(self, name: str) -> str:
        while name in self.buffer:
            name = self.buffer[name]
        return name

    def _size(self, name: str) -> int:
        return math.prod(self.shapes.get(name, (0,)))

    def _fuses(self, node: Any, data: list[str]) -> bool:
        """Whether the node only finishes the operator before it: batch norm, ReLU, the product in x·sigmoid(x)."""
        if node.op_type == "Mul" and len(data) == 2:
            gate = next((name for name in data if name in self.gated), None)
            return gate is not None and self.gated[gate] in data
        maker = self.maker.get(data[0])
        if maker is None:
            return False
        kind = self.operators[maker]["kind"]
        if node.op_type == "BatchNormalization":
            fuses = kind not in ("pooling", "attention", "elementwise")
            if fuses and not self.links[maker].biases:
                self._absorb(maker, node.input[1])
            return fuses
        fuses = node.op_type in _FUSED and kind not in ("pooling", "attention")
        if fuses and node.op_type == "PRelu":
            self._absorb(maker, node.input[1])
        return fuses

    def _absorb(self, maker: int, name: str) -> None:
        """Count parameters of a fused operator, one for each channel, with those of the operator before it."""
        count = math.prod(self.constants.get(name) or self.shapes.get(name, ()))
        self.links[maker] = replace(self.links[maker], biases=self.links[maker].biases + count)
        self.operators[maker]["weights"] += count
        self.folded += count

    def _use(self, node: Any) -> int:
        names = {name for name in node.input if name in self.constants}
        self.used |= names
        return sum(math.prod(self.constants[name]) for name in names)

    def _append(self, node: Any, data: list[str]) -> None:
        index, output = len(self.operators), node.output[0]
        for name in data:
            self.readers.setdefault(name, []).append(index)
        self.maker[output] = index
        self.first |= dict.fromkeys(filter(None, node.output), index)
        if node.op_type in _GATES:
            self.gated[output] = data[0]
        inputs, outputs = sum(self._size(name) for name in data), self._size(output)
        work = self._work(node, data, inputs, outputs)
        self.operators.append(
            {"name": node.name or output, "inputs": inputs, "outputs": outputs, "weights": self._use(node)} | work
        )  # fmt: skip
        constants = [name for name in node.input if name in self.constants]
        layer = node.op_type in _WEIGHTED and constants
        biases = sum(math.prod(self.constants[name]) for name in constants[1:]) if layer else 0
        weight = self.transposes.get(constants[0], constants[0]) if layer else None
        self.links.append(Link(weight, biases, tuple(data), output))

    def _work(self, node: Any, data: list[str], inputs: int, outputs: int) -> dict[str, Any]:
        attributes = _attributes(node)
        if node.op_type in ("Conv", "ConvTranspose"):
            return self._convolution(node, attributes, inputs, outputs)
        if node.op_type in ("Gemm", "MatMul"):
            features = self._features(node, attributes, data)
            rows = outputs // features[1]
            kind: OperatorClass = "dense" if rows == self.batch else "attention"
            return {"kind": kind, "macs": outputs * features[0], "channels": features}
        if node.op_type in _POOLING:
            window = attributes.get("kernel_shape", ())
            reads = outputs * math.prod(window) if window else inputs
            return {"kind": "pooling", "macs": reads, "kernel": math.prod(window)}
        return {"kind": "elementwise", "macs": inputs}

    def _convolution(self, node: Any, attributes: Mapping[str, Any], inputs: int, outputs: int) -> dict[str, Any]:
        weight = self.constants.get(node.input[1], ())
        if len(weight) < 3:
            raise BadInputError("a convolution's weights are not constants; only inference graphs are estimated")
        groups = attributes.get("group", 1)
        strides = attributes.get("strides", (1,))
        dilations = attributes.get("dilations", (1,))
        kernel = math.prod(weight[2:])
        # An element of the output reads a window, and weights are (outputs, inputs of a group, ...); of a transposed
        # convolution an element of the input writes one, and they are (inputs, outputs of a group, ...).
        transposed = node.op_type == "ConvTranspose"
        windows = inputs if transposed else outputs
        inside, outside = (weight[0] // groups, weight[1]) if transposed else (weight[1], weight[0] // groups)
        dense = not transposed and max(strides) == max(dilations) == 1 and inside >= WINOGRAD_CHANNELS
        kind: OperatorClass
        if groups > 1 and inside == 1:
            kind = "depthwise"
        elif kernel == 1:
            kind = "pointwise"
        elif dense and weight[2:] == (3, 3):
            kind = "winograd" if groups == 1 else "grouped"
        else:
            kind = "convolution"
        return {
            "kind": kind,
            "macs": windows * kernel * weight[1],
            "groups": groups,
            "kernel": kernel,
            "channels": (inside, outside),
        }

    def _features(self, node: Any, attributes: Mapping[str, Any], data: list[str]) -> tuple[int, int]:
        shape = self.constants.get(node.input[1]) or self.shapes.get(node.input[1], (1, 1))
        rows, columns = shape[-2:] if len(shape) > 1 else (shape[0], 1)
        return (columns, rows) if attributes.get("transB") else (rows, columns)
