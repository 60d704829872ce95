"""Measure files on devices: a fresh process for each round, files in turns, devices side by side."""

import contextvars
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

import fsrp_edge
from fsrp_edge import progress
from fsrp_edge.bench.agent_process import run_agent
from fsrp_edge.bench.agreement import compare_outputs
from fsrp_edge.bench.results import Agreement, BenchResults, Failure, Latency, Measurement, Round
from fsrp_edge.bench.statistics import summarize
from fsrp_edge.bench.transport import Address, Transport, open_transport, parse_address
from fsrp_edge.bench.validity import disturbances
from fsrp_edge.errors import BadInputError, FsrpEdgeError, GateFailedError, ToolFailedError
from fsrp_edge.exporting.artifact import Format, format_of
from fsrp_edge.files import sha256_file

RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "litert"}
COMPARED_INPUTS = 3
"""Inputs whose outputs come back from a device to be compared with this machine's."""


class Method(BaseModel):
    """How long to warm up and to measure; runs and seconds are both minimums, spread over the rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
class _Said:
    """The agent's events of one round."""

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
    """Measure one file on one device, batch 1, CPU; arguments and errors as for `measure_on`.

    Example:
        >>> measure(Path("model-fp32.onnx"), device="ssh://pi@pi4").latency.p50_ms  # doctest: +SKIP
        18.4
    """
    return measure_on(parse_address(device), [path], runtime=runtime, threads=threads, method=method)[0]


def measure_on(
    address: Address,
    files: Sequence[Path],
    *,
    runtime: str | None = None,
    threads: int = 1,
    method: Method = DEFAULT,
    stop: threading.Event | None = None,
) -> list[Measurement]:
    """Measure several files on one device in alternating rounds.

    Args:
        address: of the device.
        files: ONNX and TFLite files with fixed input shapes; an open batch dimension is taken as 1.
        runtime: onnxruntime or litert; None takes each format's own.
        threads: of an inference, at least 1.
        method: warm-up and length.
        stop: set by another thread to give up.

    Returns:
        One measurement for each file, in their order.

    Raises:
        BadInputError: no such file, a runtime that does not run it, or no thread.
        ToolFailedError: the device can't be reached, or the runtime is missing there, refused the file, died or
            went silent.
    """
    runtimes = [_runtime_of(path, runtime, threads) for path in files]
    stop = stop or threading.Event()
    said: list[list[_Said]] = [[] for _ in files]
    schedule = [index for _ in range(method.rounds) for index in range(len(files))]
    with open_transport(address) as transport:
        for turn, index in enumerate(
            progress.track(schedule, f"measure latency, {address.name}", len(schedule))
        ):
            if turn:
                stop.wait(method.cool_down_seconds)
            outputs = COMPARED_INPUTS if address.kind != "local" and turn < len(files) else 0
            said[index].append(
                _measure_round(
                    transport,
                    files[index],
                    [*_arguments(runtimes[index], threads, method), "--outputs", str(outputs)],
                    threads,
                    stop,
                )
            )
    return [_join(address, path, threads, parts) for path, parts in zip(files, said, strict=True)]


def measure_fleet(
    addresses: Sequence[Address],
    files: Sequence[Path],
    *,
    runtime: str | None = None,
    threads: int = 1,
    method: Method = DEFAULT,
) -> BenchResults:
    """Measure files on several devices at the same time; a device that fails does not take the others along.

    Arguments and BadInputError as for `measure_on`; a ToolFailedError becomes one of the result's failures.
    """
    for path in files:
        _runtime_of(path, runtime, threads)
    stop = threading.Event()

    def work(address: Address) -> list[Measurement]:
        return measure_on(address, files, runtime=runtime, threads=threads, method=method, stop=stop)

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
    """Make sure that devices compute what this machine computes; what was not compared passes.

    Raises:
        GateFailedError: one does not.
    """
    wrong = "\n".join(
        f"{measurement.latency.model} computes something else on {measurement.address}: its outputs differ by "
        f"{'what is no number' if agreement.relative_error is None else f'{agreement.relative_error:.1e}'}, "
        f"relative to the largest; allowed: {agreement.tolerance:g}"
        for measurement in measurements
        if (agreement := measurement.agreement) and not agreement.passed
    )
    if wrong:
        raise GateFailedError(wrong)


def _runtime_of(path: Path, runtime: str | None, threads: int) -> str:
    if threads < 1:
        raise BadInputError(f"saw {threads} threads; allowed: 1 or more")
    if not path.is_file():
        raise BadInputError(f"no such file: {path}")
    fitting = RUNTIMES[format_of(path)]
    if runtime not in (None, fitting):
        raise BadInputError(f"{runtime} does not run {path.name}; allowed: {fitting}")
    return fitting


def _arguments(runtime: str, threads: int, method: Method) -> list[str]:
    settings = {
        "--runtime": runtime,
        "--threads": threads,
        "--warmup-runs": method.warmup_runs,
        "--warmup-seconds": method.warmup_seconds,
        "--runs": -(-method.runs // method.rounds),
        "--seconds": method.seconds / method.rounds,
    }
    return [str(part) for pair in settings.items() for part in pair]


def _measure_round(
    transport: Transport, path: Path, arguments: list[str], threads: int, stop: threading.Event
) -> _Said:
    there = transport.put(path)
    work = path.name if transport.address.kind == "local" else f"{path.name} on {transport.address.name}"
    events = run_agent(transport, ["--model", there, *arguments], work=work, threads=threads, stop=stop)
    return _Said(events["hello"], events["result"])


def _join(address: Address, path: Path, threads: int, said: Sequence[_Said]) -> Measurement:
    """One latency of all rounds; loading and the first inference are those of the first."""
    hello, first = said[0].hello, said[0].result
    rounds = tuple(part.round for part in said)
    times = [time for part in rounds for time in part.times_ms]
    reasons = tuple(dict.fromkeys(reason for part in rounds for reason in disturbances(part, hello["cores"])))
    latency = Latency(
        model=path.name,
        sha256=sha256_file(path),
        device=f"{address.name}: {hello['cpu']}, {hello['cores']} cores",
        runtime=hello["runtime"],
        runtime_version=hello["runtime_version"],
        threads=threads,
        warmup_runs=sum(len(part.warmup_ms) for part in rounds),
        runs=len(times),
        init_ms=first["init_ms"],
        first_ms=first["first_ms"],
        valid=not reasons,
        invalid_because=reasons,
        **asdict(summarize(times)),
    )
    agreement, note = _compare(path, first["outputs"])
    return Measurement(
        address=address.name, latency=latency, rounds=rounds, agreement=agreement, agreement_note=note
    )


def _compare(path: Path, outputs: list[list[dict[str, Any]]]) -> tuple[Agreement | None, str | None]:
    if not outputs:
        return None, "measured on this machine"
    try:
        return compare_outputs(path, outputs), None
    except FsrpEdgeError as error:  # a device may have a runtime that this machine lacks
        return None, str(error)
