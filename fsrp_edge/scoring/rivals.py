"""The other criteria, from torch-pruning where it has them, on the same scores format as FSRP.

They score whole groups of coupled channels, so the scores stand under each group's root layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.channel_graph import PruningGraph
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.maps import as_maps
from fsrp_edge.records import Record
from fsrp_edge.scoring.capture import MapReader, scored_layers
from fsrp_edge.scoring.scores import FilterScores, LayerScores

RivalName = Literal["random", "l1", "l2", "fpgm", "batch-norm-scale", "lamp", "taylor", "hessian", "activation"]
LOOKS_AT_IMAGES = {"taylor", "hessian", "activation"}


class Rival(Record):
    """A criterion to compare FSRP with.

    - `random`: uniform numbers.
    - `l1`, `l2`: norms of the weights (Li et al., arXiv 1608.08710).
    - `fpgm`: distance to the other filters (He et al., arXiv 1811.00250).
    - `batch-norm-scale`: the scale of the batch norm (Liu et al., arXiv 1708.06519).
    - `lamp`: squared weights by the sum of the larger ones (Lee et al., arXiv 2010.07611).
    - `taylor`: |weight · gradient| of the loss on clean images (Molchanov et al., arXiv 1906.10771).
    - `hessian`: weight² · mean squared gradient of single images (LeCun et al. 1989, with the Fisher diagonal).
    - `activation`: mean absolute response after the activation.
    """

    name: RivalName
    batch_size: int = Field(128, ge=1)


def score_rival(classifier: Classifier, images: ImageSet, rival: Rival, *, seed: int) -> FilterScores:
    """Score every group of coupled channels by a rival criterion.

    Args:
        classifier: the network to score, on the device to compute on.
        images: clean images with labels, all used by the criteria that look at images.
        rival: which criterion.
        seed: of `random`.
    """
    layers = (
        _activation(classifier, images, rival)
        if rival.name == "activation"
        else _by_torch_pruning(classifier, images, rival, seed)
    )
    scored = {name: LayerScores.of(name, scores) for name, scores in layers.items()}
    return FilterScores.of(classifier, rival, images if rival.name in LOOKS_AT_IMAGES else None, scored, seed)


def _by_torch_pruning(classifier: Classifier, images: ImageSet, rival: Rival, seed: int) -> dict[str, Tensor]:
    from torch_pruning import importance

    known: dict[str, Callable[[], Any]] = {
        "random": importance.RandomImportance,
        "l1": partial(importance.MagnitudeImportance, p=1, normalizer=_by_mean),
        "l2": partial(importance.MagnitudeImportance, p=2, normalizer=_by_mean),
        "fpgm": partial(importance.FPGMImportance, normalizer=_by_mean),
        "batch-norm-scale": partial(importance.BNScaleImportance, normalizer=_by_mean),
        "lamp": partial(importance.MagnitudeImportance, p=2, normalizer=_by_larger),
        "taylor": partial(importance.TaylorImportance, normalizer=_by_mean),
        "hessian": partial(importance.HessianImportance, normalizer=_by_mean),
    }
    if rival.name == "taylor":
        _fill_gradients(classifier, images, rival.batch_size, lambda gradient: gradient)
    elif rival.name == "hessian":
        # torch-pruning 1.6.1's own accumulation keeps the last image only: it looks gradients up by name and files
        # them by parameter. Filling the mean squares ourselves leaves it the formula.
        _fill_gradients(classifier, images, 1, torch.square)
    try:
        with compute.own_draws():
            torch.manual_seed(seed)
            return PruningGraph(classifier).ranked_by(known[rival.name]())
    finally:
        classifier.zero_grad(set_to_none=True)


def _by_mean(scores: Tensor) -> Tensor:
    """As torch-pruning does it by default, but for a group of zeros, such as a dead layer: its mean divides nothing."""
    mean = scores.mean()
    return scores if mean == 0 else scores / mean


def _by_larger(scores: Tensor) -> Tensor:
    """As torch-pruning's LAMP does it, but for a group of zeros, which it would divide by their sum."""
    from torch_pruning import importance

    return importance.LAMPImportance()._lamp(scores) if scores.any() else scores


def _fill_gradients(
    classifier: Classifier, images: ImageSet, batch_size: int, transform: Callable[[Tensor], Tensor]
) -> None:
    """Leave in each parameter's `grad` the mean over batches of `transform` of the mean loss's gradient.

    A batch of large images goes through in parts, whose gradients add up where `transform` is linear.
    """
    device = compute.device_of(classifier)
    parameters = list(classifier.network.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    batches, size = -(-len(images) // batch_size), images.usual_batch
    classifier.eval()
    with compute.all_trainable(classifier.network):
        for pixels, labels in images.tracked(batch_size, "taking gradients"):
            for part, truth in zip(pixels.split(size), labels.split(size), strict=True):
                loss = F.cross_entropy(classifier(part.to(device)), truth.to(device)) * (len(part) / len(pixels))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total.add_(transform(gradient) / batches)
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total


def _activation(classifier: Classifier, images: ImageSet, rival: Rival) -> dict[str, Tensor]:
    """Mean absolute response (C,) of every layer over images and places."""
    layers = scored_layers(classifier.network)
    sums: dict[str, Tensor] = {}

    def receive(layer: str, output: Tensor) -> None:
        maps = as_maps(layers[layer], output).abs().mean(dim=(2, 3), dtype=torch.float64).sum(dim=0)
        sums[layer] = sums[layer] + maps if layer in sums else maps

    device = compute.device_of(classifier)
    with attackable(classifier), torch.no_grad():
        for pixels, _ in images.tracked(min(rival.batch_size, images.usual_batch), "scoring"):
            with MapReader(classifier.network, "activation", receive):
                classifier(pixels.to(device))
    return {name: total / len(images) for name, total in sums.items()}
