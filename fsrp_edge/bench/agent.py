#!/usr/bin/env python3
"""Time one model on the machine this file runs on, and say everything as JSON lines.

The file needs Python 3.6 or newer, numpy and the runtime under test, nothing else, so that it can be copied
to a device and run there by hand:

    python3 agent.py --model m.onnx --runtime onnxruntime --threads 4

Events, one JSON object a line, in this order: `hello` (versions, machine), `progress` (at most two a second),
and `result` (every raw time, the state before and after) or `error` (exit code 3).
"""
# ruff: noqa: UP006, UP007, UP035, UP045 (Python 3.6 knows neither list[int] nor int | None)

import argparse
import gc
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Type, Union

Emit = Callable[..., None]
Specification = Tuple[str, Sequence[Any], str]
"""Name, shape and number type of an input."""

AGENT_VERSION = 1
PROGRESS_SECONDS = 0.5
DISTRIBUTIONS = {
    "ai_edge_litert.interpreter": "ai-edge-litert",
    "tflite_runtime.interpreter": "tflite-runtime",
}

# Python 3.6 has no perf_counter_ns; its float seconds still resolve well below a microsecond.
now_ns = getattr(time, "perf_counter_ns", lambda: int(time.perf_counter() * 1e9))


class AgentError(Exception):
    """What the user can act on; `kind` is for programs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OnnxRuntime:
    """A model in onnxruntime, on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        self.module = import_first(["onnxruntime"])
        self.version = self.module.__version__
        self.path = path
        self.threads = threads

    def load(self) -> List[Specification]:
        """Make the session; return (name, shape, type) of every input."""
        options = self.module.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = self.module.InferenceSession(self.path, options, providers=providers)
        types = {
            "tensor(float)": "float32",
            "tensor(float16)": "float16",
            "tensor(uint8)": "uint8",
            "tensor(int8)": "int8",
        }
        return [
            (item.name, item.shape, types.get(item.type, item.type)) for item in self.session.get_inputs()
        ]

    def feed(self, inputs: Dict[str, Any]) -> None:
        """Take the inputs that every run uses."""
        self.inputs = inputs

    def run(self) -> None:
        """One inference."""
        self.session.run(None, self.inputs)


class LiteRT:
    """A model in LiteRT, or in one of its former names."""

    def __init__(self, path: str, threads: int) -> None:
        names = [
            "ai_edge_litert.interpreter",
            "tflite_runtime.interpreter",
            "tensorflow.lite.python.interpreter",
        ]
        self.module = import_first(names)
        self.version = version_of(self.module.__name__)
        self.path = path
        self.threads = threads

    def load(self) -> List[Specification]:
        """Make the interpreter; return (name, shape, type) of every input."""
        self.interpreter = self.module.Interpreter(model_path=self.path, num_threads=self.threads)
        self.interpreter.allocate_tensors()
        details = self.interpreter.get_input_details()
        self.places = {item["name"]: (item["index"], tuple(item["shape"])) for item in details}
        return [(item["name"], list(item["shape_signature"]), item["dtype"].__name__) for item in details]

    def feed(self, inputs: Dict[str, Any]) -> None:
        """Take the inputs that every run uses."""
        for name, value in inputs.items():
            index, shape = self.places[name]
            if value.shape != shape:
                self.interpreter.resize_tensor_input(index, value.shape)
                self.interpreter.allocate_tensors()
        for name, value in inputs.items():
            self.interpreter.set_tensor(self.places[name][0], value)

    def run(self) -> None:
        """One inference."""
        self.interpreter.invoke()


RUNTIMES: Dict[str, Union[Type[OnnxRuntime], Type[LiteRT]]] = {"onnxruntime": OnnxRuntime, "litert": LiteRT}


def import_first(names: List[str]) -> Any:
    """Import the first of `names` that is installed."""
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise AgentError("missing-runtime", f"cannot import {' or '.join(names)}: {reasons[0]}")


def version_of(name: str) -> str:
    """Version of an imported module's package, as well as it can be told."""
    version = getattr(sys.modules[name.partition(".")[0]], "__version__", None)
    if version is None:
        try:
            metadata = importlib.import_module("importlib.metadata")
            version = metadata.version(DISTRIBUTIONS.get(name, name.partition(".")[0]))
        except Exception:  # Python before 3.8 has no importlib.metadata
            version = "unknown"
    return str(version)


def make_inputs(specifications: List[Specification], seed: int) -> Dict[str, Any]:
    """Uniform pixels: in [0, 1) for floats, over the whole range for integers; the same for the same seed."""
    numpy = import_first(["numpy"])
    random = numpy.random.RandomState(seed)
    inputs = {}
    for name, shape, kind in specifications:
        # An open batch dimension is 1; any other open dimension is a question only the user can answer.
        fixed = [1 if axis == 0 and not known(size) else size for axis, size in enumerate(shape)]
        if not all(known(size) for size in fixed):
            raise AgentError("open-shape", f"input {name!r} has the open shape {shape}; fix it at export")
        if kind in ("uint8", "int8"):
            limits = numpy.iinfo(kind)
            inputs[name] = random.randint(limits.min, limits.max + 1, fixed).astype(kind)
        elif kind in ("float32", "float16"):
            inputs[name] = random.random_sample(fixed).astype(kind)
        else:
            raise AgentError("input-type", f"input {name!r} has the type {kind}; known: floats and 8 bits")
    return inputs


def known(size: Any) -> bool:
    """Whether a dimension is a number; open ones are None, a name, or -1."""
    return not isinstance(size, str) and size is not None and size > 0


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that one call takes."""
    start = now_ns()
    call()
    return (now_ns() - start) / 1e6


def repeat(call: Callable[[], object], runs: int, seconds: float, phase: str, emit: Emit) -> List[float]:
    """Time `call` until it ran `runs` times and for `seconds`, both."""
    times: List[float] = []
    start = told = time.perf_counter()
    while True:
        elapsed = time.perf_counter() - start
        if len(times) >= runs and elapsed >= seconds:
            return times
        if elapsed + start - told >= PROGRESS_SECONDS:
            told = elapsed + start
            emit("progress", phase=phase, runs=len(times), seconds=round(elapsed, 3))
        times.append(timed(call))


def read(path: str) -> Optional[str]:
    """A file's text, or None where it cannot be read."""
    try:
        return Path(path).read_text().strip("\0\n ")
    except OSError:
        return None


def cpu_name() -> str:
    """The board's name, else the processor's."""
    board = read("/proc/device-tree/model")
    if board:
        return board
    for line in (read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> Optional[Tuple[float, float]]:
    """Processor seconds that the machine was busy (or stolen by its host) and that this process used."""
    fields = (read("/proc/stat") or "").split("\n", 1)[0].split()[1:9]
    if len(fields) < 8:
        return None
    ticks = [int(field) for field in fields]
    machine = (sum(ticks) - ticks[3] - ticks[4]) / float(os.sysconf("SC_CLK_TCK"))  # without idle and iowait
    used = os.times()
    return machine, used.user + used.system


def state() -> Dict[str, Any]:
    """What may disturb a measurement, as far as it can be read without privileges."""
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    found: Dict[str, Any] = {"governor": governor}
    clock = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    found["clock_mhz"] = int(clock) / 1000.0 if clock else None
    temperature = read("/sys/class/thermal/thermal_zone0/temp")
    found["temperature_c"] = int(temperature) / 1000.0 if temperature else None
    found["load_1m"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found["throttled"] = None
    if shutil.which(
        "vcgencmd"
    ):  # Raspberry Pi: bits 0 to 3 are under-voltage, capped, throttled, soft limit, now
        try:
            answer = subprocess.check_output(["vcgencmd", "get_throttled"], timeout=5)
            found["throttled"] = int(answer.decode().split("=")[1], 16)
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass
    return found


def foreign_cores(
    before: Optional[Tuple[float, float]], after: Optional[Tuple[float, float]], seconds: float
) -> Optional[float]:
    """Cores that other processes kept busy on average, or None where that cannot be read."""
    if before is None or after is None:
        return None
    return max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds


def measure(options: argparse.Namespace, emit: Emit) -> Dict[str, Any]:
    """Load, warm up, time; return the result event's content."""
    if not Path(options.model).is_file():
        raise AgentError("missing-model", f"no such file: {options.model}")
    if options.runtime not in RUNTIMES:
        allowed = ", ".join(sorted(RUNTIMES))
        raise AgentError("unknown-runtime", f"unknown runtime {options.runtime!r}; allowed: {allowed}")
    numpy = import_first(["numpy"])
    model = RUNTIMES[options.runtime](options.model, options.threads)
    emit(
        "hello",
        agent=AGENT_VERSION,
        python=platform.python_version(),
        numpy=numpy.__version__,
        runtime=options.runtime,
        runtime_module=model.module.__name__,
        runtime_version=model.version,
        cpu=cpu_name(),
        cores=cores(),
        system=platform.platform(),
    )
    specifications: List[Specification] = []
    init_ms = timed(lambda: specifications.extend(model.load()))
    model.feed(make_inputs(specifications, options.seed))
    first_ms = timed(model.run)
    warmup_ms = repeat(model.run, options.warmup_runs, options.warmup_seconds, "warm-up", emit)
    before = state()
    gc.collect()
    gc.disable()  # a collection inside a run would be counted as the model's
    busy_before, start = busy_seconds(), time.perf_counter()
    times_ms = repeat(model.run, options.runs, options.seconds, "steady", emit)
    seconds, busy_after = time.perf_counter() - start, busy_seconds()
    gc.enable()
    return {
        "init_ms": init_ms,
        "first_ms": first_ms,
        "warmup_ms": warmup_ms,
        "times_ms": times_ms,
        "before": before,
        "after": state(),
        "foreign_cores": foreign_cores(busy_before, busy_after, seconds),
    }


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="an .onnx or .tflite file")
    parser.add_argument("--runtime", required=True, help=" or ".join(sorted(RUNTIMES)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup-runs", type=int, default=10, help="at least so many runs, and")
    parser.add_argument("--warmup-seconds", type=float, default=0.5, help="at least so long (default 0.5)")
    parser.add_argument(
        "--runs", type=int, default=100, help="at least so many timed runs (default 100), and"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="at least so long (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the input's pixels")
    return parser.parse_args(arguments)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run; return the exit code."""
    options = parse(arguments)
    # Neighbours of this file must not shadow the standard library's modules for the runtimes.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    # Runtimes write to the standard output as they like; the events get a stream of their own.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(event: str, **content: Any) -> None:
        events.write(json.dumps(dict(content, event=event)) + "\n")
        events.flush()

    try:
        emit("result", **measure(options, emit))
    except AgentError as error:
        emit("error", kind=error.kind, message=str(error))
        return 3
    except BrokenPipeError:  # whoever asked is gone
        os._exit(3)
    except Exception as error:  # the runtimes raise errors of many types of their own
        lines = str(error).strip().splitlines() or [""]
        emit("error", kind="runtime-failed", message=f"{type(error).__name__}: {lines[0]}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
