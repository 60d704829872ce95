"""Accuracy under common corruptions, made here from the images at hand.

The families and their strengths are those of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261): the ones of their
CIFAR-10-C for images up to 64 pixels, of ImageNet-C for larger ones. The implementation is another one, so figures are
close to, not equal to, those on their files; frost, which needs their photographs of ice, is left out.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import default_batch_size, evaluation_of, is_wrong
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.evaluation.standing import Verdicts, attack_standing
from fsrp_edge.models.classifier import Classifier

Corruption = Callable[[Tensor, Any, torch.Generator], Tensor]
"""Takes pixels (N, C, H, W) in [0, 1], a strength and the source of randomness; returns the same shape, unclipped."""
SMALL_SIDE = 64


def gaussian_noise(pixels: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Of low light."""
    return pixels + deviation * torch.randn(pixels.shape, generator=generator)


def shot_noise(pixels: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Of the discrete nature of light; `photons` is the mean count of a white pixel."""
    return torch.poisson(pixels * photons, generator=generator) / photons


def impulse_noise(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper, as bit errors cause."""
    hit, salt = torch.rand((2, *pixels.shape), generator=generator)
    return torch.where(hit < share, (salt < 0.5).float(), pixels)


def defocus_blur(pixels: Tensor, disk: tuple[float, float], _generator: torch.Generator) -> Tensor:
    """`disk` is the radius of the lens's disk, and the deviation of what smooths its edge."""
    radius, smoothing = disk
    reach = max(8, math.ceil(radius))
    axis = torch.arange(-reach, reach + 1.0)
    kernel = ((axis[:, None] ** 2 + axis**2) <= radius**2).float()
    return _filtered(pixels, _gaussian_blurred(kernel[None, None], smoothing)[0, 0])


def glass_blur(pixels: Tensor, glass: tuple[float, int, int], generator: torch.Generator) -> Tensor:
    """`glass` is the deviation of the blur, how far a pixel may be moved, and how often all are."""
    deviation, reach, rounds = glass
    blurred = _gaussian_blurred(pixels, deviation)
    count, _, height, width = pixels.shape
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    for _ in range(rounds):
        down, right = torch.randint(-reach, reach + 1, (2, count, height, width), generator=generator)
        at = ((rows + down).clamp(0, height - 1) * width + (columns + right).clamp(0, width - 1)).flatten(1)
        moved = blurred.flatten(2).gather(2, at[:, None].expand(-1, blurred.shape[1], -1))
        blurred = moved.view_as(pixels)
    return _gaussian_blurred(blurred, deviation)


def motion_blur(pixels: Tensor, motion: tuple[int, float], generator: torch.Generator) -> Tensor:
    """`motion` is the reach and the deviation of a one-sided Gaussian, along one random direction a batch."""
    angle = math.radians(90 * float(torch.rand((), generator=generator)) - 45)
    return _filtered(pixels, _line(*motion, angle))


def zoom_blur(pixels: Tensor, zooms: Sequence[float], _generator: torch.Generator) -> Tensor:
    """As when the camera moves towards the scene while exposing."""
    return torch.stack([pixels, *(_zoomed(pixels, zoom) for zoom in zooms)]).mean(0)


def snow(pixels: Tensor, flakes: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Blurred flakes over a brightened image."""
    mean, deviation, zoom, threshold, reach, blur, opacity = flakes
    layer = mean + deviation * torch.randn(len(pixels), 1, *pixels.shape[2:], generator=generator)
    layer = _zoomed(layer, zoom)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    angle = math.radians(-135 + 90 * float(torch.rand((), generator=generator)))
    layer = _filtered(layer, _line(int(reach), blur, angle))
    grey = pixels.mean(1, keepdim=True)
    whitened = opacity * pixels + (1 - opacity) * torch.maximum(pixels, 1.5 * grey + 0.5)
    return whitened + layer + layer.rot90(2, (2, 3))


def fog(pixels: Tensor, haze: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`haze` is the thickness, and how fast finer octaves of the cloud fade."""
    thickness, decay = haze
    side = max(pixels.shape[2:])
    cloud = torch.zeros(len(pixels), 1, side, side)
    for octave in range(1, int(math.log2(side)) + 1):
        noise = torch.rand(len(pixels), 1, 2**octave + 1, 2**octave + 1, generator=generator)
        cloud += F.interpolate(noise, (side, side), mode="bilinear", align_corners=True) / decay**octave
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    cloud = ((cloud - low) / (high - low))[..., : pixels.shape[2], : pixels.shape[3]]
    brightest = pixels.amax((1, 2, 3), keepdim=True)
    return (pixels + thickness * cloud) * brightest / (brightest + thickness)


def brightness(pixels: Tensor, shift: float, _generator: torch.Generator) -> Tensor:
    """The value channel of HSV is raised; hue and saturation stay."""
    value = pixels.amax(1, keepdim=True)
    raised = (value + shift).clamp(max=1)
    return torch.where(value > 0, pixels * (raised / value.clamp(min=1e-6)), raised)  # black becomes grey


def contrast(pixels: Tensor, share: float, _generator: torch.Generator) -> Tensor:
    """Every channel is drawn towards its mean."""
    mean = pixels.mean((2, 3), keepdim=True)
    return mean + share * (pixels - mean)


def elastic(pixels: Tensor, stretch: tuple[float, float, float], generator: torch.Generator) -> Tensor:
    """`stretch`: amplitude and smoothness of local shifts, and size of an affine one, in shares of the shorter side."""
    count, _, height, width = pixels.shape
    side = min(height, width)
    amplitude, smoothness, affine = (share * side for share in stretch)
    shifts = 2 * torch.rand((count, 2, height, width), generator=generator) - 1
    shifts = amplitude * _gaussian_blurred(shifts, smoothness)
    corners = affine * (2 * torch.rand((count, 2, 3), generator=generator) - 1) / (2 * (side // 3))
    # Of pixels in shares of each axis, which the grid is in.
    shares = [[1.0, height / width, 2 / width * 2 * (side // 3)], [width / height, 1.0, 2 / height * 2 * (side // 3)]]
    matrix = torch.eye(2, 3) + corners * torch.tensor(shares)
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = grid + 2 * shifts.permute(0, 2, 3, 1) / torch.tensor([width, height])
    return F.grid_sample(pixels, moved, padding_mode="reflection", align_corners=False)


def pixelate(pixels: Tensor, share: float, _generator: torch.Generator) -> Tensor:
    """`share` is the side of what is kept."""
    height, width = pixels.shape[2:]
    small = F.interpolate(pixels, (int(height * share), int(width * share)), mode="area")
    return F.interpolate(small, (height, width), mode="nearest")


def jpeg(pixels: Tensor, quality: int, _generator: torch.Generator) -> Tensor:
    """Through a JPEG file of each image."""
    return torch.stack([_through_jpeg(image, quality) for image in pixels])


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    array = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file))).float().div_(255)
    return decoded.view(*array.shape).permute(2, 0, 1)


def _zooms(last: float, step: float = 0.01) -> list[float]:
    return list(np.arange(1, last, step))


# fmt: off
FAMILIES: dict[str, tuple[Corruption, Sequence[Any], Sequence[Any]]] = {
    "gaussian noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot noise": (shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
                     ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass blur": (glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
                   ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
                    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom blur": (zoom_blur, [_zooms(last) for last in (1.06, 1.11, 1.16, 1.21, 1.26)],
                  [_zooms(1.11), _zooms(1.16), _zooms(1.21, 0.02), _zooms(1.26, 0.02), _zooms(1.31, 0.03)]),
    "snow": (snow, ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
             ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
              (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55))),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
            ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic": (elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
                ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
"""Each family with its strengths at severities 1 to 5, for small and for large images."""
# fmt: on


def corrupt(pixels: Tensor, family: str, severity: int, seed: int) -> Tensor:
    """Corrupted copies, clipped to [0, 1] and rounded to 8 bits as a camera's file would be.

    Args:
        pixels: (N, C, H, W) in [0, 1], on the CPU; 1 or 3 channels.
        family: a key of `FAMILIES`.
        severity: 1 to 5.
        seed: of all random draws.
    """
    corruption, small, large = FAMILIES[family]
    strengths = small if max(pixels.shape[2:]) <= SMALL_SIDE else large
    corrupted = corruption(pixels, strengths[severity - 1], compute.generator(seed))
    return corrupted.clamp_(0, 1).mul_(255).round_().div_(255)


def corruption_accuracies(
    classifier: Classifier,
    images: ImageSet,
    *,
    seed: int,
    batch_size: int | None = None,
    verdicts: Verdicts | None = None,
) -> tuple[Evaluation, ...]:
    """Accuracy under each family.

    A family is judged at all five severities, each on a fifth of every class (its images in turn), so that it costs one
    pass and its number is a share of the images like any other.

    Args:
        classifier: the network, on the device to compute on.
        images: images and labels.
        seed: of the noise.
        batch_size: images at once; None chooses by their size.
        verdicts: of an interrupted evaluation, and to be kept in case this one is.
    """
    batch_size = batch_size or default_batch_size(images)
    device = compute.device_of(classifier)
    # One after the other through the classes: each severity has a fifth of every class and, of many small ones, of all.
    by_class = torch.argsort(images.labels, stable=True)
    severities = torch.empty_like(by_class)
    severities[by_class] = 1 + torch.arange(len(images)) % 5

    def family_accuracy(number: int, family: str) -> Evaluation:
        def withstands(pixels: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
            corrupted = pixels.clone()
            for severity in range(1, 6):
                chosen = severities[positions] == severity
                if chosen.any():
                    draws = compute.seed_of(seed, number, int(positions[0]))
                    corrupted[chosen] = corrupt(pixels[chosen], family, severity, draws)
            return ~is_wrong(classifier, corrupted.to(device), labels.to(device))

        everything = torch.ones(len(images), dtype=torch.bool)
        standing = attack_standing(
            images, everything, withstands, name=family, batch_size=batch_size, verdicts=verdicts
        )
        return evaluation_of(standing, images, attack=family, seed=seed)

    with attackable(classifier), torch.no_grad():
        return tuple(family_accuracy(number, family) for number, family in enumerate(FAMILIES))


def _filtered(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Every channel correlated with a kernel of odd sides, which is brought to sum 1; borders are mirrored."""
    channels, (height, width) = pixels.shape[1], kernel.shape
    weight = (kernel / kernel.sum()).expand(channels, 1, height, width)
    # By numpy, as a pad may be longer than the image.
    sides = ((0, 0), (0, 0), (height // 2, height // 2), (width // 2, width // 2))
    padded = torch.from_numpy(np.pad(pixels.numpy(), sides, mode="reflect"))
    return F.conv2d(padded, weight, groups=channels)


def _gaussian_blurred(pixels: Tensor, deviation: float) -> Tensor:
    if deviation < 1e-3:
        return pixels
    reach = max(1, math.ceil(3 * deviation))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / deviation) ** 2)
    return _filtered(_filtered(pixels, line[:, None]), line[None])


def _line(reach: int, deviation: float, angle: float) -> Tensor:
    """Kernel of a one-sided Gaussian along a direction, drawn with bilinear weights."""
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1)
    for distance in range(reach):
        row, column = (reach + distance * part for part in (math.sin(angle), math.cos(angle)))
        weight = math.exp(-0.5 * (distance / deviation) ** 2)
        for y in (math.floor(row), math.floor(row) + 1):
            for x in (math.floor(column), math.floor(column) + 1):
                share = (1 - abs(row - y)) * (1 - abs(column - x))
                if share > 0:
                    kernel[y, x] += weight * share
    return kernel


def _zoomed(pixels: Tensor, factor: float) -> Tensor:
    """The central part enlarged to the same size."""
    height, width = pixels.shape[2:]
    larger = F.interpolate(pixels, scale_factor=factor, mode="bilinear", align_corners=False) if factor > 1 else pixels
    top, left = (larger.shape[2] - height) // 2, (larger.shape[3] - width) // 2
    return larger[:, :, top : top + height, left : left + width]
