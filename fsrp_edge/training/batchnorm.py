"""Batch-norm statistics that belong to the network as it is now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fsrp_edge import compute
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track

BATCH_SIZE = 128
"""Images a forward pass of a recalibration, at most."""
LEAST_MOMENTUM = 0.1
"""Least momentum of running statistics while training: torch's default, an average over about ten batches."""


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there are statistics that could be recalibrated."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


@contextmanager
def following_batch_norm(network: nn.Module) -> Iterator[None]:
    """Running means and variances that keep up with a network which is trained for a few hundred steps in the block.

    Architectures made for training over days average over hundreds of batches or thousands (torchvision's
    MobileNetV3 has a momentum of 0.01, MNASNet 0.0003); after a short fine-tuning their statistics would be those of
    weights that are gone, and the held-out accuracy that chooses the best epoch would be chance.
    """
    # None: all batches so far, weighed alike
    with _momenta(network, lambda momentum: max(momentum or 0.0, LEAST_MOMENTUM)):
        yield


@contextmanager
def _momenta(network: nn.Module, chosen: Callable[[float | None], float | None]) -> Iterator[list[_BatchNorm]]:
    """All batch norms, with other momenta inside the block."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = chosen(norm.momentum)
    try:
        yield norms
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def recalibrate_batch_norm(classifier: Classifier, images: ImageSet, *, max_images: int = 2048, seed: int = 0) -> None:
    """Replace the running means and variances by cumulative averages over clean images, in place.

    Removing channels changes what every later layer sees, while the running statistics still describe the
    dense network; without this step a pruned network falls to chance before any training. Only norms are in training
    mode meanwhile: dropout would widen what they see, and heads that serve training alone may not fit any more.

    Args:
        classifier: network whose statistics are replaced; nothing else of it changes.
        images: where the statistics come from: training images, never evaluation images.
        max_images: images used at most, in batches of up to 128. Only full batches count, so that all weigh the same.
        seed: order of the images. They are shuffled, because batches of a single class understate the
            variance.

    Raises:
        BadInputError: fewer than two images, from which no variance can be computed.
    """
    batch_size = min(BATCH_SIZE, images.usual_batch, max_images, len(images))
    if batch_size < 2:
        raise BadInputError(f"batch-norm recalibration needs at least 2 images, {images.name} offers {batch_size}")
    batches = min(max_images, len(images)) // batch_size
    stream = images.batches(batch_size, shuffle_seed=seed)
    chosen = (pixels for _, (pixels, _) in zip(range(batches), stream, strict=False))
    modes = {module: module.training for module in classifier.modules()}
    device = compute.device_of(classifier)
    with (
        torch.no_grad(),
        compute.own_draws(),  # a network may draw from global generators all the same
        _momenta(classifier, lambda _: None) as norms,  # a cumulative average
    ):
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
        for module in modes:
            module.training = isinstance(module, _NormBase)
        compute.seed_global_draws(seed, device)
        for pixels in track(chosen, "recalibrating batch norm", batches):
            classifier(pixels.to(device))
    for module, training in modes.items():
        module.training = training
