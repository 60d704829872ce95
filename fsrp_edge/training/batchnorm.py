"""Batch-norm statistics that belong to the network as it is now."""

import torch
from torch.optim.swa_utils import update_bn

from fsrp_edge import compute
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track


def recalibrate_batch_norm(
    classifier: Classifier, images: ImageSet, *, batch_size: int = 128, max_images: int = 2048, seed: int = 0
) -> None:
    """Replace the running means and variances by cumulative averages over clean images, in place.

    Removing channels changes what every later layer sees, while the running statistics still describe the
    dense network; without this step a pruned network falls to chance before any training.

    Args:
        classifier: network whose statistics are replaced; nothing else of it changes.
        images: where the statistics come from: training images, never evaluation images.
        batch_size: images a forward pass. Only full batches count, so that all weigh the same.
        max_images: images used at most.
        seed: order of the images. They are shuffled, because batches of a single class understate the
            variance.

    Raises:
        BadInputError: fewer than two images, from which no variance can be computed.
    """
    batch_size = min(batch_size, max_images, len(images))
    if batch_size < 2:
        raise BadInputError(
            f"batch-norm recalibration needs at least 2 images, {images.name} offers {batch_size}"
        )
    batches = min(max_images, len(images)) // batch_size
    stream = images.batches(batch_size, shuffle_seed=seed)
    chosen = (pixels for _, (pixels, _) in zip(range(batches), stream, strict=False))
    modes = {module: module.training for module in classifier.modules()}
    with torch.no_grad():
        tracked = track(chosen, "recalibrating batch norm", batches)
        update_bn(tracked, classifier, compute.device_of(classifier))
    for module, training in modes.items():
        module.training = training
