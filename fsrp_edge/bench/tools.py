"""Runtimes' own benchmark programs, for devices without Python, phones included; they tell nothing but means."""

import math
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from fsrp_edge.bench import agent
from fsrp_edge.bench.agent_process import run_tool
from fsrp_edge.bench.replies import Events
from fsrp_edge.bench.transport import Transport
from fsrp_edge.errors import ToolFailedError

PROGRAMS = {"tflite-benchmark": "benchmark_model", "benchncnn": "benchncnn"}
"""By the name of the runtime."""
ROUNDS = 10
"""At least so many processes, whose means take the place of single times."""
_LOOK = (
    "cd / && for file in sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor "
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq sys/class/thermal/thermal_zone*/type "
    "sys/class/thermal/thermal_zone*/temp proc/loadavg proc/meminfo proc/cpuinfo proc/device-tree/model; "
    'do test -e "$file" || continue; echo "@@ $file"; cat "$file" 2>/dev/null; echo; done; '
    f'echo "@@ {agent.Machine.THROTTLED}"; '
    f"cat {agent.Machine.THROTTLED} 2>/dev/null || vcgencmd get_throttled 2>/dev/null | cut -d= -f2; "
    'echo "@@ machine"; uname -m; echo "@@ model"; getprop ro.product.model 2>/dev/null; true'
)
_ASKED = re.compile(
    r"sys/devices/system/cpu/cpu\d{1,5}/cpufreq/scaling_(governor|cur_freq)|"
    r"sys/class/thermal/thermal_zone\d{1,5}/(type|temp)|"
    rf"proc/(loadavg|meminfo|cpuinfo|device-tree/model)|{agent.Machine.THROTTLED}|machine|model",
    re.ASCII,
)
"""What `_LOOK` tells of. No other name becomes one of a file here, whatever a device says."""
_NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?)"


def measure_round(
    transport: Transport, there: str, arguments: dict[str, Any], work: str, stop: threading.Event
) -> Events:
    """Run a benchmark program once.

    Args:
        transport: where.
        there: path of the file on the device.
        arguments: of the agent's command line, by name.
        work: what it is about; begins an error.
        stop: set by another thread to give up.

    Returns:
        The agent's `hello` and `result`, as far as the program tells them.

    Raises:
        ToolFailedError: the program is missing, failed, or said something unknown.
    """
    runtime, affinity = arguments["--runtime"], arguments.get("--affinity")
    place = "/data/local/tmp/" if transport.address.kind == "adb" else ""
    program = [transport.address.tool or place + PROGRAMS[runtime]]
    if affinity:
        program = ["taskset", f"{sum(1 << core for core in agent.core_numbers(affinity)):x}", *program]

    def ask(*options: str, seconds: float = 2 * arguments["--seconds"]) -> str:
        return run_tool(transport, [*program, *options], work=work, stop=stop, silence=seconds + 300)

    before, device = _state(transport, work, stop)
    timed = (_benchncnn if runtime == "benchncnn" else _benchmark_model)(ask, there, arguments, work)
    after, _ = _state(transport, work, stop)
    hello = {"runtime": runtime, "runtime_version": "unknown", **device}
    untold: dict[str, Any] = dict.fromkeys(("init_ms", "first_ms", "power_w", "foreign_cores", "peak_memory_mb"))
    untold |= {"warmup_ms": (), "during": (), "outputs": []}
    return {"hello": hello, "result": {**untold, **timed, "before": before, "after": after}}


def _benchmark_model(ask: Any, there: str, arguments: dict[str, Any], work: str) -> dict[str, Any]:
    return parse_benchmark_model(
        ask(
            f"--graph={there}",
            f"--num_threads={arguments['--threads']}",
            f"--warmup_runs={max(1, arguments['--warmup-runs'])}",
            f"--warmup_min_secs={arguments['--warmup-seconds']}",
            f"--num_runs={arguments['--runs']}",
            f"--min_secs={arguments['--seconds']}",
            f"--max_secs={max(150.0, 2 * arguments['--seconds'])}",
            "--report_peak_memory_footprint=true",
        ),
        work,
    )


def parse_benchmark_model(said: str, work: str) -> dict[str, Any]:
    """What `benchmark_model` printed, in milliseconds: the mean as the only time, and how many runs it stands for.

    Raises:
        ToolFailedError: it holds no timings; `work` begins the error.
    """
    means = re.search(
        rf"Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}",
        said,
    )
    counts = re.findall(r"count=(\d+)", said)
    if means is None or not counts:
        raise _no_timings("benchmark_model", said, work)
    init, first, _, mean = (float(text) / 1e3 for text in means.groups())
    peak = re.search(rf"Peak memory footprint \(MB\):.* overall={_NUMBER}", said)
    return {
        "init_ms": init,
        "first_ms": first,
        "times_ms": (mean,),
        "averaged": int(counts[-1]),
        "peak_memory_mb": float(peak[1]) if peak else None,
    }


def _benchncnn(ask: Any, there: str, arguments: dict[str, Any], work: str) -> dict[str, Any]:
    """It runs a fixed number of loops after 8 to warm up, so a first call tells how many fill the time."""
    shape = ",".join(reversed(arguments["--input-shape"].split(",")))  # width, height, channels

    def loops(count: int, **expected: float) -> float:
        # On all cores, without a GPU, without its rest of ten seconds.
        given = (
            str(count),
            str(arguments["--threads"]),
            "0",
            "-1",
            "0",
            f"param={there}",
            f"shape=[{shape}]",
        )
        return parse_benchncnn(ask(*given, **expected), work)

    mean = loops(max(arguments["--warmup-runs"], 1))
    count = max(arguments["--runs"], math.ceil(1e3 * arguments["--seconds"] / max(mean, 1e-3)))
    # It says nothing before its end; twice the time that the loops should take is no sign of a fault.
    return {"times_ms": (loops(count, seconds=2e-3 * mean * (count + 8)),), "averaged": count}


def parse_benchncnn(said: str, work: str) -> float:
    """The mean in milliseconds that benchncnn printed.

    Raises:
        ToolFailedError: there is none, or of several networks: a build too old to know `param=` measures its own.
    """
    means = re.findall(rf" min = +{_NUMBER} +max = +{_NUMBER} +avg = +{_NUMBER}", said)
    if len(means) != 1 or float(means[0][2]) <= 0:
        raise _no_timings("benchncnn", said, work)
    return float(means[0][2])


def _no_timings(program: str, said: str, work: str) -> ToolFailedError:
    last = (said.strip().splitlines() or ["nothing"])[-1]
    return ToolFailedError(f"{work}: {program} told no timings of this file; it said: {last.strip()}")


def _state(transport: Transport, work: str, stop: threading.Event) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of a device without Python, read by its shell and understood here; its name and cores."""
    said = run_tool(transport, ["sh", "-c", _LOOK], work=work, stop=stop)
    files = dict(part.partition("\n")[::2] for part in said.split("@@ ")[1:])
    if "machine" not in files:
        raise ToolFailedError(f"{work}: the device does not tell its state, but {said.strip()[:80]!r}")
    for name in files:
        if not _ASKED.fullmatch(name):
            raise ToolFailedError(f"{work}: the device told of a file {name!r} that was not asked for")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        machine = agent.Machine(folder)
        names = (files.get("model", "").strip(), machine.cpu_name(), files.get("machine", "").strip())
        try:
            state = machine.state()
        except (ValueError, IndexError, ArithmeticError) as error:
            raise ToolFailedError(f"{work}: what the device tells of its state is no state: {error}") from None
    device = {"cpu": next(filter(None, names), "unknown"), "cores": files.get("proc/cpuinfo", "").count("processor\t")}
    return state, device
