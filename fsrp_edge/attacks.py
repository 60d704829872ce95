"""Gradient attacks that scoring, training and evaluation share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from fsrp_edge import compute
from fsrp_edge.errors import BadInputError
from fsrp_edge.records import Record

DEFAULT_EPS = 8 / 255
Norm = Literal["Linf", "L2"]
Loss = Literal["cross-entropy", "margin"]


def check_radius(norm: Norm, eps: float) -> None:
    """Raise ValueError for an L∞ radius above 1, the whole range of pixels; in L2 images differ by more than that."""
    if norm == "Linf" and eps > 1:
        raise ValueError(f"eps {eps:g} is above 1, but pixels are in [0, 1]; 8/255 is usual in L-infinity")


class PGD(Record):
    """Projected gradient descent (Madry et al., arXiv 1706.06083).

    Args:
        eps: radius of the ball, in units of pixels in [0, 1].
        steps: gradient steps.
        step_size: length of a step in the same units; None means 2.5 · eps / steps, which reaches the border from
            anywhere in the ball (Madry et al.'s reference code uses 2/255 for 20 steps at 8/255).
        restarts: random starts; an image counts as fooled if any start fools it.
        early_stop: leave an image as it is once it is fooled, which saves time where examples are all that is wanted.
        norm: of the ball and of a step.
        loss: what is increased. `margin` is the best wrong logit minus the right one (Carlini and Wagner,
            arXiv 1608.04644), whose gradient does not vanish where the network is sure.
    """

    eps: float = Field(DEFAULT_EPS, ge=0)
    steps: int = Field(10, ge=1)
    step_size: float | None = Field(None, gt=0)
    restarts: int = Field(1, ge=1)
    early_stop: bool = False
    norm: Norm = "Linf"
    loss: Loss = "cross-entropy"

    @model_validator(mode="after")
    def _fits_the_pixels(self) -> Self:
        check_radius(self.norm, self.eps)
        return self

    @property
    def step(self) -> float:
        """Length of a step, whether given or by the rule."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size


@contextmanager
def attackable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside the block, both restored after it.

    Freezing the parameters saves about a third of the time of the gradient with respect to the input.
    """
    was_training = [module for module in model.modules() if module.training]
    was_trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in was_trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in was_trainable:
            parameter.requires_grad_(True)
        for module in was_training:
            module.training = True


def random_start(pixels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """`pixels` plus uniform noise in [-eps, eps], clipped to [0, 1]; drawn where the generator is."""
    noise = torch.rand(pixels.shape, generator=generator, device=generator.device).to(pixels.device)
    return (pixels + (2 * noise - 1) * eps).clamp_(0, 1)


def l2_norms(tensor: Tensor) -> Tensor:
    """(N, 1, 1, 1) lengths of the images of a batch (N, C, H, W), never zero so that one can divide by them."""
    flat, least = tensor.flatten(1), torch.finfo(tensor.dtype).tiny
    lengths: Tensor = flat.norm(dim=1)
    # Where a network is sure, gradients are small numbers, but their squares are zeros.
    largest = flat.abs().amax(1).clamp_(min=least)
    lengths = torch.where(lengths < 1e-12, largest * (flat / largest[:, None]).norm(dim=1), lengths)
    return lengths.clamp_(min=least).view(-1, 1, 1, 1)


def project(adversarial: Tensor, pixels: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest points of the ball around `pixels`, clipped to [0, 1] (which leaves them in the ball)."""
    if norm == "Linf":
        return torch.clamp(adversarial, (pixels - eps).clamp_(min=0), (pixels + eps).clamp_(max=1))
    shift = adversarial - pixels
    return (pixels + shift * (eps / l2_norms(shift)).clamp_(max=1)).clamp_(0, 1)


def ascent_step(adversarial: Tensor, gradient: Tensor, pixels: Tensor, attack: PGD) -> Tensor:
    """One step of `attack` along the gradient, projected."""
    # A network that answers NaN leaves its image where it is, so that the layer at fault can still be told.
    direction = (gradient.sign() if attack.norm == "Linf" else gradient / l2_norms(gradient)).nan_to_num_(0)
    return project(adversarial + attack.step * direction, pixels, attack.eps, attack.norm)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) best wrong logit minus the right one: above 0 where the prediction is wrong."""
    right = logits.gather(1, labels[:, None])
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True) - right).squeeze(1)


def gradient_in(pixels: Tensor, total: Tensor) -> Tensor:
    """Gradient of a sum over images with respect to their pixels.

    Raises:
        BadInputError: the network's code lets none through, as where its backbone runs under `torch.no_grad`.
    """
    if not total.requires_grad:
        raise BadInputError(
            "the network lets no gradient through to its input, which attacks, training and most criteria need; leave "
            "torch.no_grad, inference_mode and detach out of its code"
        )
    (gradient,) = torch.autograd.grad(total, pixels)
    return gradient


def input_gradient(
    model: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, loss: Loss = "cross-entropy"
) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss with respect to `pixels` (same shape), and the logits (N, classes)."""
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad(), compute.autocast(pixels.device):
        logits = model(pixels).float()
        each = margin(logits, labels) if loss == "margin" else F.cross_entropy(logits, labels, reduction="none")
        total = each.sum()
    return gradient_in(pixels, total), logits.detach()


def pgd(model: nn.Module, pixels: Tensor, labels: Tensor, attack: PGD, generator: torch.Generator) -> Tensor:
    """Adversarial examples of one random start.

    Args:
        model: takes pixels in [0, 1] and returns logits; call it inside `attackable`.
        pixels: (N, C, H, W) in [0, 1], on the model's device.
        labels: (N,) int64.
        attack: strength; `restarts` is the caller's business.
        generator: source of the random start.

    Returns:
        (N, C, H, W), inside the eps ball around `pixels` and inside [0, 1].
    """
    if attack.eps == 0:
        return pixels
    adversarial = random_start(pixels, attack.eps, generator)
    if attack.norm == "L2":
        adversarial = project(adversarial, pixels, attack.eps, "L2")
    left: slice | Tensor = slice(None)
    for _ in range(attack.steps):
        gradient, logits = input_gradient(model, adversarial[left], labels[left], attack.loss)
        moved = ascent_step(adversarial[left], gradient, pixels[left], attack)
        if not attack.early_stop:
            adversarial = moved
            continue
        standing = (logits.argmax(1) == labels[left]).nonzero().squeeze(1)
        left = standing if isinstance(left, slice) else left[standing]
        adversarial[left] = moved[standing]
        if len(left) == 0:
            break
    return adversarial
