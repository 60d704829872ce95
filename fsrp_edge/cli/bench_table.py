"""What `fsrp-edge bench` shows: a row a file and device, notes below, and the comparison of two results."""

from collections.abc import Callable, Iterator, Sequence

from fsrp_edge import wording
from fsrp_edge.bench.compare import Comparison
from fsrp_edge.bench.results import BenchResults, Latency, Measurement
from fsrp_edge.cli.console import print_rows, show_result

_COLUMNS: tuple[tuple[str, Callable[[Measurement, Latency], str], str], ...] = (
    ("file", lambda _, latency: latency.model, ""),
    ("device", lambda measurement, _: measurement.address, ""),
    ("p50 ms", lambda _, latency: f"{latency.p50_ms:.3f}", ""),
    ("95 % interval", lambda _, latency: "–".join(f"{end:.3f}" for end in latency.p50_interval_ms), ""),
    ("p90 ms", lambda _, latency: f"{latency.p90_ms:.3f}", ""),
    ("p99 ms", lambda _, latency: f"{latency.p99_ms:.3f}", ""),
    ("MB", lambda measurement, _: _figure(measurement.peak_memory_mb, ".0f"), "peak memory of the process"),
    ("mJ", lambda _, latency: _figure(latency.energy_mj, ".3g"), "energy an inference, of the whole board"),
    (
        "outputs",
        lambda each, _: _error(each, "relative_error"),
        "largest difference to this machine's, relative",
    ),
    (
        "network",
        lambda each, _: _error(each, "network_error"),
        "to the float network's, as the manifest has them",
    ),
    ("right", lambda measurement, _: _right(measurement), "of the images recognized there"),
    ("valid", lambda _, latency: "yes" if latency.valid else "no", ""),
)
"""Title, cell, and what the title means; a column without a cell is left out."""


def print_results(results: BenchResults, threads: int) -> None:
    """Write the table of a measurement to stdout."""
    if not results.measurements:
        return
    columns = [
        (title, cells, meaning)
        for title, cell, meaning in _COLUMNS
        if any(cells := [cell(each, each.latency) for each in results.measurements])
    ]
    legend = [f"{title}: {meaning}" for title, _, meaning in columns if meaning]
    runtimes = (
        f"{latency.device}; {latency.runtime} {latency.runtime_version}"
        for latency in (measurement.latency for measurement in results.measurements)
    )
    footer = ["; ".join([f"{wording.threads(threads)}, batch 1", *legend]), *dict.fromkeys(runtimes)]
    print_rows(
        [title for title, _, _ in columns],
        zip(*(cells for _, cells, _ in columns), strict=True),
        footer="\n".join([*footer, *_notes(results)]),
    )


def show_comparisons(comparisons: Sequence[Comparison], missing: Sequence[str]) -> None:
    """Write a comparison to stdout, and below it what is missing in it."""
    names = ("before", "after", "change", "interval", "significant")
    notes = [
        f"not valid: {one.after.model} on {one.after.device}: {'; '.join(one.invalid_because)}"
        for one in comparisons
        if one.invalid_because
    ] + [f"not compared: {each}" for each in missing]
    show_result(
        [{name: getattr(one, name) for name in names} for one in comparisons],
        ("file", "device", "before ms", "after ms", "change", "95 % interval", "significant", "valid"),
        [
            (
                " → ".join(dict.fromkeys((one.before.model, one.after.model))),
                " → ".join(dict.fromkeys((one.before.device, one.after.device))),
                f"{one.before.p50_ms:.3f}",
                f"{one.after.p50_ms:.3f}",
                f"{one.change:+.1%}",
                " to ".join(f"{bound:+.1%}" for bound in one.interval),
                "yes" if one.significant else "no",
                "no" if one.invalid_because else "yes",
            )
            for one in comparisons
        ],
        footer="\n".join(["medians; + is slower. The interval knows the noise within each run only.", *notes]),
    )


def course(measurement: Measurement) -> tuple[str, tuple[Sequence[float], list[tuple[float, float]]]]:
    """A measurement as it is drawn over time: rounds one after the other."""
    heat, start = [], 0.0
    for part in measurement.rounds:
        told = [(sample.seconds, sample.temperature_c) for sample in part.during]
        heat += [(start + seconds, degrees) for seconds, degrees in told if degrees is not None]
        start += sum(part.times_ms) / 1e3
    return f"{measurement.latency.model} on {measurement.address}", (measurement.times_ms, heat)


def _notes(results: BenchResults) -> Iterator[str]:
    for measurement in results.measurements:
        latency, recognition = measurement.latency, measurement.recognition
        what = f"{latency.model} on {measurement.address}"
        if not latency.valid:
            yield f"not valid: {what}: {'; '.join(latency.invalid_because)}"
        if latency.runs_averaged > 1:
            count = len(measurement.times_ms)
            yield (
                f"{what}: the tool tells means only, so these are statistics of {count} means, and the device's state "
                f"was read before and after each, not while it ran{_untold(measurement)}"
            )
        if recognition and recognition.same_as_here not in (None, recognition.images):
            other = recognition.images - (recognition.same_as_here or 0)
            yield f"{what}: another class than here in {other} of {recognition.images} images"
        if measurement.agreement is None and measurement.address != "local":
            yield f"outputs not compared: {what}: {measurement.agreement_note}"


def _untold(measurement: Measurement) -> str:
    told = all(part.before.throttled is not None for part in measurement.rounds)
    return "" if told else "; whether it was throttled it does not tell"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _right(measurement: Measurement) -> str:
    seen = measurement.recognition
    return "" if seen is None or seen.correct is None else f"{seen.correct / seen.images:.1%}"


def _error(measurement: Measurement, name: str) -> str:
    agreement = measurement.agreement
    if agreement is None:
        return ""
    return _figure(getattr(agreement, name), ".1e") + ("" if agreement.passed else " ✗")
