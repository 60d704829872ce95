import numpy as np
import pytest
import torch

from fsrp_edge.data.check import chance_threshold, check_baseline, check_dataset, pseudo_labelled
from fsrp_edge.data.images import UNLABELLED, ArraySource, Dataset, ImageSet
from fsrp_edge.errors import BadInputError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4), dtype=np.uint8)


def image_set(labels, name="set"):
    return ImageSet.of(name, ArraySource(PIXELS[: len(labels)]), torch.tensor(labels, dtype=torch.int64))


def test_pseudo_labels_are_marked_as_what_they_are():
    train, evaluation = torch.arange(30) % 5, torch.tensor([4, 0, 3])
    data = pseudo_labelled(
        Dataset(image_set([UNLABELLED] * 30), image_set([UNLABELLED] * 3), "crops"), train, evaluation
    )
    assert torch.equal(data.train.labels, train) and torch.equal(data.evaluation.labels, evaluation)
    assert data.train.label_kind == data.evaluation.label_kind == "predictions of the dense network"
    assert data.description == "crops; the labels are the dense network's own predictions"
    check_dataset(data, 5)


@pytest.mark.parametrize(
    ("train", "evaluation", "told"),
    [
        ([0, 1], [], "evaluation set second is empty"),
        ([], [0], "training set first is empty"),
        ([0, 3], [0], "labels of first range from 0 to 3; the network has 3 classes, so 0 to 2"),
        ([0], [UNLABELLED, 1], "labels of second range from -1 to 1"),
        ([0, 1], [UNLABELLED, UNLABELLED], "first has labels and second has none"),
        ([UNLABELLED], [0], "second has labels and first has none"),
    ],
)
def test_labels_without_an_output_are_refused(train, evaluation, told):
    with pytest.raises(BadInputError, match=told):
        check_dataset(Dataset(image_set(train, "first"), image_set(evaluation, "second"), ""), 3)


@pytest.mark.parametrize(("classes", "threshold"), [(2, 0.55), (10, 0.19), (100, 0.05), (1000, 0.005)])
def test_threshold_is_what_the_docstring_says(classes, threshold):
    assert chance_threshold(classes) == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("classes", "images", "correct", "refused"),
    [
        (10, 30, 3, True),
        (10, 30, 5, True),
        (10, 30, 6, False),
        (10, 30, 0, True),
        (1000, 30, 0, True),
        (1000, 30, 1, False),
        (2, 30, 15, True),
        (2, 30, 3, True),
        (2, 30, 18, False),
    ],
)
def test_baseline_at_chance_is_refused(classes, images, correct, refused):
    measured = image_set([0] * images, "val")
    if not refused:
        check_baseline(measured, correct, classes)
        return
    with pytest.raises(BadInputError, match=f"{correct} of {images} images of val right .*another order"):
        check_baseline(measured, correct, classes)


def test_guessing_networks_are_caught_nearly_always():
    """A permuted class order leaves an accuracy of 1 in C: with 500 images it must not pass."""
    random = np.random.default_rng(0)
    for classes in (10, 100, 1000):
        accuracies = random.binomial(500, 1 / classes, 2000) / 500
        assert (accuracies <= chance_threshold(classes)).mean() > 0.98


def test_agreement_with_predictions_is_no_accuracy():
    images = image_set([0, 0]).relabelled(torch.tensor([0, 0]), "predictions of the dense network")
    check_baseline(images, 0, 10)
