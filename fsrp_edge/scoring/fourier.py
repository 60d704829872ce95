"""Low- and high-frequency energy of feature maps, and the FSRP ratio of the two.

For a feature map A (H × W) with 2-D DFT F, the low band L is a region around DC and the high band all other bins.
Frequencies are fractions of the band: 0 at DC, 1 at Nyquist. Parseval's theorem gives the energy of all bins as the
spatial sum of squares, so only the few low bins have to be computed: two thin matrix products with the real Fourier
basis (the cosine and sine columns of the DFT), instead of a full transform.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

RegionShape = Literal["disk", "square"]

SMALLEST_SIDE = 4
"""Maps with a shorter side have no two bands worth telling apart (1×1: one bin; 2×2: DC and Nyquist)."""

CANCELLATION_LIMIT = 0.06
"""Where the high band holds less than this part of the low one, its float32 difference is taken again in float64."""

RELATIVE_EPSILON = 1e-6
"""ε of the ratio, as a fraction of the map's energy."""

BLOCK = 2**19
"""Values that are squared at a time: 2 MB."""


@dataclass(frozen=True)
class BandEnergies:
    """Energies of feature maps, Σ|F|²/(H·W) over the bins of each band.

    Args:
        low: (N, C) energy inside the region.
        high: (N, C) energy outside it; all zero where `has_bands` is False.
    """

    low: Tensor
    high: Tensor


def has_bands(size: tuple[int, int]) -> bool:
    """Whether maps of this (height, width) are large enough to have a low and a high band."""
    return min(size) >= SMALLEST_SIDE


def extent(size: tuple[int, int]) -> tuple[bool, int]:
    """What the sizes (height, width) that one layer's maps have are ranked by: two bands first, then places."""
    return has_bands(size), size[0] * size[1]


@lru_cache(maxsize=256)
def _basis(length: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal real Fourier vectors up to `radius`, (length, K) float64, and the frequency (K,) of each."""
    positions = np.arange(length)
    vectors, frequencies = [], []
    for index in range(length // 2 + 1):
        frequency = 2 * index / length
        if frequency > radius + 1e-12:
            break
        phase = 2 * np.pi * index * positions / length
        nyquist_or_dc = index == 0 or 2 * index == length
        scale = np.sqrt((1 if nyquist_or_dc else 2) / length)
        vectors.append(scale * np.cos(phase))
        frequencies.append(frequency)
        if not nyquist_or_dc:
            vectors.append(scale * np.sin(phase))
            frequencies.append(frequency)
    return np.stack(vectors, axis=1), np.array(frequencies)


@lru_cache(maxsize=256)
def _region(
    size: tuple[int, int], radius: float, shape: RegionShape, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Basis over rows (H, K), over columns (W, L) and the mask (K, L) of the region (None where it is all ones)."""
    rows, row_frequencies = _basis(size[0], radius)
    columns, column_frequencies = _basis(size[1], radius)
    mask = None
    if shape == "disk":
        inside = row_frequencies[:, None] ** 2 + column_frequencies[None, :] ** 2 <= radius**2 + 1e-12
        mask = None if inside.all() else torch.as_tensor(inside, device=device, dtype=dtype)
    return (
        torch.as_tensor(rows, device=device, dtype=dtype),
        torch.as_tensor(columns, device=device, dtype=dtype),
        mask,
    )


def low_coefficients(maps: Tensor, radius: float) -> Tensor:
    """Coefficients (N, C, K) of every map in the low band, by an orthonormal basis whose first vector is constant.

    Args:
        maps: (N, C, H, W), any floating dtype; computed in float32 or float64. All energy of maps that are too small
            to have two bands (see SMALLEST_SIDE) counts as low: their pixels are the coefficients.
        radius: as for `band_energies`, of a disk.
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    size = (maps.shape[2], maps.shape[3])
    if not has_bands(size):
        return maps.flatten(2)
    rows, columns, mask = _region(size, radius, "disk", maps.device, maps.dtype)
    spectrum = torch.matmul(rows.T, torch.matmul(maps, columns)).flatten(2)
    return spectrum if mask is None else spectrum[:, :, mask.flatten() > 0]


def _is_channels_last(maps: Tensor) -> bool:
    return maps.is_contiguous(memory_format=torch.channels_last)


def _low_energy(maps: Tensor, radius: float, shape: RegionShape) -> Tensor:
    """(N, C) energy of the region's bins."""
    size = (maps.shape[2], maps.shape[3])
    rows, columns, mask = _region(size, radius, shape, maps.device, maps.dtype)
    if _is_channels_last(maps):
        # Channels are the fast axis: keep them the columns of both products, so nothing is copied or transposed.
        over_columns = torch.matmul(columns.T, maps.permute(0, 2, 3, 1))  # (N, H, L, C)
        spectrum = torch.matmul(rows.T, over_columns.flatten(2)).unflatten(2, over_columns.shape[2:])
        energy: Tensor = spectrum.square_()  # (N, K, L, C)
        if mask is not None:
            energy.mul_(mask[:, :, None])
        return energy.sum(dim=1).sum(dim=1)
    spectrum = torch.matmul(rows.T, torch.matmul(maps, columns))  # (N, C, K, L)
    energy = spectrum.square_()
    if mask is not None:
        energy.mul_(mask)
    return energy.sum(dim=3).sum(dim=2)


def _total_energy(maps: Tensor) -> Tensor:
    """(N, C) energy of all bins; summed in two steps, as one long float32 sum over 224×224 would lose two digits."""
    if not _is_channels_last(maps):
        norms: Tensor = torch.linalg.vector_norm(maps, dim=3)
        return norms.square_().sum(dim=2)
    # A few images at a time: their squares stay in the cache; fresh memory for all would cost twice what squaring does.
    images = max(1, BLOCK // maps[0].numel())
    return torch.cat([pixels.square().sum(dim=2).sum(dim=1) for pixels in maps.permute(0, 2, 3, 1).split(images)])


def _energies(maps: Tensor, radius: float, shape: RegionShape) -> tuple[Tensor, Tensor]:
    low = _low_energy(maps, radius, shape)
    high = (_total_energy(maps) - low).clamp_(min=0)
    return low, high


def band_energies(maps: Tensor, radius: float, shape: RegionShape = "disk") -> BandEnergies:
    """Energy of the low and of the high band of every map.

    Args:
        maps: (N, C, H, W), any floating dtype; computed in float32 or float64.
        radius: of the low region as a fraction of the band, in [0, 1] (up to √2 for a disk to hold every bin).
        shape: `disk`: Euclidean distance from DC at most `radius`; `square`: the larger of the two frequencies.

    Returns:
        Energies (N, C), at most about 1e-5 from a float64 FFT, relatively. For maps that are too small to have two
        bands (see SMALLEST_SIDE) all energy counts as low.
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    if not has_bands((maps.shape[2], maps.shape[3])):
        low = maps.square().sum(dim=(2, 3))
        return BandEnergies(low, torch.zeros_like(low))
    low, high = _energies(maps, radius, shape)
    if maps.dtype == torch.float32:
        doubtful = (high < CANCELLATION_LIMIT * low) & (low > 0)
        if doubtful.any():
            exact_low, exact_high = _energies(maps[doubtful].double()[None], radius, shape)
            low[doubtful] = exact_low[0].float()
            high[doubtful] = exact_high[0].float()
    return BandEnergies(low, high)


def low_to_high_ratio(energies: BandEnergies, power: Literal[1, 2] = 2) -> Tensor:
    """The FSRP ratio (Qian et al. 2024) of every map, (N, C), at least 0.

    Args:
        energies: of the maps.
        power: 2 for the ratio of energies; 1 for its square root, the ratio of root-mean-square amplitudes.

    ε is a fraction of the map's energy (RELATIVE_EPSILON), so that scaling a map does not change its ratio; the ratio
    of a map without high frequencies is the fraction's inverse. A map of zeros has ratio 0.
    """
    total = energies.low + energies.high
    ratio = energies.low / (energies.high + RELATIVE_EPSILON * total).clamp_min(torch.finfo(total.dtype).tiny)
    return ratio if power == 2 else ratio.sqrt()
