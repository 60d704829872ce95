"""Measure files on this machine: a fresh process for each, rounds so that drift hits all of them alike."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field

from fsrp_edge import progress
from fsrp_edge.bench.results import Latency
from fsrp_edge.bench.statistics import summarize
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.export.artifact import Format
from fsrp_edge.files import sha256_file

AGENT = Path(__file__).with_name("agent.py")
RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "litert"}
SILENCE_SECONDS = 300.0
"""The agent reports twice a second, so only loading a model or one very slow inference is ever silent."""

FOREIGN_CORES = 0.25
"""More than this many cores kept busy by other processes make a measurement invalid."""

THREAD_VARIABLES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TF_NUM_")


class Method(BaseModel):
    """How long to warm up and to measure; runs and seconds are both minimums, spread over the rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    warmup_runs: int = Field(10, ge=0)
    """Before each round."""
    warmup_seconds: float = Field(0.5, ge=0)
    runs: int = Field(100, ge=1)
    seconds: float = Field(10.0, ge=0)
    rounds: int = Field(3, ge=1)


DEFAULT = Method()
QUICK = Method(runs=50, seconds=2.0, rounds=2)
OFFICIAL = Method(runs=1024, seconds=60.0, rounds=4)
"""The counts of MLPerf's single stream on mobile devices."""

Measurement = tuple[Latency, tuple[float, ...]]
"""The summary and every raw time in milliseconds, in the order of the runs."""


@dataclass(frozen=True)
class _Round:
    """What the agent said of one round."""

    hello: dict[str, Any]
    result: dict[str, Any]


def measure_local(path: Path, *, format: Format, threads: int, method: Method = DEFAULT) -> Measurement:
    """Measure one file on this machine, batch 1, CPU.

    Args:
        path: an ONNX or TFLite file with fixed input shapes; an open batch dimension is taken as 1.
        format: of the file; decides the runtime (onnxruntime, LiteRT).
        threads: at least 1.
        method: warm-up and length.

    Raises:
        BadInputError: no such file, or no thread.
        ToolFailedError: the runtime is missing, refused the model, died or went silent.
    """
    return measure_all([(path, format)], threads=threads, method=method)[0]


def measure_all(
    files: Sequence[tuple[Path, Format]], *, threads: int, method: Method = DEFAULT
) -> list[Measurement]:
    """Measure several files in alternating rounds; arguments and errors as for `measure_local`.

    Returns:
        One measurement for each file, in their order.
    """
    if threads < 1:
        raise BadInputError(f"saw {threads} threads; allowed: 1 or more")
    for path, _ in files:
        if not path.is_file():
            raise BadInputError(f"no such file: {path}")
    rounds: list[list[_Round]] = [[] for _ in files]
    schedule = [index for _ in range(method.rounds) for index in range(len(files))]
    for index in progress.track(schedule, "measure latency", len(schedule)):
        path, format_ = files[index]
        rounds[index].append(_measure_round(path, format_, threads, method))
    return [_join(path, threads, parts) for (path, _), parts in zip(files, rounds, strict=True)]


def _measure_round(path: Path, format_: Format, threads: int, method: Method) -> _Round:
    command = [sys.executable, str(AGENT), "--model", str(path), "--runtime", RUNTIMES[format_]]
    settings = {
        "--threads": threads,
        "--warmup-runs": method.warmup_runs,
        "--warmup-seconds": method.warmup_seconds,
        "--runs": -(-method.runs // method.rounds),
        "--seconds": method.seconds / method.rounds,
    }
    command += [str(part) for pair in settings.items() for part in pair]
    events: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryFile() as errors, _running(command, _environment(threads), errors) as agent:
        for event in _events(agent, path):
            events[event["event"]] = event
        agent.wait()
        if "error" in events:
            raise ToolFailedError(_failure(path, format_, events["error"]))
        if "result" not in events:
            raise ToolFailedError(f"{path.name}: the {RUNTIMES[format_]} process {_end(agent, errors)}")
    return _Round(events["hello"], events["result"])


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], errors: IO[bytes]
) -> Iterator[subprocess.Popen[str]]:
    """A child that does not outlive the block, whatever ends it."""
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _events(agent: subprocess.Popen[str], path: Path) -> Iterator[dict[str, Any]]:
    """The agent's events until it closes its output."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        assert agent.stdout is not None
        for line in agent.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=SILENCE_SECONDS)
        except queue.Empty:
            message = f"{path.name}: no sign of life for {SILENCE_SECONDS:.0f} s while measuring; stopped"
            raise ToolFailedError(message) from None
        if line is None:
            return
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            message = f"{path.name}: the measuring process said {line.strip()!r}, which is no event"
            raise ToolFailedError(message) from None


def _environment(threads: int) -> dict[str, str]:
    """The user's environment, except that only `threads` decides on threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(THREAD_VARIABLES)}
    return kept | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def _failure(path: Path, format_: Format, error: dict[str, Any]) -> str:
    if error["kind"] == "missing-runtime":
        return f'{error["message"]}; install it with: pip install "fsrp-edge[{format_}]"'
    return f"{path.name}: {error['message']}"


def _end(agent: subprocess.Popen[str], errors: IO[bytes]) -> str:
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()
    code = agent.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how}: {said[-1]}" if said else how


def _join(path: Path, threads: int, rounds: Sequence[_Round]) -> Measurement:
    """One latency of all rounds; loading and the first inference are those of the first."""
    times = tuple(time for part in rounds for time in part.result["times_ms"])
    reasons = tuple(dict.fromkeys(reason for part in rounds for reason in _disturbances(part)))
    hello, first = rounds[0].hello, rounds[0].result
    latency = Latency(
        model=path.name,
        sha256=sha256_file(path),
        device=f"local: {hello['cpu']}, {hello['cores']} cores",
        runtime=hello["runtime"],
        runtime_version=hello["runtime_version"],
        threads=threads,
        warmup_runs=sum(len(part.result["warmup_ms"]) for part in rounds),
        runs=len(times),
        init_ms=first["init_ms"],
        first_ms=first["first_ms"],
        valid=not reasons,
        invalid_because=reasons,
        **asdict(summarize(times)),
    )
    return latency, times


def _disturbances(part: _Round) -> Iterator[str]:
    """Why a round cannot be trusted."""
    foreign = part.result["foreign_cores"]
    if foreign is not None and foreign > FOREIGN_CORES:
        yield f"other processes kept {foreign:.1f} of {part.hello['cores']} cores busy"
    before, after = part.result["before"], part.result["after"]
    if (before["throttled"] or 0) & 0xF or (after["throttled"] or 0) & 0xF:
        yield "the device was throttled or under-voltage"
    if before["governor"] != after["governor"]:
        yield f"the clock governor changed from {before['governor']} to {after['governor']}"
