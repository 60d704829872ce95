import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrp_edge.evaluation.statistics import wilson_interval

# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, "score method without continuity correction".
PUBLISHED = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("correct", "total", "low", "high"), PUBLISHED)
def test_published_intervals(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("correct", "total"), [(0, 3), (421, 1000), (9999, 10_000), (7, 7)])
def test_scipy_agrees(correct: int, total: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 100_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_holds_the_share_and_stays_within_zero_and_one(trial: tuple[int, int]) -> None:
    correct, total = trial
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_ends_are_the_roots_of_the_score_test(trial: tuple[int, int]) -> None:
    correct, total = trial
    share = correct / total
    for end in wilson_interval(correct, total):
        assert (share - end) ** 2 == pytest.approx(1.9599639845**2 * end * (1 - end) / total, abs=1e-9)


@given(st.integers(0, 50), st.integers(2, 20))
def test_more_images_narrow_the_interval(correct: int, factor: int) -> None:
    narrow, wide = wilson_interval(correct * factor, 50 * factor), wilson_interval(correct, 50)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
