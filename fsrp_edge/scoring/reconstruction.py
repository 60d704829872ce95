"""The other way round from FSRP: keep the filters that can stand in for the rest in the low frequencies.

FSRP ranks each filter by itself, so the filters that it keeps resemble one another, and what only the others carried
is gone. This criterion takes its finding, that a robust network attends to the low frequencies of adversarial examples'
maps, as what has to be preserved: the next filter to keep is the one that adds most to the low-frequency variance that
those before it explain, by least squares, in the layers that read them. That is a Cholesky factorization with complete
pivoting (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, 10.3) of the covariance matrix.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.channel_graph import ChannelGroup, PruningGraph
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.records import Record
from fsrp_edge.scoring.adversarial import my_adversarial_batches
from fsrp_edge.scoring.fsrp import flat
from fsrp_edge.scoring.moments import InputMoments, by_position, read_input_moments, readers
from fsrp_edge.scoring.scores import FilterScores, LayerScores


class Reconstruction(Record):
    """Options of the criterion; `benchmarks/compensation.py` chose the defaults (see ARCHITECTURE.md)."""

    name: Literal["fsrp-reconstruction"] = "fsrp-reconstruction"
    radius: float = Field(0.25, gt=0, le=1)
    """Of the low-frequency region, as a fraction of the band (0 is DC, 1 is Nyquist)."""
    attack: PGD = PGD(steps=10)
    """The attack that makes the examples; eps 0 scores on clean images."""
    batch_size: int = Field(128, ge=1)


def score_reconstruction(
    classifier: Classifier, images: ImageSet, options: Reconstruction, *, seed: int
) -> FilterScores:
    """Score every group of coupled channels, under the name of its root, by what the layers read that take them.

    The adversarial examples are made against the classifier as it is. Under `torchrun` every process works on a part of
    the images and all return the scores of the whole.

    Args:
        classifier: the network to score, on the device to compute on.
        images: examples with labels; all of them are used.
        options: of the criterion.
        seed: of the attack's random starts.

    Returns:
        For each channel the share, 0 to 1, of the group's low-frequency variance that it explains beyond the channels
        with higher scores. Groups that no layer reads as a module are left out.

    Raises:
        BadInputError: a layer reads NaN or infinity; the one before it is named.
    """
    groups = PruningGraph(classifier).groups()
    examples = my_adversarial_batches(classifier, images, options.attack, options.batch_size, seed=seed)
    moments = read_input_moments(classifier, examples, readers(groups), radius=options.radius)
    return FilterScores(
        criterion=options.name,
        options=flat(options),
        architecture=classifier.spec.architecture,
        model_sha256=weights_sha256(classifier.network),
        data_sha256=images.digest,
        images=len(images),
        seed=seed,
        layers={group.root: found for group in groups if (found := _scores(group, moments)) is not None},
    )


def explained_shares(covariance: Tensor) -> Tensor:
    """(C,) the share of the trace that each variable explains beyond those that were chosen before it.

    The variable that has most variance left is chosen next, so the shares fall in the order of the choice.

    Args:
        covariance: (C, C) float64, positive semidefinite up to rounding.
    """
    count, left = len(covariance), covariance.diagonal().clamp_min(0).clone()
    total = left.sum().clamp_min(torch.finfo(left.dtype).tiny)
    factor, shares = torch.zeros_like(covariance), torch.zeros_like(left)
    open_ = torch.ones(count, dtype=torch.bool, device=left.device)
    for step in range(count):
        chosen = int(torch.where(open_, left, -1.0).argmax())
        variance = left[chosen].clone()
        if variance <= 1e-12 * total:
            break
        shares[chosen], open_[chosen] = variance / total, False
        column = (covariance[:, chosen] - factor[:, :step] @ factor[chosen, :step]) / variance.sqrt()
        factor[:, step] = column
        left = (left - column.square()).clamp_min(0)
    return shares


def _scores(group: ChannelGroup, moments: Mapping[str, InputMoments]) -> LayerScores | None:
    """Of a group's channels, at all places where layers read them; None where none was seen."""
    read = [
        (part, moments[part.layer]) for part in group.slices if part.side == "input" and part.layer in moments
    ]
    if not read:
        return None
    total = read[0][1].covariance.new_zeros(group.channels, group.channels)
    for part, found in read:
        for channels, roots in by_position(part.channels, part.root_channels):
            mine = torch.tensor(channels, device=total.device)
            theirs = torch.tensor(roots, device=total.device)
            total[theirs[:, None], theirs] += found.covariance[mine[:, None], mine]
    shares = explained_shares(total)
    if not torch.isfinite(shares).all():
        raise BadInputError(
            f"layer {group.root} responds with NaN or infinity; check the checkpoint's weights and the normalization"
        )
    return LayerScores(scores=tuple(shares.tolist()), map_size=max(found.size for _, found in read))
