#!/usr/bin/env python3
"""Time one model on the machine this file runs on, and say everything as JSON lines.

The file needs Python 3.6 or newer, numpy and the runtime under test, nothing else, so that it can be copied
to a device and run there by hand:

    python3 agent.py --model m.onnx --runtime onnxruntime --threads 4 --affinity 4-7
    python3 agent.py --model m.onnx --runtime tensorrt --precision fp16     (drives trtexec)
    python3 agent.py --model m.param --weights m.bin --runtime ncnn --input-shape 3,224,224
    python3 agent.py --describe        (what is there; works without numpy and runtimes)

Events, one JSON object a line, in this order: `hello` (runtime, machine), `progress` (at most two a second),
and `result` (every raw time, the state before, during and after) or `error` (exit code 3); or only `device`.
"""
# ruff: noqa: UP006, UP007, UP035, UP045 (Python 3.6 knows neither list[int] nor int | None)

import argparse
import array
import contextlib
import gc
import importlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

Emit = Callable[..., None]
Tick = Callable[[str, int, float], None]
"""Told a phase, its runs and its seconds so far."""
Specification = Tuple[str, Sequence[Any], str]
"""Name, shape and number type of an input."""
Arrays = Dict[str, Any]

PROGRESS_SECONDS = 0.5
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""How a user at the terminal, the program that started this one and a terminal that goes away ask for the end; several
may do so at once."""

# Python 3.6 has no perf_counter_ns; its float seconds still resolve well below a microsecond.
now_ns = getattr(time, "perf_counter_ns", lambda: int(time.perf_counter() * 1e9))


class AgentError(Exception):
    """What the user can act on; `install` names the package that is missing."""

    def __init__(self, message: str, install: Optional[str] = None) -> None:
        super().__init__(message)
        self.install = install


# -------------------------------------------------------------------------------------------------- Runtimes


def import_first(names: Sequence[str], package: str) -> Any:
    """Import the first of `names` that is installed; `package` is what to install where none is."""
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise AgentError(f"cannot import {' or '.join(names)}: {reasons[0]}", package)


def import_numpy() -> Any:
    """Numpy, which both runtimes take their inputs as."""
    return import_first(["numpy"], "numpy")


def version_of(name: str) -> str:
    """Version of an imported module's package, as well as it can be told."""
    package = name.partition(".")[0]
    version = getattr(sys.modules[package], "__version__", None)
    if version is None:
        # Python before 3.8 has no importlib.metadata; the folder beside the package tells as much.
        infos = [info for entry in sys.path for info in Path(entry or ".").glob(package + "-*.dist-info")]
        version = infos[0].name[len(package) + 1 : -len(".dist-info")] if infos else "unknown"
    return str(version)


class Runtime:
    """A model in a runtime. The ones below say how to load and run it; timing is the same for all but trtexec."""

    modules: Tuple[str, ...] = ()
    package = ""
    channels_last = False
    quantization: Tuple[float, int] = (0.0, 0)
    """Scale and zero point of the input, where it has any."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.module = import_first(self.modules, self.package)
        self.version = version_of(self.module.__name__)

    def load(self, tick: Tick) -> List[Specification]:
        """Make it ready to run, telling if that takes long; return (name, shape, type) of every input."""
        raise NotImplementedError

    def feed(self, inputs: Arrays) -> None:
        """Take the inputs that every run uses."""
        self.inputs = inputs

    def run(self) -> None:
        """One inference."""
        raise NotImplementedError

    def output(self) -> Any:
        """The first output of one inference, an array of real values."""
        raise NotImplementedError

    def first_ms(self) -> float:
        """Milliseconds of the first inference."""
        return timed(self.run)

    def warm_up(self, tick: Tick) -> Sequence[float]:
        """Milliseconds of every inference before those that count."""
        return repeat(self.run, self.options.warmup_runs, self.options.warmup_seconds, "warm-up", tick)

    def times_ms(self, tick: Tick) -> Sequence[float]:
        """Milliseconds of every inference that counts."""
        return repeat(self.run, self.options.runs, self.options.seconds, "steady", tick)

    def close(self) -> None:
        """Remove what was written."""


class OnnxRuntime(Runtime):
    """A model in onnxruntime, on the CPU."""

    modules = ("onnxruntime",)
    package = "onnxruntime"

    # As the file holds it: weights of 7 bits, whose sums do not overflow.
    MARK = b"fsrp_edge.int8_weight_bits\x12\x017"

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        # x86 without VNNI adds products of 8-bit numbers in 16 bits, where they overflow, or exactly, but slower.
        self.exact = "0" if self.MARK in Path(options.model).read_bytes() else "1"

    def load(self, tick: Tick) -> List[Specification]:
        try:
            self.session = self.open(self.exact)
        except Exception:  # of a type of its own; 1.32 cannot be exact where operators share int8 weights or a constant
            self.session = self.open("0")
        types = {"tensor(float)": "float32", "tensor(float16)": "float16"}
        types.update({"tensor(uint8)": "uint8", "tensor(int8)": "int8"})
        return [(item.name, item.shape, types.get(item.type, item.type)) for item in self.session.get_inputs()]

    def open(self, exact: str) -> Any:
        """The model, with exact sums or without."""
        options = self.module.SessionOptions()
        options.intra_op_num_threads = self.options.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", exact)
        return self.module.InferenceSession(self.options.model, options, providers=["CPUExecutionProvider"])

    def run(self) -> None:
        self.session.run(None, self.inputs)

    def output(self) -> Any:
        return self.session.run(None, self.inputs)[0]


class LiteRT(Runtime):
    """A model in LiteRT, or in one of its former names."""

    modules = (
        "ai_edge_litert.interpreter",
        "tflite_runtime.interpreter",
        "tensorflow.lite.python.interpreter",
    )
    package = "ai-edge-litert"
    channels_last = True

    def load(self, tick: Tick) -> List[Specification]:
        threads = self.options.threads
        self.interpreter = self.module.Interpreter(model_path=self.options.model, num_threads=threads)
        self.interpreter.allocate_tensors()
        details = self.interpreter.get_input_details()
        self.places = {item["name"]: (item["index"], tuple(item["shape"])) for item in details}
        self.quantization = details[0]["quantization"]
        return [(item["name"], list(item["shape_signature"]), item["dtype"].__name__) for item in details]

    def feed(self, inputs: Arrays) -> None:
        for name, value in inputs.items():
            index, shape = self.places[name]
            if value.shape != shape:
                self.interpreter.resize_tensor_input(index, value.shape)
                self.interpreter.allocate_tensors()
        for name, value in inputs.items():
            self.interpreter.set_tensor(self.places[name][0], value)

    def run(self) -> None:
        self.interpreter.invoke()

    def output(self) -> Any:
        self.run()
        details = self.interpreter.get_output_details()[0]
        values, (scale, zero_point) = self.interpreter.get_tensor(details["index"]), details["quantization"]
        return (values.astype("float32") - zero_point) * scale if scale else values


class Ncnn(Runtime):
    """A .param file with its .bin in ncnn, on the CPU, with ncnn's own choice of precision."""

    modules = ("ncnn",)
    package = "ncnn"

    def load(self, tick: Tick) -> List[Specification]:
        if not (self.options.weights and self.options.input_shape):
            raise AgentError("ncnn needs --weights and --input-shape: its files name no shape")
        self.net = self.module.Net()
        self.net.opt.num_threads = self.options.threads
        model, weights = self.options.model, self.options.weights
        for load, path in ((self.net.load_param, model), (self.net.load_model, weights)):
            if load(path) != 0:
                raise AgentError("ncnn cannot read " + Path(path).name)
        shape = [1] + [int(size) for size in self.options.input_shape.split(",")]
        return [(name, shape, "float32") for name in self.net.input_names()]

    def feed(self, inputs: Arrays) -> None:
        self.mats = {name: self.module.Mat(value[0]).clone() for name, value in inputs.items()}

    def run(self) -> None:
        self.made = self.extract()

    def output(self) -> Any:
        return import_numpy().array(self.extract()[0])[None]

    def extract(self) -> List[Any]:
        """All outputs, in ncnn's own arrays."""
        extractor = self.net.create_extractor()
        codes = [extractor.input(name, mat) for name, mat in self.mats.items()]
        made = [extractor.extract(name) for name in self.net.output_names()]
        codes += [code for code, _ in made]
        if any(codes):  # there are no values then, and reading them would end this process
            raise AgentError("ncnn cannot run it on images " + self.options.input_shape)
        return [mat for _, mat in made]


class TensorRT(Runtime):
    """An ONNX file that trtexec builds into an engine and times.

    A time is the input's transfer, the computation and the output's transfer. CUDA graphs and waiting by spinning are
    asked for wherever trtexec knows how, as its defaults differ between versions.
    """

    PLACES = ("trtexec", "/usr/src/tensorrt/bin/trtexec")
    FLAGS = ("--useCudaGraph", "--useSpinWait", "--dataTransfers")
    ONCE = ("--iterations=1", "--duration=0", "--warmUp=0")
    PRECISIONS = (("fp32", ()), ("fp16", ("--fp16",)), ("int8", ("--int8", "--fp16")))

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.program = self.find()
        said = self.call(["--help"])
        self.flags = [flag for flag in self.FLAGS if flag in said]
        self.version = self.version_in(said)
        self.folder = Path(tempfile.mkdtemp(prefix="trtexec-"))

    @classmethod
    def find(cls) -> str:
        """Path of trtexec."""
        found = [path for path in map(shutil.which, cls.PLACES) if path]
        if not found:
            raise AgentError("there is no trtexec; it comes with TensorRT, part of JetPack")
        return found[0]

    @staticmethod
    def version_in(said: str) -> str:
        """The version in what trtexec says: `[TensorRT v8201]` is 8.2.1 (`v100300` is 10.3.0)."""
        found = re.search(r"\[TensorRT v([\d.]+)\]", said)
        if found is None or "." in found.group(1):
            return found.group(1) if found else "unknown"
        number, unit = int(found.group(1)), 10000 if len(found.group(1)) > 4 else 1000
        return f"{number // unit}.{number % unit // 100}.{number % 100}"

    def load(self, tick: Tick) -> List[Specification]:
        """Build the engine, and run it once."""
        flags = dict(self.PRECISIONS)[self.options.precision]
        build = ["--onnx=" + self.options.model, self.path("--saveEngine", "engine"), *flags]
        once = [*self.ONCE, self.path("--exportTimes", "first")]
        said = self.call([*build, *once, *self.flags], lambda seconds: tick("load", 0, seconds))
        found = re.search(r"[Ii]nput binding for (\S+) with dimensions (\S+)", said)
        if found is None:
            raise AgentError("trtexec does not tell the input's shape")
        self.name = found.group(1)
        return [(self.name, [int(size) for size in found.group(2).split("x")], "float32")]

    def first_ms(self) -> float:
        return self.latencies("first", 0)[0]

    def warm_up(self, tick: Tick) -> List[float]:
        """Nothing here: trtexec warms up in the process that it then times in."""
        return []

    def times_ms(self, tick: Tick) -> List[float]:
        options = self.options
        warm_up = int(1000 * max(options.warmup_seconds, 0.0))
        lengths = [f"--iterations={options.runs}", f"--duration={-(-options.seconds // 1):.0f}"]
        lengths.append(f"--warmUp={warm_up}")
        files = [self.path("--loadEngine", "engine"), self.path("--exportTimes", "times")]
        self.call([*files, *lengths, *self.flags], lambda seconds: tick("steady", 0, seconds))
        return self.latencies("times", warm_up)

    def output(self) -> Any:
        pixels = self.folder / "input"
        self.inputs[self.name].tofile(str(pixels))
        files = [self.path("--loadEngine", "engine"), f"--loadInputs={self.name}:{pixels}"]
        self.call([*files, self.path("--exportOutput", "output"), *self.ONCE, *self.flags])
        return import_numpy().array(self.exported("output")[0]["values"], "float32")

    def path(self, option: str, name: str) -> str:
        """An option that names a file of the scratch folder."""
        return f"{option}={self.folder / name}"

    def exported(self, name: str) -> Any:
        """What trtexec wrote."""
        return json.loads((self.folder / name).read_text())

    def latencies(self, name: str, warm_up: float) -> List[float]:
        """Times of the queries in an exported file that began after the warm-up, which older versions export too."""
        queries = self.exported(name)
        counted = [query for query in queries if query["startComputeMs"] >= warm_up] or queries[-1:]
        return [query["latencyMs"] for query in counted]

    def call(self, arguments: List[str], tell: Callable[[float], None] = lambda seconds: None) -> str:
        """Run trtexec, telling the seconds so far; what it says."""
        with tempfile.TemporaryFile() as said:
            start = time.perf_counter()
            child = subprocess.Popen([self.program, *arguments], stdout=said, stderr=subprocess.STDOUT)
            try:
                while child.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(PROGRESS_SECONDS)
                    tell(time.perf_counter() - start)
            finally:  # whoever listens may be gone
                child.kill()
                child.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
        if child.returncode:
            lines = text.splitlines()
            errors = [line for line in lines if "[E]" in line] or lines[-1:] or ["no word"]
            raise AgentError("trtexec: " + errors[0].strip())
        return text

    def close(self) -> None:
        """Remove the engine."""
        shutil.rmtree(str(self.folder), ignore_errors=True)


RUNTIMES: Dict[str, Type[Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "litert": LiteRT,
    "ncnn": Ncnn,
    "tensorrt": TensorRT,
}


# ------------------------------------------------------------------------------------- Inputs and inferences


def make_inputs(specifications: List[Specification]) -> Dict[str, Any]:
    """Uniform pixels: in [0, 1) for floats, over the whole range for integers; always the same."""
    numpy = import_numpy()
    random = numpy.random.RandomState(0)
    inputs = {}
    for name, shape, kind in specifications:
        # An open batch dimension is 1; any other open dimension is a question only the user can answer.
        fixed = [1 if axis == 0 and not known(size) else size for axis, size in enumerate(shape)]
        if not all(known(size) for size in fixed):
            raise AgentError(f"input {name!r} has the open shape {shape}; fix it at export")
        if len(fixed) == 4 and fixed[0] > 1:
            raise AgentError(f"input {name!r} takes {fixed[0]} images at a time; export it for one")
        if kind in ("uint8", "int8"):
            limits = numpy.iinfo(kind)
            inputs[name] = random.randint(limits.min, limits.max + 1, fixed).astype(kind)
        elif kind in ("float32", "float16"):
            inputs[name] = random.random_sample(fixed).astype(kind)
        else:
            raise AgentError(f"input {name!r} has the type {kind}; known: floats and 8 bits")
    return inputs


def known(size: Any) -> bool:
    """Whether a dimension is a number; open ones are None, a name, or -1."""
    return not isinstance(size, str) and size is not None and size > 0


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that one call takes."""
    start = now_ns()
    call()
    return (now_ns() - start) / 1e6


def repeat(call: Callable[[], object], runs: int, seconds: float, phase: str, tick: Tick) -> Sequence[float]:
    """Time `call` until it ran `runs` times and for `seconds`, both."""
    times = array.array("d")  # a quarter of a list's memory, which would count as the model's
    start = told = time.perf_counter()
    while True:
        elapsed = time.perf_counter() - start
        if len(times) >= runs and elapsed >= seconds:
            return times
        if elapsed + start - told >= PROGRESS_SECONDS:
            told = elapsed + start
            tick(phase, len(times), elapsed)
        times.append(timed(call))


def infer(model: Runtime, specification: Specification, pixels: Any, emit: Emit) -> Iterator[Any]:
    """The first output for each image, of float pixels (N, C, H, W) in [0, 1] or of bytes."""
    numpy = import_numpy()
    name, _, kind = specification
    scale, zero_point = model.quantization
    told = time.perf_counter()
    for count, image in enumerate(pixels):
        values = (image.astype("float32") / 255 if image.dtype == "uint8" else image)[None]
        if model.channels_last:
            values = values.transpose(0, 2, 3, 1)
        if kind in ("uint8", "int8"):
            limits = numpy.iinfo(kind)
            # A file without a scale takes bytes for pixels.
            steps = values / scale + zero_point if scale else values * 255
            values = numpy.rint(steps).clip(limits.min, limits.max)
        model.feed({name: numpy.ascontiguousarray(values.astype(kind))})
        yield model.output()
        if time.perf_counter() - told >= PROGRESS_SECONDS:
            told = time.perf_counter()
            emit("progress", phase="evaluation", runs=count + 1, seconds=0)


# ----------------------------------------------------------------------------------------------- The machine


def gpu_mhz(line: str) -> Optional[float]:
    """The fastest GPU clock that tegrastats tells: `GR3D_FREQ 0%@76`, or `GR3D_FREQ 0%@[0,0]` with several."""
    found = re.search(r"GR3D_FREQ \d+%@\[?([\d,]+)", line)
    return max(float(mhz) for mhz in found.group(1).split(",")) if found else None


def held_clocks(said: str) -> Optional[bool]:
    """Whether `jetson_clocks --show` tells clocks of cores and GPU that cannot fall; None where it tells none."""
    found = re.findall(r"^(?:cpu\d+: .*|GPU )MinFreq=(\d+) MaxFreq=(\d+)", said, re.M)
    return all(low == high for low, high in found) if found else None


def rails_of_pmic(said: str) -> Dict[str, float]:
    """Watts by rail of a Raspberry Pi 5, from `vcgencmd pmic_read_adc`; rails without a current have none."""
    found = re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]", said)
    values = {(rail, kind): float(value) for rail, kind, value in found}
    return {
        rail: amperes * values[rail, "V"]
        for (rail, kind), amperes in values.items()
        if kind == "A" and (rail, "V") in values
    }


def whole_board(rails: Dict[str, float]) -> Optional[float]:
    """Watts of a board: of the rail that feeds all others where there is one, else of all rails."""
    for name in ("VDD_IN", "POM_5V_IN", "VDD_SYS_IN"):
        if name in rails:
            return rails[name]
    return sum(rails.values()) if rails else None


def processor_name(fields: Dict[str, str]) -> Optional[str]:
    """What a processor's part of /proc/cpuinfo calls it; Arm's have no name.

    In a virtual machine processors with different instructions may have one name, such as "AMD EPYC": there family and
    model follow, so that the times of one are not taken for the other's.
    """
    name = fields.get("model name")
    if name and {"cpu family", "model"} <= fields.keys() and "hypervisor" in fields.get("flags", "").split():
        return f"{name}, family {fields['cpu family']} model {fields['model']}"
    return name


class Machine:
    """What can be read about a machine without privileges; below `root` where its files were copied elsewhere."""

    THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)
        self.has_pmic = True  # until it turns out not to; asking again would cost time between two inferences

    def read(self, path: Union[str, Path]) -> Optional[str]:
        """A file's text, or None where it cannot be read."""
        try:
            return (self.root / path).read_text().strip("\0\n ")
        except (OSError, UnicodeDecodeError):
            return None

    def number(self, path: Union[str, Path]) -> Optional[int]:
        """A file's integer; None also for a sensor that is switched off."""
        try:
            return int(self.read(path) or "")
        except ValueError:
            return None

    def glob(self, pattern: str) -> List[Path]:
        """Paths below the root, sorted."""
        return sorted(self.root.glob(pattern))

    def ask(self, *command: str) -> str:
        """The first lines of what a tool of the board says, within a second; nothing where it is missing.

        Some, such as tegrastats, talk until they are stopped.
        """
        program = shutil.which(command[0]) if self.root == Path("/") else None
        if not program:
            return ""
        child = subprocess.Popen([program, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            return child.communicate(timeout=1.0)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            child.kill()
            return child.communicate()[0].decode(errors="replace")

    def cpu_name(self) -> str:
        """The board's name, else the processor's; nothing where files copied from elsewhere tell neither."""
        board = self.read("proc/device-tree/model")
        if board:
            return board
        for fields in self.processors():
            name = processor_name(fields)
            if name:
                return name
        return platform.processor() or platform.machine() if self.root == Path("/") else ""

    def processors(self) -> List[Dict[str, str]]:
        """What /proc/cpuinfo says of each processor, by its own words; some Arm boards add a part on the board."""
        try:
            text = (self.root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        parts = []
        for block in text.split("\n\n"):
            pairs = (line.partition(":") for line in block.splitlines())
            parts.append({key.strip(): value.strip() for key, _, value in pairs})
        return parts

    def of_cores(self, name: str) -> List[str]:
        """What each core's cpufreq folder says in the file `name`."""
        paths = self.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/" + name)
        return [text for text in map(self.read, paths) if text]

    def highest_mhz(self, name: str) -> Optional[float]:
        """The fastest core's clock in a cpufreq file, which counts in kHz."""
        return max((int(text) / 1000.0 for text in self.of_cores(name)), default=None)

    def temperatures(self) -> Dict[str, float]:
        """Degrees Celsius of every thermal zone, by its type; the hottest where several share a type."""
        found: Dict[str, float] = {}
        for zone in self.glob("sys/class/thermal/thermal_zone*"):
            name, milli = self.read(zone / "type") or zone.name, self.number(zone / "temp")
            if milli is not None:
                found[name] = max(milli / 1000.0, found.get(name, milli / 1000.0))
        return found

    def throttle_bits(self) -> Optional[int]:
        """Raspberry Pi: bits 0 to 3 are under-voltage, capped, throttled and soft limit now, 16 to 19 since boot."""
        text = self.read(self.THROTTLED)
        try:
            return int(text or self.ask("vcgencmd", "get_throttled").partition("=")[2], 16)
        except ValueError:
            return None

    def memory_mb(self, name: str) -> Optional[float]:
        """A line of /proc/meminfo, such as MemAvailable, in MB."""
        for line in (self.read("proc/meminfo") or "").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024 / 1e6
        return None

    def load_1m(self) -> Optional[float]:
        """Processes that ran or waited to, averaged over the last minute."""
        text = self.read("proc/loadavg")
        return float(text.split()[0]) if text else None

    def busy_seconds(self) -> Optional[Tuple[float, float]]:
        """Processor seconds that the machine was busy (or stolen by its host) and that this process used."""
        fields = (self.read("proc/stat") or "").split("\n", 1)[0].split()[1:9]
        if len(fields) < 8:
            return None
        ticks = [int(field) for field in fields]
        busy = sum(ticks) - ticks[3] - ticks[4]  # without idle and iowait
        return busy / float(os.sysconf("SC_CLK_TCK")), sum(os.times()[:4])

    def rails(self) -> Dict[str, float]:
        """Watts by rail of the INA3221 sensors of a Jetson, as JetPack 5 and later, or 4, show them."""
        found: Dict[str, float] = {}
        for folder in self.glob("sys/class/hwmon/hwmon*"):
            if self.read(folder / "name") == "ina3221":
                for label in sorted(folder.glob("in*_label")):
                    number = label.name[2 : -len("_label")]
                    volts = self.number(folder / f"in{number}_input")
                    amperes = self.number(folder / f"curr{number}_input")
                    name = self.read(label) or number
                    if volts is not None and amperes is not None and name != "NC":
                        found[name] = volts * amperes / 1e6
        for path in self.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
            milli = self.number(path.parent / "in_power{}_input".format(path.name[len("rail_name_") :]))
            if milli is not None:
                found[self.read(path) or path.name] = milli / 1e3
        return found

    def power_w(self) -> Optional[float]:
        """Watts of the whole board now, where it has a sensor."""
        rails = self.rails()
        if not rails and self.has_pmic:
            rails = rails_of_pmic(self.ask("vcgencmd", "pmic_read_adc"))
            self.has_pmic = bool(rails)
        return whole_board(rails)

    def packages_uj(self) -> Dict[str, Tuple[int, int]]:
        """Microjoules so far of each x86 package, and where its counter starts again at 0 (RAPL).

        Another domain there, `psys`, is of the whole platform, which the packages are part of.
        """
        found = {}
        for folder in self.glob("sys/class/powercap/intel-rapl:*"):
            joules, limit = self.number(folder / "energy_uj"), self.number(folder / "max_energy_range_uj")
            package = (self.read(folder / "name") or "package").startswith("package")
            if package and folder.name.count(":") == 1 and joules is not None and limit:
                found[folder.name] = joules, limit
        return found

    def state(self) -> Dict[str, Any]:
        """What may disturb a measurement."""
        mode = re.search(r"NV Power Mode: *(\S+)", self.ask("nvpmodel", "-q"))
        return {
            "governor": " ".join(sorted(set(self.of_cores("scaling_governor")))) or None,
            "clock_mhz": self.highest_mhz("scaling_cur_freq"),
            "gpu_clock_mhz": gpu_mhz(self.ask("tegrastats", "--interval", "100")),
            "temperatures_c": self.temperatures(),
            "throttled": self.throttle_bits(),
            "power_mode": mode.group(1) if mode else None,
            "clocks_held": held_clocks(self.ask("jetson_clocks", "--show")) if mode else None,
            "power_w": self.power_w(),
            "load_1m": self.load_1m(),
            "free_memory_mb": self.memory_mb("MemAvailable"),
        }

    def sample(self, seconds: float) -> Dict[str, Any]:
        """The part of the state that may change while measuring and is cheap to read between two inferences."""
        return {
            "seconds": round(seconds, 3),
            "clock_mhz": self.highest_mhz("scaling_cur_freq"),
            "temperature_c": max(self.temperatures().values(), default=None),
            "power_w": self.power_w(),
        }

    def describe(self) -> Dict[str, Any]:
        """What this machine is, and what it lacks."""
        compatible = (self.read("proc/device-tree/compatible") or "").split("\0")
        lines = (self.read("etc/os-release") or "").splitlines()
        names = [line for line in lines if line.startswith("PRETTY_NAME=")]
        packages = {"numpy": installed(["numpy"], "numpy")}
        for name, runtime in RUNTIMES.items():
            if runtime.modules:
                packages[name] = installed(runtime.modules, runtime.package)
        return dict(
            self.state(),
            board=self.cpu_name(),
            soc=compatible[-1] or None,
            machine=platform.machine(),
            cores=cores(),
            highest_clock_mhz=self.highest_mhz("cpuinfo_max_freq"),
            memory_mb=self.memory_mb("MemTotal"),
            free_disk_mb=shutil.disk_usage(str(Path(__file__).resolve().parent)).free / 1e6,
            os=names[0].partition("=")[2].strip('"') if names else platform.system(),
            kernel=platform.release(),
            python=platform.python_version(),
            trtexec=next((path for path in map(shutil.which, TensorRT.PLACES) if path), None),
            packages=packages,
        )


def installed(modules: Sequence[str], package: str) -> Dict[str, Optional[str]]:
    """Version of the first module that can be imported, else what to install and why."""
    try:
        return {"version": version_of(import_first(modules, package).__name__)}
    except AgentError as error:
        return {"version": None, "install": package, "reason": str(error)}
    except Exception as error:  # a broken installation may raise anything
        return {"version": None, "install": package, "reason": f"{type(error).__name__}: {error}"}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_numbers(text: str) -> List[int]:
    """The cores that `0,2,4-7` names."""
    found: List[int] = []
    for part in text.split(","):
        first, hyphen, last = part.partition("-")
        these = range(int(first), int(last if hyphen else first) + 1)
        if not these:
            raise ValueError("no cores from " + part)
        found += these
    return sorted(set(found))


def stay_on(text: str) -> None:
    """Keep this process, and what it starts, on some cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise AgentError("this system cannot keep a process on some cores")
    try:
        os.sched_setaffinity(0, core_numbers(text))
    except (OSError, ValueError):
        count = os.cpu_count() or 1
        raise AgentError(f"no cores {text}; this machine has 0 to {count - 1}") from None


def peak_memory_mb() -> float:
    """The most memory this process or one it started ever held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    # Linux counts what a process's parent held when it started it as its own; the high-water mark does not.
    mark = re.search(r"VmHWM:\s*(\d+) kB", Machine().read("proc/self/status") or "")
    own = int(mark.group(1)) * 1024 if mark else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return float(max(own, children) / 1e6)


# ------------------------------------------------------------------------------------------------- Measuring


def mean_power_w(
    counters: Sequence[Dict[str, Tuple[int, int]]], seconds: float, during: Sequence[Dict[str, Any]]
) -> Optional[float]:
    """Watts on average: of the energy counters, read so often that none starts again twice, else of the samples."""
    if counters[0] and all(each.keys() == counters[0].keys() for each in counters):
        used = sum(
            (counters[index][name][0] - joules) % limit
            for index, before in enumerate(counters[:-1], 1)
            for name, (joules, limit) in before.items()
        )
        return used / 1e6 / seconds
    watts = [sample["power_w"] for sample in during if sample["power_w"] is not None]
    return sum(watts) / len(watts) if watts else None


def foreign_cores(
    before: Optional[Tuple[float, float]], after: Optional[Tuple[float, float]], seconds: float
) -> Optional[float]:
    """Cores that other processes kept busy on average, or None where that cannot be read."""
    if before is None or after is None:
        return None
    return max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds


def measure(options: argparse.Namespace, emit: Emit) -> Dict[str, Any]:
    """Say who is there, then load, warm up, time; return the result event's content."""
    if not Path(options.model).is_file():
        raise AgentError(f"no such file: {options.model}")
    if options.runtime not in RUNTIMES:
        allowed = ", ".join(sorted(RUNTIMES))
        raise AgentError(f"unknown runtime {options.runtime!r}; allowed: {allowed}")
    count = cores()  # of the machine, not those that it is kept on
    if options.affinity is not None:
        stay_on(options.affinity)
    import_numpy()  # first, as a runtime that lacks it would be told to be missing
    machine, model = Machine(), RUNTIMES[options.runtime](options)
    emit("hello", runtime=options.runtime, runtime_version=model.version, cpu=machine.cpu_name(), cores=count)
    try:
        return timed_runs(model, machine, options, emit)
    finally:
        model.close()


def timed_runs(model: Runtime, machine: Machine, options: argparse.Namespace, emit: Emit) -> Dict[str, Any]:
    """Every time from loading on, the state around it, and what was computed."""
    specifications: List[Specification] = []
    during: List[Dict[str, Any]] = []
    counters: List[Dict[str, Tuple[int, int]]] = []

    def tick(phase: str, runs: int, seconds: float) -> None:
        emit("progress", phase=phase, runs=runs, seconds=round(seconds, 3))
        if phase == "steady":
            during.append(machine.sample(seconds))
            if counters[0]:  # a server's start again at 0 after minutes
                counters.append(machine.packages_uj())

    def made(path: Optional[str]) -> Iterator[Any]:
        pixels = import_numpy().load(path)["pixels"] if path else []
        return infer(model, specifications[0], pixels, emit)

    said: Dict[str, Any] = {"init_ms": timed(lambda: specifications.extend(model.load(tick)))}
    model.feed(make_inputs(specifications))
    said["first_ms"] = model.first_ms()
    said["warmup_ms"] = list(model.warm_up(tick))
    said["before"] = machine.state()
    gc.collect()
    gc.disable()  # a collection inside a run would be counted as the model's
    counters.append(machine.packages_uj())
    busy, start = machine.busy_seconds(), time.perf_counter()
    times = model.times_ms(tick)
    seconds = time.perf_counter() - start
    said["foreign_cores"] = foreign_cores(busy, machine.busy_seconds(), seconds)
    counters.append(machine.packages_uj())
    said["power_w"] = mean_power_w(counters, seconds, during)
    gc.enable()
    said.update(during=during, after=machine.state(), peak_memory_mb=peak_memory_mb())
    said["times_ms"] = list(times)  # after the peak was read
    said["outputs"] = [output.ravel().tolist() for output in made(options.outputs)]
    said["classes"] = [int(output.argmax()) for output in made(options.evaluate)] if options.evaluate else None
    return said


# ------------------------------------------------------------------------------------------ The command line


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--model", help="an .onnx, .tflite or .param file")
    task.add_argument("--describe", action="store_true", help="say what this machine is and what it lacks")
    parser.add_argument("--runtime", help=" or ".join(sorted(RUNTIMES)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--affinity", metavar="CORES", help="run on these cores only, such as 0,2,4-7")
    parser.add_argument("--weights", help="ncnn: the .bin file")
    parser.add_argument("--input-shape", metavar="C,H,W", help="ncnn: of an image")
    parser.add_argument("--precision", default="fp32", help="tensorrt: fp32, fp16 or int8")
    parser.add_argument("--warmup-runs", type=int, default=10, help="at least so many runs, and")
    parser.add_argument("--warmup-seconds", type=float, default=0.5, help="at least so long (default 0.5)")
    parser.add_argument("--runs", type=int, default=100, help="at least so many (default 100), and")
    parser.add_argument("--seconds", type=float, default=10.0, help="at least so long (default 10)")
    images = "each image in this .npz file: `pixels` (N, C, H, W), float in [0, 1] or bytes"
    parser.add_argument("--outputs", metavar="NPZ", help="tell the output for " + images)
    parser.add_argument("--evaluate", metavar="NPZ", help="tell the class of " + images)
    return parser.parse_args(arguments)


def end_by_signal(number: int, _frame: object) -> None:
    """Leave by an exception, so that what was started is ended and what was written is removed, undisturbed."""
    for each in ENDS:
        signal.signal(each, lambda *_: None)  # SIG_IGN, set while one is waiting, is an error in old Pythons
    sys.exit(128 + number)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run; return the exit code."""
    options = parse(arguments)
    for each in ENDS:
        if signal.getsignal(each) != signal.SIG_IGN:  # as under nohup
            signal.signal(each, end_by_signal)
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
            emit("device", **Machine().describe())
        else:
            emit("result", **measure(options, emit))
    except AgentError as error:
        emit("error", message=str(error), install=error.install)
        return 3
    except BrokenPipeError:  # whoever asked is gone
        os._exit(3)
    except Exception as error:  # the runtimes raise errors of many types of their own
        lines = str(error).strip().splitlines() or [""]
        emit("error", message=f"{type(error).__name__}: {lines[0]}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
