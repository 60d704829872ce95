import numpy as np
import pytest
import torch
from torch import Tensor

from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import clean_accuracy, default_batch_size, predictions


def brightness_images(count: int = 10) -> ImageSet:
    """Images whose label says whether they are bright."""
    labels = torch.arange(count) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 255).expand(count, 1, 4, 4).to(torch.uint8)
    return ImageSet.of("brightness", ArraySource(pixels.numpy().copy()), labels)


def is_bright(pixels: Tensor) -> Tensor:
    mean = pixels.mean(dim=(1, 2, 3))
    return torch.stack([1 - mean, mean], dim=1)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 10])
def test_any_function_of_pixels_is_judged(batch_size: int | None) -> None:
    images = brightness_images()
    wrong = images.relabelled(torch.cat([1 - images.labels[:4], images.labels[4:]]), "ground truth")
    evaluation = clean_accuracy(is_bright, wrong, batch_size=batch_size)
    assert evaluation.standing.tolist() == [False] * 4 + [True] * 6
    assert (evaluation.result.correct, evaluation.result.images) == (6, 10)
    assert evaluation.result.accuracy == 0.6
    assert evaluation.result.interval[0] < 0.6 < evaluation.result.interval[1]


def test_agreement_is_accuracy_on_predicted_labels_and_is_marked_so(trained) -> None:
    predicted = predictions(trained.natural, trained.images)
    relabelled = trained.images.relabelled(predicted, "predictions of the dense network")
    result = clean_accuracy(trained.natural, relabelled).result
    assert result.accuracy == 1
    assert result.label_kind == "predictions of the dense network"


def test_a_network_is_judged_in_evaluation_mode_and_left_in_its_own(trained) -> None:
    reference = clean_accuracy(trained.natural, trained.images).standing
    before = {name: value.clone() for name, value in trained.natural.state_dict().items()}
    trained.natural.train()
    try:
        assert torch.equal(clean_accuracy(trained.natural, trained.images, batch_size=7).standing, reference)
        assert trained.natural.training
    finally:
        trained.natural.eval()
    assert all(torch.equal(before[name], value) for name, value in trained.natural.state_dict().items())


def test_no_images_are_refused() -> None:
    with pytest.raises(BadInputError, match="brightness has no images"):
        clean_accuracy(is_bright, brightness_images().first(0))


@pytest.mark.parametrize(("side", "expected"), [(8, 256), (32, 256), (64, 256), (128, 64), (224, 20), (512, 16)])
def test_larger_images_get_smaller_batches(side: int, expected: int) -> None:
    source = ArraySource(np.zeros((1, 1, side, side), dtype=np.uint8))
    assert default_batch_size(ImageSet.of("one", source, torch.zeros(1))) == expected
