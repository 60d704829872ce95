"""`fsrp-edge bench`: latency of files on this machine and on devices, and the comparison of two such results."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option
from fsrp_edge.errors import BadInputError, GateFailedError, ToolFailedError

if TYPE_CHECKING:
    from fsrp_edge.bench.measure import Method
    from fsrp_edge.bench.results import BenchResults, Latency, Measurement
    from fsrp_edge.data.images import ImageSet

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_COUNT = 24
EVALUATED = 1000
"""Images that are recognized on a device."""


class _MeasureByDefault(click.Group):
    """`bench MODEL…` is short for `bench measure MODEL…`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["measure", *args]
        return super().parse_args(context, args)


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time such as 90s, 30m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _shape(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", text):
        raise click.BadParameter(f"{text!r} is not a shape such as 3,224,224")
    return tuple(map(int, text.split(",")))


def _share(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a percentage such as 5%")
    return float(found[1]) / 100


@click.group(cls=_MeasureByDefault)
def bench() -> None:
    """Measure latency here and on devices; `bench MODEL…` is short for `bench measure MODEL…`.

    \b
    fsrp-edge bench model-fp32.onnx --device ssh://pi@raspberrypi.local
    fsrp-edge bench measure --help
    fsrp-edge bench compare before.json after.json --fail-slower 5%
    """


@bench.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("local",),
    metavar="ADDRESS",
    help="local, ssh://[user@]host[:port] or adb:[serial], with '?python=PATH' for another interpreter than "
    "python3, '?cache=FOLDER' to keep files there and '?tool=PATH' for benchmark_model. Repeatable: devices are "
    "measured at the same time.",
)
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "tensorrt", "litert", "tflite-benchmark", "ncnn"]),
    help="onnxruntime or tensorrt (drives trtexec) for .onnx, litert or tflite-benchmark (drives benchmark_model, "
    "needs no Python there) for .tflite, ncnn for .ncnn folders.  [default: the first of its format]",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--affinity", metavar="CORES", help="Stay on these cores, such as 0,4-7 for the fast ones.")
@click.option("--input-shape", callback=_shape, metavar="C,H,W", help="Of an image, for ncnn.")
@click.option(
    "--evaluate",
    metavar="SOURCE",
    help="Also recognize the first 1,000 images of a data set there; what --data of other commands takes.",
)
@click.option("--quick", is_flag=True, help="At least 50 runs and 2 seconds a file instead of 100 and 10.")
@click.option("--official", is_flag=True, help="At least 1,024 runs and 60 seconds a file.")
@click.option(
    "--sustained",
    callback=_seconds,
    metavar="TIME",
    help="One long round, such as 30m, for what heat does to the latency.",
)
@click.option("--cool-down", type=click.FloatRange(0), default=0.0, help="Seconds of rest between processes.")
@click.option("--require-valid", is_flag=True, help="Exit with 1 where anything disturbed a measurement.")
@click.option(
    "--out", type=options.NewFile, help="Write everything as JSON to this file, raw times included."
)
@click.option(
    "--picture", type=options.NewFile, help="Draw latency and temperature over time into this PNG file."
)
@click.option("--csv", "csv_file", type=options.NewFile, help="Write the table as CSV to this file.")
@options.output_options
@traceback_option
def measure(
    models: tuple[Path, ...],
    devices: tuple[str, ...],
    runtime: str | None,
    threads: int,
    affinity: str | None,
    input_shape: tuple[int, ...] | None,
    evaluate: str | None,
    require_valid: bool,
    out: Path | None,
    picture: Path | None,
    csv_file: Path | None,
    as_json: bool,
    quiet: bool,
    **lengths: Any,
) -> None:
    """Measure the latency of .onnx and .tflite files and .ncnn folders, in turns, batch 1.

    A device's outputs are compared with this machine's. Nothing stays on a device unless a cache folder is named.

    \b
    fsrp-edge bench dense-fp32.onnx model-fp32.onnx model-int8.tflite --threads 4 --device local \\
      --device 'ssh://pi@raspberrypi.local?python=venv/bin/python' --out results.json
    """
    from fsrp_edge import plots
    from fsrp_edge.bench.measure import Setup, measure_fleet
    from fsrp_edge.bench.transport import parse_address
    from fsrp_edge.cli.console import print_json, show_progress
    from fsrp_edge.files import write_json, write_text

    if picture is not None:
        plots.pyplot()  # a missing library is to be known before the work
    method = _method(**lengths)
    addresses = [parse_address(device) for device in dict.fromkeys(devices)]
    images = None if evaluate is None else _images(evaluate, models[0])
    setup = Setup(runtime, threads, affinity, input_shape, images)
    with show_progress(quiet=quiet):
        results = measure_fleet(addresses, models, setup, method=method)
    if out is not None:
        write_json(out, results.model_dump(mode="json"))
    if csv_file is not None:
        write_text(csv_file, results.to_csv())
    if picture is not None and results.measurements:
        plots.save_png(plots.over_time(dict(map(_course, results.measurements))), picture)
    if as_json:
        print_json(results)
    else:
        _print_results(results, threads, sustained=lengths["sustained"] is not None)
    _fail(results, require_valid)


def _method(quick: bool, official: bool, sustained: float | None, cool_down: float) -> "Method":
    from fsrp_edge.bench.measure import OFFICIAL, QUICK, Method

    if quick + official + (sustained is not None) > 1:
        raise click.UsageError("--quick, --official and --sustained exclude each other")
    method = QUICK if quick else OFFICIAL if official else Method()
    if sustained is not None:
        method = Method(seconds=sustained, rounds=1)
    return method.model_copy(update={"cool_down_seconds": cool_down})


def _images(source: str, model: Path) -> "ImageSet":
    """The first evaluation images of a data set, at the size that a file takes."""
    from fsrp_edge.data.open import open_dataset
    from fsrp_edge.models.classifier import ModelSpec, Preprocessing
    from fsrp_edge.runtimes import open_session

    session = open_session(model)
    sizes = [size or 0 for size in session.input.shape[1:]]
    if 0 in sizes:
        raise BadInputError(f"{model.name} does not tell its input's size; name an ONNX or TFLite file first")
    channels, height, width = [sizes[2], *sizes[:2]] if session.layout == "NHWC" else sizes
    spec = ModelSpec(
        architecture=model.name,
        input_shape=(channels, height, width),
        classes=session.output.shape[-1] or 0,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        preprocessing=Preprocessing(resize=height),
    )
    return open_dataset(source, spec, seed=0).evaluation.first(EVALUATED)


def _print_results(results: "BenchResults", threads: int, *, sustained: bool) -> None:
    from fsrp_edge.cli.console import print_rows

    if not results.measurements:
        return
    remote = any(measurement.agreement for measurement in results.measurements)
    header = ["file", "device", "p50 ms", "95 % interval", "p90 ms", "p99 ms", "MB"]
    optional = {
        "mJ": [_millijoules(measurement) for measurement in results.measurements],
        "outputs": [_agreement(measurement) if remote else "" for measurement in results.measurements],
        "right": [_right(measurement) for measurement in results.measurements],
    }
    columns = {name: texts for name, texts in optional.items() if any(texts)}
    print_rows(
        (*header, *columns, "valid"),
        [
            (
                latency.model,
                measurement.address,
                f"{latency.p50_ms:.3f}",
                "–".join(f"{bound:.3f}" for bound in latency.p50_interval_ms),
                f"{latency.p90_ms:.3f}",
                f"{latency.p99_ms:.3f}",
                "" if measurement.peak_memory_mb is None else f"{measurement.peak_memory_mb:.0f}",
                *(texts[row] for texts in columns.values()),
                "yes" if latency.valid else "no",
            )
            for row, measurement in enumerate(results.measurements)
            for latency in [measurement.latency]
        ],
        footer="\n".join(
            [
                f"{threads} thread(s), batch 1; MB: peak memory of the process"
                + ("; mJ: energy an inference, of the whole board" if "mJ" in columns else "")
                + ("; outputs: largest difference to this machine's, relative" if remote else "")
                + ("; right: of the images recognized there" if "right" in columns else ""),
                *dict.fromkeys(
                    f"{latency.device}; {latency.runtime} {latency.runtime_version}"
                    for measurement in results.measurements
                    for latency in [measurement.latency]
                ),
                *_notes(results),
                *(_over_time(measurement) for measurement in results.measurements if sustained),
            ]
        ),
    )


def _notes(results: "BenchResults") -> Iterator[str]:
    for measurement in results.measurements:
        what = f"{measurement.latency.model} on {measurement.address}"
        if not measurement.latency.valid:
            yield f"not valid: {what}: {'; '.join(measurement.latency.invalid_because)}"
        if measurement.latency.runs_averaged > 1:
            yield f"{what}: the tool tells means only, so these are statistics of {_times(measurement)} means"
        recognition = measurement.recognition
        if recognition and recognition.same_as_here not in (None, recognition.images):
            other = recognition.images - (recognition.same_as_here or 0)
            yield f"{what}: another class than here in {other} of {recognition.images} images"
        if measurement.agreement is None and measurement.address != "local":
            yield f"outputs not compared: {what}: {measurement.agreement_note}"


def _times(measurement: "Measurement") -> int:
    return len(measurement.times_ms)


def _millijoules(measurement: "Measurement") -> str:
    energy = measurement.latency.energy_mj
    return "" if energy is None else f"{energy:.3g}"


def _right(measurement: "Measurement") -> str:
    seen = measurement.recognition
    return "" if seen is None or seen.correct is None else f"{seen.correct / seen.images:.1%}"


def _agreement(measurement: "Measurement") -> str:
    agreement = measurement.agreement
    if agreement is None:
        return "–"
    error = "not finite" if agreement.relative_error is None else f"{agreement.relative_error:.1e}"
    return error if agreement.passed else f"{error} ✗"


def _course(measurement: "Measurement") -> tuple[str, tuple[Sequence[float], list[tuple[float, float]]]]:
    """A measurement as it is drawn over time: rounds one after the other."""
    heat, start = [], 0.0
    for part in measurement.rounds:
        told = [(sample.seconds, sample.temperature_c) for sample in part.during]
        heat += [(start + seconds, degrees) for seconds, degrees in told if degrees is not None]
        start += sum(part.times_ms) / 1e3
    return f"{measurement.latency.model} on {measurement.address}", (measurement.times_ms, heat)


def _over_time(measurement: "Measurement") -> str:
    """The median latency from the first to the last run as a row of bars."""
    import numpy as np

    times = np.asarray(measurement.times_ms)
    parts = np.array_split(times, min(SPARK_COUNT, len(times)))
    medians = np.array([np.median(part) for part in parts])
    span = float(np.ptp(medians)) or 1.0
    bars = "".join(SPARKS[int(step)] for step in (medians - medians.min()) / span * (len(SPARKS) - 1))
    heat = [
        sample.temperature_c for part in measurement.rounds for sample in part.during if sample.temperature_c
    ]
    warmed = f", {heat[0]:.0f} to {heat[-1]:.0f} °C" if heat else ""
    return f"{measurement.latency.model} over time: {bars} median {medians[0]:.3f} to {medians[-1]:.3f} ms{warmed}"


def _fail(results: "BenchResults", require_valid: bool) -> None:
    """One error for what went wrong; the results are written and shown before."""
    from fsrp_edge.bench.measure import require_agreement

    if results.failures:
        raise ToolFailedError("\n".join(failure.message for failure in results.failures))
    require_agreement(results.measurements)
    if require_valid:
        _require_valid([measurement.latency for measurement in results.measurements])


def _require_valid(latencies: Sequence["Latency"]) -> None:
    disturbed = [
        f"{latency.model}, {latency.device}: not valid: {'; '.join(latency.invalid_because)}"
        for latency in latencies
        if not latency.valid
    ]
    if disturbed:
        raise GateFailedError("\n".join(disturbed))


@bench.command()
@click.argument("before", type=options.ExistingFile)
@click.argument("after", type=options.ExistingFile)
@click.option(
    "--fail-slower",
    callback=_share,
    metavar="PERCENT",
    help="Exit with 1 where a median is slower by more than this, such as 5%, and the difference is significant.",
)
@click.option("--require-valid", is_flag=True, help="Exit with 1 where anything disturbed a measurement.")
@options.output_options
@traceback_option
def compare(
    before: Path, after: Path, fail_slower: float | None, require_valid: bool, as_json: bool, quiet: bool
) -> None:
    """Compare two files of `fsrp-edge bench --out`: difference of medians with its bootstrap interval.

    \b
    fsrp-edge bench compare before.json after.json --fail-slower 5%
    """
    from fsrp_edge.bench.compare import compare_results
    from fsrp_edge.bench.results import read_results
    from fsrp_edge.cli.console import print_json, print_rows

    results = [read_results(path) for path in (before, after)]
    comparisons = compare_results(*results)
    if as_json:
        print_json([_record(comparison) for comparison in comparisons])
    else:
        print_rows(
            ("file", "device", "before ms", "after ms", "change", "95 % interval", "significant"),
            [
                (
                    _named(comparison.before.model, comparison.after.model),
                    comparison.after.device,
                    f"{comparison.before.p50_ms:.3f}",
                    f"{comparison.after.p50_ms:.3f}",
                    f"{comparison.change:+.1%}",
                    " to ".join(f"{bound:+.1%}" for bound in comparison.interval),
                    "yes" if comparison.significant else "no",
                )
                for comparison in comparisons
            ],
            footer="medians; + is slower. The interval knows the noise within each run only.",
        )
    if require_valid:
        _require_valid([latency for one in comparisons for latency in (one.before, one.after)])
    wrong = [
        f"{comparison.after.model} is {comparison.change:.1%} slower, allowed: {fail_slower:.1%}"
        for comparison in comparisons
        if fail_slower is not None and comparison.fails(fail_slower)
    ]
    if wrong:
        raise GateFailedError("\n".join(wrong))


def _named(before: str, after: str) -> str:
    return after if before == after else f"{before} → {after}"


def _record(comparison: Any) -> dict[str, Any]:
    return {
        "before": comparison.before,
        "after": comparison.after,
        "change": comparison.change,
        "interval": comparison.interval,
        "significant": comparison.significant,
    }
