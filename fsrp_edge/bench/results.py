"""What a latency measurement found, with the state it was found in."""

from pydantic import BaseModel, ConfigDict


class Latency(BaseModel):
    """Steady-state latency of one file, batch 1, in milliseconds, and how it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """File name."""
    sha256: str
    device: str
    """Where it ran, such as `local: Intel Xeon, 2 cores`."""
    runtime: str
    """`onnxruntime` or `litert`."""
    runtime_version: str
    threads: int
    warmup_runs: int
    runs: int
    init_ms: float
    """Loading the file and making the session."""
    first_ms: float
    """The first inference."""
    min_ms: float
    mean_ms: float
    std_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p50_interval_ms: tuple[float, float]
    """Bootstrap 95 % interval of the median."""
    valid: bool = True
    invalid_because: tuple[str, ...] = ()
