"""What a training step minimizes."""

import torch.nn.functional as F
from torch import Tensor

from fsrp_edge.training.recipe import Recipe

RSLAD_CLEAN = 1 / 6
"""Weight of the clean images in RSLAD, the authors'."""


def training_loss(
    logits: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    teacher_logits: Tensor | None = None,
    clean_logits: Tensor | None = None,
) -> Tensor:
    """Mean loss of a batch.

    Args:
        logits: (N, classes) of the images that the recipe's method made.
        labels: (N,) int64, or (N, classes) shares where images were mixed.
        recipe: label smoothing and the weight of distillation.
        teacher_logits: (N, classes) of the teacher on the same images, for RSLAD on the clean ones; None without
            a teacher.
        clean_logits: (N, classes) on the clean images; None but for TRADES and RSLAD.

    Returns:
        A scalar.
    """
    if recipe.method == "rslad":
        assert clean_logits is not None and teacher_logits is not None, "Passes makes both"
        on_clean, on_adversarial = (soft_label_loss(each, teacher_logits) for each in (clean_logits, logits))
        return RSLAD_CLEAN * on_clean + (1 - RSLAD_CLEAN) * on_adversarial
    if clean_logits is not None:
        natural = F.cross_entropy(clean_logits, labels, label_smoothing=recipe.label_smoothing)
        return natural + recipe.trades_beta * soft_label_loss(logits, clean_logits)
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if teacher_logits is None:
        return loss
    return recipe.distillation * soft_label_loss(logits, teacher_logits) + (1 - recipe.distillation) * loss


def soft_label_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the predictions from the teacher's, at temperature 1."""
    return F.kl_div(
        F.log_softmax(logits, dim=1),
        F.log_softmax(teacher_logits, dim=1),
        reduction="batchmean",
        log_target=True,
    )
