"""Accuracy under gradient attacks in the L∞ ball."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import PGD, attackable, input_gradient, random_start
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import default_batch_size, evaluation_of
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track


def pgd_accuracy(
    classifier: Classifier, images: ImageSet, attack: PGD, *, seed: int, batch_size: int | None = None
) -> Evaluation:
    """Accuracy under projected gradient descent on the cross-entropy.

    An image stands if the network is right on the clean image and on every iterate of every restart, the
    random start
    included: at least as strict as judging the last iterate only. The gradients may be computed in bfloat16;
        each
    verdict is float32's. An image that has fallen is not attacked further.

    Args:
        classifier: network under attack.
        images: images and labels.
        attack: eps, steps, step size and restarts.
        seed: of the random starts. They depend on an image's position in the set, not on the batch size.
        batch_size: images attacked at once; None chooses by their size.

    Returns:
        The evaluation, under the name `pgd-<steps>`, or `pgd-<steps>x<restarts>` for more than one.
    """
    name = f"pgd-{attack.steps}" + (f"x{attack.restarts}" if attack.restarts > 1 else "")
    seeds = np.random.SeedSequence(seed).generate_state(attack.restarts)
    generators = [compute.generator(int(restart_seed)) for restart_seed in seeds]

    def starts(pixels: Tensor) -> list[Tensor]:
        # All are drawn before any is used, or the draws would depend on which images fell early.
        return [random_start(pixels, attack.eps, generator) for generator in generators]

    standing = _standing(classifier, images, attack, starts, batch_size=batch_size, name=name)
    return evaluation_of(standing, images, attack=name, norm="Linf", eps=attack.eps, seed=seed)


def fgsm_accuracy(
    classifier: Classifier, images: ImageSet, *, eps: float, batch_size: int | None = None
) -> Evaluation:
    """Accuracy under one gradient-sign step of length eps from the clean image (arXiv 1412.6572).

    There is nothing random about it. Args and verdict as for `pgd_accuracy`.
    """
    attack = PGD(eps=eps, steps=1, step_size=eps or None)
    standing = _standing(
        classifier, images, attack, lambda pixels: [pixels], batch_size=batch_size, name="fgsm"
    )
    return evaluation_of(standing, images, attack="fgsm", norm="Linf", eps=eps)


def _standing(
    classifier: Classifier,
    images: ImageSet,
    attack: PGD,
    starts: Callable[[Tensor], list[Tensor]],
    *,
    batch_size: int | None,
    name: str,
) -> Tensor:
    """Bool (images,) on the CPU; `starts` makes the first iterates of a batch (on the CPU), one a restart."""
    device = compute.device_of(classifier)
    compute.to_fast_layout(classifier, device)
    batch_size = batch_size or default_batch_size(images)
    parts = [torch.zeros(0, dtype=torch.bool)]
    with attackable(classifier), torch.no_grad():
        batches = images.batches(batch_size)
        for batch, truth in track(batches, f"{name} on {images.name}", images.batch_count(batch_size)):
            pixels, labels = batch.to(device), truth.to(device)
            standing = classifier(pixels).argmax(1) == labels
            for start in starts(batch) if attack.eps > 0 else []:
                left = standing.nonzero().squeeze(1)
                standing[left] = _withstands(
                    classifier, pixels[left], labels[left], start.to(device)[left], attack
                )
            parts.append(standing.cpu())
    return torch.cat(parts)


def _withstands(model: Classifier, pixels: Tensor, labels: Tensor, start: Tensor, attack: PGD) -> Tensor:
    """Bool (N,): whether the prediction is right on the start and on every iterate after it."""
    lower, upper = (pixels - attack.eps).clamp_(min=0), (pixels + attack.eps).clamp_(max=1)
    stands = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    left, adversarial = torch.arange(len(labels), device=labels.device), start
    for _ in range(attack.steps):
        if len(left) == 0:
            return stands
        gradient, logits = input_gradient(model, adversarial, labels[left])
        adversarial, reached = adversarial + attack.step * gradient.sign(), adversarial
        adversarial = torch.clamp(adversarial, lower[left], upper[left])
        suspects = (logits.argmax(1) != labels[left]).nonzero().squeeze(1)
        if len(suspects):
            fallen = suspects[model(reached[suspects]).argmax(1) != labels[left[suspects]]]
            stands[left[fallen]] = False
            keep = stands[left]
            left, adversarial = left[keep], adversarial[keep]
    if len(left):
        stands[left] = model(adversarial).argmax(1) == labels[left]
    return stands
