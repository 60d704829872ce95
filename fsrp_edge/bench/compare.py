"""Two measurements of latency beside each other: how much slower, and whether that is more than noise."""

from collections import Counter
from dataclasses import dataclass

from fsrp_edge import wording
from fsrp_edge.bench.results import BenchResults, Latency, Measurement
from fsrp_edge.bench.statistics import bootstrap_medians, percentile_interval
from fsrp_edge.errors import BadInputError


@dataclass(frozen=True)
class Comparison:
    """A file before and after, on the same device.

    Args:
        before: median and more of the first.
        after: of the second.
        change: of the median, as a share of the first: 0.05 is 5 % slower.
        interval: bootstrap 95 % interval of `change`. It knows the noise within a run; a device that was in
            another state on another day is for `valid` and for rounds to tell.
    """

    before: Latency
    after: Latency
    change: float
    interval: tuple[float, float]

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval[0] <= 0 <= self.interval[1]

    @property
    def invalid_because(self) -> tuple[str, ...]:
        """What disturbed either measurement; nothing where both are valid."""
        return tuple(
            f"{name}: {reason}"
            for name, latency in (("before", self.before), ("after", self.after))
            for reason in latency.invalid_because
        )

    def fails(self, slower: float) -> bool:
        """Whether the second is slower by more than the share `slower`, significantly."""
        return self.change > slower and self.significant


def compare_results(before: BenchResults, after: BenchResults, *, seed: int = 0) -> list[Comparison]:
    """Compare what two runs of `bench` have in common.

    Files are paired by name, device, runtime and threads. Two runs of a single file each are paired whatever its name,
    so that a dense file can be compared with a pruned one; on a single device each, whatever the rest too. What was
    measured twice in a run, as on one device with two interpreters, is paired in the order of both.

    Raises:
        BadInputError: they have nothing in common.
    """
    if len(before.measurements) == len(after.measurements) == 1:
        pairs = [(before.measurements[0], after.measurements[0])]
    else:
        single = all(len({one.latency.model for one in results.measurements}) == 1 for results in (before, after))
        first, second = (_by_key(results, single) for results in (before, after))
        pairs = [(one, second[key]) for key, one in first.items() if key in second]
    if not pairs:
        seen = " and ".join(_names(results) for results in (before, after))
        raise BadInputError(f"the two have no file, device, runtime and threads in common: {seen}")
    return [_compare(first, second, seed) for first, second in pairs]


def _by_key(results: BenchResults, single: bool) -> dict[tuple[str | int, ...], Measurement]:
    found: dict[tuple[str | int, ...], Measurement] = {}
    seen = Counter[tuple[str, str, str, int]]()
    for measurement in results.measurements:
        latency = measurement.latency
        key = "" if single else latency.model, measurement.address, latency.runtime, latency.threads
        found[*key, seen[key]] = measurement
        seen[key] += 1
    return found


def _names(results: BenchResults) -> str:
    named = [
        f"{latency.model} on {measurement.address} with {wording.threads(latency.threads)}"
        for measurement in results.measurements
        for latency in [measurement.latency]
    ]
    return ", ".join(named) or "nothing"


def _compare(first: Measurement, second: Measurement, seed: int) -> Comparison:
    before = bootstrap_medians(first.times_ms, seed=seed)
    after = bootstrap_medians(second.times_ms, seed=seed + 1)
    return Comparison(
        before=first.latency,
        after=second.latency,
        change=second.latency.p50_ms / first.latency.p50_ms - 1,
        interval=percentile_interval(after / before - 1),
    )
