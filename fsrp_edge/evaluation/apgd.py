"""Auto-PGD (Croce and Hein, arXiv 2003.01690, section 3): projected gradient ascent that halves its own steps."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fsrp_edge.attacks import Norm, gradient_in, l2_norms, project
from fsrp_edge.evaluation.accuracy import predicted_classes

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes logits (N, classes), labels (N,) and target classes (N,); returns (N,), to be increased."""
Judge = Callable[[Tensor, Tensor], Tensor]
"""Takes adversarial images and labels; returns bool (N,), True where the prediction is wrong."""

STEPS = 100
MOMENTUM = 0.75
ENOUGH_INCREASES = 0.75


def cross_entropy(logits: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
    """The loss of APGD-CE."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
    """Difference of logits ratio, equation 6; it needs three classes."""
    ordered, ranked = logits.sort(dim=1)
    right = logits.gather(1, labels[:, None]).squeeze(1)
    # By rank, not by value: at a tie the right class may be the second one, and would climb against itself.
    best_wrong = torch.where(ranked[:, -1] == labels, ordered[:, -2], ordered[:, -1])
    return (best_wrong - right) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Towards one class, equation 7; it needs four classes."""
    ordered = logits.sort(dim=1).values
    right, wanted = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (labels, targets))
    return (wanted - right) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def apgd(
    model: Model,
    judge: Judge,
    pixels: Tensor,
    labels: Tensor,
    *,
    loss: Loss,
    targets: Tensor,
    norm: Norm,
    eps: float,
) -> Tensor:
    """One run from a random start, drawn from torch's global generator.

    The trajectory of each image is that of the authors' code. Images do not depend on one another, so one that has
    fallen is dropped at once.

    Args:
        model: gives the logits to climb by.
        judge: has the last word on an image that the model gets wrong.
        pixels: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        loss: to be increased.
        targets: (N,) int64, for a targeted loss.
        norm: of the ball.
        eps: its radius.

    Returns:
        Bool (N,): which images stand.
    """
    stands = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    left = torch.arange(len(labels), device=labels.device)
    adversarial = _random_start(pixels, eps, norm)
    previous = gradient = adversarial
    step = torch.full((len(left), 1, 1, 1), 2.0 * eps, device=pixels.device)
    history = torch.zeros(len(left), STEPS, device=pixels.device)
    reduced = torch.ones_like(stands)
    best, best_gradient = adversarial, torch.zeros_like(pixels)
    best_loss = torch.full((len(left),), -torch.inf, device=pixels.device)
    best_at_check = best_loss
    window, since_check = max(int(0.22 * STEPS), 1), 0
    for number in range(-1, STEPS):  # step -1 only looks at the start
        if number >= 0:
            previous, adversarial = (
                adversarial,
                _step(pixels, adversarial, previous, gradient, step, eps, norm, first=number == 0),
            )
        gradient, value, suspect = _gradient(model, adversarial, labels, targets, loss)
        fallen = suspect.nonzero().squeeze(1)
        if len(fallen):
            fallen = fallen[judge(adversarial[fallen], labels[fallen])]
        if len(fallen):
            stands[left[fallen]] = False
            keep = stands[left]
            if not keep.any():
                return stands
            # fmt: off
            (left, pixels, labels, targets, adversarial, previous, gradient, value, step, history, reduced, best,
             best_gradient, best_loss, best_at_check) = (state[keep] for state in (
                left, pixels, labels, targets, adversarial, previous, gradient, value, step, history, reduced, best,
                best_gradient, best_loss, best_at_check))
            # fmt: on
        better = value > best_loss
        best_loss = torch.where(better, value, best_loss)
        best = torch.where(better[:, None, None, None], adversarial, best)
        best_gradient = torch.where(better[:, None, None, None], gradient, best_gradient)
        if number == -1:
            best_at_check = best_loss
            continue
        history[:, number] = value
        since_check += 1
        if since_check == window:
            now = torch.arange(number - window + 1, number + 1, device=pixels.device)
            increases = (history[:, now] > history[:, now - 1]).sum(1)
            halve = (increases <= window * ENOUGH_INCREASES) | (~reduced & (best_at_check >= best_loss))
            reduced, best_at_check = halve, best_loss
            at = halve[:, None, None, None]
            step = torch.where(at, step / 2, step)
            adversarial = torch.where(at, best, adversarial)
            gradient = torch.where(at, best_gradient, gradient)
            window, since_check = max(window - max(int(0.03 * STEPS), 1), int(0.06 * STEPS), 1), 0
    return stands


def _random_start(pixels: Tensor, eps: float, norm: Norm) -> Tensor:
    """On the border of the ball, in a random direction."""
    if norm == "Linf":
        noise = 2 * torch.rand(pixels.shape).to(pixels.device) - 1
        length = noise.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    else:
        noise = torch.randn(pixels.shape).to(pixels.device)
        length = l2_norms(noise)
    return (pixels + eps * noise / length).clamp_(0, 1)


def _step(
    pixels: Tensor,
    adversarial: Tensor,
    previous: Tensor,
    gradient: Tensor,
    step: Tensor,
    eps: float,
    norm: Norm,
    *,
    first: bool,
) -> Tensor:
    """A projected step, then momentum along the last move, projected again (equations 1 and 2)."""
    # An image stays where its gradient is NaN, whose sign is 0: as NaN itself it would fall, whatever the network.
    direction = gradient.sign() if norm == "Linf" else (gradient / l2_norms(gradient)).nan_to_num_(0)
    reached = project(adversarial + step * direction, pixels, eps, norm)
    share = 1.0 if first else MOMENTUM
    moved = adversarial + share * (reached - adversarial) + (1 - share) * (adversarial - previous)
    return project(moved, pixels, eps, norm)


def _gradient(
    model: Model, adversarial: Tensor, labels: Tensor, targets: Tensor, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the loss, its value for each image, and where the model is wrong."""
    adversarial = adversarial.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(adversarial)
        value = loss(logits, labels, targets)
        gradient = gradient_in(adversarial, value.sum())
    return gradient, value.detach(), predicted_classes(logits) != labels
