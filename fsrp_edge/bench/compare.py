"""Two measurements of latency beside each other: how much slower, and whether that is more than noise."""

from dataclasses import dataclass
from itertools import zip_longest

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
        BadInputError: they have nothing in common, or raw times are missing.
    """
    pairs = [(first, second) for first, second in _rows(before, after) if first and second]
    if not pairs:
        seen = " and ".join(map(_seen, (before, after)))
        raise BadInputError(f"the two have no file, device, runtime and threads in common: {seen}")
    for when, each in (side for pair in pairs for side in zip(("before", "after"), pair, strict=True)):
        if not each.times_ms:
            raise BadInputError(f"{when}: no raw times of {_name(each)}, which are compared; measure again with --out")
    return [_compare(first, second, seed) for first, second in pairs]


def lost(before: BenchResults, after: BenchResults) -> list[str]:
    """What only the first of two runs of `bench` measured, and what failed in the second, a line each."""
    alone = [first for first, second in _rows(before, after) if first and not second]
    return [f"{_name(each)} was measured only before" for each in alone] + [
        f"failed after: {each.message}" for each in after.failures
    ]


def added(before: BenchResults, after: BenchResults) -> list[str]:
    """What only the second of two runs of `bench` measured, and what failed in the first, a line each."""
    alone = [second for first, second in _rows(before, after) if second and not first]
    return [f"{_name(each)} was measured only after" for each in alone] + [
        f"failed before: {each.message}" for each in before.failures
    ]


def _rows(before: BenchResults, after: BenchResults) -> list[tuple[Measurement | None, Measurement | None]]:
    """What belongs together; None beside what nothing belongs to."""
    both = before.measurements, after.measurements
    one_file = all(len({each.latency.model for each in measurements}) == 1 for measurements in both)
    one_each = all(len(measurements) == 1 for measurements in both)

    def key(each: Measurement) -> tuple[object, ...]:
        place = () if one_each else (each.address, each.latency.runtime, each.latency.threads)
        return place if one_file else (each.latency.model, *place)

    alike: dict[tuple[object, ...], tuple[list[Measurement], list[Measurement]]] = {}
    for side, measurements in enumerate(both):
        for each in measurements:
            alike.setdefault(key(each), ([], []))[side].append(each)
    return [row for sides in alike.values() for row in zip_longest(*sides)]


def _name(measurement: Measurement) -> str:
    latency = measurement.latency
    return f"{latency.model} on {measurement.address} ({latency.runtime}, {wording.threads(latency.threads)})"


def _seen(results: BenchResults) -> str:
    failures = (f"a failure ({each.message})" for each in results.failures)
    return ", ".join([*map(_name, results.measurements), *failures]) or "nothing"


def _compare(first: Measurement, second: Measurement, seed: int) -> Comparison:
    before = bootstrap_medians(first.times_ms, seed=seed)
    after = bootstrap_medians(second.times_ms, seed=seed + 1)
    return Comparison(
        before=first.latency,
        after=second.latency,
        change=second.latency.p50_ms / first.latency.p50_ms - 1,
        interval=percentile_interval(after / before - 1),
    )
