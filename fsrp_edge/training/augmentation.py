"""Random flips and crops of whole batches at once, so that no Python loop runs over images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fsrp_edge import torchvision_compat  # noqa: F401 (applies the cure before torchvision is imported)


def augment(pixels: Tensor, *, flip: bool, crop_padding: int, generator: torch.Generator) -> Tensor:
    """Flip and shift every image of a batch on its own.

    Args:
        pixels: (N, C, H, W).
        flip: mirror each image left to right with probability 1/2.
        crop_padding: zero pixels added on each side before a random crop of the original size.
        generator: source of the draws, on the device of the pixels.

    Returns:
        (N, C, H, W); `pixels` itself where there is nothing to do.
    """
    if flip:
        mirrored = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return _random_crop(pixels, crop_padding, generator) if crop_padding else pixels


def cutmix(pixels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """CutMix of a batch, drawn from torch's global generator: pixels, and the shares (N, classes) of the classes."""
    from torchvision.transforms import v2

    mixed: tuple[Tensor, Tensor] = v2.CutMix(num_classes=classes)(pixels, labels)
    return mixed


def _random_crop(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    count, channels, height, width = pixels.shape
    padded = F.pad(pixels, (padding, padding, padding, padding))
    here = pixels.device
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=here)
    return padded[
        torch.arange(count, device=here).view(-1, 1, 1, 1),
        torch.arange(channels, device=here).view(1, -1, 1, 1),
        (top + torch.arange(height, device=here)).view(count, 1, height, 1),
        (left + torch.arange(width, device=here)).view(count, 1, 1, width),
    ]
