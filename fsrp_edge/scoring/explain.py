"""How far FSRP scores can be trusted: stability over images, overlap with L1, and what the filters respond to."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.maps import as_maps
from fsrp_edge.records import Record
from fsrp_edge.scoring.adversarial import adversarial_batches
from fsrp_edge.scoring.capture import MapReader, scored_layers
from fsrp_edge.scoring.fourier import has_bands
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.scores import FilterScores, LayerScores

FILTERS = 3
"""Whose spectra are drawn: so many of the worst, and as many of the best, of each layer."""
PARTS = 8
"""Disjoint parts of the images that are scored apart, each with random starts of its own."""


class LayerStability(Record):
    """How stable one layer's ranking is, and how much of it plain weight norms would have told."""

    layer: str
    filters: int
    rank_correlation: float
    """Spearman's, between the scores of two disjoint halves of the images."""
    same_lower_half: float
    """Share of the lower half of filters that both halves of the images agree on; 0.5 is chance."""
    overlap_with_l1: float
    """Share of the lower half by FSRP that is also in the lower half by the L1 norm; 0.5 is chance."""


class ImagesNeeded(Record):
    """Agreement between two disjoint sets of so many images, averaged over layers."""

    images: int
    rank_correlation: float
    same_lower_half: float


class Explanation(Record):
    """Stability of the scores of one network."""

    layers: tuple[LayerStability, ...]
    by_images: tuple[ImagesNeeded, ...]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two (C,) arrays, in [-1, 1]; equal values share the mean of their ranks.

    1 for fewer than two values; 0 where all values of an array are equal, which rank nothing.
    """
    if len(first) < 2:
        return 1.0
    ranks = [_mean_ranks(values) for values in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return 0.0
    correlation: np.ndarray = np.asarray(np.corrcoef(ranks))
    return float(correlation[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def same_lower_half(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the lower half of two (C,) arrays that they have in common, in [0, 1]."""
    half = max(1, len(first) // 2)
    lower = [set(np.argsort(values, kind="stable")[:half].tolist()) for values in (first, second)]
    return len(lower[0] & lower[1]) / half


def explain(classifier: Classifier, images: ImageSet, options: FSRP, *, seed: int) -> tuple[FilterScores, Explanation]:
    """Score a classifier in disjoint parts, and compare the parts.

    The scores are the mean over the parts, which for the mean of ratios is what scoring all images at once gives, up
    to the random starts.

    Raises:
        BadInputError: fewer images than parts.
    """
    if len(images) < PARTS:
        raise BadInputError(
            f"{len(images)} images can't be split into {PARTS} parts; give --score-images {PARTS} or more"
        )
    parts = [score_fsrp(classifier, part, options, seed=seed + number) for number, part in enumerate(parts_of(images))]
    values = {
        name: np.stack([part.layers[name].scores for part in parts])
        for name, layer in parts[0].layers.items()
        if len(layer.scores) > 1
    }
    modules = scored_layers(classifier.network)
    l1 = {name: modules[name].weight.detach().flatten(1).abs().sum(dim=1).cpu().numpy() for name in values}
    layers = tuple(
        LayerStability(
            layer=name,
            filters=scores.shape[1],
            rank_correlation=rank_correlation(*_halves(scores, PARTS // 2)),
            same_lower_half=same_lower_half(*_halves(scores, PARTS // 2)),
            overlap_with_l1=same_lower_half(scores.mean(axis=0), l1[name]),
        )
        for name, scores in values.items()
    )
    by_images = tuple(
        ImagesNeeded(
            images=count * len(images) // PARTS,
            rank_correlation=_mean_over_layers(rank_correlation, values, count),
            same_lower_half=_mean_over_layers(same_lower_half, values, count),
        )
        for count in range(1, PARTS // 2 + 1)
    )
    return _joined(parts, images, seed), Explanation(layers=layers, by_images=by_images)


def parts_of(images: ImageSet) -> list[ImageSet]:
    """PARTS disjoint parts of about the same size with about the same classes, in whatever order these come."""
    by_class = np.argsort(images.labels.numpy(), kind="stable")
    return [images.subset(np.sort(by_class[part::PARTS])) for part in range(PARTS)]


def mean_spectra(
    classifier: Classifier, images: ImageSet, options: FSRP, chosen: dict[str, list[int]], *, seed: int
) -> dict[str, np.ndarray]:
    """Mean power spectra of chosen filters' maps on adversarial examples; of the largest maps a layer has.

    Args:
        classifier: the network.
        images: examples with labels.
        options: the attack, and where maps are read.
        chosen: filters by layer; layers whose maps have no two bands are left out of the result.
        seed: of the random starts.

    Returns:
        (filters, H, W) for each layer, DC in the middle.
    """
    layers = scored_layers(classifier.network)
    sums: dict[str, Tensor] = {}
    counts = Counter[str]()

    def receive(layer: str, output: Tensor) -> None:
        maps = as_maps(layers[layer], output)
        if layer not in chosen or not has_bands((maps.shape[2], maps.shape[3])):
            return
        power = torch.fft.fft2(maps[:, chosen[layer]].float()).abs().square().sum(dim=0)
        if layer in sums and power[0].numel() < sums[layer][0].numel():
            return
        if layer not in sums or power.shape != sums[layer].shape:
            sums[layer], counts[layer] = torch.zeros_like(power), 0
        sums[layer] += power
        counts[layer] += len(maps)

    batches = images.batches(min(options.batch_size, images.usual_batch))
    for pixels in adversarial_batches(classifier, batches, options.attack, compute.generator(seed)):
        with torch.no_grad(), MapReader(classifier.network, options.read_at, receive):
            classifier(pixels)
    return {
        layer: torch.fft.fftshift(total / counts[layer], dim=(-2, -1)).cpu().numpy() for layer, total in sums.items()
    }


def _mean_over_layers(
    agreement: Callable[[np.ndarray, np.ndarray], float], values: dict[str, np.ndarray], count: int
) -> float:
    return float(np.mean([agreement(*_halves(scores, count)) for scores in values.values()]))


def _halves(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean scores (C,) over the first and over the last `count` parts."""
    return scores[:count].mean(axis=0), scores[-count:].mean(axis=0)


def _joined(parts: list[FilterScores], images: ImageSet, seed: int) -> FilterScores:
    weights = [part.images for part in parts]
    layers = {
        name: LayerScores(
            scores=tuple(np.average([part.layers[name].scores for part in parts], axis=0, weights=weights).tolist()),
            map_size=layer.map_size,
        )
        for name, layer in parts[0].layers.items()
    }
    update = {"layers": layers, "images": len(images), "data_sha256": images.digest, "seed": seed}
    return parts[0].model_copy(update=update)
