"""Is a pruned network's file faster by what its arithmetic promises? Latency beside MACs, one cell a network and ratio.

A cell holds the dense and the pruned network's files, measured in turns, so that a drifting machine hits both alike;
cells that are in results/artifact_latency_cells are not measured again. Weights are random and filters chosen by L1:
speed does not depend on them. `--by-hand` adds what a user would do without this tool: no channel multiple, then
`torch.onnx.export`.

python -m benchmarks.artifact_latency resnet18:0.5 mobilenet_v2:0.5
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, save
from fsrp_edge.bench.measure import QUICK, Setup, measure_on
from fsrp_edge.bench.transport import parse_address
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models import registry
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.models.size import measure_size
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.load import load_target

NETWORKS = {
    **{name: f"torchvision:{name}" for name in ("resnet18", "resnet50", "mobilenet_v2", "vgg16_bn")},
    "resnet20": "cifar:resnet20-a",
    "vgg16": "cifar:vgg16_bn",
}
RATIOS = (0.25, 0.5, 0.75)
FILES = (("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32"), ("tflite", "int8"))
ADDRESS = parse_address("local")


def network(name: str) -> Classifier:
    """With random weights, as its architecture builds it."""
    torch.manual_seed(0)
    architecture = NETWORKS[name]
    shape, mean, std, preprocessing = registry.published_input(architecture)
    classes = 10 if architecture.startswith("cifar:") else 1000
    spec = ModelSpec(
        architecture=architecture,
        input_shape=shape,
        classes=classes,
        mean=mean,
        std=std,
        preprocessing=preprocessing,
    )
    return Classifier(registry.build(architecture, classes=classes), spec).eval()


def cell(name: str, ratio: float, threads: int, by_hand: bool) -> dict[str, Any]:
    """MACs and latencies of the dense and of the pruned network's files."""
    target, dense = load_target("generic-x86"), network(name)
    noise = np.random.default_rng(0).integers(0, 256, (8, *dense.spec.input_shape), np.uint8)
    images = ImageSet.of("noise", ArraySource(noise), torch.arange(8) % dense.spec.classes)
    scores = score(dense, images, Rival(name="l1"), seed=0)
    multiples = {"pruned": target.channel_multiple} | ({"by hand": 1} if by_hand else {})
    networks = {"dense": dense}
    for label, multiple in multiples.items():
        plan = make_plan(dense, scores, PlanOptions(ratio=ratio, channel_multiple=multiple))
        networks[label] = apply_plan(dense, plan)
    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, Path] = {}
        for label, one in networks.items():
            files |= _files(label, one, images, Path(scratch))
        measured = measure_on(
            ADDRESS,
            list(files.values()),
            Setup(threads=threads, input_shape=dense.spec.input_shape),
            method=QUICK,
        )
    latencies = {key: measurement.latency for key, measurement in zip(files, measured, strict=True)}
    return {
        "network": name,
        "ratio": ratio,
        "threads": threads,
        "macs": {label: measure_size(one).macs for label, one in networks.items()},
        "p50_ms": {key: latency.p50_ms for key, latency in latencies.items()},
        "invalid": {key: latency.invalid_because for key, latency in latencies.items() if not latency.valid},
    }


def _files(label: str, one: Classifier, images: ImageSet, scratch: Path) -> dict[str, Path]:
    """The files of one network by `label format precision`."""
    folder = scratch / label.replace(" ", "-")
    if label == "by hand":
        folder.mkdir()
        stream = io.BytesIO()
        torch.onnx.export(one, (one.example_pixels(),), stream, dynamo=False)  # type: ignore[arg-type]
        (folder / "model.onnx").write_bytes(stream.getvalue())
        return {"by hand onnx fp32": folder / "model.onnx"}
    requests = [ArtifactRequest(format_, precision) for format_, precision in FILES]  # type: ignore[arg-type]
    plan = ExportPlan(opset=17, ir_version=8, calibration=images)
    made = export_artifacts(one, requests, folder, plan)
    return {f"{label} {artifact.name}": folder / artifact.path for artifact in made}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [f"{name}:{ratio}" for name in NETWORKS for ratio in RATIOS]
    parser.add_argument("cells", nargs="*", metavar="NETWORK:RATIO", help="default: all of them")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--by-hand", action="store_true")
    given = parser.parse_args()
    folder = RESULTS / "artifact_latency_cells"
    with show_progress():
        for wanted in given.cells or every:
            name, _, ratio = wanted.partition(":")
            for threads in given.threads:
                path = folder / f"{name}-{ratio}-{threads}.json"
                if not path.is_file():
                    write_json(path, cell(name, float(ratio), threads, given.by_hand))
    results = [read_json(path) for path in sorted(folder.glob("*.json"))]
    rows = [row for result in results for row in _rows(result)]
    header = (
        "network",
        "removed",
        "threads",
        "file",
        "dense ms",
        "pruned ms",
        "speed-up",
        "MACs ratio",
        "of it",
    )
    save("artifact_latency", results, header, rows)


def _rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for key, milliseconds in result["p50_ms"].items():
        label = "by hand" if key.startswith("by hand") else key.partition(" ")[0]
        if label == "dense":
            continue
        file = key.removeprefix(label).strip()
        dense = result["p50_ms"][f"dense {file}"]
        macs = result["macs"]["dense"] / result["macs"][label]
        note = " (disturbed)" if {key, f"dense {file}"} & result["invalid"].keys() else ""
        rows.append(
            (
                result["network"],
                f"{100 * result['ratio']:.0f} %",
                result["threads"],
                f"{file}, {label}" if label == "by hand" else file,
                f"{dense:.2f}",
                f"{milliseconds:.2f}{note}",
                f"{dense / milliseconds:.2f}×",
                f"{macs:.2f}×",
                f"{dense / milliseconds / macs:.2f}",
            )
        )
    return rows


if __name__ == "__main__":
    main()
