"""Accuracy without an attack, of a network or of anything that turns pixels into logits."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from fsrp_edge import compute, distributed
from fsrp_edge.attacks import Norm, attackable, input_gradient
from fsrp_edge.data.images import UNLABELLED, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Accuracy, Evaluation
from fsrp_edge.evaluation.statistics import wilson_interval
from fsrp_edge.models.classifier import Classifier

Predict = Callable[[Tensor], Tensor]
"""Takes pixels (N, C, H, W), float32 in [0, 1], and returns logits (N, classes)."""


def default_batch_size(images: ImageSet, classifier: Classifier | None = None) -> int:
    """Images a batch: about a million pixels a channel on a CPU, 16 to 256; on a GPU what fits, up to eight times that.

    Args:
        images: of which size.
        classifier: network whose input gradients are to fit into the memory of the device it is on.
    """
    if classifier is None or compute.device_of(classifier).type != "cuda":
        return images.usual_batch
    size = 8 * images.usual_batch
    while size > 16:
        try:
            labels = torch.zeros(size, dtype=torch.int64, device=compute.device_of(classifier))
            # Twice what is needed: attacks keep several copies of a batch.
            with attackable(classifier):
                input_gradient(classifier, classifier.example_pixels(2 * size), labels.repeat(2))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
        else:
            break
    return size


def predictions(predict: Predict, images: ImageSet, *, batch_size: int | None = None) -> Tensor:
    """Predicted classes, int64 (images,), on the CPU; float32 throughout.

    Under `torchrun` every process predicts a part of the images, and all return the whole.

    Args:
        predict: a network, which is put in evaluation mode meanwhile and fed on its own device, or any
            function.
        images: what to predict.
        batch_size: images a call; None chooses by their size.

    Raises:
        BadInputError: there are no images.
    """
    if len(images) == 0:
        raise BadInputError(f"{images.name} has no images to evaluate on")
    batch_size = batch_size or default_batch_size(images)
    network = predict if isinstance(predict, nn.Module) else None
    device = torch.device("cpu") if network is None else compute.device_of(network)
    mine = distributed.my_part(len(images))
    part = images.subset(np.arange(mine.start, mine.stop))
    predicted = [torch.zeros(mine.start, dtype=torch.int64)]
    with torch.no_grad(), compute.full_float32(), nullcontext() if network is None else attackable(network):
        for pixels, _ in part.tracked(batch_size, f"predicting {images.name}"):
            predicted.append(predicted_classes(predict(pixels.to(device))).cpu())
    predicted.append(torch.zeros(len(images) - mine.stop, dtype=torch.int64))
    return distributed.sum_over_processes(torch.cat(predicted))


def predicted_classes(logits: Tensor) -> Tensor:
    """Class of the highest of each image's logits (N, classes), (N,); UNLABELLED, so never right, where one is NaN."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), UNLABELLED)


def searched(classifier: Classifier) -> Predict:
    """A faster equal of a network to search adversarial images with: its batch norms folded where that is possible.

    An image falls by the network's own verdict only, which is `is_wrong`.

    Args:
        classifier: in evaluation mode.
    """
    example = classifier.example_pixels(2)
    network = compute.folded(classifier.network, example)
    if network is classifier.network:
        return classifier
    faster = Classifier(network, classifier.spec)
    faster.layout = classifier.layout
    faster.to_fast_layout(compute.device_of(classifier))
    return faster


def is_wrong(classifier: Classifier, pixels: Tensor, labels: Tensor) -> Tensor:
    """Bool (N,), where the prediction is not the label: the last word on an image, in full float32."""
    with compute.full_float32():
        return predicted_classes(classifier(pixels)) != labels


def clean_accuracy(predict: Predict, images: ImageSet, *, batch_size: int | None = None) -> Evaluation:
    """Accuracy on the images as they are; with predicted labels, agreement with their predictor.

    Args and errors as for `predictions`.
    """
    standing = predictions(predict, images, batch_size=batch_size) == images.labels
    return evaluation_of(standing, images, attack="clean")


def evaluation_of(
    standing: Tensor,
    images: ImageSet,
    *,
    attack: str,
    norm: Norm | None = None,
    eps: float | None = None,
    seed: int | None = None,
    warnings: tuple[str, ...] = (),
) -> Evaluation:
    """Count the images still predicted right: `standing` is bool (images,) on the CPU."""
    correct, total = int(standing.sum()), len(standing)
    result = Accuracy(
        attack=attack,
        norm=norm,
        eps=eps,
        images=total,
        correct=correct,
        accuracy=correct / total,
        interval=wilson_interval(correct, total),
        seed=seed,
        data=images.name,
        label_kind=images.label_kind,
        warnings=warnings,
    )
    return Evaluation(result, standing)
