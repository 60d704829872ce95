"""Whether a device computes what this machine computes from the same file."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsrp_edge.bench import agent
from fsrp_edge.bench.results import Agreement
from fsrp_edge.runtimes import open_session

TOLERANCE = 0.05
"""Of the largest output. Rounding in 8-bit kernels may differ by some steps between processors; a wrong kernel or
a damaged file is off by far more. Float files usually agree to 1e-5, so look at the error itself."""


def compare_outputs(
    path: Path, outputs: Sequence[Sequence[dict[str, Any]]], input_shape: Sequence[int] | None = None
) -> Agreement:
    """Run a file here on the inputs that the agent made there, and compare.

    Args:
        path: the file.
        outputs: for each seed from 0 on, the encoded outputs of the device.
        input_shape: (C, H, W) for a file that does not tell.

    Raises:
        FsrpEdgeError: the file can't be run here.
    """
    session = open_session(path)
    told = session.input.shape
    sizes = told if None not in told[1:] else (1, *(input_shape or ()))
    expected, seen = [], []
    for seed, (encoded, *_) in enumerate(outputs):
        shape = [size or 1 for size in sizes]
        batch = agent.make_inputs([("input", shape, session.input.dtype.name)], seed)["input"]
        expected.append(session.output.decode(session.invoke(batch)))
        seen.append(session.output.decode(_decode(encoded)))
    error = _relative_error(np.stack(expected), np.stack(seen))
    return Agreement(
        inputs=len(outputs),
        relative_error=error,
        tolerance=TOLERANCE,
        passed=error is not None and error <= TOLERANCE,
    )


def _decode(encoded: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(encoded["base64"]), dtype=encoded["type"])
    return values.reshape(encoded["shape"])


def _relative_error(expected: np.ndarray, seen: np.ndarray) -> float | None:
    if expected.shape != seen.shape:
        return None
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(expected - seen).max()) / scale
    return error if np.isfinite(error) else None
