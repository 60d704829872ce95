"""Measure files on one device: a fresh process for each round, files in turns."""

import tempfile
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsrp_edge import progress
from fsrp_edge.bench import tools
from fsrp_edge.bench.address import Address, parse_address
from fsrp_edge.bench.agent_process import run_agent
from fsrp_edge.bench.agreement import Expected
from fsrp_edge.bench.recognition import judge, recognize_here, require_taken, save_images, save_pixels
from fsrp_edge.bench.replies import Hello, Result, read
from fsrp_edge.bench.results import Latency, Measurement, Recognition
from fsrp_edge.bench.setup import DEFAULT, Method, Setup
from fsrp_edge.bench.statistics import summarize
from fsrp_edge.bench.transport import Transport, open_transport
from fsrp_edge.bench.validity import disturbances
from fsrp_edge.errors import ToolFailedError, first_line
from fsrp_edge.files import sha256_file
from fsrp_edge.packages import installed_version
from fsrp_edge.runtimes import require
from fsrp_edge.tool_output import captured_output


@dataclass(frozen=True)
class _Job:
    """A file on a device.

    Args:
        path: of the file.
        sent: what a device is given of it.
        model: its name in the results.
        runtime: what runs it.
        expected: what it should compute, or why that is not looked at.
    """

    path: Path
    sent: Path
    model: str
    runtime: str
    expected: Expected | str


_Said = tuple[Hello, Result]
"""By one process: who measured, and what."""


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


def measure_on(address: Address, files: Sequence[Path], setup: Setup, *, method: Method = DEFAULT) -> list[Measurement]:
    """Measure several files on one device in alternating rounds.

    Args:
        address: of the device.
        files: ONNX, TFLite or ncnn files with fixed input shapes; an open batch dimension is taken as 1.
        setup: how they are run.
        method: warm-up and length.

    Returns:
        One measurement for each file, in their order.

    Raises:
        BadInputError: no such file, images that a file does not take, or a setting that makes no sense.
        ToolFailedError: the device can't be reached, or the runtime is missing there, refused the file, died or
            went silent.
    """
    require_taken(files, setup)
    found = try_on(address, files, setup, method=method, stop=threading.Event(), keep_going=False)
    return [one for one in found if isinstance(one, Measurement)]


def try_on(
    address: Address,
    files: Sequence[Path],
    setup: Setup,
    *,
    method: Method,
    stop: threading.Event,
    keep_going: bool = True,
) -> list[Measurement | ToolFailedError]:
    """As `measure_on`, but a file that fails does not take the others along: its error stands in its place.

    So it does for files that were not finished when `stop` was set. Without `keep_going` it is raised at once.

    Raises:
        BadInputError: no such file, or a setting that makes no sense.
        ToolFailedError: the device can't be reached.
    """
    runtimes = [setup.runtime_of(path) for path in files]
    if not tools.PROGRAMS.keys().isdisjoint(runtimes):
        method = method.model_copy(update={"rounds": max(method.rounds, tools.ROUNDS)})
    with tempfile.TemporaryDirectory() as folder, open_transport(address, stop) as transport:
        images = None if setup.images is None else save_images(setup.images, Path(folder))
        jobs = [
            _Job(path, _sent(address, path, Path(folder)), model, runtime, _expect(address, path, setup, runtime))
            for path, model, runtime in zip(files, _names(files), runtimes, strict=True)
        ]
        said: list[list[_Said]] = [[] for _ in jobs]
        failed: dict[int, ToolFailedError] = {}
        schedule = list(range(len(jobs))) * method.rounds
        turns = progress.track(schedule, f"measure latency, {address.name}", len(schedule))
        for turn, index in enumerate(turns):
            if index in failed:
                continue
            job, settings = jobs[index], _settings(jobs[index].runtime, setup, method)
            if turn:
                stop.wait(method.cool_down_seconds)
            try:
                if stop.is_set():
                    raise ToolFailedError(f"{_work(address, job)}: stopped")
                if turn < len(jobs):
                    settings |= _asked_once(transport, job, images, Path(folder))
                said[index].append(_measure_round(transport, job, settings, stop))
                _require_each_class(address, job, setup, said[index][-1][1])
            except ToolFailedError as error:
                if not keep_going:
                    raise
                failed[index] = error
        return [failed.get(index) or _join(address, job, setup, said[index], images) for index, job in enumerate(jobs)]


def _settings(runtime: str, setup: Setup, method: Method) -> dict[str, Any]:
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


def _asked_once(transport: Transport, job: _Job, images: Path | None, folder: Path) -> dict[str, str]:
    """What the agent is asked for in the first round only: outputs to compare, the classes of images."""
    asked = {}
    if isinstance(job.expected, Expected):
        asked["--outputs"] = transport.put(save_pixels(job.expected.pixels, folder))
    if images is not None:
        asked["--evaluate"] = transport.put(images)
    return asked


def _require_each_class(address: Address, job: _Job, setup: Setup, result: Result) -> None:
    """Make sure that a device told as many classes as it was sent images."""
    seen, sent = len(result.classes or ()), len(setup.images or ())
    if result.classes is not None and seen != sent:
        raise ToolFailedError(
            f"{_work(address, job)}: the device told the classes of {seen} images, and was sent {sent}"
        )


def _work(address: Address, job: _Job) -> str:
    """What an error is about."""
    return job.path.name if address.kind == "local" else f"{job.path.name} on {address.name}"


def _measure_round(transport: Transport, job: _Job, settings: dict[str, Any], stop: threading.Event) -> _Said:
    path, work = job.sent, _work(transport.address, job)
    if path.suffix == ".ncnn":
        settings["--weights"] = transport.put(path / "model.bin")
        path = path / "model.param"
    there = transport.put(path)
    if job.runtime in tools.PROGRAMS:
        events = tools.measure_round(transport, there, settings, work, stop)
    else:
        if job.runtime == "tensorrt":
            settings["--precision"] = _precision_of(path)
        # In one word each, as a value, such as the name of a file here, may begin with a hyphen.
        words = [f"{name}={value}" for name, value in {"--model": there, **settings}.items()]
        events = run_agent(transport, words, work=work, threads=settings["--threads"], stop=stop)
    return read(Hello, events, "hello", work), read(Result, events, "result", work)


def _precision_of(path: Path) -> str:
    """What TensorRT has to be allowed, for it to run an ONNX file as it is written."""
    onnx, graph = require("onnx"), _graph(path)
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "fp16" if any(tensor.data_type == half for tensor in graph.initializer) else "fp32"


def _graph(path: Path) -> Any:
    """Of an ONNX file, without the weights that lie elsewhere."""
    with captured_output(f"reading {path.name}"):
        return require("onnx").load(str(path), load_external_data=False).graph


def _names(files: Sequence[Path]) -> list[str]:
    """Of files; with as many of their folders as tell them apart, as dense and pruned files need."""
    whole = [(path.parent.resolve() / path.name).parts for path in files]
    return ["/".join(own[-_depth(own, {*whole} - {own}) :]) for own in whole]


def _depth(own: tuple[str, ...], others: Set[tuple[str, ...]]) -> int:
    """How many of the last parts of a path no other path has."""
    return next(depth for depth in range(1, len(own) + 1) if all(own[-depth:] != o[-depth:] for o in others))


def _join(address: Address, job: _Job, setup: Setup, said: Sequence[_Said], images: Path | None) -> Measurement:
    """One measurement of all rounds; outputs and classes were asked for in the first."""
    hello, first = said[0]
    results = [result for _, result in said]
    return Measurement(
        address=address.name,
        latency=_latency(address, job, setup, hello, results),
        rounds=tuple(result.round for result in results),
        agreement=job.expected.compare(first.outputs) if isinstance(job.expected, Expected) else None,
        agreement_note=job.expected if isinstance(job.expected, str) else None,
        recognition=_recognition(job, setup, first.classes, images),
    )


def _latency(address: Address, job: _Job, setup: Setup, hello: Hello, rounds: Sequence[Result]) -> Latency:
    """Of all rounds; loading and the first inference are those of the first."""
    reasons = dict.fromkeys(disturbances(rounds, hello.cores))
    summary = summarize([time for part in rounds for time in part.times_ms])
    powers = [part.power_w for part in rounds if part.power_w is not None]
    power = sum(powers) / len(powers) if powers else None
    return Latency(
        model=job.model,
        sha256=sha256_file(job.path),
        device=f"{address.name}: {hello.cpu}, {hello.cores} cores",
        runtime=hello.runtime,
        runtime_version=hello.runtime_version,
        threads=setup.threads,
        affinity=setup.affinity,
        warmup_runs=sum(len(part.warmup_ms) for part in rounds),
        runs=sum(part.averaged * len(part.times_ms) for part in rounds),
        runs_averaged=min(part.averaged for part in rounds),
        init_ms=rounds[0].init_ms,
        first_ms=rounds[0].first_ms,
        power_w=power,
        energy_mj=None if power is None else power * summary.mean_ms,
        valid=not reasons,
        invalid_because=tuple(reasons),
        **summary.model_dump(),
    )


def _recognition(job: _Job, setup: Setup, classes: Sequence[int] | None, images: Path | None) -> Recognition | None:
    if setup.images is None or images is None or classes is None:
        return None
    return judge(classes, recognize_here(job.path, images), setup.images)


def _sent(address: Address, path: Path, folder: Path) -> Path:
    """The file; in its place one that holds everything, if it is an ONNX file that keeps its weights in another one."""
    if address.kind == "local" or path.suffix != ".onnx" or installed_version("onnx") is None:
        return path
    onnx = require("onnx")
    try:
        if not any(map(onnx.external_data_helper.uses_external_data, _graph(path).initializer)):
            return path
        whole = Path(tempfile.mkdtemp(dir=folder)) / path.name
        with captured_output(f"reading {path.name}"):
            onnx.save(onnx.load(str(path)), whole)
    except ToolFailedError:  # the device's runtime will tell what is wrong with it, and the other files go on
        return path
    return whole


def _expect(address: Address, path: Path, setup: Setup, runtime: str) -> Expected | str:
    """What a device should compute, or why that is not looked at."""
    if address.kind == "local":
        return "measured on this machine"
    if runtime in tools.PROGRAMS:
        return f"{tools.PROGRAMS[runtime]} tells none"
    try:
        return Expected(path, runtime, setup.origins.get(sha256_file(path)), setup.input_shape)
    except Exception as error:  # runtimes raise errors of many types of their own; measuring needs none of this
        return first_line(error)
