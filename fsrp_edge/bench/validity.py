"""Reasons to distrust a measurement, from the state around it."""

from collections.abc import Iterator, Sequence

from fsrp_edge.bench.results import Round

FOREIGN_CORES = 0.25
"""More than this many cores kept busy by other processes make a measurement invalid."""
CLOCK_CHANGE = 0.1
"""Clocks that move by more than this share while measuring make it invalid."""


def disturbances(parts: Sequence[Round], cores: int) -> Iterator[str]:
    """Why a measurement cannot be trusted; nothing where nothing is known against it.

    Args:
        parts: its rounds.
        cores: of the device.
    """
    for part in parts:
        yield from _within(part, cores)
    governors = [state.governor for part in parts for state in (part.before, part.after)]
    other = next((governor for governor in governors if governor != governors[0]), None)
    if other is not None:
        yield f"the clock governor changed from {governors[0]} to {other}"
    # Heat takes a device down step by step: between two rounds as well as within one.
    clocks = [sample.clock_mhz for part in parts for sample in part.during if sample.clock_mhz]
    if clocks and max(clocks) > (1 + CLOCK_CHANGE) * min(clocks):
        yield f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz"


def _within(part: Round, cores: int) -> Iterator[str]:
    before, after = part.before, part.after
    if part.foreign_cores is not None and part.foreign_cores > FOREIGN_CORES:
        yield f"other processes kept {part.foreign_cores:.1f} of {cores} cores busy"
    now = ((before.throttled or 0) | (after.throttled or 0)) & 0xF
    since = ((after.throttled or 0) & ~(before.throttled or 0)) >> 16 & 0xF
    if now | since:
        yield f"the device was {_throttling(now | since)}"
    if before.clocks_held != after.clocks_held:
        yield f"jetson_clocks was switched {'on' if after.clocks_held else 'off'}"


def _throttling(bits: int) -> str:
    names = ("under-voltage", "capped in its clock", "throttled", "near its temperature limit")
    return ", ".join(name for bit, name in enumerate(names) if bits >> bit & 1)
