"""`fsrp-edge bench`: latency of files on this machine and on devices, and the comparison of two such results."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrp_edge.cli import options
from fsrp_edge.errors import BadInputError, GateFailedError, ToolFailedError
from fsrp_edge.units import SHARE, parse_amount

if TYPE_CHECKING:
    from fsrp_edge.bench.agreement import Origin
    from fsrp_edge.bench.compare import Comparison
    from fsrp_edge.bench.results import BenchResults, Latency
    from fsrp_edge.bench.setup import Method
    from fsrp_edge.data.images import ImageSet

EVALUATED = 1000
"""Images that are recognized on a device."""


class _MeasureByDefault(click.Group):
    """`bench MODEL…` is short for `bench measure MODEL…`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["measure", *args]
        return super().parse_args(context, args)


@options.from_text
def _seconds(text: str) -> float:
    seconds = parse_amount(text, {"s": 1, "m": 60, "h": 3600})
    if not seconds:
        raise ValueError(f"{text!r} is no time to measure in; 30m is usual")
    return seconds


@options.from_text
def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", text):
        raise ValueError(f"{text!r} is not a shape such as 3,224,224")
    return tuple(map(int, text.split(",")))


@options.from_text
def _share(text: str) -> float:
    return parse_amount(text, SHARE)


@click.group(cls=_MeasureByDefault)
def bench() -> None:
    """Measure latency here and on devices. `bench MODEL…` is short for `bench measure MODEL…`.

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
    "python3, '?cache=FOLDER' to keep files there and '?tool=PATH' for benchmark_model or benchncnn. Repeatable: "
    "devices are measured at the same time.",
)
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "tensorrt", "litert", "tflite-benchmark", "ncnn", "benchncnn"]),
    help="onnxruntime or tensorrt (drives trtexec) for .onnx, litert or tflite-benchmark (drives benchmark_model, "
    "needs no Python there) for .tflite, ncnn or benchncnn (ncnn's own program, no Python either) for .ncnn folders.  "
    "[default: the first of its format]",
)
@click.option("--threads", type=options.COUNT, default=1)
@click.option("--affinity", metavar="CORES", help="Stay on these cores, such as 0,4-7 for the fast ones.")
@click.option("--input-shape", type=_shape, metavar="C,H,W", help="Of an image, for ncnn.")
@click.option(
    "--evaluate",
    type=options.source,
    metavar="SOURCE",
    help="Also recognize the first 1,000 images of a data set there; what --data of other commands takes. Not with "
    "tflite-benchmark and benchncnn.",
)
@click.option("--quick", is_flag=True, help="At least 50 runs and 2 seconds a file instead of 100 and 10.")
@click.option("--official", is_flag=True, help="At least 1,024 runs and 60 seconds a file.")
@click.option(
    "--sustained",
    type=_seconds,
    metavar="TIME",
    help="One long round, such as 30m, for what heat does to the latency. Not with tflite-benchmark and benchncnn.",
)
@click.option("--cool-down", type=click.FloatRange(0), default=0.0, help="Seconds of rest between processes.")
@click.option("--require-valid", is_flag=True, help="Exit with 1 where anything disturbed a measurement.")
@click.option("--out", type=options.NewFile, help="Write everything as JSON to this file, raw times included.")
@click.option("--picture", type=options.NewFile, help="Draw latency and temperature over time into this PNG file.")
@click.option("--csv", "csv_file", type=options.NewFile, help="Write the table as CSV to this file.")
@options.output_options
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
    **lengths: Any,
) -> None:
    """Measure .onnx and .tflite files and .ncnn folders. They take turns, at batch 1.

    A device's outputs are compared with this machine's. Nothing stays on a device unless a cache folder is named.

    \b
    fsrp-edge bench dense-fp32.onnx model-fp32.onnx model-int8.tflite --threads 4 --device local \\
      --device 'ssh://pi@raspberrypi.local?python=venv/bin/python' --out results.json
    """
    from fsrp_edge import plots
    from fsrp_edge.bench.address import parse_address
    from fsrp_edge.bench.fleet import Interrupted, measure_fleet
    from fsrp_edge.bench.setup import Setup
    from fsrp_edge.bench.tools import PROGRAMS
    from fsrp_edge.cli.bench_table import course, print_results
    from fsrp_edge.cli.console import show_progress, shown_as_json
    from fsrp_edge.files import write_text

    if picture is not None and picture.suffix != ".png":
        raise click.UsageError(f"--picture {picture.name}: give a name that ends in .png")
    method = _method(**lengths)
    if lengths["sustained"] is not None and runtime in PROGRAMS:
        raise click.UsageError(
            f"--sustained shows latency over time, of which {PROGRAMS[runtime]} tells nothing but means; leave it out, "
            "or take another --runtime"
        )
    addresses = [parse_address(device) for device in dict.fromkeys(devices)]
    images = None if evaluate is None else evaluated_images(evaluate, models[0])
    setup = Setup(runtime, threads, affinity, input_shape, images, _origins(models))

    def hand_over(results: "BenchResults") -> None:
        try:
            if out is not None:
                results.save(out)
            if csv_file is not None:
                write_text(csv_file, results.to_csv())
            if picture is not None and results.measurements:
                plots.save_png(plots.over_time(dict(map(course, results.measurements))), picture)
        finally:  # a disk may be full
            if not shown_as_json(results):
                print_results(results, threads)

    try:
        with show_progress():
            results = measure_fleet(addresses, models, setup, method=method)
    except Interrupted as interrupted:
        if interrupted.results.measurements:
            hand_over(interrupted.results)
        raise interrupted.why from None
    hand_over(results)
    _fail(results, require_valid)


def _method(quick: bool, official: bool, sustained: float | None, cool_down: float) -> "Method":
    from fsrp_edge.bench.setup import OFFICIAL, QUICK, Method

    if quick + official + (sustained is not None) > 1:
        raise click.UsageError("--quick, --official and --sustained exclude each other")
    method = QUICK if quick else OFFICIAL if official else Method()
    if sustained is not None:
        method = Method(seconds=sustained, rounds=1)
    return method.model_copy(update={"cool_down_seconds": cool_down})


def evaluated_images(source: str, model: Path) -> "ImageSet":
    """The first evaluation images of a data set, at the size that a file takes."""
    from fsrp_edge.data.open import open_dataset
    from fsrp_edge.models.classifier import ModelSpec, Preprocessing
    from fsrp_edge.report.manifest import manifest_of_file
    from fsrp_edge.runtimes import open_session

    if (known := manifest_of_file(model)) is not None:  # preprocessing, class names and crops as in the run
        manifest, _ = known
        return open_dataset(source, manifest.source.model, seed=manifest.seed).evaluation.first(EVALUATED)
    session = open_session(model)
    sizes = [size or 0 for size in session.input.shape[1:]]
    if 0 in sizes:
        raise BadInputError(f"{model.name} does not tell its input's size; name an ONNX or TFLite file first")
    channels, height, width = [sizes[2], *sizes[:2]] if session.layout == "NHWC" else sizes
    if width in (1, 3) and (channels == height or min(channels, height) > 16):  # as tf2onnx writes them
        raise BadInputError(
            f"{model.name} takes images {channels}x{height}x{width}, which looks like channels last; --evaluate feeds "
            "ONNX files channels first: export it so, or leave --evaluate out"
        )
    classes = (session.output.shape or (None,))[-1] or 0
    if classes < 2:
        raise BadInputError(
            f"{model.name} does not put out logits (images, classes), which --evaluate takes classes from; export it "
            "so, or leave --evaluate out"
        )
    spec = ModelSpec(
        architecture=model.name,
        input_shape=(channels, height, width),
        classes=classes,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        preprocessing=Preprocessing(resize=max(height, width)),
    )
    return open_dataset(source, spec, seed=0).evaluation.first(EVALUATED)


def _origins(models: Sequence[Path]) -> "dict[str, Origin]":
    """What manifests beside the files say of them, by digest."""
    from fsrp_edge.bench.agreement import Origin
    from fsrp_edge.files import sha256_file
    from fsrp_edge.report.manifest import manifest_of_file

    origins = {}
    for path in models:
        if (found := manifest_of_file(path)) is not None:
            manifest, artifact = found
            origins[sha256_file(path)] = Origin(artifact, manifest.origin(artifact).probe)
    return origins


def _fail(results: "BenchResults", require_valid: bool) -> None:
    """One error for what went wrong; the results are written and shown before."""
    from fsrp_edge.bench.agreement import require_agreement

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
    type=_share,
    metavar="PERCENT",
    help="Exit with 1 where a median is slower by more than this, such as 5%, and the difference is significant, and "
    "where the second file lacks what the first has, or tells of a failure.",
)
@click.option("--require-valid", is_flag=True, help="Exit with 1 where anything disturbed a measurement.")
@options.output_options
def compare(before: Path, after: Path, fail_slower: float | None, require_valid: bool) -> None:
    """Compare two files of `bench --out`. Told is the difference of medians with its bootstrap interval.

    \b
    fsrp-edge bench compare before.json after.json --fail-slower 5%
    """
    from fsrp_edge.bench.compare import added, compare_results, lost
    from fsrp_edge.bench.results import BenchResults
    from fsrp_edge.cli.bench_table import show_comparisons

    results = [BenchResults.load(path) for path in (before, after)]
    comparisons, missing = compare_results(*results), lost(*results)
    show_comparisons(comparisons, [*missing, *added(*results)])
    if require_valid:
        _require_valid([latency for one in comparisons for latency in (one.before, one.after)])
    if fail_slower is not None and (wrong := [*_slower(comparisons, fail_slower), *missing]):
        raise GateFailedError("\n".join(wrong))


def _slower(comparisons: "Sequence[Comparison]", allowed: float) -> list[str]:
    told = []
    for comparison in (each for each in comparisons if each.fails(allowed)):
        before, after = comparison.before, comparison.after
        why = [f"{after.model} is {comparison.change:.1%} slower, allowed: {allowed:.1%}"]
        why += [f"{before.device} became {after.device}"] if before.device != after.device else []
        why += [f"not valid: {'; '.join(comparison.invalid_because)}"] if comparison.invalid_because else []
        told.append("; ".join(why))
    return told
