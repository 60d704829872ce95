"""Amounts that people write with a unit: `20ms`, `500KB`, `30%`."""

import re

TIME = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds."""
BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20}
COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
SHARE = {"%": 0.01}

_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(\S*)\s*")


def parse_amount(text: str, units: dict[str, float]) -> float:
    """The number that `text` means.

    Args:
        text: a number and a unit.
        units: what each allowed unit is worth; "" stands for a bare number.

    Raises:
        ValueError: something else, in one line that says what is allowed.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in units:
        allowed = ", ".join(name or "none" for name in units)
        raise ValueError(f"{text!r} is not a number with one of these units: {allowed}")
    return float(match[1]) * units[match[2]]
