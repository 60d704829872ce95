"""Training a dense network from random weights, to have something robust to compress."""

from pathlib import Path
from typing import Any

import torch

from fsrp_edge import compute
from fsrp_edge.data.open import EMBEDDED, open_dataset
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.checkpoint import Wishes, classifier_of
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.registry import build, normalize_name
from fsrp_edge.training.loop import TrainingResult, train
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import fit_recipe, split_held_out


def train_dense(
    architecture: str,
    data: str,
    recipe: Recipe,
    *,
    classes: int,
    input_size: int | None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: int,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Build a network, train it, and keep the epoch with the best held-out robust accuracy.

    Args:
        architecture: a name that `models.registry` can build.
        data: a name or a path that `data.open` can open.
        recipe: of the training.
        classes: outputs of the network.
        input_size: height and width in pixels; None takes the architecture's published size.
        mean: one value a channel of pixels in [0, 1]; None takes the architecture's published one.
        std: as `mean`.
        seed: of the weights, the order and the attacks.
        checkpoint: rewritten after each epoch, and continued from.

    Raises:
        BadInputError: an unknown architecture, or data that does not fit it or has no labels.
    """
    if recipe.int8_epochs:
        raise BadInputError("int8_epochs are fsrp-edge recover's; train without them, then recover")
    name = normalize_name(architecture)
    channels = len(mean or std or (0, 0, 0))
    with compute.own_draws():
        torch.manual_seed(seed)
        network = build(name, classes=classes, input_channels=channels)
    spec = classifier_of(network, name, channels, Wishes(input_size, mean, std)).spec
    update: dict[str, Any] = {"data": data if data in EMBEDDED else None}
    if input_size:  # as images are brought to this size here: whole
        update["preprocessing"] = spec.preprocessing.model_copy(update={"resize": input_size})
    spec = spec.model_copy(update=update)
    dataset = open_dataset(data, spec, seed=seed)
    if not dataset.train.is_labelled:
        raise BadInputError(f"{dataset.train.name} has no labels to learn from; give labelled images (--data)")
    spec = spec.model_copy(update={"class_names": dataset.train.class_names})
    if dataset.whole:
        spec = spec.fed_whole()
    classifier = Classifier(network, spec)
    classifier.to_fast_layout(compute.default_device())
    learnt, held_out = split_held_out(dataset.train, seed)
    fitted = fit_recipe(recipe, dataset, has_teacher=False)
    return train(classifier, learnt, held_out, fitted, seed=seed, checkpoint=checkpoint)
