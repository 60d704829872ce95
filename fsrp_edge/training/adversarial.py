"""The images a training step learns from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsrp_edge import compute
from fsrp_edge.attacks import PGD, attackable, gradient_in, input_gradient, pgd, project, random_start
from fsrp_edge.training.recipe import Recipe


def training_images(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    teacher_logits: Tensor | None = None,
) -> Tensor:
    """What the recipe's method makes of a batch; (N, C, H, W) in [0, 1].

    The network is attacked in evaluation mode: batch-norm statistics are used, not touched, so the attack's
    own batches cannot pollute them, and clean accuracy comes out higher at equal robustness (Pang et al.,
    "Bag of Tricks for Adversarial Training", arXiv 2010.00467, section 3). RSLAD needs the teacher's logits on
    `pixels`.
    """
    if recipe.method == "natural":
        return pixels
    with attackable(model):
        if recipe.method == "pgd":
            return pgd(model, pixels, labels, PGD(eps=recipe.eps, steps=recipe.attack_steps), generator)
        if recipe.method in ("trades", "rslad"):
            predicted = teacher_logits
            if predicted is None:
                with torch.no_grad(), compute.autocast(pixels.device):
                    predicted = model(pixels).float()
            return away_from(predicted, model, pixels, recipe.eps, recipe.attack_steps, generator)
        return n_fgsm(model, pixels, labels, recipe.eps, generator)


def n_fgsm(model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Noise in [-2 · eps, 2 · eps] and one gradient step of eps, not clipped to the ball.

    The step and the noise are those of the authors' repository (`--alpha 8 --unif 2` at eps 8/255). Noise
    larger than the ball is what keeps single-step training from catastrophic overfitting.

    Args:
        model: takes pixels and returns logits; call it inside `attackable`.
        pixels: (N, C, H, W) in [0, 1].
        labels: (N,) int64, or (N, classes) shares.
        eps: radius the network is to withstand.
        generator: source of the noise.

    Returns:
        (N, C, H, W) in [0, 1], at most 3 · eps away from `pixels`.
    """
    noisy = random_start(pixels, 2 * eps, generator)
    gradient, _ = input_gradient(model, noisy, labels)
    return (noisy + eps * gradient.sign()).clamp_(0, 1)


def away_from(
    logits: Tensor, model: nn.Module, pixels: Tensor, eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    """TRADES' and RSLAD's examples: the divergence from predictions on the clean images grows, whatever the labels.

    Args:
        logits: (N, classes) of those predictions: of the network itself for TRADES, of the teacher for RSLAD.
        model: takes pixels and returns logits; call it inside `attackable`.
        pixels: (N, C, H, W) in [0, 1].
        eps: L∞ radius.
        steps: of 2.5 · eps / steps each (the authors': 10 of eps / 4).
        generator: source of the small noise to start from, as the divergence from the network's own predictions has no
            gradient at the image itself.

    Returns:
        (N, C, H, W) in [0, 1], inside the ball.
    """
    clean = F.log_softmax(logits, dim=1)
    noise = torch.randn(pixels.shape, generator=generator, device=generator.device).to(pixels.device)
    adversarial = project(pixels + 1e-3 * noise, pixels, eps, "Linf")
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_(True)
        with torch.enable_grad(), compute.autocast(pixels.device):
            predicted = F.log_softmax(model(adversarial).float(), dim=1)
            divergence = F.kl_div(predicted, clean, reduction="sum", log_target=True)
        gradient = gradient_in(adversarial, divergence)
        moved = adversarial.detach() + 2.5 * eps / steps * gradient.sign()
        adversarial = project(moved, pixels, eps, "Linf")
    return adversarial.detach()
