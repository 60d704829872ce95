"""Targeted FAB (Croce and Hein, arXiv 1907.02044): steps to the linearized boundary, pulled towards the original."""

import torch
from torch import Tensor

from fsrp_edge.attacks import Norm, gradient_in
from fsrp_edge.evaluation.accuracy import predicted_classes
from fsrp_edge.evaluation.apgd import STEPS, Judge, Model

ALPHA_MAX, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9


def fab_targeted(
    model: Model,
    judge: Judge,
    pixels: Tensor,
    labels: Tensor,
    *,
    targets: Tensor,
    norm: Norm,
    eps: float,
) -> Tensor:
    """One run towards the boundary to the target classes, from the image itself.

    The authors' code looks for the nearest adversarial example and then asks whether it is inside the ball; here an
    image has fallen with the first one that is.

    Args and result as for `apgd`.
    """
    stands = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    left = torch.arange(len(labels), device=labels.device)
    current = pixels
    for _ in range(STEPS):
        if len(left) == 0:
            break
        difference, gradient = _boundary(model, current, labels, targets)
        current = _step(pixels, current, difference, gradient, norm)
        wrong = (predicted_classes(model(current)) != labels).nonzero().squeeze(1)
        if not len(wrong):
            continue
        shift = (current[wrong] - pixels[wrong]).flatten(1)
        inside = wrong[(shift.abs().amax(1) if norm == "Linf" else shift.norm(dim=1)) <= eps]
        fallen = inside[judge(current[inside], labels[inside])] if len(inside) else inside
        current[wrong] = pixels[wrong] + BACKWARD * (current[wrong] - pixels[wrong])
        if len(fallen):
            stands[left[fallen]] = False
            keep = stands[left]
            left, pixels, labels, targets, current = (state[keep] for state in (left, pixels, labels, targets, current))
    return stands


def _boundary(model: Model, current: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Target logit minus the right one (N,), and its gradient."""
    current = current.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(current).float()  # a network may end in another precision
        difference = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
        gradient = gradient_in(current, difference.sum())
    return difference.detach(), gradient


def _step(pixels: Tensor, current: Tensor, difference: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Between the projections of the iterate and of the original image on the boundary, nearer to the first."""
    shape = pixels.shape
    weights = gradient.flatten(1)
    offset = (weights * current.flatten(1)).sum(1) - difference
    shifts = shift_to_plane(
        torch.cat((current.flatten(1), pixels.flatten(1))),
        torch.cat((weights, weights)),
        torch.cat((offset, offset)),
        norm,
    )
    lengths = shifts.abs().amax(1) if norm == "Linf" else shifts.norm(dim=1)
    from_here, from_original = lengths.clamp_(min=1e-8).view(2, -1, 1, 1, 1)
    alpha = (from_here / (from_here + from_original)).clamp_(max=ALPHA_MAX)
    here, original = shifts.view(2, *shape)
    moved: Tensor = ((current + OVERSHOOT * here) * (1 - alpha) + (pixels + OVERSHOOT * original) * alpha).clamp_(0, 1)
    return moved


def shift_to_plane(points: Tensor, weights: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """Shortest shifts of points to hyperplanes without leaving [0, 1].

    What the authors' code finds by sorting the pixels of every point, most of FAB's time for a small network, Newton's
    method finds here: the way towards the plane is concave and piecewise linear in the length of the shift, so that a
    few rounds end at the length that gets there.

    Args:
        points: (N, D) in [0, 1].
        weights: (N, D), the planes' normals.
        offset: (N,); the planes are where weights · x = offset.
        norm: that measures a shift.

    Returns:
        (N, D); where a plane lies outside the box, the shift to the corner that is nearest to it.
    """
    excess = (weights * points).sum(1, keepdim=True) - offset[:, None]
    downhill = -excess.sign() * weights.sign()
    room = torch.where(downhill > 0, 1 - points, points)
    # The squares of small weights would vanish.
    scale = weights.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    slopes, excess = weights.abs() / scale, excess.abs() / scale
    speeds = torch.ones_like(excess) if norm == "Linf" else slopes
    paces, ways = slopes * speeds, slopes * room
    length, longest = torch.zeros_like(excess), torch.finfo(excess.dtype).max
    while True:
        moving = room > length * speeds
        pace = (paces * moving).sum(1, keepdim=True)
        covered = ways.masked_fill(moving, 0).sum(1, keepdim=True)
        further = torch.where(pace > 0, (excess - covered) / pace, length).clamp(max=longest)
        if not (further > length).any():  # of NaN neither, so that it cannot go on for ever
            return downhill * torch.minimum(room, length * speeds)
        length = torch.maximum(further, length)
