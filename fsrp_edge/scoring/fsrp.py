"""The FSRP criterion: how much of each filter's response to adversarial examples lies in the low frequencies.

Qian et al., *Robust filter pruning guided by deep frequency-features for edge intelligence*, Neurocomputing 610, 2024,
128586. Filters with the lowest ratio of low- to high-frequency energy are pruned first.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fsrp_edge import distributed
from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.maps import as_maps
from fsrp_edge.records import Record
from fsrp_edge.scoring.adversarial import my_adversarial_batches
from fsrp_edge.scoring.capture import MapReader, ReadAt, scored_layers
from fsrp_edge.scoring.fourier import BandEnergies, RegionShape, band_energies, extent, has_bands, low_to_high_ratio
from fsrp_edge.scoring.scores import FilterScores, LayerScores


class FSRP(Record):
    """Options of the criterion; `benchmarks/criterion_ablation.py` chose the defaults (see ARCHITECTURE.md)."""

    name: Literal["fsrp"] = "fsrp"
    radius: float = Field(0.125, gt=0, le=1)
    """Of the low-frequency region, as a fraction of the band (0 is DC, 1 is Nyquist)."""
    region: RegionShape = "disk"
    power: Literal[1, 2] = 2
    """2 compares energies, 1 compares amplitudes."""
    read_at: ReadAt = "convolution"
    aggregate: Literal["mean-of-ratios", "ratio-of-means"] = "mean-of-ratios"
    """Over adversarial examples: the mean of each map's ratio, or mean low energy over mean high energy."""
    attack: PGD = PGD(steps=10)
    """The attack that makes the examples; eps 0 scores on clean images."""
    batch_size: int = Field(128, ge=1)


class _LayerSums:
    """Sums over images of one layer; their size is the number of channels, however many images pass."""

    def __init__(self, options: FSRP, channels: int, device: torch.device) -> None:
        self.options = options
        self.size: tuple[int, int] = (0, 0)
        """(height, width) of the largest map; smaller ones of a layer that is used at several sizes count less."""
        self.maps = torch.zeros((), dtype=torch.float64, device=device)
        self.pixels = torch.zeros_like(self.maps)
        self.ratio = torch.zeros(channels, dtype=torch.float64, device=device)
        self.low, self.high = torch.zeros_like(self.ratio), torch.zeros_like(self.ratio)

    def add(self, maps: Tensor) -> None:
        """Add a batch of maps (N, C, H, W)."""
        size = (maps.shape[2], maps.shape[3])
        self.size = max(self.size, size, key=extent)
        energies = band_energies(maps, self.options.radius, self.options.region)
        self.pixels += len(maps) * size[0] * size[1]
        self.low += energies.low.double().sum(dim=0)
        self.high += energies.high.double().sum(dim=0)
        if has_bands(size):
            self.maps += len(maps)
            self.ratio += low_to_high_ratio(energies, self.options.power).double().sum(dim=0)

    def scores(self) -> Tensor:
        """(C,) the criterion; where no map had two bands, the mean energy of a pixel."""
        if not has_bands(self.size):
            return self.low / self.pixels
        if self.options.aggregate == "mean-of-ratios":
            return self.ratio / self.maps
        return low_to_high_ratio(BandEnergies(self.low, self.high), self.options.power)


def score_fsrp(classifier: Classifier, images: ImageSet, options: FSRP, *, seed: int) -> FilterScores:
    """Score every convolution and linear layer of a classifier.

    The adversarial examples are made against the classifier as it is, and each batch is read in one forward pass. Under
    `torchrun` every process works on a part of the images and all return the scores of the whole.

    Args:
        classifier: the network to score, on the device to compute on.
        images: examples with labels; all of them are used.
        options: of the criterion.
        seed: of the attack's random starts.

    Returns:
        One score a filter, at least 0; the higher, the more of its response is low-frequency.

    Raises:
        BadInputError: a layer's response is NaN or infinite; the layer is named.
    """
    sums: dict[str, _LayerSums] = {}
    layers = scored_layers(classifier.network)

    def receive(layer: str, output: Tensor) -> None:
        maps = as_maps(layers[layer], output)
        if layer not in sums:
            sums[layer] = _LayerSums(options, maps.shape[1], maps.device)
        sums[layer].add(maps)

    for pixels in my_adversarial_batches(classifier, images, options.attack, options.batch_size, seed=seed):
        with torch.no_grad(), MapReader(classifier.network, options.read_at, receive):
            classifier(pixels)
    for layer in sums.values():
        for total in (layer.maps, layer.pixels, layer.ratio, layer.low, layer.high):
            distributed.sum_over_processes(total)
    scored = {name: LayerScores.of(name, layer.scores(), layer.size) for name, layer in sums.items()}
    return FilterScores.of(classifier, options, images, scored, seed)
