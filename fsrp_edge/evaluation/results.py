"""What an evaluation measured, with all that is needed to read the number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from fsrp_edge.attacks import Norm
from fsrp_edge.data.images import LabelKind
from fsrp_edge.records import Document, Record


class Accuracy(Record):
    """Accuracy of one network or file on one set of images under one attack (or none)."""

    attack: str
    """`clean`, `fgsm`, `pgd-20`, `cw-20`, `autoattack`, `worst case`, or a corruption such as `fog`."""
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


@dataclass(frozen=True)
class Evaluation:
    """An accuracy and which images make it up.

    Args:
        result: the number.
        standing: bool (images,), True where the prediction is still right.
    """

    result: Accuracy
    standing: Tensor


class _Row(Record):
    file: str | None = None
    """Name of the exported file that was judged; None for the network."""
    result: Accuracy
    standing: str = Field(pattern="^[01]+$")

    @property
    def key(self) -> tuple[str | None, str, str | None, float | None]:
        return self.file, self.result.attack, self.result.norm, self.result.eps

    @property
    def stands(self) -> Tensor:
        return torch.tensor([mark == "1" for mark in self.standing])


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
            _Row(
                file=file or None,
                result=one.result,
                standing="".join("01"[stands] for stands in one.standing.tolist()),
            )
            for file, judged in evaluations.items()
            for one in judged
        )
        return cls(name=name, weights_sha256=weights_sha256, data_sha256=data_sha256, evaluations=rows)
