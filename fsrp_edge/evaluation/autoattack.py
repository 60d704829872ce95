"""Accuracy under AutoAttack (Croce and Hein, ICML 2020), the standard version.

Auto-PGD and FAB are written here, so that an image is dropped the moment it falls; Square is pyautoattack's. Draws are
those of the library, and tests hold the outcome to that of its own driver.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import Norm, attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import default_batch_size, evaluation_of, is_wrong, predictions, searched
from fsrp_edge.evaluation.apgd import Loss, apgd, cross_entropy, dlr, targeted_dlr
from fsrp_edge.evaluation.fab import fab_targeted
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.evaluation.standing import Verdicts, attack_standing
from fsrp_edge.models.classifier import Classifier

TARGET_CLASSES = 9
"""Of the standard version's targeted attacks, where the network has more classes than that."""
SQUARE_QUERIES = 5000
SUSPICIOUS_SQUARE = 0.002
"""Share of images that Square may fell after the gradient attacks before it is a sign that gradients mislead."""


def autoattack_accuracy(
    classifier: Classifier,
    images: ImageSet,
    *,
    eps: float,
    norm: Norm = "Linf",
    seed: int,
    batch_size: int | None = None,
    standing: Tensor | None = None,
    verdicts: Verdicts | None = None,
) -> Evaluation:
    """Accuracy under the standard version: APGD-CE, targeted APGD-DLR, targeted FAB, Square.

    Each attack is given the images that still stand.

    The targeted DLR loss needs four classes and the untargeted one three. With three classes the untargeted
    one takes its place, with two there is none. In L2 pyautoattack's Square breaks off at some sizes of images, such as
    24 × 24, and is left out there. The result's warnings say so.

    Args:
        classifier: network under attack, float32 throughout. Its batch norms are folded for the search where that is
            possible; an image falls only by the network's own verdict.
        images: images and labels.
        eps: radius of the ball, in units of pixels in [0, 1].
        norm: of the ball.
        seed: of every random draw. Draws depend on the batch, so only the same batch size gives the same
            images.
        batch_size: images attacked at once; None chooses by their size.
        standing: bool (images,) on the CPU, where the network is right without an attack; None lets it predict.
        verdicts: of an interrupted evaluation, and to be kept in case this one is.

    Returns:
        The evaluation under the name `autoattack`, with warnings where an attack could not be run as usual or Square
        found what the gradient attacks missed.
    """
    batch_size = batch_size or default_batch_size(images)
    classifier.to_fast_layout(compute.device_of(classifier))
    if standing is None:
        standing = predictions(classifier, images, batch_size=batch_size) == images.labels
    warnings = []
    with (
        attackable(classifier),
        torch.no_grad(),
        compute.full_float32(),
        compute.own_draws(),  # the attacks draw from torch's global generator
    ):
        suite = _Suite(classifier, searched(classifier), norm, eps)
        for name, withstands in suite.attacks() if eps > 0 else ():

            def seeded(batch: Tensor, truth: Tensor, _: Tensor, withstands: WithstandsHere = withstands) -> Tensor:
                torch.manual_seed(seed)
                pixels = batch.to(suite.device, memory_format=torch.channels_last)
                return withstands(pixels, truth.to(suite.device))

            before = standing
            standing = attack_standing(
                images,
                standing,
                seeded,
                name=f"autoattack {name}",
                batch_size=batch_size,
                verdicts=verdicts,
            )
            felled = float((before & ~standing).float().mean())
            if name == "square" and felled > SUSPICIOUS_SQUARE:
                warnings.append(
                    f"Square felled {felled:.1%} of the images after the gradient attacks had failed: gradients "
                    "mislead here, robust accuracy may be lower than this"
                )
    if classifier.spec.classes == 2:
        warnings.append("2 classes: the DLR loss does not exist, APGD-T was left out")
    if classifier.spec.classes == 3:
        warnings.append("3 classes: APGD on the untargeted DLR loss stands in for the targeted one")
    if not suite.square_fits:
        height, width = classifier.spec.input_shape[1:]
        warnings.append(f"L2 at {height}x{width}: Square cannot tile images of this size, it was left out")
    return evaluation_of(standing, images, attack="autoattack", norm=norm, eps=eps, seed=seed, warnings=tuple(warnings))


WithstandsHere = Callable[[Tensor, Tensor], Tensor]
"""Takes pixels and labels on the network's device; returns bool (N,), True where the prediction stays right."""


@dataclass(frozen=True)
class _Suite:
    """The attacks on one network.

    Args:
        classifier: has the last word on every image.
        searched: a faster equal of it, to search with.
        norm: of the ball.
        eps: its radius.
    """

    classifier: Classifier
    searched: Callable[[Tensor], Tensor]
    norm: Norm
    eps: float

    @property
    def device(self) -> torch.device:
        return compute.device_of(self.classifier)

    def attacks(self) -> list[tuple[str, WithstandsHere]]:
        """The standard version's in its order, as far as the number of classes and the size of images allow."""
        ball: Any = {"norm": self.norm, "eps": self.eps}
        climb = partial(apgd, self.searched, self.judge, **ball)
        across = partial(fab_targeted, self.searched, self.judge, **ball)
        classes = self.classifier.spec.classes
        attacks: list[tuple[str, WithstandsHere]] = [("apgd-ce", self._untargeted(climb, cross_entropy))]
        if classes >= 4:
            attacks.append(("apgd-t", self._targeted(partial(climb, loss=targeted_dlr))))
        elif classes == 3:
            attacks.append(("apgd-dlr", self._untargeted(climb, dlr)))
        square = [("square", self._square)] if self.square_fits else []
        return [*attacks, ("fab-t", self._targeted(across)), *square]

    @property
    def square_fits(self) -> bool:
        """Whether the tiles that pyautoattack's Square begins with lie within the image; in L2 it breaks off if not."""
        height, width = self.classifier.spec.input_shape[1:]
        tile = height // 5
        margin = (height - 5 * tile) // 2
        within = tile > 0 and all(margin + side // tile * tile <= side for side in (height, width))
        return self.norm == "Linf" or tile == 1 or within

    def judge(self, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Where the network itself is wrong."""
        return is_wrong(self.classifier, adversarial, labels)

    def _untargeted(self, climb: Callable[..., Tensor], loss: Loss) -> WithstandsHere:
        return lambda pixels, labels: climb(pixels, labels, loss=loss, targets=labels)

    def _targeted(self, run: Callable[..., Tensor]) -> WithstandsHere:
        """Towards the second best class first, then the third best, and so on."""

        def withstands(pixels: Tensor, labels: Tensor) -> Tensor:
            ranked = self.searched(pixels).argsort(dim=1, descending=True)
            stands = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
            for rank in range(1, min(TARGET_CLASSES, self.classifier.spec.classes - 1) + 1):
                left = stands.nonzero().squeeze(1)
                if len(left):
                    stands[left] = run(pixels[left], labels[left], targets=ranked[left, rank])
            return stands

        return withstands

    def _square(self, pixels: Tensor, labels: Tensor) -> Tensor:
        from pyautoattack.square import SquareAttack

        attack = SquareAttack(
            self.searched, norm=self.norm, eps=self.eps, n_queries=SQUARE_QUERIES, p_init=0.8,
            resc_schedule=False, seed=torch.initial_seed(), device=self.device,
        )  # fmt: skip
        return ~self.judge(attack.perturb(pixels.contiguous(), labels), labels)
