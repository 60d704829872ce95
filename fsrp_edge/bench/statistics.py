"""Summaries of latencies: pure functions of the raw times."""

from collections.abc import Sequence

import numpy as np

from fsrp_edge.bench.results import Summary

RESAMPLES = 5_000


def summarize(times_ms: Sequence[float], *, seed: int = 0) -> Summary:
    """Summarize raw times.

    Args:
        times_ms: latency of each run, at least one, in milliseconds.
        seed: of the bootstrap.
    """
    times = np.asarray(times_ms, dtype=np.float64)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(times, [50, 90, 95, 99]))
    return Summary(
        min_ms=float(times.min()),
        mean_ms=float(times.mean()),
        std_ms=float(times.std(ddof=1)) if len(times) > 1 else 0.0,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        p50_interval_ms=bootstrap_median_interval(times, seed=seed),
    )


def bootstrap_median_interval(
    times_ms: Sequence[float] | np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median.

    Args:
        times_ms: at least one value.
        confidence: share of resampled medians inside the interval, in (0, 1).
        seed: of the draws.
    """
    return percentile_interval(bootstrap_medians(times_ms, seed=seed), confidence=confidence)


def percentile_interval(draws: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """What the middle share `confidence`, in (0, 1), of bootstrap draws lies between."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_medians(times_ms: Sequence[float] | np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Medians of resamples, float64 (RESAMPLES,).

    A resample of n values is sorted[floor(n·U)] for n uniform U, so its median needs only the middle one (or
    two) of n sorted uniforms, and those can be drawn directly: one from a Beta distribution, the next given
    it. The distribution is that of resampling, at a cost that does not grow with n.

    Args:
        times_ms: at least one value.
        seed: of the draws.
    """
    ordered = np.sort(np.asarray(times_ms, dtype=np.float64))
    count = len(ordered)
    generator = np.random.default_rng(seed)
    rank = (count + 1) // 2
    uniform = generator.beta(rank, count + 1 - rank, RESAMPLES)
    medians: np.ndarray = ordered[_index(uniform, count)]
    if count % 2 == 0:
        gap = (1 - uniform) * (1 - generator.random(RESAMPLES) ** (1 / (count - rank)))
        medians = (medians + ordered[_index(uniform + gap, count)]) / 2
    return medians


def _index(uniform: np.ndarray, count: int) -> np.ndarray:
    return np.minimum((uniform * count).astype(np.int64), count - 1)
