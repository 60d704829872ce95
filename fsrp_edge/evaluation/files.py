"""Robust accuracy of a file in its own runtime.

Exported and quantized graphs give no gradients, and rounding can hide them where they do, so a file is attacked in two
ways that need none of it: with adversarial examples of the float network it was made from, and with Square
(Andriushchenko et al., arXiv 1912.00049), which only looks at the file's own logits. An image stands if the file is
right on the clean image and under both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import PGD, attackable, pgd
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import Predict, clean_accuracy, default_batch_size, evaluation_of, predicted_classes
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.evaluation.standing import Verdicts, attack_standing
from fsrp_edge.files import sha256_file
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import all_cores, open_session

TRANSFER_STEPS = 20
QUERIES = 500
"""Inferences that Square may ask of the file for one image."""
TIE_BREAK = 1e-11
"""Times the difference of two classes' numbers: less than any two of their logits differ by that are not the same."""
PORTION = 16
"""Images that Square attacks at a time; its draws depend on it."""


def evaluate_files(
    files: Sequence[Path],
    classifier: Classifier,
    images: ImageSet,
    *,
    eps: float = 0,
    seed: int = 0,
    verdicts: Verdicts | None = None,
) -> dict[str, tuple[Evaluation, ...]]:
    """Clean accuracy of files in their own runtimes and, with an eps above 0, their robust accuracy.

    Under `torchrun` the processes share the images, but each makes all adversarial examples.

    Args:
        files: ONNX or TFLite, no two of the same name.
        classifier: the float network they were made from.
        images: images and labels.
        eps: L∞ radius, in units of pixels in [0, 1].
        seed: of the attacks.
        verdicts: of an interrupted evaluation, and to be kept in case this one is.

    Returns:
        The evaluations by the files' names, in their order.

    Raises:
        BadInputError: a path is no such file.
        ToolFailedError: a runtime is not installed or refuses its file.
    """
    # All of them before the long attacks on any: what is no such file is told at once.
    predicts = {path: open_session(path, threads=all_cores()).predict for path in files}
    clean = {path: clean_accuracy(predict, images) for path, predict in predicts.items()}
    if eps == 0 or not files:
        return {path.name: (evaluation,) for path, evaluation in clean.items()}
    examples = transfer_examples(classifier, images, eps=eps, seed=seed)

    def robust(path: Path) -> Evaluation:
        # The digest, since an export may have replaced the file that an interrupted evaluation judged.
        name = f"{path.name} {sha256_file(path)[:8]}"
        return file_robust_accuracy(predicts[path], images, examples, eps=eps, seed=seed, name=name, verdicts=verdicts)

    return {path.name: (evaluation, robust(path)) for path, evaluation in clean.items()}


def transfer_examples(classifier: Classifier, images: ImageSet, *, eps: float, seed: int) -> Tensor:
    """Adversarial examples of the float network, one an image, whether they fool it or not.

    Returns:
        float32 (N, C, H, W) in [0, 1] on the CPU: the last iterates of PGD-20 from a random start.
    """
    device, generator = compute.device_of(classifier), compute.generator(seed)
    attack, size = PGD(eps=eps, steps=TRANSFER_STEPS), default_batch_size(images)
    with attackable(classifier), torch.no_grad():
        batches = images.tracked(size, "examples of the float network")
        # One block: parts of it and their union would take twice the memory.
        made = torch.empty(len(images), *classifier.spec.input_shape)
        for part, (pixels, labels) in zip(made.split(size), batches, strict=True):
            part.copy_(pgd(classifier, pixels.to(device), labels.to(device), attack, generator))
    return made


def file_robust_accuracy(
    predict: Predict,
    images: ImageSet,
    examples: Tensor,
    *,
    eps: float,
    seed: int,
    queries: int = QUERIES,
    name: str = "file",
    verdicts: Verdicts | None = None,
) -> Evaluation:
    """Accuracy of a file under the float network's adversarial examples and under Square, the worst case of both.

    Args:
        predict: runs the file: pixels in, logits out.
        images: images and labels.
        examples: of `transfer_examples` on the same images with the same eps.
        eps: L∞ radius, in units of pixels in [0, 1].
        seed: of Square's draws.
        queries: inferences of Square for one image, of which the first 500 do most of the harm.
        name: of the file, for progress and for the verdicts.
        verdicts: of an interrupted evaluation, and to be kept in case this one is.

    Returns:
        The evaluation under the name `transfer+square-<queries>`.
    """
    attack = f"transfer+square-{queries}"

    def withstands(pixels: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        stands = _right(predict, pixels, labels) & _right(predict, examples[positions], labels)
        if eps > 0 and stands.any():
            attacked, truth = pixels[stands], labels[stands]
            fooled = _square(predict, eps, seed, queries).perturb(attacked, truth)
            stands[stands.clone()] = _right(predict, fooled, truth)
        return stands

    with torch.no_grad(), compute.own_draws():  # the attack seeds torch's global generator
        standing = attack_standing(
            images,
            torch.ones(len(images), dtype=torch.bool),
            withstands,
            name=f"{attack} on {name}",
            batch_size=PORTION,
            verdicts=verdicts,
        )
    return evaluation_of(standing, images, attack=attack, norm="Linf", eps=eps, seed=seed)


def _right(predict: Predict, pixels: Tensor, labels: Tensor) -> Tensor:
    return predicted_classes(predict(pixels)) == labels


def _square(predict: Predict, eps: float, seed: int, queries: int) -> Any:
    from pyautoattack.square import SquareAttack

    def without_ties(pixels: Tensor) -> Tensor:
        # Square lets go of an image at a tie, which coarse int8 logits often give and argmax gives to the lower class.
        logits = predict(pixels).double()
        return logits - TIE_BREAK * torch.arange(logits.shape[1])

    return SquareAttack(without_ties, norm="Linf", eps=eps, seed=seed, n_queries=queries, device="cpu")
