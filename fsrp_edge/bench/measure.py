"""Measure files on devices: a fresh process for each round, files in turns, devices side by side."""

import contextvars
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

import fsrp_edge
from fsrp_edge import progress
from fsrp_edge.bench import agent, tools
from fsrp_edge.bench.address import Address, parse_address
from fsrp_edge.bench.agent_process import run_agent
from fsrp_edge.bench.agreement import Expected, Origin
from fsrp_edge.bench.recognition import judge, pack, recognize_here, save_pixels
from fsrp_edge.bench.results import BenchResults, Failure, Latency, Measurement, Round
from fsrp_edge.bench.statistics import summarize
from fsrp_edge.bench.transport import Transport, open_transport
from fsrp_edge.bench.validity import disturbances
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError, FsrpEdgeError, GateFailedError, ToolFailedError
from fsrp_edge.exporting.artifact import Format
from fsrp_edge.files import sha256_file
from fsrp_edge.records import Record
from fsrp_edge.runtimes import require

SUFFIXES = {
    "onnxruntime": ".onnx",
    "litert": ".tflite",
    "tflite-benchmark": ".tflite",
    "tensorrt": ".onnx",
    "ncnn": ".ncnn",
    "benchncnn": ".ncnn",
}
"""What each runtime runs, ncnn folders of two files; the first for a suffix is its default."""
DEFAULTS: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "litert", "ncnn": "ncnn"}


class Method(Record):
    """How long to warm up and to measure; runs and seconds are both minimums, spread over the rounds."""

    warmup_runs: int = Field(10, ge=0)
    """Before each round."""
    warmup_seconds: float = Field(0.5, ge=0)
    runs: int = Field(100, ge=1)
    seconds: float = Field(10.0, ge=0)
    rounds: int = Field(3, ge=1)
    cool_down_seconds: float = Field(0.0, ge=0)
    """Rest before every process but a device's first."""


DEFAULT = Method()
QUICK = Method(runs=50, seconds=2.0, rounds=2)
OFFICIAL = Method(runs=1024, seconds=60.0, rounds=4)
"""The counts of MLPerf's single stream on mobile devices."""


@dataclass(frozen=True)
class Setup:
    """How files are run, the same for all.

    Args:
        runtime: one of SUFFIXES; None takes each suffix's default.
        threads: of an inference, at least 1; ncnn, onnxruntime and TFLite.
        affinity: cores to stay on, such as `0,4-7`; None leaves that to the system.
        input_shape: (C, H, W) of an image, for ncnn, whose files do not tell.
        images: what to recognize on the device after measuring; None for nothing.
        origins: what manifests say of files, by SHA-256; a device's outputs are compared with the network's then.
    """

    runtime: str | None = None
    threads: int = 1
    affinity: str | None = None
    input_shape: tuple[int, ...] | None = None
    images: ImageSet | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def runtime_of(self, path: Path) -> str:
        """The runtime for a file.

        Raises:
            BadInputError: no such file, one that the runtime does not run, or a setting that makes no sense.
        """
        if self.threads < 1:
            raise BadInputError(f"saw {self.threads} threads; allowed: 1 or more")
        try:
            agent.core_numbers(self.affinity or "0")
        except ValueError:
            raise BadInputError(f"saw cores {self.affinity!r}; write them as 0,2,4-7") from None
        if not path.exists():
            raise BadInputError(f"no such file: {path}")
        fitting = [name for name, suffix in SUFFIXES.items() if suffix == path.suffix.lower()]
        if not fitting:
            allowed = ", ".join(dict.fromkeys(SUFFIXES.values()))
            raise BadInputError(f"{path.name}: unknown suffix '{path.suffix}'; allowed: {allowed}")
        if self.runtime is not None and self.runtime not in fitting:
            raise BadInputError(f"{self.runtime} does not run {path.name}; allowed: {', '.join(fitting)}")
        if path.suffix == ".ncnn" and self.input_shape is None:
            raise BadInputError(f"{path.name} does not tell its input's shape; name it, such as 3,224,224")
        return self.runtime or fitting[0]


@dataclass(frozen=True)
class _Said:
    """What one round told: the agent's events, or what takes their place."""

    hello: dict[str, Any]
    result: dict[str, Any]

    @property
    def round(self) -> Round:
        return Round(**{name: self.result[name] for name in Round.model_fields})


def measure(
    path: Path,
    *,
    device: str = "local",
    runtime: str | None = None,
    threads: int = 1,
    method: Method = DEFAULT,
) -> Measurement:
    """Measure one file on one device, batch 1; arguments and errors as for `Setup` and `measure_on`.

    Example:
        >>> measure(Path("model-fp32.onnx"), device="ssh://pi@pi4").latency.p50_ms  # doctest: +SKIP
        18.4
    """
    return measure_on(parse_address(device), [path], Setup(runtime, threads), method=method)[0]


def measure_on(
    address: Address,
    files: Sequence[Path],
    setup: Setup,
    *,
    method: Method = DEFAULT,
    stop: threading.Event | None = None,
) -> list[Measurement]:
    """Measure several files on one device in alternating rounds.

    Args:
        address: of the device.
        files: ONNX, TFLite or ncnn files with fixed input shapes; an open batch dimension is taken as 1.
        setup: how they are run.
        method: warm-up and length.
        stop: set by another thread to give up.

    Returns:
        One measurement for each file, in their order.

    Raises:
        BadInputError: no such file, or a setting that makes no sense.
        ToolFailedError: the device can't be reached, or the runtime is missing there, refused the file, died or
            went silent.
    """
    runtimes = [setup.runtime_of(path) for path in files]
    stop = stop or threading.Event()
    if not tools.PROGRAMS.keys().isdisjoint(runtimes):
        method = method.model_copy(update={"rounds": max(method.rounds, tools.ROUNDS)})
    said: list[list[_Said]] = [[] for _ in files]
    schedule = [index for _ in range(method.rounds) for index in range(len(files))]
    with tempfile.TemporaryDirectory() as folder, open_transport(address) as transport:
        packed = Path(folder, "images.npz") if setup.images is not None else None
        if setup.images is not None and packed is not None:
            pack(setup.images, packed)
        expected = [_expect(address, path, setup, name) for path, name in zip(files, runtimes, strict=True)]
        turns = progress.track(schedule, f"measure latency, {address.name}", len(schedule))
        for turn, index in enumerate(turns):
            if turn:
                stop.wait(method.cool_down_seconds)
            arguments = _arguments(runtimes[index], setup, method)
            if turn < len(files):  # the first round
                wanted = expected[index]
                if isinstance(wanted, Expected):
                    arguments["--outputs"] = transport.put(save_pixels(wanted.pixels, Path(folder)))
                if packed is not None:
                    arguments["--evaluate"] = transport.put(packed)
            said[index].append(_measure_round(transport, files[index], arguments, stop))
        return [
            _join(address, path, name, setup, parts, packed, wanted)
            for path, name, parts, wanted in zip(files, _names(files), said, expected, strict=True)
        ]


def measure_fleet(
    addresses: Sequence[Address], files: Sequence[Path], setup: Setup, *, method: Method = DEFAULT
) -> BenchResults:
    """Measure files on several devices at the same time; a device that fails does not take the others along.

    Arguments and BadInputError as for `measure_on`; a ToolFailedError becomes one of the result's failures.
    """
    for path in files:
        setup.runtime_of(path)
    stop = threading.Event()

    def work(address: Address) -> list[Measurement]:
        return measure_on(address, files, setup, method=method, stop=stop)

    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        futures = [pool.submit(contextvars.copy_context().run, work, address) for address in addresses]
        try:
            _wait(futures)
        finally:
            stop.set()  # after an interrupt, the threads give up and clean up before the pool is left
    measurements: list[Measurement] = []
    failures = []
    for address, future in zip(addresses, futures, strict=True):
        try:
            measurements += future.result()
        except ToolFailedError as error:
            failures.append(Failure(address=address.name, message=str(error)))
    return BenchResults(
        fsrp_edge=fsrp_edge.__version__, measurements=tuple(measurements), failures=tuple(failures)
    )


def _wait(futures: Sequence[Future[list[Measurement]]]) -> None:
    """Until all are done; an error that is not one device's own ends the others too."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_EXCEPTION)
        for future in done:
            error = future.exception()
            if error is not None and not isinstance(error, ToolFailedError):
                return


def require_agreement(measurements: Sequence[Measurement]) -> None:
    """Make sure that devices compute what this machine and the network compute; what was not compared passes.

    Raises:
        GateFailedError: one does not.
    """
    wrong = "\n".join(
        f"{measurement.latency.model} computes something else on {measurement.address}: relative to the largest, its "
        f"outputs differ by {_share(agreement.relative_error)} from those here (allowed: {agreement.tolerance:g}) and "
        f"by {_share(agreement.network_error)} from the float network's"
        for measurement in measurements
        if (agreement := measurement.agreement) and not agreement.passed
    )
    if wrong:
        raise GateFailedError(wrong)


def _share(error: float | None) -> str:
    return "an unknown amount" if error is None else f"{error:.1e}"


def _arguments(runtime: str, setup: Setup, method: Method) -> dict[str, Any]:
    """The agent's command line, but for the file."""
    settings: dict[str, Any] = {
        "--runtime": runtime,
        "--threads": setup.threads,
        "--warmup-runs": method.warmup_runs,
        "--warmup-seconds": method.warmup_seconds,
        "--runs": -(-method.runs // method.rounds),
        "--seconds": method.seconds / method.rounds,
    }
    if setup.affinity is not None:
        settings["--affinity"] = setup.affinity
    if setup.input_shape is not None:
        settings["--input-shape"] = ",".join(map(str, setup.input_shape))
    return settings


def _measure_round(
    transport: Transport, path: Path, arguments: dict[str, Any], stop: threading.Event
) -> _Said:
    work = path.name if transport.address.kind == "local" else f"{path.name} on {transport.address.name}"
    runtime = arguments["--runtime"]
    if path.suffix == ".ncnn":
        arguments = arguments | {"--weights": transport.put(path / "model.bin")}
        there = transport.put(path / "model.param")
    else:
        there = transport.put(path)
    if runtime in tools.PROGRAMS:
        return _Said(*tools.measure_round(transport, there, arguments, work, stop))
    if runtime == "tensorrt":
        arguments = arguments | {"--precision": _precision_of(path)}
    words = [str(word) for pair in arguments.items() for word in pair]
    threads = arguments["--threads"]
    events = run_agent(transport, ["--model", there, *words], work=work, threads=threads, stop=stop)
    return _Said(events["hello"], events["result"])


def _precision_of(path: Path) -> str:
    """What TensorRT has to be allowed, for it to run an ONNX file as it is written."""
    onnx = require("onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "fp16" if any(tensor.data_type == half for tensor in graph.initializer) else "fp32"


def _names(files: Sequence[Path]) -> list[str]:
    """Of files; with their folder where several have the same, as dense and pruned files do."""
    names = [path.name for path in files]
    return [
        f"{path.resolve().parent.name}/{path.name}" if names.count(path.name) > 1 else path.name
        for path in files
    ]


def _join(
    address: Address,
    path: Path,
    model: str,
    setup: Setup,
    said: Sequence[_Said],
    packed: Path | None,
    expected: Expected | str,
) -> Measurement:
    """One latency of all rounds; loading and the first inference are those of the first."""
    hello, first = said[0].hello, said[0].result
    rounds = tuple(part.round for part in said)
    times = [time for part in rounds for time in part.times_ms]
    averaged = [part.result.get("averaged", 1) for part in said]
    runs = sum(count * len(part.times_ms) for count, part in zip(averaged, rounds, strict=True))
    reasons = tuple(dict.fromkeys(reason for part in rounds for reason in disturbances(part, hello["cores"])))
    summary = summarize(times)
    powers = [part.power_w for part in rounds if part.power_w is not None]
    power = sum(powers) / len(powers) if powers else None
    latency = Latency(
        model=model,
        sha256=sha256_file(path),
        device=f"{address.name}: {hello['cpu']}, {hello['cores']} cores",
        runtime=hello["runtime"],
        runtime_version=hello["runtime_version"],
        threads=setup.threads,
        affinity=setup.affinity,
        warmup_runs=sum(len(part.warmup_ms) for part in rounds),
        runs=runs,
        runs_averaged=min(averaged),
        init_ms=first["init_ms"],
        first_ms=first["first_ms"],
        power_w=power,
        energy_mj=None if power is None else power * summary.mean_ms,
        valid=not reasons,
        invalid_because=reasons,
        **summary.model_dump(),
    )
    classes = first.get("classes")
    recognition = None
    if setup.images is not None and packed is not None and classes is not None:
        recognition = judge(classes, recognize_here(path, packed), setup.images)
    return Measurement(
        address=address.name,
        latency=latency,
        rounds=rounds,
        agreement=expected.compare(first["outputs"]) if isinstance(expected, Expected) else None,
        agreement_note=expected if isinstance(expected, str) else None,
        recognition=recognition,
    )


def _expect(address: Address, path: Path, setup: Setup, runtime: str) -> Expected | str:
    """What a device should compute, or why that is not looked at."""
    if address.kind == "local":
        return "measured on this machine"
    if runtime in tools.PROGRAMS:
        return f"{tools.PROGRAMS[runtime]} tells none"
    try:
        return Expected(path, setup.origins.get(sha256_file(path)), setup.input_shape)
    except FsrpEdgeError as error:
        return str(error)
