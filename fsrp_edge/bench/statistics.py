"""Summaries of latencies: pure functions of the raw times."""

from collections.abc import Sequence

import numpy as np

from fsrp_edge.bench.results import Summary

RESAMPLES = 5_000


def summarize(times_ms: Sequence[float]) -> Summary:
    """Summarize raw times, at least one, in milliseconds."""
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
        p50_interval_ms=percentile_interval(bootstrap_medians(times)),
    )


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """What the middle 95 % of bootstrap draws lie between."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_medians(times_ms: Sequence[float] | np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Medians of resamples, float64 (RESAMPLES,).

    A resample of n values is sorted[floor(n·U)] for n uniform U, so its median needs only the middle one (or
    two) of n sorted uniforms, and those can be drawn directly: one from a Beta distribution, the next given
    it. The distribution is that of resampling, at a cost that does not grow with n.
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
