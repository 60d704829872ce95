"""Accuracy, size and latency of every file of some networks, each in its own runtime. Resumable by file.

python -m benchmarks.artifact_accuracy resnet20 --data cifar-10-batches-bin --made files dense=net.th pruned=pruned.pt
and then the same with --latency on a quiet machine.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, parser_of, save
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.setup import QUICK, Setup
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import Dataset
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.verified import export_verified
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pipeline.inputs import load, load_data
from fsrp_edge.pipeline.options import CheckpointOptions
from fsrp_edge.runtimes import open_session
from fsrp_edge.targets.load import load_target

FILES: tuple[tuple[Format, Precision], ...] = (
    ("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"),
    ("tflite", "fp32"), ("tflite", "fp16"), ("tflite", "int8"), ("tflite", "int8-dynamic"),
    ("ncnn", "fp32"), ("ncnn", "fp16"),
)  # fmt: skip
TARGET, THREADS, ADDRESS = "generic-x86", 1, parse_address("local")

Files = Sequence[tuple[Format, Precision]]


def judge(
    classifier: Classifier,
    data: str,
    options: ExportOptions,
    files: Files,
    folder: Path,
    *,
    with_network: bool,
) -> Iterator[dict[str, Any]]:
    """Make files in a folder; one row for each, and for the network, of what a busy machine does not change."""
    dataset = load_data(classifier, data, seed=0)
    if with_network:
        yield {"file": "network in torch", **_accuracy(classifier, dataset)}
    exported = export_verified(
        classifier,
        [ArtifactRequest(*file) for file in files],
        folder,
        target=load_target(TARGET),
        calibration=dataset.train.sample(options.calibration_images, 0),
        images=dataset.evaluation,
        options=options,
    )
    for artifact, parity in zip(exported.artifacts, exported.parities, strict=True):
        yield {
            "file": artifact.name,
            **_accuracy(open_session(folder / artifact.path, threads=2).predict, dataset),
            "bytes": artifact.bytes,
            "kept_in_float": artifact.kept_in_float,
            "parity": [check.model_dump(mode="json") for check in parity],
        }


def measure(rows: Sequence[dict[str, Any]], files: Files, folder: Path, shape: tuple[int, ...]) -> None:
    """Write the files' latencies into their rows, all measured in turns."""
    paths = [folder / ArtifactRequest(*file).file for file in files]
    measured = measure_on(ADDRESS, paths, Setup(threads=THREADS, input_shape=shape), method=QUICK)
    found = {" ".join(file): one.latency for file, one in zip(files, measured, strict=True)}
    for row in rows:
        if latency := found.get(row["file"]):
            row |= {"p50_ms": latency.p50_ms, "latency_valid": latency.valid}


def _in_float(row: dict[str, Any]) -> str:
    kept = len(row.get("kept_in_float") or ())
    return f", {kept} layer{'s' if kept > 1 else ''} in float" if kept else ""


def _accuracy(predict: Any, dataset: Dataset) -> dict[str, Any]:
    found = clean_accuracy(predict, dataset.evaluation).result
    return {"correct": found.correct, "images": found.images, "interval": found.interval}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("name", help="of the result: results/artifact_accuracy_NAME.json")
    parser.add_argument("networks", nargs="+", metavar="LABEL=CHECKPOINT")
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", help="factory of the networks, where their files do not tell")
    parser.add_argument(
        "--file", dest="files", action="append", metavar="FORMAT:PRECISION", help="repeatable; default: all"
    )
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--int8-max-drop", type=float, metavar="POINTS", help="keep layers in float until that holds")
    parser.add_argument("--made", type=Path, metavar="FOLDER", help="where the files are kept; needed to measure")
    parser.add_argument(
        "--latency",
        action="store_true",
        help="measure files that were made and judged before, in place of judging: on a quiet machine",
    )
    given = parser.parse_args()
    if given.latency and not given.made:
        parser.error("--latency measures what an earlier call left in --made FOLDER")
    files = [tuple(file.split(":")) for file in given.files] if given.files else FILES
    options = ExportOptions(calibration_images=given.calibration_images, int8_max_drop=given.int8_max_drop)
    results = {}
    with show_progress(), tempfile.TemporaryDirectory() as scratch:
        for network in given.networks:
            label, _, checkpoint = network.partition("=")
            cell = RESULTS / f"artifact_accuracy_{given.name}_cells" / f"{label}.json"
            made = (given.made or Path(scratch)) / label
            rows = read_json(cell) if cell.is_file() else []
            known = {row["file"] for row in rows}
            missing = [file for file in files if " ".join(file) not in known]
            classifier = load(CheckpointOptions(checkpoint=Path(checkpoint), architecture=given.arch))
            if given.latency:
                measured = [file for file in files if file not in missing]
                measure(rows, measured, made, classifier.spec.input_shape)
                write_json(cell, rows)
            elif missing:
                for row in judge(classifier, given.data, options, missing, made, with_network=not rows):
                    rows.append(row)
                    write_json(cell, rows)
            order = ["network in torch", *map(" ".join, FILES)]
            results[label] = sorted(rows, key=lambda row: order.index(row["file"]))
    table = [
        (
            label,
            row["file"] + _in_float(row),
            f"{100 * row['correct'] / row['images']:.2f} %",
            f"{100 * (row['correct'] - of_network[0]['correct']) / row['images']:+.2f}",
            f"{row['bytes'] / 1e6:.2f} MB" if "bytes" in row else "",
            f"{row['p50_ms']:.2f} ms" if row.get("p50_ms") else "",
        )
        for label, of_network in results.items()
        for row in of_network
    ]
    content = {"calibration_images": options.calibration_images, "threads": THREADS, "networks": results}
    header = ("network", "file", "accuracy", "points against torch", "size", "p50, 1 thread")
    save(f"artifact_accuracy_{given.name}", content, header, table)


if __name__ == "__main__":
    main()
