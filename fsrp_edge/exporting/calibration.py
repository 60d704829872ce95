"""Ranges of activations for int8 from histograms, the same way for every format.

Quantized values beyond the range are cut off, those inside are rounded to 1/255 of it; the methods weigh these errors:

- `min-max` cuts nothing off. It needs no histogram; each runtime's own tool does it.
- `percentile` cuts off 0.0005 % at either end, `entropy` minimizes the Kullback-Leibler divergence between the
  distributions before and after (both onnxruntime's).
- `mse` minimizes the mean squared error of the values, over ranges shrunk from the full one in 40 steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.options import CalibrationMethod
from fsrp_edge.runtimes import require

PERCENTILE = 99.999
MOST_BINS, FEWER_BINS = 2**13, 2**11
"""Of an activation's histogram before it is drawn anew, and then."""
LEVELS = 256
SHRINKING = np.linspace(1.0, 0.22, 40)

Range = tuple[Any, Any]
"""Lowest and highest value, float32."""


class Histograms:
    """Collects values of activations, one image after the other, and chooses their ranges.

    Args:
        method: any but `min-max`.
    """

    def __init__(self, method: CalibrationMethod) -> None:
        self.method, entropy = method, method == "entropy"
        self.collector = require("onnxruntime.quantization.calibrate").HistogramCollector(
            method="entropy" if entropy else "percentile",
            symmetric=False,
            num_bins=128 if entropy else 2048,
            num_quantized_bins=128,
            percentile=PERCENTILE,
            scenario="same",
        )

    def add(self, activations: Mapping[str, np.ndarray]) -> None:
        """Count the values of float32 activations, by name."""
        for name, values in activations.items():
            self._widen(name, np.abs(values).max(initial=0))
        self.collector.collect(activations)

    def _widen(self, name: str, reach: Any) -> None:
        """Make room for values as large as `reach` with wider bins.

        onnxruntime keeps the width that an activation's first image gives: an image that it hardly answers to would
        mean bins without end for the next.
        """
        known = self.collector.get_histogram_dict()
        if name not in known:
            return
        counts, edges, lowest, highest, threshold = known[name]
        if reach > threshold > 0 and len(counts) * (reach / threshold) > MOST_BINS:
            centres = (edges[:-1] + edges[1:]) / 2
            counts, edges = np.histogram(centres, FEWER_BINS, (-reach, reach), weights=counts)
            known[name] = (counts.astype(np.int64), edges, lowest, highest, reach)

    def ranges(self) -> dict[str, Range]:
        """Lowest and highest value to keep, by name."""
        if self.method == "mse":
            histograms = self.collector.get_histogram_dict()
            return {name: least_squares_range(*histogram[:4]) for name, histogram in histograms.items()}
        return {name: found[:2] for name, found in self.collector.compute_collection_result().items()}


def least_squares_range(counts: np.ndarray, edges: np.ndarray, lowest: Any, highest: Any) -> Range:
    """The range whose 256 levels lose least, counted over a histogram.

    Args:
        counts: values in each bin.
        edges: the bins' borders, one more.
        lowest: the smallest value seen.
        highest: the largest value seen.
    """
    low, high = min(float(lowest), 0.0), max(float(highest), 0.0)  # zero has to be a level
    if high == low:
        return np.float32(low), np.float32(high)
    centres = ((edges[:-1] + edges[1:]) / 2)[None]
    lows, steps = low * SHRINKING[:, None], (high - low) * SHRINKING[:, None] / (LEVELS - 1)
    rounded = np.rint((centres - lows) / steps).clip(0, LEVELS - 1) * steps + lows
    best = SHRINKING[(((rounded - centres) ** 2) @ counts).argmin()]
    return np.float32(low * best), np.float32(high * best)


def require_images(calibration: ImageSet | None) -> ImageSet:
    """The calibration images of an int8 file.

    Raises:
        BadInputError: there are none.
    """
    if calibration is None or not len(calibration):
        raise BadInputError("int8 needs calibration images, and there are none; give a data set or leave int8 out")
    return calibration
