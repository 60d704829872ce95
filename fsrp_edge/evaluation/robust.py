"""Accuracy under gradient attacks of fixed steps: FGSM, PGD on the cross-entropy, PGD on the margin."""

import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import PGD, ascent_step, attackable, input_gradient, project, random_start
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import Predict, default_batch_size, evaluation_of, is_wrong, predictions, searched
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.evaluation.standing import Verdicts, attack_standing
from fsrp_edge.models.classifier import Classifier


def pgd_accuracy(
    classifier: Classifier,
    images: ImageSet,
    attack: PGD,
    *,
    seed: int | None,
    batch_size: int | None = None,
    standing: Tensor | None = None,
    verdicts: Verdicts | None = None,
) -> Evaluation:
    """Accuracy under projected gradient descent.

    An image stands if the network is right on the clean image and on every iterate of every restart, the random start
    included: at least as strict as judging the last iterate only. An image falls only by float32's verdict, and is not
    attacked further then. Where gradients are computed in bfloat16, float32 is asked about the last iterates and about
    those that bfloat16 gets wrong: now and then an image stands that float32 alone would have seen fall on the way.

    Args:
        classifier: network under attack. Its batch norms are folded for the search where that is possible.
        images: images and labels.
        attack: eps, norm, steps, step size, restarts and loss.
        seed: of the random starts. They depend on an image's position in the set, not on the batch size or on how many
            processes share the work. None starts from the image itself: with a single step, FGSM (arXiv 1412.6572).
        batch_size: images attacked at once; None chooses by their size.
        standing: bool (images,) on the CPU, where the network is right without an attack; None lets it predict.
        verdicts: of an interrupted evaluation, and to be kept in case this one is.

    Returns:
        The evaluation, under the name `pgd-<steps>` (`cw-<steps>` for the margin), with `x<restarts>` for more than
        one.
    """
    kind = "pgd" if attack.loss == "cross-entropy" else "cw"
    name = f"{kind}-{attack.steps}" + (f"x{attack.restarts}" if attack.restarts > 1 else "")
    name = "fgsm" if seed is None and attack.steps == 1 else name
    device = compute.device_of(classifier)
    classifier.to_fast_layout(device)
    batch_size = batch_size or default_batch_size(images)
    if standing is None:
        standing = predictions(classifier, images, batch_size=batch_size) == images.labels

    def start(pixels: Tensor, positions: Tensor, restart: int) -> Tensor:
        if seed is None:
            return pixels
        noisy = [
            random_start(image, attack.eps, compute.generator(compute.seed_of(seed, restart, place)))
            for image, place in zip(pixels, positions.tolist(), strict=True)
        ]
        return project(torch.stack(noisy), pixels, attack.eps, attack.norm)

    def withstands(batch: Tensor, truth: Tensor, positions: Tensor) -> Tensor:
        pixels, labels = batch.to(device), truth.to(device)
        stands = torch.ones(len(labels), dtype=torch.bool, device=device)
        for restart in range(attack.restarts):
            left = stands.nonzero().squeeze(1)
            first = start(batch, positions, restart).to(device)[left]
            stands[left] = _withstands(classifier, search, pixels[left], labels[left], first, attack)
        return stands

    if attack.eps > 0:
        with attackable(classifier), torch.no_grad(), compute.full_float32():
            search = searched(classifier)
            standing = attack_standing(
                images, standing, withstands, name=name, batch_size=batch_size, verdicts=verdicts
            )
    return evaluation_of(standing, images, attack=name, norm=attack.norm, eps=attack.eps, seed=seed)


def _withstands(
    model: Classifier, search: Predict, pixels: Tensor, labels: Tensor, start: Tensor, attack: PGD
) -> Tensor:
    """Bool (N,): whether the prediction is right on the start and on every iterate after it."""
    stands = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    left, adversarial = torch.arange(len(labels), device=labels.device), start
    for _ in range(attack.steps):
        if len(left) == 0:
            return stands
        gradient, logits = input_gradient(search, adversarial, labels[left], attack.loss)
        reached, adversarial = adversarial, ascent_step(adversarial, gradient, pixels[left], attack)
        suspects = (logits.argmax(1) != labels[left]).nonzero().squeeze(1)
        if len(suspects):
            fallen = suspects[is_wrong(model, reached[suspects], labels[left[suspects]])]
            stands[left[fallen]] = False
            keep = stands[left]
            left, adversarial = left[keep], adversarial[keep]
    if len(left):
        stands[left] = ~is_wrong(model, adversarial, labels[left])
    return stands
