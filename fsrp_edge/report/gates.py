"""Gates: what a run has to keep, each judged on that end of its 95 % interval which speaks against it."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from fsrp_edge import wording
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.paired import paired_change
from fsrp_edge.evaluation.results import PairedDifference, ReportedAccuracy
from fsrp_edge.report.schema import GateResult, LedgerRow, RunReport
from fsrp_edge.units import BYTES, COUNT, SHARE, TIME, parse_amount


@dataclass(frozen=True)
class Seen:
    """One figure that a gate looks at.

    Args:
        row: ledger row it belongs to.
        where: attack, or runtime, threads and device; "" for what is counted.
        value: in the metric's own unit.
        interval: low and high, both `value` where nothing is known of its spread.
        doubt: why the figure may look worse than it is, such as a disturbed measurement; "" for nothing.
        flattery: why it may look better, such as a disturbed dense file behind a speed-up; "" for nothing.
        spot_check: whether it is of so few images that it can refute a promise, but hardly show it.
        accuracy: that it is, to be compared image by image; None for other figures.
    """

    row: str
    where: str
    value: float
    interval: tuple[float, float]
    doubt: str = ""
    flattery: str = ""
    spot_check: bool = False
    accuracy: ReportedAccuracy | None = None

    @property
    def place(self) -> str:
        """`onnx fp32, onnxruntime, 1 thread on DEVICE`: what a baseline's figure is found by."""
        return ", ".join(filter(None, (self.row, self.where)))


Look = Callable[[RunReport], list[Seen]]


@dataclass(frozen=True)
class Metric:
    """What can be gated on.

    Args:
        look: finds its figures, one for each network or file that is shipped.
        units: factor of each unit that a bound may carry; "" stands for a bare number.
        show: a value in words, in some digits and so many more.
        higher_is_better: which direction a gate has, and which end of the interval it is judged on.
    """

    look: Look
    units: dict[str, float]
    show: Callable[[float, int], str]
    higher_is_better: bool = False


def _shipped(report: RunReport) -> list[LedgerRow]:
    """What the run leaves to be used: the recovered network and its files."""
    return [row for row in report.ledger if not row.is_dense and row.name != "pruned"]


def _accuracies(row: LedgerRow, *, attacked: bool) -> list[ReportedAccuracy]:
    """Those that are no mere agreement with the dense network."""
    return [a for a in row.accuracies if (a.eps is not None) == attacked and a.label_kind == "ground truth"]


def _accuracy(*, attacked: bool) -> Look:
    return lambda report: [
        Seen(
            row.name,
            wording.attack(accuracy),
            accuracy.accuracy,
            accuracy.interval,
            # Files are attacked in their own runtimes, slowly, so on few images.
            spot_check=attacked and row.name != "recovered",
            accuracy=accuracy,
        )
        for row in _shipped(report)
        for accuracy in _accuracies(row, attacked=attacked)
    ]


def _drop(*, attacked: bool) -> Look:
    def look(report: RunReport) -> list[Seen]:
        return [
            Seen(
                row.name,
                wording.attack(accuracy),
                -change.difference,
                (-change.interval[1], -change.interval[0]),
            )
            for row in _shipped(report)
            for accuracy in _accuracies(row, attacked=attacked)
            if (change := accuracy.since_dense)
        ]

    return look


def _latency(statistic: Literal["p50_ms", "p90_ms", "p99_ms"]) -> Look:
    def look(report: RunReport) -> list[Seen]:
        found = []
        for row in _shipped(report):
            for latency in row.latency:
                value = getattr(latency, statistic)
                interval = latency.p50_interval_ms if statistic == "p50_ms" else (value, value)
                where = f"{latency.runtime}, {wording.threads(latency.threads)} on {latency.device}"
                found.append(Seen(row.name, where, value, interval, "; ".join(latency.invalid_because)))
        return found

    return look


def _speed_up(report: RunReport) -> list[Seen]:
    latencies = {(row.name, each.runtime, each.threads): each for row in report.ledger for each in row.latency}
    found = []
    for each in report.speed_ups:
        dense, file = (latencies[name, each.runtime, each.threads] for name in (each.against, each.name))
        (dense_low, dense_high), (low, high) = dense.p50_interval_ms, file.p50_interval_ms
        doubt, flattery = ("; ".join(latency.invalid_because) for latency in (file, dense))
        where = f"{each.runtime}, {wording.threads(each.threads)} on {file.device}"
        interval = (dense_low / high, dense_high / low)
        found.append(Seen(each.name, where, each.latency_ratio, interval, doubt, flattery))
    return found


def _counted(field: Literal["bytes", "macs", "parameters"]) -> Look:
    return lambda report: [
        Seen(row.name, "", value, (value, value))
        for row in _shipped(report)
        if (value := getattr(row, field)) is not None
    ]


_POINTS = {"": 0.01, "%": 0.01, "points": 0.01}


def _milliseconds(value: float, more: int) -> str:
    return f"{wording.digits(value, more)} ms"


def _points(value: float, more: int) -> str:
    return f"{100 * value:.{2 + more}f} points"


METRICS = {
    "clean_accuracy": Metric(_accuracy(attacked=False), SHARE, wording.percent, True),
    "robust_accuracy": Metric(_accuracy(attacked=True), SHARE, wording.percent, True),
    "clean_drop": Metric(_drop(attacked=False), _POINTS, _points),
    "robust_drop": Metric(_drop(attacked=True), _POINTS, _points),
    "latency_p50": Metric(_latency("p50_ms"), TIME, _milliseconds),
    "latency_p90": Metric(_latency("p90_ms"), TIME, _milliseconds),
    "latency_p99": Metric(_latency("p99_ms"), TIME, _milliseconds),
    "speed_up": Metric(_speed_up, {"": 1.0, "x": 1.0, "×": 1.0}, wording.ratio, True),
    "size": Metric(_counted("bytes"), BYTES, wording.size),
    "macs": Metric(_counted("macs"), COUNT, wording.count),
    "parameters": Metric(_counted("parameters"), COUNT, wording.count),
}

BY_TIME, BY_ACCURACY = ("latency_", "speed_up"), ("clean_", "robust_")
"""What metrics begin with that need a measured latency, and those that need images with true labels."""
ROUNDING = 1e-9
"""Share of a bound, or of a baseline's figure, that is no miss: 8.2 MB times a million is less than 8,200,000."""

_GATE = re.compile(r"\s*(?P<metric>\w+)\s*(?:\[(?P<row>[^]]*)\])?\s*(?P<operator>[<>]=)\s*(?P<amount>[\d.].*)")
_REGRESSION = re.compile(r"\s*(?P<metric>\w+)\s*=\s*(?P<amount>[\d.].*)")


@dataclass(frozen=True)
class Gate:
    """`robust_accuracy>=40%`, or `size[tflite int8]<=500kB` for one ledger row.

    Args:
        metric: a name of METRICS.
        row: the only ledger row it looks at; None for everything that is shipped.
        bound: in the metric's own unit.
    """

    metric: str
    row: str | None
    bound: float

    def holds(self, figure: float) -> bool:
        """Whether a figure keeps the gate."""
        over = self.bound - figure if METRICS[self.metric].higher_is_better else figure - self.bound
        return over <= ROUNDING * self.bound


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        ValueError: it is none, in one line that says what is allowed.
    """
    match = _GATE.fullmatch(text)
    if not match:
        raise ValueError(
            f"{text!r} is no gate: give METRIC>=NUMBER or METRIC<=NUMBER, such as robust_accuracy>=40% or "
            "latency_p50[onnx fp32]<=20ms"
        )
    metric = _metric(match["metric"])
    operator = ">=" if metric.higher_is_better else "<="
    if match["operator"] != operator:
        raise ValueError(f"{text!r}: {match['metric']} takes {operator}")
    return Gate(match["metric"], match["row"], parse_amount(match["amount"], metric.units))


def parse_regression(text: str) -> tuple[str, float]:
    """Read `robust_accuracy=1` (points, for accuracies) or `latency_p50=5%` (for all else): metric and share.

    Raises:
        ValueError: it is neither.
    """
    match = _REGRESSION.fullmatch(text)
    if not match or match["metric"].endswith("_drop"):
        raise ValueError(f"{text!r} is no METRIC=AMOUNT, such as robust_accuracy=1 (points) or latency_p50=5%")
    is_share = _metric(match["metric"]).units is SHARE
    return match["metric"], parse_amount(match["amount"], _POINTS if is_share else SHARE)


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"{name!r} is not known to gates; allowed: {', '.join(METRICS)}")
    return METRICS[name]


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


GateText = Annotated[str, _checked(parse_gate)]
RegressionText = Annotated[str, _checked(parse_regression)]


def judge(report: RunReport, gates: Sequence[str]) -> tuple[GateResult, ...]:
    """Judge a run by its gates; where several networks or files are meant, the worst one decides.

    A file's own robust accuracy, of few images, is held against a gate on everything that is shipped only where all of
    its interval is; a gate on that row alone asks it to show what it promises. A gate whose figure was not measured is
    not passed, nor is one whose figure a disturbance may have flattered. Accuracy that is only agreement with the dense
    network does not count as measured.
    """
    return tuple(_judge(report, text) for text in gates)


def judge_regressions(report: RunReport, baseline: RunReport, allowed: Sequence[str]) -> tuple[GateResult, ...]:
    """Judge a run by an earlier one: no figure may be worse by more than allowed, beyond what its interval explains.

    Figures are matched by ledger row and by attack or runtime and device; one that only the baseline has is a loss.
    Accuracies are compared image by image where both reports hold the verdicts. Intervals of latencies hold the noise
    within a measurement, not what differs between two. The baseline's dense network does not matter.

    Raises:
        BadInputError: the two were evaluated on different images.
    """
    require_same_images(baseline, report.data.evaluation.sha256)
    return tuple(_judge_regression(report, baseline, text) for text in allowed)


def require_same_images(baseline: RunReport, evaluation_sha256: str) -> None:
    """Make sure that a baseline was evaluated on the images with this digest.

    Raises:
        BadInputError: it was not.
    """
    if baseline.data.evaluation.sha256 != evaluation_sha256:
        raise BadInputError(
            f"the baseline was evaluated on other images ({baseline.data.evaluation.name}, "
            f"{baseline.data.evaluation.sha256[:12]}…) than this run ({evaluation_sha256[:12]}…); "
            "give a baseline with the same evaluation images"
        )


def difference(first: Seen, second: Seen) -> tuple[float, tuple[float, float]]:
    """`first` minus `second`, and its 95 % interval from theirs.

    By the method of variance estimates recovery (Zou and Donner 2008; for proportions it is Newcombe's tenth, 1998).
    It takes both as independent, so for two accuracies on the same images the interval is on the wide side.
    """
    (low, high), (other_low, other_high) = first.interval, second.interval
    value = first.value - second.value
    below = math.hypot(first.value - low, other_high - second.value)
    above = math.hypot(high - first.value, second.value - other_low)
    return value, (value - below, value + above)


def _judge(report: RunReport, text: str) -> GateResult:
    gate = parse_gate(text)
    metric = METRICS[gate.metric]
    found = [seen for seen in metric.look(report) if gate.row in (None, seen.row)]
    if not found:
        return GateResult(gate=text, passed=False, message=f"{_not_measured(report, gate)}: not passed")

    lenient = gate.row is None and not all(seen.spot_check for seen in found)

    def end(seen: Seen) -> float:
        against = 0 if metric.higher_is_better else 1
        return seen.interval[1 - against if lenient and seen.spot_check else against]

    worst = min(found, key=end) if metric.higher_is_better else max(found, key=end)
    judged = end(worst)
    passed = gate.holds(judged)
    uncertain = worst.doubt
    if passed and (flattered := next((seen for seen in found if seen.flattery), None)):
        worst, judged, passed, uncertain = flattered, end(flattered), False, flattered.flattery
    side = "at least" if metric.higher_is_better else "at most"
    more = 0 if passed else wording.more_digits(metric.show, judged, gate.bound)
    message = f"{_figure(metric, worst, more)}; {side} {metric.show(gate.bound, more)} asked" + doubt(passed, uncertain)
    return GateResult(
        gate=text, passed=passed, row=worst.row, value=worst.value, judged=judged, bound=gate.bound, message=message
    )  # fmt: skip


def _judge_regression(report: RunReport, baseline: RunReport, text: str) -> GateResult:
    name, allowed = parse_regression(text)
    metric = METRICS[name]
    before, now = ({seen.place: seen for seen in metric.look(each)} for each in (baseline, report))
    limit = _points(allowed, 0) if metric.units is SHARE else wording.percent(allowed)
    label = f"{name} against the baseline, {limit} allowed"
    pairs = [(before[place], seen) for place, seen in now.items() if place in before]
    missing = [place for place in before if place not in now]
    if missing or not pairs:
        why = (
            f"the baseline's {'; '.join(missing)} is missing in this run"
            if pairs
            else "the two runs have no row, attack, runtime and device in common"
        )
        return GateResult(gate=label, passed=False, message=f"{name}: {why}: not passed")

    losses = [(_surely_lost(metric, allowed, old, new), old, new) for old, new in pairs]
    surely_lost, old, new = max(losses, key=lambda loss: loss[0])
    passed = surely_lost <= ROUNDING * old.value
    uncertain = new.doubt or old.flattery
    if passed and (flattered := next((pair for pair in pairs if pair[0].doubt or pair[1].flattery), None)):
        old, new = flattered
        surely_lost, passed = _surely_lost(metric, allowed, old, new), False
        uncertain = new.flattery or f"the baseline's: {old.doubt}"
    more = 0 if passed else wording.more_digits(metric.show, new.value, old.value)
    paired = f"; {wording.change(change)}, image by image" if (change := _paired(old, new)) else ""
    compared = f"{_figure(metric, new, more)}; baseline {metric.show(old.value, more)}{paired}"
    message = compared + doubt(passed, uncertain)
    return GateResult(
        gate=label, passed=passed, row=new.row, value=new.value, judged=surely_lost, bound=0.0, message=message
    )  # fmt: skip


def _surely_lost(metric: Metric, allowed: float, old: Seen, new: Seen) -> float:
    """The least that was lost, by the 95 % interval, beyond what is allowed; in the metric's unit."""
    if old.accuracy is not None:
        change = _paired(old, new)
        return (-change.interval[1] if change else difference(old, new)[1][0]) - allowed
    factor = 1 - allowed if metric.higher_is_better else 1 + allowed
    low, value, high = (factor * figure for figure in (old.interval[0], old.value, old.interval[1]))
    floor = Seen("", "", value, (low, high))
    return (difference(floor, new) if metric.higher_is_better else difference(new, floor))[1][0]


def _paired(old: Seen, new: Seen) -> PairedDifference | None:
    """What changed image by image; None of other figures, or where a report holds no verdicts."""
    return paired_change(old.accuracy, new.accuracy) if old.accuracy and new.accuracy else None


def _figure(metric: Metric, seen: Seen, more: int) -> str:
    value, low, high = (metric.show(figure, more) for figure in (seen.value, *seen.interval))
    interval = f" ({low} to {high})" if low != high else ""
    return f"{seen.place}: {value}{interval}"


def doubt(passed: bool, why: str) -> str:
    """What a verdict says of a measurement that is not valid, and `why`; "" where it holds all the same."""
    # A disturbance makes a measurement slower, so a gate that was passed in spite of it is passed.
    return f"; the measurement is not valid ({why}): measure again" if why and not passed else ""


def _not_measured(report: RunReport, gate: Gate) -> str:
    rows = [row.name for row in _shipped(report)]
    if gate.row is not None and gate.row not in rows:
        return f"there is no row {gate.row!r}; there are {', '.join(map(repr, rows))}"
    if gate.metric.partition("_")[0] in ("clean", "robust") and report.data.label_kind != "ground truth":
        return f"{gate.metric} was not measured, as the images have no true labels"
    return f"{gate.metric} was not measured"
