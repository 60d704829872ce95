"""What a device is, and what it lacks before anything can be measured there."""

import threading
from collections.abc import Iterable

from fsrp_edge.bench.address import Address
from fsrp_edge.bench.agent_process import run_agent
from fsrp_edge.bench.replies import read
from fsrp_edge.bench.results import State
from fsrp_edge.bench.transport import open_transport
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.records import Record


class Package(Record):
    """A Python package that measuring needs; `version` is None where it can't be imported, for `reason`."""

    version: str | None
    install: str | None = None
    """Its name on the package index, where it is missing."""
    reason: str | None = None


class DeviceDescription(State):
    """A device as it describes itself; None where it does not tell."""

    board: str
    soc: str | None
    machine: str
    """Instruction set, such as aarch64."""
    cores: int
    highest_clock_mhz: float | None
    memory_mb: float | None
    free_disk_mb: float
    """Where files are put."""
    os: str
    kernel: str
    python: str
    trtexec: str | None
    """Its path, which runtime `tensorrt` needs."""
    packages: dict[str, Package]
    """numpy, and each runtime that is a Python package by its name."""

    def missing(self, needed: Iterable[str] = ("numpy", "onnxruntime", "litert")) -> list[str]:
        """What to install of the packages in `needed`; by default what ONNX and TFLite files need."""
        return [package.install for name in needed if (package := self.packages[name]).install]


def describe(address: Address) -> DeviceDescription:
    """Ask a device what it is; needs nothing but Python 3.6 there.

    Raises:
        ToolFailedError: it can't be reached, or has no such Python.
    """
    never = threading.Event()  # nobody else is there to ask for an early end
    with open_transport(address, never) as transport:
        events = run_agent(transport, ["--describe"], work=address.name, threads=1, stop=never)
    return read(DeviceDescription, events, "device", address.name)


def require_ready(address: Address, runtimes: Iterable[str]) -> None:
    """Make sure that a device can be reached and has what measuring with `runtimes` needs.

    Raises:
        ToolFailedError: not so; the text names the command that installs what is missing.
    """
    wanted, there = set(runtimes), describe(address)
    if "tensorrt" in wanted and there.trtexec is None:
        raise ToolFailedError(f"{address.name} lacks trtexec, which runs TensorRT; NVIDIA's JetPack has it")
    missing = there.missing(["numpy", *sorted(wanted - {"tensorrt"})])
    if missing:
        raise ToolFailedError(
            f"{address.name} lacks {', '.join(missing)}; install there with: {address.install(missing)}"
        )
