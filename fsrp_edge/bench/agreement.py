"""Whether a device computes what it should: as the same file does here, and as the network it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsrp_edge.bench.results import Agreement, Measurement
from fsrp_edge.errors import FsrpEdgeError, GateFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Probe
from fsrp_edge.runtimes import Session, open_session

TOLERANCE = 0.05
"""Of the largest output, to the same file here. Rounding in 8-bit kernels may differ by some steps between processors;
a wrong kernel or a damaged file is off by far more. Float files usually agree to 1e-5, so look at the error itself."""
RANDOM_INPUTS = 3
HALF_PRECISION = {"ncnn", "tensorrt"}
"""Runtimes that may compute an fp32 file in less: ncnn in fp16 where the cores can, TensorRT in TF32."""


@dataclass(frozen=True)
class Origin:
    """What a manifest says of a file.

    Args:
        artifact: the file.
        probe: logits of the float network that it was made from, on images that anyone can make again.
    """

    artifact: Artifact
    probe: Probe


class Expected:
    """Inputs to run on a device, and what should come back.

    Args:
        path: the file.
        runtime: what runs it there.
        origin: what is known of it; its probe's images are then the inputs, else random ones.
        input_shape: (C, H, W) for a file that does not tell.

    Raises:
        FsrpEdgeError: nothing can be expected: the file can't be run here, and nothing else is known of it.
    """

    def __init__(
        self, path: Path, runtime: str, origin: Origin | None = None, input_shape: Sequence[int] | None = None
    ) -> None:
        self.origin, self.runtime = origin, runtime
        session = self._session(path)
        if origin is not None:
            self.pixels = origin.probe.pixels()
        elif session is not None:
            self.pixels = _random_pixels(session, input_shape)
        self.here = None if session is None else np.stack([session.run(one[None]).ravel() for one in self.pixels])

    def _session(self, path: Path) -> Session | None:
        try:
            return open_session(path)
        except FsrpEdgeError:  # a device may have a runtime that this machine lacks
            if self.origin is None:
                raise
            return None

    def compare(self, outputs: Sequence[Sequence[float]]) -> Agreement:
        """Judge the outputs (inputs, values) of a device."""
        seen = np.array(outputs, np.float32)
        error = None if self.here is None else _relative_error(self.here, seen)
        passed = [self.here is None or (error is not None and error <= TOLERANCE)]
        network = None
        if self.origin is not None:
            network = _relative_error(np.array(self.origin.probe.logits, np.float32), seen)
            computed = _as_computed(self.origin.artifact, self.runtime)
            passed.append(network is not None and self.origin.probe.judge(seen, computed).passed)
        return Agreement(
            inputs=len(seen),
            relative_error=error,
            tolerance=TOLERANCE,
            network_error=network,
            passed=all(passed),
        )


def require_agreement(measurements: Sequence[Measurement]) -> None:
    """Make sure that devices compute what this machine and the network compute; what was not compared passes.

    Raises:
        GateFailedError: one does not.
    """
    wrong = "\n".join(
        f"{measurement.latency.model} computes something else on {measurement.address}: relative to the largest, its "
        f"outputs differ by {_share(agreement.relative_error)} from those here (allowed: {agreement.tolerance:g}) and "
        f"by {_share(agreement.network_error)} from the float network's"
        for measurement in measurements
        if (agreement := measurement.agreement) and not agreement.passed
    )
    if wrong:
        raise GateFailedError(wrong)


def _as_computed(artifact: Artifact, runtime: str) -> Artifact:
    """The file in the precision that it is held to."""
    if artifact.precision == "fp32" and runtime in HALF_PRECISION:
        return artifact.model_copy(update={"precision": "fp16"})
    return artifact


def _share(error: float | None) -> str:
    return "an unknown amount" if error is None else f"{error:.1e}"


def _random_pixels(session: Session, input_shape: Sequence[int] | None) -> np.ndarray:
    sizes = session.input.shape[1:]
    if session.layout == "NHWC":
        sizes = (sizes[2], *sizes[:2])
    shape = [size or 1 for size in (input_shape if input_shape and None in sizes else sizes)]
    return np.random.default_rng(0).random((RANDOM_INPUTS, *shape), dtype=np.float32)


def _relative_error(expected: np.ndarray, seen: np.ndarray) -> float | None:
    if expected.shape != seen.shape:
        return None
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(expected - seen).max()) / scale
    return error if np.isfinite(error) else None
