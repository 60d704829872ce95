"""The images a training step learns from."""

import torch
from torch import Tensor, nn

from fsrp_edge.attacks import PGD, attackable, input_gradient, pgd, random_start
from fsrp_edge.training.recipe import Recipe


def training_images(
    model: nn.Module, pixels: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """What the recipe's method makes of a batch; (N, C, H, W) in [0, 1].

    The network is attacked in evaluation mode: batch-norm statistics are used, not touched, so the attack's
    own batches cannot pollute them, and clean accuracy comes out higher at equal robustness (Pang et al.,
    "Bag of Tricks for Adversarial Training", arXiv 2010.00467, section 3).
    """
    if recipe.method == "natural":
        return pixels
    with attackable(model):
        if recipe.method == "pgd":
            return pgd(model, pixels, labels, PGD(eps=recipe.eps, steps=recipe.attack_steps), generator)
        return n_fgsm(model, pixels, labels, recipe.eps, generator)


def n_fgsm(
    model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, generator: torch.Generator
) -> Tensor:
    """Noise in [-2 · eps, 2 · eps] and one gradient step of eps, not clipped to the ball.

    The step and the noise are those of the authors' repository (`--alpha 8 --unif 2` at eps 8/255). Noise
    larger than the ball is what keeps single-step training from catastrophic overfitting.

    Args:
        model: takes pixels and returns logits; call it inside `attackable`.
        pixels: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        eps: radius the network is to withstand.
        generator: source of the noise.

    Returns:
        (N, C, H, W) in [0, 1], at most 3 · eps away from `pixels`.
    """
    noisy = random_start(pixels, 2 * eps, generator)
    gradient, _ = input_gradient(model, noisy, labels)
    return (noisy + eps * gradient.sign()).clamp_(0, 1)
