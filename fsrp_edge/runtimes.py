"""Runs artifacts on this machine: pixels in, logits out, whatever layout, batch size and types a file has."""

import importlib
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fsrp_edge.errors import BadInputError, FsrpEdgeError, NotInstalledError, ToolFailedError, first_line
from fsrp_edge.packages import extra_of
from fsrp_edge.tool_output import captured_output

if TYPE_CHECKING:
    from torch import Tensor

Runtime = Literal["onnxruntime", "litert", "tensorflow", "ncnn"]
Layout = Literal["NCHW", "NHWC"]

RUNTIMES: dict[str, tuple[Runtime, ...]] = {
    ".onnx": ("onnxruntime",),
    ".tflite": ("litert", "tensorflow"),
    ".saved_model": ("tensorflow",),
    ".ncnn": ("ncnn",),
}
"""What runs a format, by the suffix of its files or folders; the first one by default."""
LAYOUTS: dict[str, Layout] = {
    ".onnx": "NCHW",
    ".tflite": "NHWC",
    ".saved_model": "NHWC",
    ".ncnn": "NCHW",
}
"""Axis order of the images that this package's files take."""


def all_cores() -> int:
    """Threads where outputs count and time does not: torch's, which heed OMP_NUM_THREADS and the cores we may use."""
    import torch

    return torch.get_num_threads()


def require(module: str) -> ModuleType:
    """Import a module that an extra of this package brings.

    Raises:
        NotInstalledError: it can't be imported; the text names the extra.
    """
    package = module.partition(".")[0]
    try:
        with _interrupted_afterwards():
            return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalledError(
            f'{package} can\'t be imported ({error}); install it with: pip install "fsrp-edge[{extra_of(module)}]"'
        ) from error


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Signals wait for the block to end: inside TensorFlow's import Ctrl-C gets lost, or ends the process."""
    hears = threading.current_thread() is threading.main_thread()
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hears else ()
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    waiting: list[int] = []
    for number in before:
        signal.signal(number, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in waiting:
        signal.raise_signal(number)


@dataclass(frozen=True)
class Port:
    """One input or output of a file.

    Args:
        shape: sizes of its axes; None where the file leaves one open.
        dtype: its number type.
        scale: real value of one step where it is quantized, else 0.
        zero_point: the quantized value that stands for 0.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    scale: float = 0.0
    zero_point: int = 0

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Real values as this port's numbers, rounded and clipped where it is quantized."""
        if not self.scale:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        steps = np.rint(values / self.scale) + self.zero_point
        return steps.clip(limits.min, limits.max).astype(self.dtype)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """This port's numbers as real values, float32."""
        if not self.scale:
            return values.astype(np.float32, copy=False)
        return ((values.astype(np.float32) - self.zero_point) * self.scale).astype(np.float32)


@dataclass(frozen=True)
class Session:
    """A file loaded into a runtime, ready to run.

    Args:
        path: the file.
        runtime: what runs it.
        input: the file's input, of rank 4.
        output: the file's output (N, classes).
        invoke: one inference on an array of exactly the input's shape and number type; the output's numbers.
    """

    path: Path
    runtime: Runtime
    input: Port
    output: Port
    invoke: Callable[[np.ndarray], np.ndarray]

    @property
    def layout(self) -> Layout:
        """Axis order of the file's input."""
        return LAYOUTS[self.path.suffix]

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels float32 (N, C, H, W) in [0, 1] as `invoke` takes them: layout and number type of the file.

        Raises:
            BadInputError: the images do not have the shape the file takes.
        """
        arranged = pixels.transpose(0, 2, 3, 1) if self.layout == "NHWC" else pixels
        expected = self.input.shape[1:]
        if any(want not in (None, have) for want, have in zip(expected, arranged.shape[1:], strict=True)):
            raise BadInputError(
                f"{self.path.name} takes images {_sizes(expected)} ({self.layout[1:]}), "
                f"not {_sizes(arranged.shape[1:])}; feed images of the size it was exported for"
            )
        return np.ascontiguousarray(self.input.encode(arranged))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Logits float32 (N, classes) of pixels float32 (N, C, H, W) in [0, 1].

        Files with a fixed batch size are fed that many images at a time.

        Raises:
            BadInputError: the images do not have the shape the file takes.
            ToolFailedError: the runtime cannot run the file.
        """
        ready = self.prepare(pixels)
        size = self.input.shape[0] or len(ready)
        if not len(ready):
            return np.empty((0, self.output.shape[1] or 0), np.float32)
        logits = []
        for start in range(0, len(ready), size):
            batch = ready[start : start + size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            logits.append(self.output.decode(self._made_of(filled))[: len(batch)])
        return np.concatenate(logits)

    def _made_of(self, batch: np.ndarray) -> np.ndarray:
        try:
            return self.invoke(batch)
        except FsrpEdgeError:
            raise
        except Exception as error:  # of many types of the runtimes' own
            raise ToolFailedError(
                f"{self.path.name}: {self.runtime} loads it, but cannot run it: {first_line(error)}"
            ) from error

    def predict(self, pixels: "Tensor") -> "Tensor":
        """`run` for tensors of torch, which evaluation and attacks work on."""
        import torch

        return torch.from_numpy(self.run(pixels.cpu().numpy()))


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)


def open_session(path: Path, *, threads: int = 1, runtime: Runtime | None = None) -> Session:
    """Load a file into a runtime on this machine's CPU.

    Args:
        path: an .onnx or .tflite file with one rank-4 input and one output, or an .ncnn or .saved_model folder.
        threads: threads of one inference.
        runtime: one of RUNTIMES for the suffix (both of TFLite's with XNNPACK); None takes the first.

    Raises:
        BadInputError: no such file, an unknown suffix, a runtime that can't run the format, or a file with
            other inputs and outputs.
        ToolFailedError: the runtime is not installed or refuses the file.
    """
    if not path.exists():
        raise BadInputError(f"no such file: {path}")
    allowed = RUNTIMES.get(path.suffix)
    if allowed is None:
        raise BadInputError(f"{path.name}: unknown suffix '{path.suffix}'; allowed: {', '.join(RUNTIMES)}")
    runtime = runtime or allowed[0]
    if runtime not in allowed:
        raise BadInputError(f"{runtime} can't run {path.name}; for {path.suffix} use: {', '.join(allowed)}")
    with captured_output(f"loading {path.name} with {runtime}"):
        given, made, invoke = _open(path, threads, runtime)
    if len(given.shape) != 4:
        raise BadInputError(f"{path.name} has an input of rank {len(given.shape)}; a batch of images has rank 4")
    return Session(path, runtime, given, made, invoke)


Opened = tuple[Port, Port, Callable[[np.ndarray], np.ndarray]]


def _open(path: Path, threads: int, runtime: Runtime) -> Opened:
    if runtime == "onnxruntime":
        return _onnxruntime(path, threads)
    if runtime == "ncnn":
        return _ncnn(path, threads)
    return _saved_model(path) if path.suffix == ".saved_model" else _interpreter(path, threads, runtime)


def _one_of_each(path: Path, inputs: Collection[Any], outputs: Collection[Any]) -> tuple[Any, Any]:
    """The input and the output of a file that has one of each."""
    if (len(inputs), len(outputs)) != (1, 1):
        raise BadInputError(
            f"{path.name} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed: export it anew "
            "with images as the only input and logits as the only output"
        )
    (given,), (made,) = inputs, outputs
    return given, made


def _onnxruntime(path: Path, threads: int) -> Opened:
    onnxruntime = require("onnxruntime")
    refused = require("onnxruntime.capi.onnxruntime_pybind11_state").Fail
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # x86 without VNNI adds products of 8-bit numbers in 16 bits, where they overflow; other processors don't.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except refused:  # as onnxruntime 1.32 does in this mode where two operators share int8 weights or a constant
        # Quantized operators are not fused then, and computed in float32, as exactly.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given, made = _one_of_each(path, session.get_inputs(), session.get_outputs())

    def invoke(batch: np.ndarray) -> np.ndarray:
        result: np.ndarray = session.run([made.name], {given.name: batch})[0]
        return result

    return onnx_port(given), onnx_port(made), invoke


def onnx_port(node: Any) -> Port:
    """What an input or output of an onnxruntime session takes or gives; bytes stand for pixels in [0, 1]."""
    name = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    return Port(tuple(size if isinstance(size, int) else None for size in node.shape), dtype, _scale(dtype))


def _scale(dtype: np.dtype[Any]) -> float:
    """Of a port that is not quantized."""
    return 1 / 255 if dtype == np.uint8 else 0.0


def _interpreter(path: Path, threads: int, runtime: Runtime) -> Opened:
    if runtime == "litert":
        interpreter_class = require("ai_edge_litert.interpreter").Interpreter
    else:
        interpreter_class = require("tensorflow").lite.Interpreter
    interpreter = interpreter_class(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    given, made = _one_of_each(path, interpreter.get_input_details(), interpreter.get_output_details())

    def invoke(batch: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], batch)
        interpreter.invoke()
        result: np.ndarray = interpreter.get_tensor(made["index"])
        return result

    return tflite_port(given), tflite_port(made), invoke


def _saved_model(path: Path) -> Opened:
    tensorflow = require("tensorflow")
    module = tensorflow.saved_model.load(str(path))
    call = module.signatures["serving_default"]
    ports = call.structured_input_signature[1].items(), call.structured_outputs.items()
    (name, given), (answer, made) = _one_of_each(path, *ports)

    def invoke(batch: np.ndarray) -> np.ndarray:
        result: np.ndarray = call(**{name: tensorflow.constant(batch)})[answer].numpy()
        return result

    invoke.module = module  # type: ignore[attr-defined] # it has to live as long as its functions
    types = [np.dtype(port.dtype.as_numpy_dtype) for port in (given, made)]
    takes, gives = (Port(tuple(p.shape), t, _scale(t)) for p, t in zip((given, made), types, strict=True))
    return takes, gives, invoke


def _ncnn(path: Path, threads: int) -> Opened:
    """A folder of ncnn, computed in float32: its default on processors that can is to store activations in half."""
    ncnn, network = require("ncnn"), require("ncnn").Net()
    network.opt.num_threads = threads
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(network.opt, option, False)
    if network.load_param(str(path / "model.param")) or network.load_model(str(path / "model.bin")):
        raise RuntimeError("ncnn refuses the files")

    given_name, made_name = _one_of_each(path, network.input_names(), network.output_names())

    def invoke(batch: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        refused = extractor.input(given_name, ncnn.Mat(batch[0]).clone())
        failed, values = extractor.extract(made_name)
        if refused or failed:  # there are no values then, and reading them would end this process
            raise ToolFailedError(f"{path.name}: ncnn cannot run it on images {_sizes(batch.shape[1:])} (CHW)")
        return np.array(values)[None]

    # The files name no sizes: a network takes whatever its layers can be fed.
    given, made = (Port((1, *(None,) * axes), np.dtype(np.float32)) for axes in (3, 1))
    return given, made, invoke


def tflite_port(details: dict[str, Any]) -> Port:
    """What an input or output of a TFLite interpreter takes or gives; bytes stand for pixels in [0, 1]."""
    scale, zero_point = details["quantization"]
    shape, dtype = tuple(int(size) for size in details["shape"]), np.dtype(details["dtype"])
    return Port(shape, dtype, float(scale) or _scale(dtype), int(zero_point))
