"""TFLite's own `benchmark_model` on a device, Android phones without Python included; it tells nothing but means."""

import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from fsrp_edge.bench import agent
from fsrp_edge.bench.agent_process import run_tool
from fsrp_edge.bench.transport import Transport
from fsrp_edge.errors import ToolFailedError

ROUNDS = 10
"""At least so many processes, whose means take the place of single times."""
_PLACES = {"adb": "/data/local/tmp/benchmark_model", "ssh": "benchmark_model", "local": "benchmark_model"}
_LOOK = (
    "cd / && for file in sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor "
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq sys/class/thermal/thermal_zone*/type "
    "sys/class/thermal/thermal_zone*/temp proc/loadavg proc/meminfo proc/cpuinfo; "
    'do echo "@@ $file"; cat "$file" 2>/dev/null; done; echo "@@ model"; getprop ro.product.model 2>/dev/null; true'
)


def measure_round(
    transport: Transport, there: str, arguments: dict[str, Any], work: str, stop: threading.Event
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `benchmark_model` once.

    Args:
        transport: where.
        there: path of the file on the device.
        arguments: of the agent's command line, by name.
        work: what it is about; begins an error.
        stop: set by another thread to give up.

    Returns:
        The agent's `hello` and `result`, as far as this tool tells them.

    Raises:
        ToolFailedError: the tool is missing, failed, or said something unknown.
    """
    before, device = _state(transport, work, stop)
    affinity = arguments.get("--affinity")
    command = [transport.address.tool or _PLACES[transport.address.kind]]
    if affinity:
        command = ["taskset", f"{sum(1 << core for core in agent.core_numbers(affinity)):x}", *command]
    command += [
        f"--graph={there}",
        f"--num_threads={arguments['--threads']}",
        f"--warmup_runs={max(1, arguments['--warmup-runs'])}",
        f"--warmup_min_secs={arguments['--warmup-seconds']}",
        f"--num_runs={arguments['--runs']}",
        f"--min_secs={arguments['--seconds']}",
        f"--max_secs={max(150.0, 2 * arguments['--seconds'])}",
        "--report_peak_memory_footprint=true",
    ]
    said = run_tool(transport, command, work=work, stop=stop, silence=2 * arguments["--seconds"] + 300)
    after, _ = _state(transport, work, stop)
    hello = {"runtime": "tflite-benchmark", "runtime_version": "unknown", **device}
    return hello, {**parse(said, work), "before": before, "after": after, "during": (), "outputs": []}


def parse(said: str, work: str) -> dict[str, Any]:
    """What `benchmark_model` printed, in milliseconds: the mean as the only time, and how many runs it stands for.

    Raises:
        ToolFailedError: it holds no timings; `work` begins the error.
    """
    number = r"([\d.e+]+)"
    means = re.search(
        rf"Init: {number}, First inference: {number}, Warmup \(avg\): {number}, Inference \(avg\): {number}",
        said,
    )
    counts = re.findall(r"count=(\d+)", said)
    if means is None or not counts:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise ToolFailedError(f"{work}: benchmark_model told no timings; it said: {last}")
    init, first, _, mean = (float(text) / 1e3 for text in means.groups())
    peak = re.search(rf"Peak memory footprint \(MB\):.* overall={number}", said)
    return {
        "init_ms": init,
        "first_ms": first,
        "warmup_ms": (),
        "times_ms": (mean,),
        "averaged": int(counts[-1]),
        "power_w": None,
        "foreign_cores": None,
        "peak_memory_mb": float(peak[1]) if peak else None,
    }


def _state(transport: Transport, work: str, stop: threading.Event) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of a device without Python, read by its shell and understood here; its name and cores."""
    said = run_tool(transport, ["sh", "-c", _LOOK], work=work, stop=stop)
    files = dict(part.partition("\n")[::2] for part in said.split("@@ ")[1:])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        machine = agent.Machine(folder)
        name = files["model"].strip() or machine.cpu_name()
        return machine.state(), {"cpu": name, "cores": files.get("proc/cpuinfo", "").count("processor\t")}
