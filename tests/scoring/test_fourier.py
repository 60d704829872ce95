import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrp_edge.scoring.fourier import band_energies, has_bands, low_to_high_ratio

sizes = st.tuples(st.integers(4, 40), st.integers(4, 40))
radii = st.floats(0.05, 1.0)
shapes = st.sampled_from(["disk", "square"])
layouts = st.sampled_from([torch.contiguous_format, torch.channels_last])


def reference(maps, radius, shape):
    """The definition, in float64: fft2, a mask over the bins, two sums."""
    maps = maps.double().numpy()
    height, width = maps.shape[2:]
    power = np.abs(np.fft.fft2(maps)) ** 2 / (height * width)
    rows = 2 * np.abs(np.fft.fftfreq(height))[:, None]
    columns = 2 * np.abs(np.fft.fftfreq(width))[None, :]
    distance = np.hypot(rows, columns) if shape == "disk" else np.maximum(rows, columns)
    inside = distance <= radius + 1e-9
    return (power * inside).sum((2, 3)), (power * ~inside).sum((2, 3))


def random_maps(size, seed, layout=torch.contiguous_format, smooth=False):
    maps = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(seed))
    if smooth:
        maps = torch.nn.functional.avg_pool2d(maps, 3, stride=1, padding=1)
    return maps.contiguous(memory_format=layout)


@settings(deadline=None, max_examples=150)
@given(sizes, radii, shapes, layouts, st.booleans(), st.integers(0, 2**31))
def test_energies_agree_with_a_float64_fft(size, radius, shape, layout, smooth, seed):
    maps = random_maps(size, seed, layout, smooth)
    energies = band_energies(maps, radius, shape)
    low, high = reference(maps, radius, shape)
    np.testing.assert_allclose(energies.low, low, rtol=1e-5)
    # A band without energy holds the reference's own rounding.
    np.testing.assert_allclose(energies.high, high, rtol=1e-5, atol=1e-12 * low.max())


@pytest.mark.parametrize("size", [(56, 56), (112, 112), (224, 224), (223, 225)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_maps_keep_their_precision(size, layout):
    maps = random_maps(size, 0, layout)
    energies = band_energies(maps, 0.25)
    low, high = reference(maps, 0.25, "disk")
    np.testing.assert_allclose(energies.low, low, rtol=1e-5)
    np.testing.assert_allclose(energies.high, high, rtol=1e-5)


@settings(deadline=None)
@given(sizes, radii, shapes, st.integers(0, 2**31))
def test_parseval(size, radius, shape, seed):
    maps = random_maps(size, seed)
    energies = band_energies(maps, radius, shape)
    torch.testing.assert_close(energies.low + energies.high, maps.square().sum((2, 3)), rtol=1e-5, atol=0)


@settings(deadline=None)
@given(sizes, radii, shapes)
def test_constant_map_is_all_low(size, radius, shape):
    energies = band_energies(torch.full((1, 1, *size), 3.0), radius, shape)
    assert energies.high.item() < 1e-10 * energies.low.item()


@settings(deadline=None)
@given(st.integers(8, 40), st.data())
def test_sinusoid_lies_in_the_band_of_its_frequency(side, data):
    index = data.draw(st.integers(1, side // 2 - 1))
    frequency = 2 * index / side
    wave = torch.sin(2 * math.pi * index * torch.arange(side) / side + 0.3).expand(1, 1, side, side)
    inside = band_energies(wave, min(frequency + 1e-3, 1.0))
    outside = band_energies(wave, frequency - 1e-3)
    assert inside.low.item() == pytest.approx(wave.square().sum().item(), rel=1e-4)
    assert outside.high.item() == pytest.approx(wave.square().sum().item(), rel=1e-4)


@pytest.mark.parametrize("radius", [0.25, 0.5])
def test_white_noise_tends_to_the_ratio_of_bin_counts(radius):
    side = 16
    noise = torch.randn((4000, 1, side, side), generator=torch.Generator().manual_seed(0))
    energies = band_energies(noise, radius)
    frequency = 2 * np.abs(np.fft.fftfreq(side))
    bins = (np.hypot(frequency[:, None], frequency[None, :]) <= radius + 1e-9).sum()
    measured = (energies.low.sum() / energies.high.sum()).item()
    assert measured == pytest.approx(bins / (side * side - bins), rel=0.03)


@settings(deadline=None)
@given(sizes, radii, st.integers(0, 50), st.integers(0, 50), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_ratio_ignores_circular_shifts_and_scale(size, radius, down, right, scale, seed):
    maps = random_maps(size, seed)
    moved = maps.roll((down, right), dims=(2, 3)) * scale
    first = low_to_high_ratio(band_energies(maps, radius))
    torch.testing.assert_close(low_to_high_ratio(band_energies(moved, radius)), first, rtol=1e-3, atol=0)


def test_power_one_is_the_root_of_power_two():
    energies = band_energies(random_maps((12, 12), 1), 0.25)
    torch.testing.assert_close(low_to_high_ratio(energies, 1).square(), low_to_high_ratio(energies, 2))


def test_ratio_is_finite_at_the_extremes():
    silent = band_energies(torch.zeros(1, 1, 8, 8), 0.25)
    constant = band_energies(torch.ones(1, 1, 8, 8), 0.25)
    assert low_to_high_ratio(silent).item() == 0
    assert low_to_high_ratio(constant).item() == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 9), (1, 16)])
def test_maps_without_two_bands_count_as_low(size):
    assert not has_bands(size)
    maps = random_maps(size, 0)
    energies = band_energies(maps, 0.25)
    torch.testing.assert_close(energies.low, maps.square().sum((2, 3)))
    assert not energies.high.any()
