"""Target: what a device accepts, what is fast on it, and where each value was published."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fsrp_edge.exporting.artifact import OLDEST_INT8_OPSET, Format, Precision
from fsrp_edge.files import sha256_json
from fsrp_edge.records import Record

Value = TypeVar("Value")
Text = Annotated[str, Field(min_length=1)]
WeightBits = Literal[7, 8]
"""Of int8 weights: all, or one less where sums of their products would overflow."""


class _Frozen(Record, strict=True, allow_inf_nan=False):
    """A part of a profile."""


class Sourced(_Frozen, Generic[Value]):
    """A value and the key, in the profile's `sources`, of where it was published."""

    value: Value
    source: Text
    note: Text | None = None


class Choice(_Frozen, Generic[Value]):
    """A value that the pipeline takes over, why this one, and what backs the reason."""

    value: Value
    reason: Text
    source: Text | None = None


class Cache(_Frozen):
    """One level of data cache."""

    level: Literal[1, 2, 3, 4]
    kib: Sourced[Annotated[int, Field(ge=1, le=1 << 21)]]
    cores_sharing: Annotated[int, Field(ge=1, le=256)]


class CpuCluster(_Frozen):
    """Cores of one kind."""

    name: Text
    cores: Sourced[Annotated[int, Field(ge=1, le=256)]]
    clock_ghz: Sourced[Annotated[float, Field(ge=0.1, le=8)]] | None = None
    """Highest clock as shipped."""
    simd: Sourced[tuple[Literal["neon", "fp16", "dotprod", "i8mm", "avx2", "avx512", "vnni", "amx"], ...]] | None = None
    operations_per_cycle: dict[Precision, Sourced[Annotated[float, Field(gt=0, le=4096)]]] = {}
    """Of one core; a multiply-accumulate is two operations."""
    caches: tuple[Cache, ...] = ()

    def peak_gops(self, precision: Precision) -> float | None:
        """10^9 operations a second of all cores, or None where clock or operations a cycle are not known."""
        operations = self.operations_per_cycle.get(precision)
        if self.clock_ghz is None or operations is None:
            return None
        return self.cores.value * self.clock_ghz.value * operations.value


class Memory(_Frozen):
    """Main memory. The size is that of the board's largest variant unless a note says otherwise."""

    kind: Sourced[Text] | None = None
    size_gib: Sourced[Annotated[float, Field(gt=0, le=4096)]] | None = None
    bandwidth_gb_per_s: Sourced[Annotated[float, Field(gt=0, le=10_000)]] | None = None
    """Theoretical peak."""


class Accelerator(_Frozen):
    """A GPU or an NPU."""

    kind: Literal["gpu", "npu"]
    name: Sourced[Text]
    clock_ghz: Sourced[Annotated[float, Field(ge=0.01, le=8)]] | None = None
    """Highest clock as shipped."""
    peak_gops: dict[Precision, Sourced[Annotated[float, Field(gt=0)]]] = {}
    """10^9 operations a second by precision, without sparsity; a multiply-accumulate is two operations."""
    on_chip_mib: Sourced[Annotated[float, Field(gt=0, le=4096)]] | None = None
    """Memory of its own that keeps weights; what does not fit is streamed at every inference."""
    link_gb_per_s: Sourced[Annotated[float, Field(gt=0, le=10_000)]] | None = None
    """Theoretical peak of the bus to the host, for an accelerator that does not share the main memory."""


class Runtime(_Frozen):
    """An inference runtime on the device, and the newest file it accepts."""

    name: Literal["onnxruntime", "litert", "tensorrt", "ncnn"]
    runs_on: Literal["cpu", "gpu", "npu"] = "cpu"
    version: Sourced[Text] | None = None
    max_onnx_opset: Sourced[Annotated[int, Field(ge=7, le=30)]] | None = None
    max_onnx_ir_version: Sourced[Annotated[int, Field(ge=3, le=20)]] | None = None
    operators: Sourced[Annotated[tuple[Text, ...], Field(min_length=1)]] | None = None
    """The only operators that it takes, where it takes but a few; TFLite's names for litert, ONNX's for others."""
    notes: tuple[Text, ...] = ()


class Gain(_Frozen):
    """Whether a precision is worth having on this device."""

    useful: bool
    reason: Text
    source: Text | None = None


class Precisions(_Frozen):
    """The device's view of each precision."""

    fp32: Gain
    fp16: Gain
    int8: Gain


class Choices(_Frozen):
    """What the pipeline takes from the profile."""

    channel_multiple: Choice[Annotated[int, Field(ge=1, le=128)]]
    threads: Choice[Annotated[int, Field(ge=1, le=256)]]
    onnx_opset: Choice[Annotated[int, Field(ge=7, le=30)]]
    onnx_ir_version: Choice[Annotated[int, Field(ge=3, le=20)]]
    int8_activation: Choice[Literal["uint8", "int8"]]
    int8_weight_bits: Choice[WeightBits] = Choice(value=8, reason="its sums of products do not overflow")
    """7 where the processor adds two products in 16 bits, which those of 8-bit numbers overflow."""


class ArtifactRow(_Frozen):
    """Whether one format in one precision is made by default, on request, or not at all."""

    status: Literal["default", "offered", "refused"]
    reason: Text
    source: Text | None = None


def _row(status: Literal["offered", "refused"], reason: str) -> ArtifactRow:
    return ArtifactRow(status=status, reason=reason)


class ArtifactRows(_Frozen):
    """A format in every precision; most profiles say nothing of the last one."""

    fp32: ArtifactRow
    fp16: ArtifactRow
    int8: ArtifactRow
    int8_dynamic: ArtifactRow | None = None


_FROM_FP32 = _row("refused", "TensorFlow's own converter starts from fp32; for a small file take tflite")
_NO_TOOL = _row("refused", "ncnn2table and ncnn2int8 are in no package; run them on the fp32 folder")
IMPLIED: dict[tuple[Format, Precision], ArtifactRow] = {
    ("onnx", "int8-dynamic"): _row("refused", "onnxruntime's integer convolutions are slower than fp32"),
    ("tflite", "int8-dynamic"): _row("offered", "a quarter of the size without calibration; slower than int8"),
    ("saved_model", "fp32"): _row("offered", "for TensorFlow's own tools and servers; the device takes tflite"),
    ("saved_model", "fp16"): _FROM_FP32,
    ("saved_model", "int8"): _FROM_FP32,
    ("saved_model", "int8-dynamic"): _FROM_FP32,
    ("ncnn", "fp32"): _row("offered", "ncnn may compute it in half precision all the same, where the cores can"),
    ("ncnn", "fp16"): _row("offered", "half the size; ncnn computes in half precision where the cores can"),
    ("ncnn", "int8"): _NO_TOOL,
    ("ncnn", "int8-dynamic"): _NO_TOOL,
}
"""What holds where a profile says nothing."""


class Artifacts(_Frozen):
    """The files that could be made; for what a profile leaves out, see `IMPLIED`."""

    onnx: ArtifactRows
    tflite: ArtifactRows
    saved_model: ArtifactRows | None = None
    ncnn: ArtifactRows | None = None


@dataclass(frozen=True)
class Offer:
    """One row of the table of files that a target offers."""

    format: Format
    precision: Precision
    offered: bool
    default: bool
    reason: str


class Target(_Frozen):
    """A validated device profile.

    Every hardware value is a `Sourced`; what nobody could source is absent. Build one with
    `fsrp_edge.targets.load.load_target`, whose errors name the line of the file.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*(@[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
    description: Text
    sources: dict[Text, Text]
    """Key to the address or the name of a published document."""
    soc: Sourced[Text] | None = None
    cpu: tuple[CpuCluster, ...] = ()
    memory: Memory = Memory()
    power_watts: Sourced[Annotated[float, Field(gt=0, le=10_000)]] | None = None
    """The budget of this power mode."""
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: Annotated[tuple[Runtime, ...], Field(min_length=1)]
    precisions: Precisions
    choices: Choices
    artifacts: Artifacts
    thermal: tuple[Sourced[Text], ...] = ()

    @property
    def channel_multiple(self) -> int:
        """Channels of pruned layers are kept at multiples of this."""
        return self.choices.channel_multiple.value

    @property
    def threads(self) -> int:
        """Threads to measure and estimate with."""
        return self.choices.threads.value

    @property
    def cores(self) -> int | None:
        """Of the CPU; None where the profile names none."""
        return sum(cluster.cores.value for cluster in self.cpu) or None

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Every format in every precision, ONNX first, fp32 first."""
        return tuple(
            Offer(format_, precision, row.status != "refused", row.status == "default", row.reason)
            for format_ in get_args(Format)
            for precision in get_args(Precision)
            for row in [self._artifact(format_, precision)]
        )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the validated content; an optional field changes it only where it is given."""
        return sha256_json(self.model_dump(mode="json", exclude_none=True, exclude_defaults=True))

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for location, message in self._contradictions():
            raise PydanticCustomError("contradiction", "{message}", {"message": message, "location": location})
        return self

    def _artifact(self, format_: Format, precision: Precision) -> ArtifactRow:
        rows: ArtifactRows | None = getattr(self.artifacts, format_)
        row: ArtifactRow | None = getattr(rows, precision.replace("-", "_"), None)
        if row is not None:
            return row
        # What no profile has to say follows from what it says of the others.
        tflite = self.artifacts.tflite.fp32
        if tflite.status == "refused" and format_ in ("tflite", "saved_model"):
            return tflite
        if format_ == "ncnn" and not any(runtime.name == "ncnn" for runtime in self.runtimes):
            return _row("refused", "ncnn is not among this profile's runtimes")
        return IMPLIED[format_, precision]

    def _contradictions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Where two values that are possible one by one exclude each other."""
        used = set()
        for location, key in source_keys(self.model_dump(exclude={"sources"}), ()):
            used.add(key)
            if key not in self.sources:
                yield (
                    location,
                    f"{key!r} is not a key of `sources`; allowed: {', '.join(sorted(self.sources))}",
                )
        for key in self.sources.keys() - used:
            yield ("sources", key), f"no value uses the source {key!r}; remove it"
        if self.cores is not None and self.threads > self.cores:
            yield ("choices", "threads"), f"{self.threads} threads on {self.cores} cores; allowed: at most {self.cores}"
        for runtime in self.runtimes:
            for name in ("onnx_opset", "onnx_ir_version"):
                chosen, cap = getattr(self.choices, name).value, getattr(runtime, f"max_{name}")
                if cap is not None and chosen > cap.value:
                    yield (
                        ("choices", name),
                        f"{name} {chosen} is newer than {runtime.name} accepts; allowed: at most {cap.value}",
                    )
        opset = self.choices.onnx_opset.value
        if opset < OLDEST_INT8_OPSET and self.artifacts.onnx.int8.status != "refused":
            yield (
                ("artifacts", "onnx", "int8", "status"),
                f"int8 needs onnx_opset {OLDEST_INT8_OPSET} or newer, not {opset}; allowed: refused",
            )
        if not any(offer.default for offer in self.offers):
            yield ("artifacts",), "no file has the status `default`; give it to at least one"
        for offer in self.offers:
            gain: Gain = getattr(self.precisions, offer.precision.removesuffix("-dynamic"))
            if offer.default and not gain.useful:
                yield (
                    ("artifacts", offer.format, offer.precision, "status"),
                    f"`precisions` calls {offer.precision} useless; allowed: offered, refused",
                )


def source_keys(node: Any, location: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every `source` in a dumped profile with its place."""
    if isinstance(node, dict):
        for key, child in node.items():
            if key == "source" and isinstance(child, str):
                yield (*location, key), child
            else:
                yield from source_keys(child, (*location, key))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from source_keys(child, (*location, index))
