"""The adversarial examples that criteria read a network on, batch by batch."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from fsrp_edge import compute, distributed
from fsrp_edge.attacks import PGD, attackable, pgd
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier


def adversarial_batches(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: PGD,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Attack images with their labels; until the last batch is done with, the classifier is frozen for evaluation."""
    device = compute.device_of(classifier)
    with attackable(classifier):
        for pixels, labels in batches:
            yield pgd(classifier, pixels.to(device), labels.to(device), attack, generator)


def my_adversarial_batches(
    classifier: Classifier, images: ImageSet, attack: PGD, batch_size: int, *, seed: int
) -> Iterator[Tensor]:
    """Attack this process's part of the images: under `torchrun` every process works on another, outside it on all.

    Args:
        classifier: the network to attack, on the device to compute on.
        images: examples with labels.
        attack: how.
        batch_size: at most so many images at once; of large images `ImageSet.usual_batch`.
        seed: of the random starts, which are the same however the images are split.

    Raises:
        BadInputError: there are more processes than images.
    """
    mine = distributed.my_part(len(images))
    if not mine:
        raise BadInputError(f"{len(images)} images are too few for so many processes; start fewer or give more images")
    batch_size = min(batch_size, images.usual_batch)
    generator = compute.generator(seed)
    if attack.eps > 0:  # a start belongs to an image, not to a process
        for first in range(0, mine.start, batch_size):
            count = min(batch_size, mine.start - first)
            torch.rand((count, *classifier.spec.input_shape), generator=generator)
    part = images.subset(np.arange(mine.start, mine.stop))
    return adversarial_batches(classifier, part.tracked(batch_size, "scoring"), attack, generator)
