"""What an evaluation measured, with all that is needed to read the number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fsrp_edge.attacks import Norm
from fsrp_edge.data.images import LabelKind
from fsrp_edge.records import Document, Record


class PairedDifference(Record):
    """How much more often the second network is right than the first, on the same images under the same attack."""

    images: int = Field(gt=0)
    only_first: int = Field(ge=0)
    """Images on which only the first network is right."""
    only_second: int = Field(ge=0)
    difference: float = Field(ge=-1, le=1)
    """Accuracy of the second minus that of the first."""
    interval: tuple[float, float]
    """95 % interval of the difference (Agresti and Min, Statistics in Medicine 24, 2005: half an image is added to each
    cell of the table)."""
    p_value: float = Field(ge=0, le=1)
    """Exact McNemar test, two-sided: the chance of discordant images at least this lopsided between equal networks."""


class Accuracy(Record):
    """Accuracy of one network or file on one set of images under one attack (or none)."""

    attack: str
    """`clean`, `fgsm`, `pgd-20`, `cw-20`, `autoattack`, `worst case of autoattack, pgd-20`, or a corruption such
    as `fog`."""
    norm: Norm | None = None
    eps: float | None = None
    """Radius in units of pixels in [0, 1]; None without an attack."""
    images: int = Field(gt=0)
    correct: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    """Wilson 95 % interval of the accuracy."""
    seed: int | None = None
    data: str
    """Name of the image set."""
    label_kind: LabelKind
    """With predicted labels the number is agreement with the dense network, not accuracy."""
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _lies_in_its_interval(self) -> Self:
        low, high = self.interval
        if not low <= self.accuracy <= high:
            raise ValueError(f"accuracy {self.accuracy:g} is outside of its interval, {low:g} to {high:g}")
        return self


class ReportedAccuracy(Accuracy):
    """An accuracy as a run's report holds it, to be compared with other networks' on the same images."""

    since_dense: PairedDifference | None = None
    """The change from the dense network (the first) to this one (the second)."""
    standing: str | None = Field(None, pattern="^([0-9a-f]{2})+$")
    """A bit for each image, 1 where the prediction is still right; eight of them are two hexadecimal digits, the first
    image's bit is the highest."""

    @model_validator(mode="after")
    def _a_bit_for_each_image(self) -> Self:
        if self.standing is not None and len(self.standing) != 2 * math.ceil(self.images / 8):
            raise ValueError(f"standing has to hold a bit for each of {self.images} images")
        return self

    @property
    def stands(self) -> Tensor | None:
        """Bool (images,); None where it was not kept."""
        if self.standing is None:
            return None
        marks = np.unpackbits(np.frombuffer(bytes.fromhex(self.standing), np.uint8), count=self.images)
        return torch.from_numpy(marks.astype(bool))


@dataclass(frozen=True)
class Evaluation:
    """An accuracy and which images make it up.

    Args:
        result: the number.
        standing: bool (images,), True where the prediction is still right.
    """

    result: Accuracy
    standing: Tensor


class Judged(Record):
    """An evaluation as it is saved."""

    result: Accuracy
    standing: str = Field(pattern="^[01]+$")
    """A 1 for each image that still stands, in their order."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """Put an evaluation in this form."""
        marks = "".join("01"[stands] for stands in evaluation.standing.tolist())
        return cls(result=evaluation.result, standing=marks)

    @property
    def attack(self) -> tuple[str, Norm | None, float | None]:
        """What two of them have in common that can be compared."""
        return self.result.attack, self.result.norm, self.result.eps

    @property
    def stands(self) -> Tensor:
        """Bool (images,)."""
        return torch.tensor([mark == "1" for mark in self.standing])

    def kept_with(self, since_dense: PairedDifference | None) -> ReportedAccuracy:
        """The accuracy as a run's report holds it."""
        standing = np.packbits(self.stands.numpy()).tobytes().hex()
        return ReportedAccuracy(**{**dict(self.result), "since_dense": since_dense, "standing": standing})


class _Row(Judged):
    file: str | None = None
    """Name of the exported file that was judged; None for the network."""


class EvaluationFile(Document):
    """Evaluations of one network and its files on disk, with the verdict on every image."""

    called = "a result of `fsrp-edge evaluate --out`"

    name: str
    """Of the network's file."""
    weights_sha256: str
    data_sha256: str
    """Of the images and labels, in their order."""
    evaluations: tuple[_Row, ...]

    @classmethod
    def of(
        cls,
        name: str,
        weights_sha256: str,
        data_sha256: str,
        evaluations: Mapping[str, Sequence[Evaluation]],
    ) -> "EvaluationFile":
        """Put evaluations in the form they are saved in; they are given by file, those of the network under ""."""
        rows = tuple(
            _Row(file=file or None, **dict(Judged.of(one))) for file, judged in evaluations.items() for one in judged
        )
        return cls(name=name, weights_sha256=weights_sha256, data_sha256=data_sha256, evaluations=rows)
