"""`fsrp-edge bench`: latency of files on this machine."""

from pathlib import Path

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option


@click.command()
@click.argument("models", nargs=-1, required=True, type=options.ExistingFile)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--quick", is_flag=True, help="2 seconds a file instead of 10.")
@click.option("--out", type=options.NewFile, help="Write every raw time as JSON to this file.")
@options.output_options
@traceback_option
def bench(
    models: tuple[Path, ...], threads: int, quick: bool, out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Measure the latency of .onnx and .tflite files here, in turns, batch 1.

    \b
    fsrp-edge bench dense-fp32.onnx model-fp32.onnx model-int8.tflite --threads 2
    """
    from fsrp_edge.bench.local import QUICK, Method, measure_all
    from fsrp_edge.cli.console import print_json, print_rows, show_progress
    from fsrp_edge.export.artifact import format_of
    from fsrp_edge.files import write_json

    with show_progress(quiet=quiet):
        files = [(path, format_of(path)) for path in models]
        measured = measure_all(files, threads=threads, method=QUICK if quick else Method())
    records = [
        {"latency": latency.model_dump(mode="json"), "times_ms": list(times)} for latency, times in measured
    ]
    if out is not None:
        write_json(out, records)
    if as_json:
        print_json([record["latency"] for record in records])
        return
    print_rows(
        ("file", "runtime", "runs", "min ms", "p50 ms", "95 % interval", "p90 ms", "p99 ms", "valid"),
        [
            (
                path.name,
                f"{latency.runtime} {latency.runtime_version}",
                latency.runs,
                f"{latency.min_ms:.3f}",
                f"{latency.p50_ms:.3f}",
                "–".join(f"{bound:.3f}" for bound in latency.p50_interval_ms),
                f"{latency.p90_ms:.3f}",
                f"{latency.p99_ms:.3f}",
                "yes" if latency.valid else "; ".join(latency.invalid_because),
            )
            for path, (latency, _) in zip(models, measured, strict=True)
        ],
        footer=f"{threads} thread(s), batch 1, {measured[0][0].device}",
    )
