"""Classifiers around small networks, for tests of every room."""

from typing import Any

import torch
from torch import nn

from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.registry import build


def as_classifier(
    network: nn.Module,
    architecture: str = "tests:network",
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    std: float = 0.25,
    **more: Any,
) -> Classifier:
    """A network as the stages take it, in evaluation mode; `more` are other fields of its specification."""
    spec = ModelSpec(
        architecture=architecture,
        input_shape=shape,
        classes=classes,
        mean=(0.5,) * shape[0],
        std=(std,) * shape[0],
        preprocessing=Preprocessing(resize=max(shape[1:])),
        **more,
    )
    return Classifier(network, spec).eval()


def built(architecture: str, **more: Any) -> Classifier:
    """A network of the registry, 10 classes, with weights of the same draw each time."""
    torch.manual_seed(0)
    return as_classifier(build(architecture, classes=10), architecture, **more)


def around(network: nn.Module, classifier: Classifier) -> Classifier:
    """A classifier of a network that takes pixels as another classifier does, such as one that wraps it."""
    channels = classifier.spec.input_shape[0]
    return Classifier(network, classifier.spec.model_copy(update={"mean": (0.0,) * channels, "std": (1.0,) * channels}))
