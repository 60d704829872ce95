"""score(): any criterion, one format."""

from typing import Annotated

from pydantic import Field

from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.reconstruction import Reconstruction, score_reconstruction
from fsrp_edge.scoring.rivals import Rival, score_rival
from fsrp_edge.scoring.scores import FilterScores

Criterion = Annotated[FSRP | Reconstruction | Rival, Field(discriminator="name")]


def score(
    classifier: Classifier, images: ImageSet, criterion: FSRP | Reconstruction | Rival, *, seed: int
) -> FilterScores:
    """Score the filters of a classifier; the lowest are to be pruned first.

    Args:
        classifier: the network, on the device to compute on.
        images: training images with labels; all are used by criteria that look at images.
        criterion: which, with its options.
        seed: of every random draw.
    """
    if isinstance(criterion, FSRP):
        return score_fsrp(classifier, images, criterion, seed=seed)
    if isinstance(criterion, Reconstruction):
        return score_reconstruction(classifier, images, criterion, seed=seed)
    return score_rival(classifier, images, criterion, seed=seed)
