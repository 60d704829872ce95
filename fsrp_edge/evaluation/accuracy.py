"""Accuracy without an attack, of a network or of anything that turns pixels into logits."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Accuracy, Evaluation
from fsrp_edge.evaluation.statistics import wilson_interval
from fsrp_edge.progress import track

Predict = Callable[[Tensor], Tensor]
"""Takes pixels (N, C, H, W), float32 in [0, 1], and returns logits (N, classes)."""


def default_batch_size(images: ImageSet) -> int:
    """Images a batch so that a batch holds about a million pixels a channel, between 16 and 256."""
    _, _, height, width = images.source.load(images.indices[:1]).shape
    return max(16, min(256, 2**20 // (height * width)))


def predictions(predict: Predict, images: ImageSet, *, batch_size: int | None = None) -> Tensor:
    """Predicted classes, int64 (images,), on the CPU; float32 throughout.

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
    predicted = []
    with torch.no_grad(), nullcontext() if network is None else attackable(network):
        batches = images.batches(batch_size)
        for pixels, _ in track(batches, f"predicting {images.name}", images.batch_count(batch_size)):
            predicted.append(predict(pixels.to(device)).argmax(1).cpu())
    return torch.cat(predicted)


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
    norm: Literal["Linf", "L2"] | None = None,
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
