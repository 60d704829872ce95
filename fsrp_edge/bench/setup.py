"""What a measurement is asked for: how long, and how files are run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from fsrp_edge.bench import agent
from fsrp_edge.bench.agreement import Origin
from fsrp_edge.bench.tools import PROGRAMS
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Format
from fsrp_edge.records import Record

SUFFIXES = {
    "onnxruntime": ".onnx",
    "litert": ".tflite",
    "tflite-benchmark": ".tflite",
    "tensorrt": ".onnx",
    "ncnn": ".ncnn",
    "benchncnn": ".ncnn",
}
"""What each runtime runs, ncnn folders of two files; the first for a suffix is its default."""
DEFAULT_RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "litert", "ncnn": "ncnn"}


class Method(Record):
    """How long to warm up and to measure; runs and seconds are both minimums, spread over the rounds."""

    warmup_runs: int = Field(10, ge=0)
    """Before each round."""
    warmup_seconds: float = Field(0.5, ge=0)
    runs: int = Field(100, ge=1)
    seconds: float = Field(10.0, ge=0)
    rounds: int = Field(3, ge=1)
    cool_down_seconds: float = Field(0.0, ge=0)
    """Rest before every process but a device's first."""


DEFAULT = Method()
QUICK = Method(runs=50, seconds=2.0, rounds=2)
OFFICIAL = Method(runs=1024, seconds=60.0, rounds=4)
"""The counts of MLPerf's single stream on mobile devices."""


@dataclass(frozen=True)
class Setup:
    """How files are run, the same for all.

    Args:
        runtime: one of SUFFIXES; None takes each suffix's default.
        threads: of an inference, at least 1; ncnn, onnxruntime and TFLite.
        affinity: cores to stay on, such as `0,4-7`; None leaves that to the system.
        input_shape: (C, H, W) of an image, for ncnn, whose files do not tell.
        images: what to recognize on the device after measuring; None for nothing.
        origins: what manifests say of files, by SHA-256; a device's outputs are compared with the network's then.
        preferred: runtimes that are taken in place of the default for what they run.
    """

    runtime: str | None = None
    threads: int = 1
    affinity: str | None = None
    input_shape: tuple[int, ...] | None = None
    images: ImageSet | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)
    preferred: Collection[str] = ()

    def runtime_of(self, path: Path) -> str:
        """The runtime for a file.

        Raises:
            BadInputError: no such file, an incomplete one, one that the runtime does not run, or a setting that makes
                no sense.
        """
        if self.threads < 1:
            raise BadInputError(f"saw {self.threads} threads; allowed: 1 or more")
        try:
            agent.core_numbers("0" if self.affinity is None else self.affinity)
        except ValueError:
            raise BadInputError(f"saw cores {self.affinity!r}; write them as 0,2,4-7") from None
        if not path.exists():
            raise BadInputError(f"no such file: {path}")
        fitting = [name for name, suffix in SUFFIXES.items() if suffix == path.suffix.lower()]
        if not fitting:
            allowed = ", ".join(dict.fromkeys(SUFFIXES.values()))
            raise BadInputError(f"{path.name}: unknown suffix '{path.suffix}'; allowed: {allowed}")
        if self.runtime is not None and self.runtime not in fitting:
            raise BadInputError(f"{self.runtime} does not run {path.name}; allowed: {', '.join(fitting)}")
        if path.suffix == ".ncnn" and self.input_shape is None:
            raise BadInputError(f"{path.name} does not tell its input's shape: give --input-shape, such as 3,224,224")
        if self.runtime == "benchncnn" and self.affinity is not None:
            raise BadInputError("benchncnn spreads over all cores whatever it was kept on; take --runtime ncnn")
        _require_complete(path)
        chosen = self.runtime or next((name for name in fitting if name in self.preferred), fitting[0])
        if self.images is not None and chosen in PROGRAMS:
            raise BadInputError(
                f"{PROGRAMS[chosen]} recognizes no images; leave --evaluate out, or take --runtime {fitting[0]}"
            )
        return chosen


def _require_complete(path: Path) -> None:
    """What is missing is told here, before a device is asked to take it."""
    if path.suffix != ".ncnn":
        if not path.is_file():
            raise BadInputError(f"{path} is a folder; only ncnn's are, and end with .ncnn: name the file in it")
        return
    lacking = [name for name in ("model.param", "model.bin") if not (path / name).is_file()]
    if lacking:
        raise BadInputError(
            f"{path} lacks {' and '.join(lacking)}; an ncnn model is a folder of model.param and model.bin: export it "
            "anew with --format ncnn"
        )
