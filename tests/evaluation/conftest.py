"""Two small networks trained for seconds on real digits: one naturally, one adversarially."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fsrp_edge.data.embedded import digits
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.training.loop import train
from fsrp_edge.training.recipe import Recipe

SPEC = ModelSpec(
    architecture="tests:small_cnn",
    input_shape=(1, 16, 16),
    classes=10,
    mean=(0.3,),
    std=(0.35,),
    preprocessing=Preprocessing(resize=16),
)


def small_cnn(classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, classes),
    )
    return Classifier(network, SPEC.model_copy(update={"classes": classes}))


@dataclass(frozen=True)
class Trained:
    natural: Classifier
    robust: Classifier
    images: ImageSet


@pytest.fixture(scope="session")
def trained() -> Trained:
    data = digits(SPEC)
    held_out, learnt = data.train.split(100, 0)
    common = {"eps": 0.1, "epochs": 8, "batch_size": 64, "learning_rate": 0.05}
    natural, robust = small_cnn(), small_cnn()
    train(natural, learnt, held_out, Recipe(method="natural", **common), seed=0)
    train(robust, learnt, held_out, Recipe(method="n-fgsm", **common), seed=0)
    return Trained(natural, robust, data.evaluation.first(200))


@pytest.fixture
def restricted(trained: Trained) -> Callable[[int], tuple[Classifier, ImageSet]]:
    """The robust network with only its first classes, and their images."""

    def restrict(classes: int) -> tuple[Classifier, ImageSet]:
        network = small_cnn(classes)
        state = trained.robust.state_dict()
        for name in ("network.7.weight", "network.7.bias"):
            state[name] = state[name][:classes]
        network.load_state_dict(state)
        positions = (trained.images.labels < classes).nonzero().squeeze(1).numpy()
        return network.eval(), trained.images.subset(positions)

    return restrict
