"""How far off is the estimate of generic-x86 once it was calibrated on the machine that runs this?

Some networks are measured to calibrate on; others, and pruned ones, are measured to check it.

python -m benchmarks.calibrate_this_machine
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fsrp_edge
from benchmarks.common import RESULTS, parser_of, save
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.results import BenchResults, Measurement
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.exporting.onnx import export_onnx
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.registry import build
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.costs import calibration_file
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.graph_cost import read_graph
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.own_costs import calibrate

TARGET = "generic-x86"
CALIBRATION = (
    ("cifar:resnet32-b", 32), ("cifar:resnet18", 32), ("torchvision:resnet18", 96), ("torchvision:mobilenet_v2", 96),
    ("torchvision:mobilenet_v3_large", 128), ("torchvision:squeezenet1_1", 128), ("torchvision:resnet50", 64),
)  # fmt: skip
CHECK = (
    ("cifar:resnet20-b", 32), ("cifar:vgg16_bn", 32), ("torchvision:resnet34", 64),
    ("torchvision:mobilenet_v3_small", 128),
)  # fmt: skip
PRUNED = (
    ("cifar:resnet20-b", 32, 0.5), ("cifar:vgg16_bn", 32, 0.5), ("torchvision:resnet18", 96, 0.4),
    ("torchvision:mobilenet_v2", 96, 0.5),
)  # fmt: skip
METHOD = Method(runs=60, seconds=1.2, rounds=6, warmup_seconds=0.1, warmup_runs=3)


def classifier(architecture: str, size: int) -> Classifier:
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture=architecture, input_shape=(3, size, size), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3,
        preprocessing=Preprocessing(resize=size),
    )  # fmt: skip
    return Classifier(build(architecture, classes=10), spec).eval()


def pruned(dense: Classifier, ratio: float) -> Classifier:
    multiple = load_target(TARGET).channel_multiple
    scores = score(dense, None, Rival(name="l1"), seed=0)  # type: ignore[arg-type]
    return apply_plan(dense, make_plan(dense, scores, PlanOptions(ratio=ratio, channel_multiple=multiple)))


def export(folder: Path, architecture: str, size: int, ratio: float = 0.0) -> Path:
    more = f"-pruned{ratio}" if ratio else ""
    path = folder / f"{architecture.partition(':')[2]}-{size}{more}-fp32.onnx"
    if not path.exists():
        network = classifier(architecture, size)
        export_onnx(pruned(network, ratio) if ratio else network, path, opset=17, ir_version=8)
    return path


def measured(name: str, files: list[Path], threads: int) -> Path:
    """Raw results of these files, as `fsrp-edge bench --out` writes them; kept from an earlier run."""
    path = RESULTS / f"calibrate_this_machine_{name}.json"
    if not path.exists():
        found = measure_on(parse_address("local"), files, Setup(threads=threads), method=METHOD)
        kept = tuple(Measurement(address=each.address, latency=each.latency, rounds=()) for each in found)
        results = BenchResults(fsrp_edge=fsrp_edge.__version__, measurements=kept)
        write_json(path, results.model_dump(mode="json"))
    return path


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", type=Path, default=Path("runs/calibrate"), help="where files are put")
    folder = parser.parse_args().models
    folder.mkdir(parents=True, exist_ok=True)

    known, dense, small = (
        [export(folder, *each) for each in networks] for networks in (CALIBRATION, CHECK, PRUNED)
    )
    target = load_target(TARGET)
    bench = measured("known", known, target.threads)
    check = measured("check", dense + small, target.threads)
    with tempfile.TemporaryDirectory() as own:
        os.environ["FSRP_EDGE_PROFILES"] = own
        (fitted,) = calibrate(target, [bench], [folder])
        write_json(calibration_file(TARGET), [fitted.group.model_dump(mode="json")])
        rows: list[tuple[Any, ...]] = []
        latencies = BenchResults.model_validate(read_json(check)).measurements
        for file, each in zip(dense + small, latencies, strict=True):
            found = estimate(read_graph(file), target, runtime="onnxruntime").milliseconds
            seen = each.latency.p50_ms
            rows.append((file.stem.removesuffix("-fp32"), f"{seen:.3f}", f"{found:.3f}", found / seen - 1))
    errors = np.abs([row[3] for row in rows])
    summary = {
        "calibrated on": {
            "networks": fitted.group.networks,
            "in fit": fitted.after,
            "left out": fitted.group.mape,
        },
        "other networks": float(errors[: len(dense)].mean()),
        "pruned networks": float(errors[len(dense) :].mean()),
        "all": float(errors.mean()),
    }
    shown = [(*row[:3], f"{row[3]:+.1%}") for row in rows]
    shown += [(f"mean absolute error, {name}", "", "", f"{value:.1%}")
              for name, value in summary.items() if isinstance(value, float)]  # fmt: skip
    shown.append(("in the fit; each left out once", "", "", f"{fitted.after:.1%}; {fitted.group.mape:.1%}"))
    save(
        "calibrate_this_machine",
        {"summary": summary, "rows": rows, "costs": fitted.group.costs, "statistic": "p50"},
        ("network", "measured ms", "estimated ms", "error"),
        shown,
    )


if __name__ == "__main__":
    main()
