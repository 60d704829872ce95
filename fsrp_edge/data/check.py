"""Whether data fits a network, asked before anything long starts; and labels where there are none."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from fsrp_edge.data.images import Dataset, ImageSet, LabelKind
from fsrp_edge.errors import BadInputError


def check_dataset(dataset: Dataset, classes: int) -> None:
    """Refuse empty sets, labels that the network has no output for, and labels in one set alone.

    Args:
        dataset: what a run is to work on; it may be unlabelled.
        classes: outputs of the network.

    Raises:
        BadInputError: the text names the set.
    """
    for role, images in (("training", dataset.train), ("evaluation", dataset.evaluation)):
        if len(images) == 0:
            raise BadInputError(f"the {role} set {images.name} is empty; at least one image is needed")
        low, high = int(images.labels.min()), int(images.labels.max())
        if images.is_labelled and not 0 <= low <= high < classes:
            raise BadInputError(
                f"the labels of {images.name} range from {low} to {high}; the network has {classes} classes, "
                f"so 0 to {classes - 1} are allowed. Use the data the network was trained for"
            )
    if dataset.train.is_labelled != dataset.evaluation.is_labelled:
        sets = dataset.train, dataset.evaluation
        labelled, unlabelled = sets if dataset.train.is_labelled else sets[::-1]
        raise BadInputError(
            f"{labelled.name} has labels and {unlabelled.name} has none; both have to have them, or neither. Give the "
            "missing labels, or leave the others out"
        )


def without_leaks(train: ImageSet, evaluation: ImageSet, leaked: Sequence[bool]) -> tuple[ImageSet, str]:
    """The evaluation images that are no training images, and what was left out, to be appended to a description.

    Args:
        train: images to learn from.
        evaluation: images to judge by.
        leaked: of each of these, whether it is also a training image.

    Raises:
        BadInputError: all of them are.
    """
    if not any(leaked):
        return evaluation, ""
    if all(leaked):
        raise BadInputError(
            f"all {len(evaluation)} evaluation images of {evaluation.name} are also training images of "
            f"{train.name}; an accuracy on them would mean nothing. Use images that were not trained on"
        )
    note = f", {sum(leaked)} evaluation images left out because they are also training images"
    return evaluation.subset(np.flatnonzero(~np.array(leaked))), note


def chance_threshold(classes: int) -> float:
    """The accuracy up to which a network of that many classes counts as guessing.

    Five times chance, but at most a tenth of the way from chance to perfect: 55 % of 2 classes, 19 % of 10,
    5 % of 100, 0.5 % of 1,000. Of 1,000 classes, 500 images give no interval narrow enough to tell it from
    twice that, while any network that is worth pruning is far above five times.
    """
    chance = 1 / classes
    return min(5 * chance, chance + 0.1 * (1 - chance))


def check_baseline(images: ImageSet, correct: int, classes: int) -> None:
    """Refuse to go on where the dense network is right about as often as by guessing.

    Args:
        images: the whole set that the baseline was measured on.
        correct: how many of its images the dense network classifies right, without an attack.
        classes: outputs of the network.

    Raises:
        BadInputError: with the figures and the likely causes.
    """
    accuracy = correct / len(images)
    if images.label_kind != "ground truth" or accuracy > chance_threshold(classes):
        return
    raise BadInputError(
        f"the network classifies {correct} of {len(images)} images of {images.name} right ({accuracy:.2%}); "
        f"guessing among {classes} classes gives {1 / classes:.2%}. Likely causes: the classes are numbered "
        "in another order than in training, mean and std (or RGB order) are not those of training, or it was "
        "trained on other data. Compare the class order and the normalization with the training code"
    )


def pseudo_labelled(dataset: Dataset, train: Tensor, evaluation: Tensor) -> Dataset:
    """The same images, labelled with what the dense network says, and marked so.

    Args:
        dataset: any data set; its own labels are not looked at.
        train: classes that the dense network predicts of the training images, (images,).
        evaluation: of the evaluation images.
    """
    kind: LabelKind = "predictions of the dense network"
    return replace(
        dataset,
        train=dataset.train.relabelled(train, kind),
        evaluation=dataset.evaluation.relabelled(evaluation, kind),
        description=f"{dataset.description}; the labels are the dense network's own predictions",
    )
