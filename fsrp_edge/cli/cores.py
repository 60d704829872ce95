"""Whether the cores that torch's threads want are free: threads that wait for one another stand still beside others."""

import os
import time

from fsrp_edge.bench import agent

_LOOK_SECONDS = 0.3
_QUOTA = "sys/fs/cgroup/cpu.max"
"""`QUOTA PERIOD` in microseconds of a container (control groups, version 2), or `max PERIOD`."""


def free_cores(machine: agent.Machine | None = None, seconds: float = _LOOK_SECONDS) -> float:
    """Cores that this process may use and that no other process keeps busy.

    Args:
        machine: where to read it; this one by default.
        seconds: to look for. Where the machine does not tell, as macOS, all are taken for free.
    """
    machine = machine or agent.Machine()
    before, start = machine.busy_seconds(), time.perf_counter()
    time.sleep(seconds)
    busy = agent.foreign_cores(before, machine.busy_seconds(), time.perf_counter() - start) or 0.0
    return min(agent.cores(), quota(machine), max(0.0, (os.cpu_count() or 1) - busy))


def quota(machine: agent.Machine) -> float:
    """Cores' worth of time that a container may use; infinity without a limit."""
    used, _, period = (machine.read(_QUOTA) or "max").partition(" ")
    return float("inf") if used == "max" else int(used) / int(period)


def advice(threads: int, free: float) -> str:
    """What to do about more threads than free cores, or "" where it is well."""
    wanted = max(1, round(free))
    if threads <= wanted:
        return ""
    return (
        f"torch computes on {threads} threads, and only {free:.1f} cores are free here: that can be many times slower "
        f"than fewer threads; set OMP_NUM_THREADS={wanted}"
    )
