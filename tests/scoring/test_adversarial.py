"""How many images criteria compute on at once: activations of large ones take memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.scoring.explain import mean_spectra
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.reconstruction import Reconstruction, score_reconstruction
from fsrp_edge.scoring.rivals import Rival, score_rival
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.training.batchnorm import recalibrate_batch_norm
from tests.nets import as_classifier

ATTACK = PGD(steps=1)
READ: dict[str, Callable[[Classifier, ImageSet], object]] = {
    "fsrp": lambda network, images: score_fsrp(network, images, FSRP(attack=ATTACK), seed=0),
    "reconstruction": lambda network, images: score_reconstruction(
        network, images, Reconstruction(attack=ATTACK), seed=0
    ),
    "taylor": lambda network, images: score_rival(network, images, Rival(name="taylor"), seed=0),
    "activation": lambda network, images: score_rival(network, images, Rival(name="activation"), seed=0),
    "spectra": lambda network, images: mean_spectra(network, images, FSRP(attack=ATTACK), {"0": [0]}, seed=0),
    "batch norm": recalibrate_batch_norm,
}


def network_of(side: int) -> Classifier:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return as_classifier(network, shape=(1, side, side))


def images_of(side: int, count: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(count) % 10)


@pytest.mark.parametrize(("side", "most"), [(64, 128), (224, 20)])
@pytest.mark.parametrize("read", READ.values(), ids=READ.keys())
def test_larger_images_go_through_in_smaller_batches(
    read: Callable[[Classifier, ImageSet], object], side: int, most: int
) -> None:
    network, seen = network_of(side), set[int]()
    network.network.register_forward_pre_hook(lambda _, pixels: seen.add(len(pixels[0])))
    read(network, images_of(side, most + 5))
    assert max(seen) == most


def test_gradients_of_parts_add_up_to_those_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 and 3 images: as a mean over parts, the last three would count for more."""
    network, images = network_of(224), images_of(224, 23)
    parts = READ["taylor"](network, images)
    monkeypatch.setattr(ImageSet, "usual_batch", 23)
    whole = READ["taylor"](network, images)
    assert isinstance(parts, FilterScores) and isinstance(whole, FilterScores)
    for name, layer in whole.layers.items():
        np.testing.assert_allclose(parts.layers[name].scores, layer.scores, rtol=1e-4)
