"""What an evaluation measured, with all that is needed to read the number."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fsrp_edge.data.images import LabelKind


class Accuracy(BaseModel):
    """Accuracy of one network or file on one set of images under one attack (or none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    """`clean`, `fgsm`, `pgd-20`, `autoattack`, …"""
    norm: Literal["Linf", "L2"] | None = None
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
