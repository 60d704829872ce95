"""Signs that an attack's failure says little about robustness (Carlini et al., arXiv 1902.06705, section 4)."""

import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import PGD, Norm, attackable, input_gradient
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.models.classifier import Classifier

PROBES = 64
"""Images that are looked at, the first ones."""


def suspicions(classifier: Classifier, images: ImageSet, norm: Norm, *, seed: int) -> tuple[str, ...]:
    """One sentence for each sign found.

    Args:
        classifier: network under attack.
        images: at least one.
        norm: in which it is attacked.
        seed: of the attack's random starts.
    """
    probes = images.first(PROBES)
    pixels, labels = (part.to(compute.device_of(classifier)) for part in next(probes.batches(PROBES)))
    with attackable(classifier), torch.no_grad():
        logits = classifier(pixels)
        repeated = classifier(pixels)
        gradient, _ = input_gradient(classifier, pixels, labels)
    found = []
    if not torch.allclose(logits, repeated, rtol=1e-4, atol=1e-4):
        found.append("the network answers at random: these attacks don't average over its draws")
    if _are_probabilities(logits):
        found.append("the network returns probabilities: attacks need logits, leave the softmax out")
    if vanished := int((~(gradient.flatten(1).abs().amax(1) > 0)).sum()):
        found.append(
            f"the gradient of the cross-entropy is zero or NaN on {vanished} of {len(probes)} images: gradient attacks "
            "cannot start there; believe cw and autoattack rather"
        )
    # Half the range of pixels turns any image into any other's gray: what stands there was not really attacked.
    eps = 0.5 if norm == "Linf" else 0.5 * pixels[0].numel() ** 0.5
    extreme = pgd_accuracy(classifier, probes, PGD(eps=eps, norm=norm), seed=seed).result
    if extreme.interval[0] > 1 / classifier.spec.classes:
        found.append(
            f"{extreme.accuracy:.0%} of {len(probes)} images stand at eps {eps:.3g}, where no image can be told from "
            "another: gradients are masked and robust accuracy is overstated"
        )
    return tuple(found)


def _are_probabilities(logits: Tensor) -> bool:
    return bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]))
