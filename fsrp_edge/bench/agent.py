#!/usr/bin/env python3
"""Time one model on the machine this file runs on, and say everything as JSON lines.

The file needs Python 3.6 or newer, numpy and the runtime under test, nothing else, so that it can be copied
to a device and run there by hand:

    python3 agent.py --model m.onnx --runtime onnxruntime --threads 4
    python3 agent.py --describe        (what is there; works without numpy and runtimes)

Events, one JSON object a line, in this order: `hello` (versions, machine), `progress` (at most two a second),
and `result` (every raw time, the state before, during and after) or `error` (exit code 3); or only `device`.
"""
# ruff: noqa: UP006, UP007, UP035, UP045 (Python 3.6 knows neither list[int] nor int | None)

import argparse
import base64
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
Tick = Callable[[str, int, float], None]
"""Told a phase, its runs and its seconds so far."""
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
    """What the user can act on; `kind` is for programs, `install` names the package that is missing."""

    def __init__(self, kind: str, message: str, install: Optional[str] = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.install = install


class OnnxRuntime:
    """A model in onnxruntime, on the CPU."""

    modules = ("onnxruntime",)
    package = "onnxruntime"

    def __init__(self, path: str, threads: int) -> None:
        self.module = import_first(self.modules, self.package)
        self.version = version_of(self.module.__name__)
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

    def outputs(self) -> List[Any]:
        """The outputs of one inference."""
        return list(self.session.run(None, self.inputs))


class LiteRT:
    """A model in LiteRT, or in one of its former names."""

    modules = (
        "ai_edge_litert.interpreter",
        "tflite_runtime.interpreter",
        "tensorflow.lite.python.interpreter",
    )
    package = "ai-edge-litert"

    def __init__(self, path: str, threads: int) -> None:
        self.module = import_first(self.modules, self.package)
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

    def outputs(self) -> List[Any]:
        """The outputs of one inference."""
        self.run()
        return [self.interpreter.get_tensor(item["index"]) for item in self.interpreter.get_output_details()]


RUNTIMES: Dict[str, Union[Type[OnnxRuntime], Type[LiteRT]]] = {"onnxruntime": OnnxRuntime, "litert": LiteRT}


def import_first(names: Sequence[str], package: str) -> Any:
    """Import the first of `names` that is installed; `package` is what to install where none is."""
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise AgentError("missing-runtime", f"cannot import {' or '.join(names)}: {reasons[0]}", package)


def import_numpy() -> Any:
    """Numpy, which both runtimes take their inputs as."""
    return import_first(["numpy"], "numpy")


def version_of(name: str) -> str:
    """Version of an imported module's package, as well as it can be told."""
    package = name.partition(".")[0]
    version = getattr(sys.modules[package], "__version__", None)
    if version is None:
        # Python before 3.8 has no importlib.metadata; the folder beside the package tells as much.
        stem = DISTRIBUTIONS.get(name, package).replace("-", "_")
        infos = [info for entry in sys.path for info in Path(entry or ".").glob(stem + "-*.dist-info")]
        version = infos[0].name[len(stem) + 1 : -len(".dist-info")] if infos else "unknown"
    return str(version)


def make_inputs(specifications: List[Specification], seed: int) -> Dict[str, Any]:
    """Uniform pixels: in [0, 1) for floats, over the whole range for integers; the same for the same seed."""
    numpy = import_numpy()
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


def repeat(call: Callable[[], object], runs: int, seconds: float, phase: str, tick: Tick) -> List[float]:
    """Time `call` until it ran `runs` times and for `seconds`, both."""
    times: List[float] = []
    start = told = time.perf_counter()
    while True:
        elapsed = time.perf_counter() - start
        if len(times) >= runs and elapsed >= seconds:
            return times
        if elapsed + start - told >= PROGRESS_SECONDS:
            told = elapsed + start
            tick(phase, len(times), elapsed)
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


def of_cores(name: str) -> List[str]:
    """What each core's cpufreq folder says in the file `name`."""
    folders = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    return [text for text in (read(str(folder / name)) for folder in folders) if text]


def highest_mhz(name: str) -> Optional[float]:
    """The fastest core's clock in a cpufreq file, which counts in kHz."""
    return max((int(text) / 1000.0 for text in of_cores(name)), default=None)


def temperatures() -> Dict[str, float]:
    """Degrees Celsius of every thermal zone, by its type; the hottest where several share a type."""
    found: Dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        name, text = read(str(zone / "type")) or zone.name, read(str(zone / "temp"))
        try:
            degrees = int(text or "") / 1000.0
        except ValueError:  # a sensor that is switched off
            continue
        found[name] = max(degrees, found.get(name, degrees))
    return found


def throttle_bits() -> Optional[int]:
    """Raspberry Pi: bits 0 to 3 are under-voltage, capped, throttled and soft limit now, 16 to 19 since boot."""
    text = read("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if text is None and shutil.which("vcgencmd"):
        try:
            answer = subprocess.check_output(["vcgencmd", "get_throttled"], timeout=5)
            text = answer.decode().partition("=")[2]
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        return int(text or "", 16)
    except ValueError:
        return None


def memory_mb(name: str) -> Optional[float]:
    """A line of /proc/meminfo, such as MemAvailable, in MB."""
    for line in (read("/proc/meminfo") or "").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def peak_memory_mb() -> Optional[float]:
    """The most memory this process ever held, in MB."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


def state() -> Dict[str, Any]:
    """What may disturb a measurement, as far as it can be read without privileges."""
    return {
        "governor": " ".join(sorted(set(of_cores("scaling_governor")))) or None,
        "clock_mhz": highest_mhz("scaling_cur_freq"),
        "temperatures_c": temperatures(),
        "throttled": throttle_bits(),
        "load_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "free_memory_mb": memory_mb("MemAvailable"),
    }


def sample(seconds: float) -> Dict[str, Any]:
    """The part of the state that may change while measuring and is cheap to read between two inferences."""
    return {
        "seconds": round(seconds, 3),
        "clock_mhz": highest_mhz("scaling_cur_freq"),
        "temperature_c": max(temperatures().values(), default=None),
    }


def describe() -> Dict[str, Any]:
    """What this machine is, and what it lacks."""
    compatible = (read("/proc/device-tree/compatible") or "").split("\0")
    names = [line for line in (read("/etc/os-release") or "").splitlines() if line.startswith("PRETTY_NAME=")]
    return dict(
        state(),
        board=cpu_name(),
        soc=compatible[-1] or None,
        machine=platform.machine(),
        cores=cores(),
        highest_clock_mhz=highest_mhz("cpuinfo_max_freq"),
        memory_mb=memory_mb("MemTotal"),
        free_disk_mb=shutil.disk_usage(str(Path(__file__).resolve().parent)).free / 1e6,
        os=names[0].partition("=")[2].strip('"') if names else platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        packages=dict(
            {"numpy": installed(["numpy"], "numpy")},
            **{name: installed(runtime.modules, runtime.package) for name, runtime in RUNTIMES.items()},
        ),
    )


def installed(modules: Sequence[str], package: str) -> Dict[str, Optional[str]]:
    """Version of the first module that can be imported, else what to install and why."""
    try:
        return {"version": version_of(import_first(modules, package).__name__)}
    except AgentError as error:
        return {"version": None, "install": package, "reason": str(error)}
    except Exception as error:  # a broken installation may raise anything
        return {"version": None, "install": package, "reason": f"{type(error).__name__}: {error}"}


def encode(array: Any) -> Dict[str, Any]:
    """An array as JSON can carry it, bit by bit."""
    text = base64.b64encode(array.tobytes()).decode("ascii")
    return {"type": str(array.dtype), "shape": list(array.shape), "base64": text}


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
    numpy = import_numpy()
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
    during: List[Dict[str, Any]] = []

    def tick(phase: str, runs: int, seconds: float) -> None:
        emit("progress", phase=phase, runs=runs, seconds=round(seconds, 3))
        if phase == "steady":
            during.append(sample(seconds))

    init_ms = timed(lambda: specifications.extend(model.load()))
    model.feed(make_inputs(specifications, options.seed))
    first_ms = timed(model.run)
    warmup_ms = repeat(model.run, options.warmup_runs, options.warmup_seconds, "warm-up", tick)
    before = state()
    gc.collect()
    gc.disable()  # a collection inside a run would be counted as the model's
    busy_before, start = busy_seconds(), time.perf_counter()
    times_ms = repeat(model.run, options.runs, options.seconds, "steady", tick)
    seconds, busy_after = time.perf_counter() - start, busy_seconds()
    gc.enable()
    after = state()
    outputs = []
    for seed in range(options.outputs):
        model.feed(make_inputs(specifications, seed))
        outputs.append([encode(output) for output in model.outputs()])
    return {
        "init_ms": init_ms,
        "first_ms": first_ms,
        "warmup_ms": warmup_ms,
        "times_ms": times_ms,
        "before": before,
        "during": during,
        "after": after,
        "foreign_cores": foreign_cores(busy_before, busy_after, seconds),
        "peak_memory_mb": peak_memory_mb(),
        "outputs": outputs,
    }


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--model", help="an .onnx or .tflite file")
    task.add_argument("--describe", action="store_true", help="say what this machine is and what it lacks")
    parser.add_argument("--runtime", help=" or ".join(sorted(RUNTIMES)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup-runs", type=int, default=10, help="at least so many runs, and")
    parser.add_argument("--warmup-seconds", type=float, default=0.5, help="at least so long (default 0.5)")
    parser.add_argument(
        "--runs", type=int, default=100, help="at least so many timed runs (default 100), and"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="at least so long (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the input's pixels")
    parser.add_argument(
        "--outputs", type=int, default=0, help="tell the outputs for the seeds below this one"
    )
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
        if options.describe:
            emit("device", **describe())
        else:
            emit("result", **measure(options, emit))
    except AgentError as error:
        emit("error", kind=error.kind, message=str(error), install=error.install)
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
