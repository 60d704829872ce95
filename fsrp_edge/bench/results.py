"""What a latency measurement found, with the state it was found in."""

import csv
import io
from typing import Literal

from fsrp_edge.records import Document, Record


class Summary(Record):
    """Statistics of latencies in milliseconds."""

    min_ms: float
    mean_ms: float
    std_ms: float
    """Of the sample (n - 1); 0 for a single run."""
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p50_interval_ms: tuple[float, float]
    """Bootstrap 95 % interval of the median."""


class Latency(Summary):
    """Steady-state latency of one file, batch 1, in milliseconds, and how it was measured."""

    model: str
    """File name, after its folder's where several were measured that have the same."""
    sha256: str
    device: str
    """Where it ran, such as `local: Intel Xeon, 2 cores`."""
    runtime: str
    """`onnxruntime`, `litert`, `tflite-benchmark`, `ncnn`, `benchncnn` or `tensorrt`."""
    runtime_version: str
    threads: int
    affinity: str | None = None
    """The cores that it was kept on, such as `4-7`."""
    warmup_runs: int
    runs: int
    runs_averaged: int = 1
    """Runs that each time is the mean of: above 1 for tools that tell nothing but means, one a round."""
    init_ms: float | None
    """Loading the file and making the session; building the engine with TensorRT; None where a tool tells neither."""
    first_ms: float | None
    """The first inference."""
    power_w: float | None = None
    """Of the whole board (or of an x86's packages) while measuring, what it draws at rest included."""
    energy_mj: float | None = None
    """Millijoules an inference: that power times the mean latency."""
    valid: bool = True
    """Whether nothing is known against it. A tool that tells nothing but means is judged by the device's state before
    and after it: its clocks, and what other processes did meanwhile, are not seen."""
    invalid_because: tuple[str, ...] = ()


class State(Record):
    """What may disturb a measurement; None where the device does not tell."""

    governor: str | None
    """Of the clocks; several names where cores differ."""
    clock_mhz: float | None
    """Of the fastest core."""
    gpu_clock_mhz: float | None = None
    temperatures_c: dict[str, float]
    """By thermal zone."""
    throttled: int | None
    """Raspberry Pi's bits: 0 to 3 are now, 16 to 19 since the device started."""
    power_mode: str | None = None
    """Jetson: what nvpmodel is set to."""
    clocks_held: bool | None = None
    """Jetson: whether jetson_clocks keeps cores and GPU at their highest clocks; telling needs root there."""
    power_w: float | None = None
    load_1m: float | None
    free_memory_mb: float | None


class Sample(Record):
    """The state between two inferences, `seconds` after the first."""

    seconds: float
    clock_mhz: float | None
    temperature_c: float | None
    """Of the hottest thermal zone."""
    power_w: float | None = None


class Round(Record):
    """What one fresh process measured; models take turns in rounds, so that drift hits all of them alike."""

    warmup_ms: tuple[float, ...]
    times_ms: tuple[float, ...]
    """Every raw time, in the order of the runs."""
    power_w: float | None = None
    """Mean over these runs."""
    before: State
    during: tuple[Sample, ...]
    after: State
    foreign_cores: float | None
    """Cores that other processes kept busy on average."""
    peak_memory_mb: float | None
    """The most the process ever held, interpreter and runtime included."""


class Agreement(Record):
    """Outputs on the device beside what they should be: two comparisons for the same inputs."""

    inputs: int
    relative_error: float | None
    """To the same file here: largest difference by largest output. None where an output is not a number, or this
    machine can't run the file."""
    tolerance: float
    network_error: float | None = None
    """To the float network that the file was made from, as its manifest keeps it; None without a manifest."""
    passed: bool
    """Of what was compared, all; an error to the network is judged by the precision of the file, fp32 in ncnn and
    TensorRT by that of fp16."""


class Recognition(Record):
    """What a file recognized on a device."""

    data: str
    images: int
    correct: int | None
    """None without labels."""
    same_as_here: int | None
    """Images in which this machine finds the same class with the same file; None where it can't run it."""


class Measurement(Record):
    """One file on one device."""

    address: str
    """As in `--device`, without the user's name."""
    latency: Latency
    rounds: tuple[Round, ...]
    agreement: Agreement | None = None
    agreement_note: str | None = None
    """Why outputs were not compared."""
    recognition: Recognition | None = None

    @property
    def times_ms(self) -> tuple[float, ...]:
        """Every raw time of all rounds."""
        return tuple(time for part in self.rounds for time in part.times_ms)

    @property
    def peak_memory_mb(self) -> float | None:
        """The most memory that a round's process held."""
        return max((part.peak_memory_mb for part in self.rounds if part.peak_memory_mb), default=None)


class Failure(Record):
    """A device, or a file on it, that gave no result, and why."""

    address: str
    message: str


_APART = ("p50_interval_ms", "invalid_because")
_FIGURES = sorted(  # what was measured comes first
    (name for name in Latency.model_fields if name not in _APART),
    key=lambda name: name in Summary.model_fields,
)
_DERIVED = ("p50_low_ms", "p50_high_ms", "peak_memory_mb", "output_error", "network_error", "invalid_because")


class BenchResults(Document):
    """All that one run of `bench` found; the content of its JSON file."""

    called = "a result of `fsrp-edge bench --out`"

    schema_version: Literal[1] = 1
    fsrp_edge: str
    """Version of this package."""
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...] = ()

    def to_csv(self) -> str:
        """One line a measurement: the summary, without raw times."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["address", *_FIGURES, *_DERIVED])
        for one in self.measurements:
            latency, agreement = one.latency, one.agreement
            errors = (agreement.relative_error, agreement.network_error) if agreement else (None, None)
            figures = (getattr(latency, name) for name in _FIGURES)
            derived = (
                *latency.p50_interval_ms,
                one.peak_memory_mb,
                *errors,
                "; ".join(latency.invalid_because),
            )
            writer.writerow([one.address, *figures, *derived])
        return stream.getvalue()
