"""The agent as a child process, here or on a device: its events while it lives, one clear error when it fails."""

import json
import queue
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fsrp_edge.bench.remote_shell import CLOSE_SECONDS, STOP_POLL_SECONDS
from fsrp_edge.bench.replies import Events, Fault, Hello, read
from fsrp_edge.bench.transport import Transport
from fsrp_edge.errors import ToolFailedError

AGENT = Path(__file__).with_name("agent.py")
SILENCE_SECONDS = 300.0
"""The agent reports twice a second, building an engine included; only loading or one very slow inference is silent."""

EXIT_SECONDS = 30.0
"""For a process to end that has closed its output: runtimes may free their memory then."""
_STAYED = "closed its output, but did not end; stopped"


def run_agent(
    transport: Transport, arguments: Sequence[str], *, work: str, threads: int, stop: threading.Event
) -> Events:
    """Run the agent to its end.

    Args:
        transport: where.
        arguments: of the agent's command line; paths are those of the device.
        work: what it is about, such as the model's name; begins the error.
        threads: what the libraries' environment variables say.
        stop: set by another thread to give up.

    Raises:
        ToolFailedError: the agent failed, died, went silent or was stopped.
    """
    command = [transport.address.python, transport.put(AGENT), *arguments]
    environment = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    events: Events = {}
    with tempfile.TemporaryFile() as errors, _running(transport, command, environment, errors) as agent:
        for event in _events(agent, work, stop):
            events[event["event"]] = event
        ended = _ends(agent, work, stop)
        if "error" in events:
            raise ToolFailedError(f"{work}: {_failure(transport, events, work)}")
        if not {"result", "device"} & events.keys():
            how = transport.died(agent.returncode) if ended else _STAYED
            raise ToolFailedError(f"{work}: the measuring process {how}{_last_words(errors)}")
    return events


def run_tool(
    transport: Transport,
    command: Sequence[str],
    *,
    work: str,
    stop: threading.Event,
    silence: float = SILENCE_SECONDS,
) -> str:
    """Run a program of the device to its end; what it says, errors included.

    Args:
        transport: where.
        command: program and arguments; paths are those of the device.
        work: what it is about; begins the error.
        stop: set by another thread to give up.
        silence: seconds without a word after which it is given up.

    Raises:
        ToolFailedError: it failed, is not there, went silent or was stopped.
    """
    merged = ["sh", "-c", 'exec "$0" "$@" 2>&1', *command]
    with tempfile.TemporaryFile() as errors, _running(transport, merged, {}, errors) as child:
        said = "".join(_lines(child, work, stop, silence))
        if not _ends(child, work, stop):
            raise ToolFailedError(f"{work}: {command[0]} {_STAYED}")
        if child.returncode == 0:
            return said
        last = (said.strip().splitlines() or [transport.died(child.returncode)])[-1]
        if child.returncode in (126, 127):
            # The first word is not always what is missing: taskset is there where what it should start is not.
            raise ToolFailedError(f"{work}: there is no such program: {last}; name its path with ?tool=PATH")
        raise ToolFailedError(f"{work}: {command[0]} failed: {last}")


def _ends(child: subprocess.Popen[str], work: str, stop: threading.Event) -> bool:
    """Whether a child that closed its output ends by itself before long."""
    until = time.monotonic() + EXIT_SECONDS
    while (left := until - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            child.wait(min(STOP_POLL_SECONDS, left))
            return True
        if stop.is_set():
            raise ToolFailedError(f"{work}: stopped")
    return False


@contextmanager
def _running(
    transport: Transport, command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]
) -> Iterator[subprocess.Popen[str]]:
    """A child that does not outlive the block, here and on a device, whatever ends it."""
    mark = uuid.uuid4().hex
    child = transport.start(command, {**environment, "FSRP_EDGE_MARK": mark}, errors)
    try:
        yield child
    finally:
        try:
            child.terminate()  # so that the agent here ends what it started and removes what it wrote
            child.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second interrupt, too, which ends the waiting
            child.kill()
            child.wait()
        if child.returncode:
            transport.end(mark)


def _events(agent: subprocess.Popen[str], work: str, stop: threading.Event) -> Iterator[dict[str, Any]]:
    """The agent's events until it closes its output."""
    before, begun = "", False
    for line in _lines(agent, work, stop, SILENCE_SECONDS):
        event = _event(line)
        if event is None:
            before = before or line
            if begun:
                raise ToolFailedError(_no_event(work, line))
            continue  # a login script may talk before
        begun = True
        yield event
    if before and not begun:
        raise ToolFailedError(_no_event(work, before))


def _event(line: str) -> dict[str, Any] | None:
    """The event that a line tells, behind what a login script left without an end; None for any other."""
    _, opening, rest = line.partition('{"')
    try:
        said = json.loads(opening + rest)
    except ValueError:
        return None
    return said if isinstance(said.get("event"), str) else None


def _no_event(work: str, line: str) -> str:
    return f"{work}: the measuring process said {line.strip()!r}, which is no event"


def _lines(child: subprocess.Popen[str], work: str, stop: threading.Event, silence: float) -> Iterator[str]:
    """What a child says, line by line, until it closes its output."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    heard = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=min(STOP_POLL_SECONDS, silence))
        except queue.Empty:
            if stop.is_set():
                raise ToolFailedError(f"{work}: stopped") from None
            if time.monotonic() - heard < silence:
                continue
            message = f"{work}: no sign of life for {silence:.0f} s while measuring; stopped"
            raise ToolFailedError(message) from None
        if stop.is_set():
            raise ToolFailedError(f"{work}: stopped")
        if line is None:
            return
        heard = time.monotonic()
        yield line


def _failure(transport: Transport, events: Events, work: str) -> str:
    fault = read(Fault, events, "error", work)
    if fault.install:
        return f"{fault.message}; install it there with: {transport.address.install([fault.install])}"
    if "hello" in events:  # the version is the first thing to look at where a runtime refuses a file
        hello = read(Hello, events, "hello", work)
        return f"{hello.runtime} {hello.runtime_version}: {fault.message}"
    return fault.message


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()
    return f": {said[-1]}" if said else ""
