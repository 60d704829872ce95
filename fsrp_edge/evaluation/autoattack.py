"""Accuracy under AutoAttack (Croce and Hein, ICML 2020), with the attacks of pyautoattack.

The library's attacks run as they are; what drives them is written here, because images are streamed, progress
is shown, and the library's warnings belong to the result. A test holds it to the library's own driver.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import default_batch_size, evaluation_of, predictions
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track

TARGET_CLASSES = 9
"""Of the standard version's targeted attacks, where the network has more classes than that."""

Perturb = Callable[[Tensor, Tensor], Tensor]


def autoattack_accuracy(
    classifier: Classifier,
    images: ImageSet,
    *,
    eps: float,
    norm: Literal["Linf", "L2"] = "Linf",
    seed: int,
    batch_size: int | None = None,
) -> Evaluation:
    """Accuracy under the standard version: APGD-CE, targeted APGD-DLR, targeted FAB, Square.

    Each attack is given the images that still stand.

    The targeted DLR loss needs four classes and the untargeted one three. With three classes the untargeted
    one takes its place, with two there is none; the result's warnings say so.

    Args:
        classifier: network under attack, float32 throughout.
        images: images and labels.
        eps: radius of the ball, in units of pixels in [0, 1].
        norm: of the ball.
        seed: of every random draw. Draws depend on the batch, so only the same batch size gives the same
            images.
        batch_size: images attacked at once; None chooses by their size.

    Returns:
        The evaluation under the name `autoattack`, with the library's warnings (randomness, zero gradients,
        outputs that are no logits, Square finding what the gradient attacks missed).
    """
    from pyautoattack import AutoAttack, checks

    batch_size = batch_size or default_batch_size(images)
    device = compute.device_of(classifier)
    compute.to_fast_layout(classifier, device)
    standing = predictions(classifier, images, batch_size=batch_size) == images.labels
    shares = {"clean": float(standing.float().mean())}
    with (
        attackable(classifier),
        torch.no_grad(),
        _recorded_warnings() as (logger, warnings),
        torch.random.fork_rng(),  # the attacks seed torch's global generator
    ):
        model = _contiguous_gradients(classifier)
        _check_network(model, images, batch_size, device, logger)
        suite = AutoAttack(model, norm=norm, eps=eps, seed=seed, device=device)
        for name, perturb in _attacks(suite, classifier.spec.classes, logger) if eps > 0 else ():
            _strike_out(standing, classifier, images, batch_size, name=name, perturb=perturb)
            shares[name] = float(standing.float().mean())
        checks.check_square_sr(shares, logger=logger)
    unique = tuple(dict.fromkeys(warnings))
    return evaluation_of(
        standing, images, attack="autoattack", norm=norm, eps=eps, seed=seed, warnings=unique
    )


def _attacks(suite: Any, classes: int, logger: logging.Logger) -> list[tuple[str, Perturb]]:
    """The standard version's attacks in its order, as far as the number of classes allows."""
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(TARGET_CLASSES, classes - 1)
    suite.fab.targeted = True
    suite.apgd.loss = "ce"
    attacks: list[tuple[str, Perturb]] = [("apgd-ce", suite.apgd.perturb)]
    if classes >= 4:
        attacks.append(("apgd-t", suite.apgd_targeted.perturb))
    elif classes == 3:
        untargeted = copy.copy(suite.apgd)
        untargeted.loss = "dlr"
        attacks.append(("apgd-dlr", untargeted.perturb))
        logger.warning("3 classes: APGD on the untargeted DLR loss stands in for the targeted one")
    else:
        logger.warning("2 classes: the DLR loss does not exist, APGD-T was left out")
    return [*attacks, ("fab-t", suite.fab.perturb), ("square", suite.square.perturb)]


def _strike_out(
    standing: Tensor,
    classifier: Classifier,
    images: ImageSet,
    batch_size: int,
    *,
    name: str,
    perturb: Perturb,
) -> None:
    """Attack the images that stand, and clear those that fall in `standing`."""
    device = compute.device_of(classifier)
    left = standing.nonzero().squeeze(1)
    targets = images.subset(left.numpy())
    described = f"autoattack {name}, {len(left)} of {len(images)} standing"
    batches = track(targets.batches(batch_size), described, targets.batch_count(batch_size))
    for (batch, truth), positions in zip(batches, torch.split(left, batch_size), strict=False):
        pixels, labels = batch.to(device), truth.to(device)
        adversarial = perturb(pixels, labels)
        standing[positions] = (classifier(adversarial).argmax(1) == labels).cpu()


def _contiguous_gradients(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """The network for attacks that flatten gradients by `view`, which channels_last ones would refuse."""

    def model(pixels: Tensor) -> Tensor:
        if pixels.requires_grad:
            pixels.register_hook(lambda gradient: gradient.contiguous())
        logits: Tensor = classifier(pixels)
        return logits

    return model


def _check_network(
    model: Callable[[Tensor], Tensor],
    images: ImageSet,
    batch_size: int,
    device: torch.device,
    logger: logging.Logger,
) -> None:
    """The library's checks of a network, but for the one on dynamic defences.

    That one counts calls in a global that is never reset: a single dynamic network would taint all after it.
    """
    from pyautoattack import checks

    batch, truth = next(images.batches(batch_size))
    pixels, labels = batch.to(device), truth.to(device)
    checks.check_randomized(model, pixels, labels, bs=batch_size, logger=logger)
    checks.check_range_output(model, pixels, logger=logger)


@contextmanager
def _recorded_warnings() -> Iterator[tuple[logging.Logger, list[str]]]:
    """The library's logger and a list that its warnings go to instead of the console."""
    warnings: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage().replace("See flags_doc.md for details.", "").strip())

    logger: Any = logging.getLogger("auto-attack")
    recorder = Recorder(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(recorder)
    try:
        yield logger, warnings
    finally:
        logger.removeHandler(recorder)
        logger.propagate = propagate
