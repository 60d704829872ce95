"""Two networks on the same images: image by image, which is far sharper than two separate accuracies."""

import math
from statistics import NormalDist

from pydantic import Field
from torch import Tensor

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Accuracy, EvaluationFile
from fsrp_edge.records import Record


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


def paired_difference(first: Tensor, second: Tensor) -> PairedDifference:
    """Compare two networks by `standing`, bool (images,), in the same order."""
    images = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total, lose, win = images + 2, only_first + 0.5, only_second + 0.5
    half = NormalDist().inv_cdf(0.975) * math.sqrt(lose + win - (win - lose) ** 2 / total) / total
    centre = (win - lose) / total
    return PairedDifference(
        images=images,
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / images,
        interval=(max(-1.0, centre - half), min(1.0, centre + half)),
        p_value=_mcnemar(only_first, only_second),
    )


def compare_files(first: EvaluationFile, second: EvaluationFile) -> list[tuple[Accuracy, PairedDifference]]:
    """The second network against the first in every evaluation that both files hold.

    Raises:
        BadInputError: other images, or no evaluation in common.
    """
    if first.data_sha256 != second.data_sha256:
        raise BadInputError(
            f"{first.name} and {second.name} were evaluated on different images; give both the same --data and --images"
        )
    others = {row.key: row for row in second.evaluations}
    rows = [
        (row.result, paired_difference(row.stands, others[row.key].stands))
        for row in first.evaluations
        if row.key in others
    ]
    if not rows:
        raise BadInputError(f"{first.name} and {second.name} have no attack, norm and eps in common")
    return rows


def _mcnemar(one: int, other: int) -> float:
    discordant = one + other
    tail = sum(math.comb(discordant, count) for count in range(min(one, other) + 1))
    return float(min(1, 2 * tail / 2**discordant))
