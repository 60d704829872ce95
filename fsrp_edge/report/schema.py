"""RunReport: what is known of one run, the only source of report.json, report.md and the console's table."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, JsonValue

from fsrp_edge.bench.results import Latency
from fsrp_edge.data.images import Dataset, ImageSet, LabelKind
from fsrp_edge.evaluation.results import ReportedAccuracy
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Parity
from fsrp_edge.files import sha256_file, without_folders
from fsrp_edge.models.classifier import ModelSpec
from fsrp_edge.models.size import Size
from fsrp_edge.pruning.plan import PruningPlan, Terms
from fsrp_edge.records import Document, Record
from fsrp_edge.targets.estimate import Estimate
from fsrp_edge.targets.profile import Target

DENSE = "dense"
"""Ledger row of the network that was handed in; its files are called `dense onnx fp32` and so on."""

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TargetReference(Record):
    """The device profile that the run was made for."""

    name: str
    sha256: Sha256

    @classmethod
    def of(cls, target: Target) -> Self:
        """What is said of a profile."""
        return cls(name=target.name, sha256=target.digest)


class Request(Record):
    """What was asked. Absolute paths among the options are cut down to their last name."""

    options: Annotated[dict[str, JsonValue], BeforeValidator(without_folders)]
    target: TargetReference
    seed: int


def _without_factory_folder(spec: ModelSpec) -> ModelSpec:
    """`architecture` may be `/home/someone/net.py:factory`."""
    return spec.model_copy(update={"architecture": without_folders(spec.architecture)})


class Source(Record):
    """The dense network that was handed in."""

    checkpoint: Annotated[str, AfterValidator(lambda name: Path(name).name)]
    """File name, without its folder."""
    sha256: Sha256
    """Of the checkpoint file."""
    model: Annotated[ModelSpec, AfterValidator(_without_factory_folder)]

    @classmethod
    def of(cls, checkpoint: Path, spec: ModelSpec) -> Self:
        """What is said of a checkpoint."""
        return cls(checkpoint=checkpoint.name, sha256=sha256_file(checkpoint), model=spec)


class ImageSetReference(Record):
    """Which images were used."""

    name: str
    images: Count
    sha256: Sha256

    @classmethod
    def of(cls, images: ImageSet) -> Self:
        """What is said of a set of images."""
        return cls(name=images.name, images=len(images), sha256=images.digest)


class DataUsed(Record):
    """The data of the run; nothing was trained or calibrated on the evaluation images."""

    description: str
    train: ImageSetReference
    evaluation: ImageSetReference
    label_kind: LabelKind
    """Of the evaluation images."""

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """What is said of a data set."""
        return cls(
            description=dataset.description,
            train=ImageSetReference.of(dataset.train),
            evaluation=ImageSetReference.of(dataset.evaluation),
            label_kind=dataset.evaluation.label_kind,
        )


class GroupChannels(Record):
    """Layers that lose the same channels together, and how many they have."""

    layers: tuple[str, ...]
    before: Count
    after: Count


class Pruning(Terms):
    """What was removed, and by which rule."""

    groups: tuple[GroupChannels, ...]
    before: Size
    after: Size
    plan_sha256: Sha256
    compensated: bool = False
    """Whether the weights that stayed were fitted to what the dense network puts out."""

    @classmethod
    def of(cls, plan: PruningPlan, before: Size, after: Size, *, compensated: bool) -> Self:
        """What is said of a plan, and of what it came to."""
        return cls(
            **plan.model_dump(include=set(Terms.model_fields)),
            groups=tuple(
                GroupChannels(layers=group.layers, before=group.channels, after=len(group.kept))
                for group in plan.groups
            ),
            before=before,
            after=after,
            plan_sha256=plan.digest,
            compensated=compensated,
        )


class Recovery(Record):
    """How the pruned network was fine-tuned."""

    recipe: dict[str, JsonValue]
    epochs: Count
    """Epochs run."""
    best_epoch: int | None
    """The epoch whose weights were kept, counted from 1."""
    history: tuple[dict[str, JsonValue], ...]
    """One record an epoch."""
    diverged: str | None = None
    """What became infinite or NaN, where that ended it early, and what was kept."""


class EstimatedLatency(Record):
    """What a file should take on the target at batch 1; nothing of it is measured."""

    runtime: str
    threads: int
    milliseconds: float
    interval: tuple[float, float]
    """Within which nine of ten measurements are expected."""
    basis: str
    """What the estimate rests on, in one line."""

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """What is said of an estimate."""
        return cls.model_validate({name: getattr(estimate, name) for name in cls.model_fields})


class LedgerRow(Record):
    """One network or file on the way from the dense network to what is shipped.

    `name` is `dense`, `pruned` or `recovered` for a network in torch, the artifact's name (`onnx fp32`) for a
    file, and the same after `dense ` for a file of the dense network that is there to be compared with.
    """

    name: str
    accuracies: tuple[ReportedAccuracy, ...] = ()
    macs: Count | None = None
    parameters: Count | None = None
    bytes: Count | None = None
    latency: tuple[Latency, ...] = ()
    estimate: EstimatedLatency | None = None
    """Of a file, where latency was not measured on the target and enough is known to estimate it."""
    parity: tuple[Parity, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Whether the row is the dense network or one of its files."""
        return self.name == DENSE or self.name.startswith(f"{DENSE} ")

    @property
    def parity_passed(self) -> bool | None:
        """Whether every parity check of the row passed; None where there was none."""
        return all(parity.passed for parity in self.parity) if self.parity else None


class SpeedUp(Record):
    """Measured median latency of a file beside that of the dense network's file, on one runtime."""

    name: str
    """Ledger row of the file."""
    against: str
    """Ledger row of the dense network's file: fp32 of the same format."""
    runtime: str
    threads: int
    dense_p50_ms: float
    p50_ms: float
    latency_ratio: float
    """Dense by pruned: above 1 is faster."""
    macs_ratio: float | None
    """Dense by pruned MACs: what the latency ratio would be if only arithmetic took time."""
    valid: bool = True
    """Whether nothing disturbed either measurement."""


class GateResult(Record):
    """One gate and how it was judged; values are in the metric's unit (shares, ms, bytes, counts)."""

    gate: str
    """As it was asked for."""
    passed: bool
    row: str | None = None
    """Ledger row that decided."""
    value: float | None = None
    """What was seen there; None where nothing was."""
    judged: float | None = None
    """The end of its 95 % interval that was compared; for a regression, the loss beyond what is allowed."""
    bound: float | None = None
    message: str
    """The same in one line."""


class StageTime(Record):
    """How long a stage took; `resumed` where its result was found in the run directory."""

    name: str
    seconds: Annotated[float, Field(ge=0)]
    resumed: bool = False


class Machine(Record):
    """The machine of the run, without anything that names it or its user."""

    cpu: str
    cores: int
    """Logical cores this process could use."""
    os: str
    gpu: str | None = None
    """That was computed on, where there is one."""


class Provenance(Record):
    """With what the run was made."""

    fsrp_edge: str
    python: str
    libraries: dict[str, str]
    """Version of each library that is installed, by its name on the package index."""
    machine: Machine
    started_at: AwareDatetime


def _speed_ups(fields: dict[str, Any]) -> tuple[SpeedUp, ...]:
    if "ledger" not in fields or "pruning" not in fields:
        return ()  # one of them is not valid, which pydantic reports afterwards
    ledger: tuple[LedgerRow, ...] = fields["ledger"]
    pruning: Pruning = fields["pruning"]
    macs_ratio = pruning.before.macs / pruning.after.macs if pruning.after.macs else None
    dense = {(row.name, latency.runtime, latency.threads): latency for row in ledger for latency in row.latency}
    found = []
    for row, latency in ((each, latency) for each in ledger if not each.is_dense for latency in each.latency):
        against = f"{DENSE} {row.name.split()[0]} fp32"
        if (beside := dense.get((against, latency.runtime, latency.threads))) is None:
            continue
        before = beside.p50_ms
        found.append(SpeedUp(
            name=row.name, against=against, runtime=latency.runtime, threads=latency.threads, dense_p50_ms=before,
            p50_ms=latency.p50_ms, latency_ratio=before / latency.p50_ms, macs_ratio=macs_ratio,
            valid=beside.valid and latency.valid,
        ))  # fmt: skip
    return tuple(found)


class RunReport(Document):
    """Everything that is known of one run of `compress`.

    `speed_ups` follow from the ledger, also of a report that is read; leave them out when making one.
    """

    called = "a valid report"

    schema_version: Literal[1] = 1
    request: Request
    source: Source
    data: DataUsed
    pruning: Pruning
    recovery: Recovery | None
    """None where no epoch of recovery was asked for."""
    ledger: tuple[LedgerRow, ...]
    artifacts: tuple[Artifact, ...]
    speed_ups: Annotated[tuple[SpeedUp, ...], BeforeValidator(lambda _, info: _speed_ups(info.data))] = Field(
        default_factory=_speed_ups
    )
    gates: tuple[GateResult, ...] = ()
    stages: tuple[StageTime, ...] = ()
    warnings: tuple[str, ...] = ()
    """Plain sentences."""
    provenance: Provenance

    def speed_up(self, row: LedgerRow, latency: Latency) -> SpeedUp | None:
        """That of a row's file, as it was measured there; None where it has no dense file beside it."""
        wanted = (row.name, latency.runtime, latency.threads)
        return next((s for s in self.speed_ups if (s.name, s.runtime, s.threads) == wanted), None)
