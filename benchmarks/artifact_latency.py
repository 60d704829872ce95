"""Is a pruned network's file faster by what its arithmetic promises? Latency beside MACs, one cell a network and ratio.

A cell holds the files of the dense and of the pruned network, and those that a user would make by hand: torch-pruning
without a channel multiple, `torch.onnx.export`, and int8 as onnxruntime's and TensorFlow's quantizers make it when
nothing but calibration data is given. All are measured in turns, so that a drifting machine hits them alike; cells that
are in this machine's folder of results/artifact_latency_cells are not measured again. Weights are random and filters
chosen by L1: speed does not depend on them.

python -m benchmarks.artifact_latency resnet18:0.5 mobilenet_v2:0.5
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp

from benchmarks.common import RESULTS, machine_here, parser_of, provenance_now, random_network, save
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
from fsrp_edge.exporting.saved_model import export_saved_model
from fsrp_edge.files import atomic_path, read_json, write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import measure_size
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.runtimes import open_session
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.load import load_target

NETWORKS = {
    **{name: f"torchvision:{name}" for name in ("resnet18", "resnet50", "mobilenet_v2", "vgg16_bn")},
    "resnet20": "cifar:resnet20-a",
    "vgg16": "cifar:vgg16_bn",
}
RATIOS = (0.25, 0.5, 0.75)
FILES: tuple[tuple[Format, Precision], ...] = (
    ("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32"), ("tflite", "int8"),
)  # fmt: skip
Files = dict[str, Path]
ADDRESS = parse_address("local")
SHORT = Method(warmup_runs=3, warmup_seconds=0.1, runs=24, seconds=1.2, rounds=6)
"""Many short rounds: times within one process repeat better than those of two processes of one file."""


def network(name: str) -> Classifier:
    """With random weights, as its architecture builds it."""
    return random_network(NETWORKS[name])


def prepare(name: str, ratio: float, scratch: Path) -> Path:
    """Make what is missing of a cell; its record tells MACs by network and paths by `label format precision`."""
    record = scratch / f"{name}-{ratio}.json"
    if record.is_file():
        return record
    dense = network(name)
    target, images = load_target("generic-x86"), noise(dense)
    plan = make_plan(
        dense,
        score(dense, images, Rival(name="l1"), seed=0),
        PlanOptions(ratio=ratio, channel_multiple=target.channel_multiple),
    )
    pruned, by_hand = apply_plan(dense, plan), pruned_by_hand(dense, ratio)
    files = {
        **our_files("dense", dense, images, scratch / name),  # once for all ratios
        **our_files("pruned", pruned, images, scratch / f"{name}-{ratio}"),
        **files_by_hand(by_hand, images, scratch / f"{name}-{ratio}-by-hand"),
    }
    networks = {"dense": dense, "pruned": pruned, "by hand": by_hand}
    write_json(
        record,
        {
            "macs": {label: measure_size(one).macs for label, one in networks.items()},
            "files": {key: str(path.relative_to(scratch)) for key, path in files.items()},
            "refused": refusals({k: p for k, p in files.items() if k.startswith("by hand")}, by_hand),
        },
    )
    return record


def refusals(files: Files, network: Classifier) -> dict[str, str]:
    """Files that their runtime does not run, with what it says."""
    refused = {}
    for key, path in files.items():
        try:
            open_session(path).run(network.example_pixels().numpy())
        except ToolFailedError as error:
            refused[key] = str(error).splitlines()[0]
    return refused


def noise(network: Classifier) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (8, *network.spec.input_shape), np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(8) % network.spec.classes)


def pruned_by_hand(dense: Classifier, ratio: float) -> Classifier:
    """As torch-pruning's documentation has it: the same share of every layer, whatever the count that leaves."""
    inner = copy.deepcopy(dense.network)
    *_, classes = (module for module in inner.modules() if isinstance(module, torch.nn.Linear))
    tp.pruner.BasePruner(
        inner,
        dense.example_pixels(),
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[classes],
    ).step()
    return Classifier(inner, dense.spec).eval()


def our_files(label: str, network: Classifier, images: ImageSet, folder: Path) -> Files:
    requests = [ArtifactRequest(format_, precision) for format_, precision in FILES]
    files = {f"{label} {r.format} {r.precision}": folder / r.file for r in requests}
    plan = ExportPlan(load_target("generic-x86"), calibration=images)
    if not folder.exists():
        with atomic_path(folder) as temporary:
            export_artifacts(network, requests, temporary, plan)
    return files


def files_by_hand(network: Classifier, images: ImageSet, folder: Path) -> Files:
    if not folder.exists():
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            make_by_hand(network, images, temporary)
    return {f"by hand {'onnx' if p.suffix == '.onnx' else 'tflite'} {p.stem}": p for p in sorted(folder.glob("*.*"))}


def make_by_hand(network: Classifier, images: ImageSet, folder: Path) -> None:
    """fp32.onnx, int8.onnx and int8.tflite with nothing but defaults."""
    import tensorflow
    from onnxruntime import quantization

    torch.onnx.export(
        network,
        (network.example_pixels(),),
        folder / "fp32.onnx",
        input_names=["pixels"],
        external_data=False,
    )
    pixels = [pixels.numpy() for pixels, _ in images.batches(1)]
    feeds = iter([{"pixels": one} for one in pixels])
    reader = SimpleNamespace(get_next=lambda: next(feeds, None))
    quantization.quantize_static(folder / "fp32.onnx", folder / "int8.onnx", reader)
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "model.saved_model"
        export_saved_model(network, saved)
        converter = tensorflow.lite.TFLiteConverter.from_saved_model(str(saved))
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([one.transpose(0, 2, 3, 1)] for one in pixels)
        (folder / "int8.tflite").write_bytes(converter.convert())


def measure_cell(record: Path, threads: int) -> dict[str, Any]:
    """Latencies of a cell's files, beside what its record says of them."""
    cell = read_json(record)
    files = {key: path for key, path in cell.pop("files").items() if key not in cell["refused"]}
    paths = [record.parent / path for path in files.values()]
    measured = measure_on(ADDRESS, paths, Setup(threads=threads), method=SHORT)
    latencies = {key: measurement.latency for key, measurement in zip(files, measured, strict=True)}
    return {
        "threads": threads,
        **cell,
        "p50_ms": {key: latency.p50_ms for key, latency in latencies.items()},
        "interval_ms": {key: latency.p50_interval_ms for key, latency in latencies.items()},
        "invalid": {key: latency.invalid_because for key, latency in latencies.items() if not latency.valid},
        "provenance": provenance_now(),
    }


def main() -> None:
    parser = parser_of(__doc__)
    every = [f"{name}:{ratio}" for name in NETWORKS for ratio in RATIOS]
    parser.add_argument("cells", nargs="*", metavar="NETWORK:RATIO", help="default: all of them")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="keep the files there for another call")
    parser.add_argument("--prepare", action="store_true", help="only make the files; that needs no quiet machine")
    given = parser.parse_args()
    folder = RESULTS / "artifact_latency_cells" / machine_here()
    with show_progress(), tempfile.TemporaryDirectory() as temporary:
        scratch = given.files or Path(temporary)
        for wanted in given.cells or every:
            name, _, ratio = wanted.partition(":")
            paths = {threads: folder / f"{name}-{ratio}-{threads}.json" for threads in given.threads}
            if missing := [threads for threads, path in paths.items() if not path.is_file()]:
                record = prepare(name, float(ratio), scratch)
                for threads in [] if given.prepare else missing:
                    found = measure_cell(record, threads)
                    write_json(paths[threads], {"network": name, "ratio": float(ratio)} | found)
    if given.prepare:
        return
    results = [read_json(path) for path in sorted(folder.glob("*.json"))]
    header = ("network", "removed", "threads", "file", "ms", "against dense fp32", "MACs ratio", "of it")
    save("artifact_latency", results, header, [row for result in results for row in _rows(result)])


def _rows(result: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """One for each file but the dense fp32 ones, which the others are compared with."""
    times = result["p50_ms"]
    for key, milliseconds in times.items():
        label, format_, precision = key.rsplit(" ", 2)
        baseline = f"dense {format_} fp32"
        speed_up, macs = times[baseline] / milliseconds, result["macs"]["dense"] / result["macs"][label]
        note = " (disturbed)" if {key, baseline} & result["invalid"].keys() else ""
        yield (
            result["network"],
            f"{100 * result['ratio']:.0f} %",
            result["threads"],
            f"{label}, {format_} {precision}",
            f"{milliseconds:.2f}{note}",
            f"{speed_up:.2f}×",
            f"{macs:.2f}×",
            f"{speed_up / macs:.2f}",
        )
    for key, reason in result["refused"].items():
        label, format_, precision = key.rsplit(" ", 2)
        yield (
            result["network"],
            f"{100 * result['ratio']:.0f} %",
            result["threads"],
            f"{label}, {format_} {precision}",
            f"does not run: {reason[-90:]}",
            *("",) * 3,
        )


if __name__ == "__main__":
    main()
