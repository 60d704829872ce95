"""`fsrp-edge devices`: what is on a device, before something is measured there."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from fsrp_edge.cli import options

if TYPE_CHECKING:
    from fsrp_edge.bench.describe import DeviceDescription


@click.group()
def devices() -> None:
    """Look at devices to measure on."""


@devices.command()
@click.argument("address", metavar="ADDRESS")
@options.output_options
def check(address: str) -> None:
    """Tell what is on a device and what to install there. Exit code 3 where it can't be reached.

    ADDRESS is local, ssh://[user@]host[:port] or adb:[serial], with '?python=PATH' for another interpreter.

    \b
    fsrp-edge devices check ssh://pi@raspberrypi.local
    """
    from fsrp_edge.bench.address import parse_address
    from fsrp_edge.bench.describe import describe
    from fsrp_edge.cli.console import show_progress, show_result

    where = parse_address(address)
    with show_progress():
        device = describe(where)
    advice = []
    if missing := device.missing(device.packages):
        advice.append(f"To measure every format there: {where.install(missing)}")
    if not device.missing():
        advice.append(f"Ready: {shlex.join(['fsrp-edge', 'bench', 'MODEL', '--device', address])}")
    show_result(
        device,
        (where.name, ""),
        [(name, "not told" if value is None else value) for name, value in _rows(device)],
        footer="\n".join(advice),
    )


def _rows(device: "DeviceDescription") -> Iterator[tuple[str, str | None]]:
    yield "board", device.board
    yield "system on chip", device.soc
    yield "cores", f"{device.cores} × {device.machine}"
    yield "clock", _clock(device)
    yield "governor", device.governor
    memory = None if device.memory_mb is None else f"{device.memory_mb:,.0f} MB"
    free = "" if device.free_memory_mb is None else f", {device.free_memory_mb:,.0f} free"
    yield "memory", memory and memory + free
    yield "free space", f"{device.free_disk_mb:,.0f} MB"
    yield "system", f"{device.os}, kernel {device.kernel}"
    hot = ", ".join(f"{name} {degrees:.0f} °C" for name, degrees in device.temperatures_c.items())
    yield "temperature", hot or None
    yield (
        "throttled",
        None if device.throttled is None else f"{device.throttled:#x}" if device.throttled else "no",
    )
    yield "power mode", device.power_mode
    yield "power", None if device.power_w is None else f"{device.power_w:.1f} W"
    yield "load", None if device.load_1m is None else f"{device.load_1m:.2f}"
    yield "Python", device.python
    for name, package in device.packages.items():
        yield name, package.version or f"missing: {package.reason}"
    yield "trtexec", device.trtexec or "missing: comes with TensorRT"


def _clock(device: "DeviceDescription") -> str | None:
    clocks = [
        f"{mhz:,.0f} MHz {when}"
        for mhz, when in ((device.clock_mhz, "now"), (device.highest_clock_mhz, "at most"))
        if mhz is not None
    ]
    return ", ".join(clocks) or None
