import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrp_edge.bench.statistics import bootstrap_medians, percentile_interval, summarize

TIMES = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=200)


def interval(times, seed=0):
    return percentile_interval(bootstrap_medians(times, seed=seed))


@given(TIMES)
def test_summary_agrees_with_numpy(times):
    summary = summarize(times)
    expected = np.percentile(times, [50, 90, 95, 99])
    assert (summary.p50_ms, summary.p90_ms, summary.p95_ms, summary.p99_ms) == tuple(expected)
    assert summary.min_ms == min(times)
    assert summary.mean_ms == pytest.approx(np.mean(times))
    assert summary.std_ms == pytest.approx(np.std(times, ddof=1) if len(times) > 1 else 0)


@given(TIMES, st.integers(0, 5))
def test_interval_lies_in_the_data_and_repeats_for_a_seed(times, seed):
    low, high = interval(times, seed=seed)
    assert min(times) <= low <= high <= max(times)
    assert interval(times, seed=seed) == (low, high)


@given(TIMES, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_order_of_the_runs_does_not_matter(times, random):
    shuffled = list(times)
    random.shuffle(shuffled)
    assert interval(shuffled) == interval(times)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 51, 200])
def test_interval_is_that_of_plain_resampling(count):
    generator = np.random.default_rng(3)
    times = generator.lognormal(size=count)
    resamples = generator.choice(times, (20_000, count))
    plain = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
    ranks = np.searchsorted(np.sort(times), [plain, interval(times)]) / count
    assert np.abs(ranks[0] - ranks[1]).max() <= 0.02 + 1 / count * (count > 10)


@pytest.mark.parametrize("count", [50, 101])
def test_interval_covers_the_true_median_as_often_as_it_says(count):
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(600):
        low, high = interval(generator.lognormal(size=count), seed=trial)
        covered += low <= 1.0 <= high  # the median of exp(N(0, 1)) is 1
    assert covered / 600 == pytest.approx(0.95, abs=0.025)
