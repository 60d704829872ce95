"""Two networks on the same images: image by image, which is far sharper than two separate accuracies."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from torch import Tensor

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Accuracy, EvaluationFile, Judged, PairedDifference, ReportedAccuracy


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


def compare_files(first: EvaluationFile, second: EvaluationFile) -> list[tuple[str | None, Accuracy, PairedDifference]]:
    """The second network against the first in every evaluation that both files hold.

    Returns:
        For each, the name of the exported file that was judged (None for the network), the first's accuracy and the
        difference.

    Raises:
        BadInputError: other images, or no evaluation in common.
    """
    if first.data_sha256 != second.data_sha256:
        raise BadInputError(
            f"{first.name} and {second.name} were evaluated on different images; give both the same --data and --images"
        )
    others = {(row.file, row.attack): row for row in second.evaluations}
    rows = [
        (row.file, row.result, paired_difference(row.stands, others[key].stands))
        for row in first.evaluations
        if (key := (row.file, row.attack)) in others
    ]
    if not rows:
        raise BadInputError(f"{first.name} and {second.name} have no attack, norm and eps in common")
    return rows


def paired_change(first: ReportedAccuracy, second: ReportedAccuracy) -> PairedDifference | None:
    """Between accuracies of two runs on the same images; None where a report holds no verdicts, or of fewer images."""
    if first.images != second.images or first.stands is None or second.stands is None:
        return None
    return paired_difference(first.stands, second.stands)


def since_dense(dense: Sequence[Judged], judged: Sequence[Judged]) -> tuple[ReportedAccuracy, ...]:
    """Accuracies of a network or file, with the change since the dense network wherever that met the same.

    Both were judged on the same images, of which an attack may have been given fewer.
    """
    before = {(each.attack, each.result.images): each.stands for each in dense}
    found = []
    for each in judged:
        first = before.get((each.attack, each.result.images))
        found.append(each.kept_with(None if first is None else paired_difference(first, each.stands)))
    return tuple(found)


def _mcnemar(one: int, other: int) -> float:
    discordant = one + other
    term = tail = 1
    for count in range(min(one, other)):  # one binomial coefficient from the one before
        term = term * (discordant - count) // (count + 1)
        tail += term
    return float(min(1, 2 * tail / 2**discordant))
