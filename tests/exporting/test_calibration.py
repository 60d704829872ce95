"""Ranges of activations from histograms."""

from typing import get_args

import numpy as np
import pytest

from fsrp_edge.exporting.calibration import MOST_BINS, Histograms
from fsrp_edge.exporting.options import CalibrationMethod

METHODS = sorted(set(get_args(CalibrationMethod)) - {"min-max"})


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_a_layer_hardly_answers_to_does_not_set_the_bins_of_all(method):
    values = np.random.default_rng(0).normal(size=(8, 4000)).astype(np.float32)
    plain, after = Histograms(method), Histograms(method)
    after.add({"a": 1e-9 * values[0]})
    for image in values:
        plain.add({"a": image})
        after.add({"a": image})
    bins = after.collector.get_histogram_dict()["a"][0]
    assert len(bins) <= MOST_BINS and bins.sum() == 9 * 4000
    # Entropy cuts off more where bins are finer.
    np.testing.assert_allclose(after.ranges()["a"], plain.ranges()["a"], rtol=0.25)


@pytest.mark.parametrize("method", METHODS)
def test_activations_that_keep_growing_end_in_a_bounded_histogram(method):
    found = Histograms(method)
    for power in range(12):
        found.add({"a": np.linspace(-1, 3, 1000, dtype=np.float32) * np.float32(5**power)})
    counts = found.collector.get_histogram_dict()["a"][0]
    assert len(counts) <= MOST_BINS and counts.sum() == 12_000
    low, high = found.ranges()["a"]
    assert low < 0 < high <= 3 * 5**11 * 1.001
