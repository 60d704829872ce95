"""What a run depends on, as the user says it."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from fsrp_edge.attacks import DEFAULT_EPS, PGD
from fsrp_edge.bench.setup import Method
from fsrp_edge.evaluation.evaluate import AttackName
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.pruning.options import ChannelOptions
from fsrp_edge.records import Record
from fsrp_edge.report.gates import GateText, RegressionText
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.score import Criterion
from fsrp_edge.training.recipe import Recipe


class CheckpointOptions(Record):
    """Which network, and what its file does not say about it."""

    checkpoint: Path
    architecture: str | None = None
    input_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_pickle: bool = False
    data: str | None = None
    """A data set's name or path; None uses the set the checkpoint names, else embedded photographs."""


class CompressOptions(CheckpointOptions, ExportOptions, ChannelOptions):
    """Everything that a run of `compress` depends on."""

    target: str
    """Name of a packaged profile, or path of a YAML file."""
    round_epochs: int = Field(0, ge=0)
    """Epochs of recovery after each round of the gradual strategy but the last, which the recovery proper follows."""
    eps: float = Field(DEFAULT_EPS, ge=0, le=1)
    """Radius of the attacks, L∞, in units of pixels in [0, 1]; a criterion or recovery that is given has its own."""
    criterion: Criterion = Field(
        default_factory=lambda given: FSRP(attack=PGD(eps=given.get("eps", DEFAULT_EPS), steps=10))
    )
    score_images: int | None = Field(None, ge=1)
    """Training images to score on; None: 512, or 128 for inputs with a side above 64 pixels."""
    compensate: bool = True
    """Fit the weights that stay, layer by layer, to what the dense network puts out, by least squares on training
    images: at most 512, fewer of large ones, whatever `score_images` says. Not where `round_epochs` trains between
    rounds."""
    formats: tuple[Format, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    recovery: Recipe | None = Field(
        default_factory=lambda given: Recipe(
            epochs=5, learning_rate=0.05, flip=True, crop_padding=4, eps=given.get("eps", DEFAULT_EPS)
        )
    )
    """None recalibrates batch norm only."""
    natural_if_undefended: bool = Field(
        default_factory=lambda given: (
            given.get("recovery") is None or "method" not in given["recovery"].model_fields_set
        )
    )
    """Recover on clean images where the dense network withstands an attack less often than guessing would: there is
    no robustness to keep, and adversarial recovery would spend clean accuracy on making some. By default not where
    `recovery` names a method."""
    attacks: tuple[AttackName, ...] = ("pgd-20",)
    robust_images: int | None = Field(None, ge=1)
    """Evaluation images to attack, the first ones; None: 1,000, or 128 for inputs with a side above 64 pixels."""
    file_images: int = Field(32, ge=0)
    """Evaluation images to attack each file on, the first ones; 0: none. Each costs hundreds of inferences."""
    method: Method = Method()
    bench_on: str = "local"
    """Address of the device to measure latency on, such as `ssh://pi@pi4`."""
    gates: tuple[GateText, ...] = ()
    """What the result has to keep, such as `robust_accuracy>=40%`; judged in the report, nothing stops for it."""
    baseline: Path | None = None
    """An earlier run's directory or report.json."""
    max_regression: tuple[RegressionText, ...] = ()
    """By how much figures may be worse than the baseline's, such as `latency_p50=5%`."""
    seed: int = Field(0, ge=0)
    out: Path | None = None

    @property
    def compensates(self) -> bool:
        """Whether what stays is fitted to the dense network."""
        return self.compensate and not self.round_epochs

    @model_validator(mode="after")
    def _regressions_and_baseline_come_together(self) -> Self:
        if self.max_regression and self.baseline is None:
            raise ValueError("max_regression is judged by an earlier run; name it as the baseline")
        if self.baseline is not None and not self.max_regression:
            raise ValueError(
                "a baseline alone judges nothing; say how much worse a figure may be with max_regression, such as "
                "robust_accuracy=1"
            )
        return self

    @model_validator(mode="after")
    def _rounds_are_recovered_where_there_are_some(self) -> Self:
        rounds = self.rounds if self.strategy == "gradual" else 1
        if self.round_epochs and (rounds < 2 or self.recovery is None):
            raise ValueError(
                f"{self.round_epochs} epochs after rounds but the last need the gradual strategy, at least 2 rounds "
                f"and a recovery of at least one epoch; the strategy is {self.strategy!r}, with {self.rounds} rounds"
            )
        return self
