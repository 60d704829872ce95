"""How far off is the estimate of generic-x86 once it was calibrated on the machine that runs this?

Some networks are measured to calibrate on; others, and pruned ones, are measured to check it.

python -m benchmarks.calibrate_this_machine
"""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

import fsrp_edge
from benchmarks.common import RESULTS, machine_here, parser_of, save
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.results import BenchResults, Measurement
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.exporting.onnx import export_onnx
from fsrp_edge.files import write_json
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.registry import build
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.coefficients import Calibration, Group, calibration_file
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.graph_cost import read_graph
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.own_costs import Statistic, calibrate
from fsrp_edge.targets.profile import Target

CELLS = RESULTS / "calibrate_this_machine_cells" / machine_here()
TARGET = "generic-x86"
CALIBRATION = (
    ("cifar:resnet32-b", 32), ("cifar:resnet18", 32), ("torchvision:resnet18", 96), ("torchvision:mobilenet_v2", 96),
    ("torchvision:mobilenet_v3_large", 128), ("torchvision:squeezenet1_1", 128), ("torchvision:resnet50", 64),
    ("torchvision:mnasnet0_5", 128), ("cifar:resnet32-b", 32, 0.5), ("cifar:resnet18", 32, 0.5),
    ("torchvision:mobilenet_v3_large", 128, 0.5), ("torchvision:resnet50", 64, 0.4),
)  # fmt: skip
"""A dozen of the kind that is checked, pruned ones among them, as the documentation advises."""
CHECK = (
    ("cifar:resnet20-b", 32), ("cifar:vgg16_bn", 32), ("torchvision:resnet34", 64),
    ("torchvision:mobilenet_v3_small", 128),
)  # fmt: skip
PRUNED = (
    ("cifar:resnet20-b", 32, 0.5), ("cifar:vgg16_bn", 32, 0.5), ("torchvision:resnet18", 96, 0.4),
    ("torchvision:mobilenet_v2", 96, 0.5),
)  # fmt: skip
METHOD = Method(runs=60, seconds=2.4, rounds=6, warmup_seconds=0.2, warmup_runs=3)
Errors = list[tuple[float, float, float]]
"""Measured milliseconds, estimated ones, relative error; of each network."""


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


def measured(run: int, known: list[Path], others: list[Path], threads: int) -> list[Path]:
    """Raw results of both kinds of files, as `fsrp-edge bench --out` writes them; kept from an earlier call here.

    All take turns, so that a machine that drifts is the same one for what is calibrated on and what is checked.
    """
    paths = [CELLS / f"{name}-{run}.json" for name in ("known", "check")]
    if not all(path.exists() for path in paths):
        found = measure_on(parse_address("local"), known + others, Setup(threads=threads), method=METHOD)
        kept = [Measurement(address=each.address, latency=each.latency, rounds=()) for each in found]
        for path, part in zip(paths, (kept[: len(known)], kept[len(known) :]), strict=True):
            results = BenchResults(fsrp_edge=fsrp_edge.__version__, measurements=tuple(part))
            write_json(path, results.model_dump(mode="json"))
    return paths


def calibrated(
    target: Target, bench: Path, check: Path, files: list[Path], statistic: Statistic
) -> tuple[Group, Errors]:
    """The costs fitted to one file of measurements, and what they say of the networks of another."""
    with tempfile.TemporaryDirectory() as own:
        os.environ["FSRP_EDGE_PROFILES"] = own
        (fitted,) = calibrate(target, [bench], [files[0].parent], statistic)
        Calibration(groups=(fitted.group,)).save(calibration_file(TARGET))
        estimates = [estimate(read_graph(file), target, runtime="onnxruntime").milliseconds for file in files]
    seen = [getattr(each.latency, f"{statistic}_ms") for each in BenchResults.load(check).measurements]
    return fitted.group, [(one, other, other / one - 1) for one, other in zip(seen, estimates, strict=True)]


def main() -> None:
    """Measure what is missing, calibrate, check."""
    parser = parser_of(__doc__)
    parser.add_argument("--models", type=Path, default=Path("runs/calibrate"), help="where files are put")
    parser.add_argument("--prepare", action="store_true", help="only make the files; that needs no quiet machine")
    parser.add_argument("--runs", type=int, default=2, help="times that all is measured and calibrated anew")
    given = parser.parse_args()
    given.models.mkdir(parents=True, exist_ok=True)
    known, dense, small = (
        [export(given.models, *each) for each in networks] for networks in (CALIBRATION, CHECK, PRUNED)
    )
    if given.prepare:
        return
    target, files = load_target(TARGET), dense + small
    header, groups, columns = ["network"], [], []
    summaries: list[dict[str, Any]] = []
    for run, statistic in itertools.product(range(1, given.runs + 1), get_args(Statistic)):
        bench, check = measured(run, known, files, target.threads)
        group, found = calibrated(target, bench, check, files, statistic)
        errors = np.abs([error for _, _, error in found])
        summary = {
            "run": run,
            "statistic": statistic,
            "other networks": float(errors[: len(dense)].mean()),
            "pruned networks": float(errors[len(dense) :].mean()),
            "all": float(errors.mean()),
            "of the known, each left out once": group.mape,
        }
        header += [f"{statistic} ms, run {run}", "estimated ms", "error"]
        means = [("", "", f"{value:.1%}") for value in summary.values() if isinstance(value, float)]
        rows = [(f"{seen:.3f}", f"{told:.3f}", f"{error:+.1%}") for seen, told, error in found]
        columns.append(rows + means)
        summaries.append(summary)
        groups.append(group.model_dump(mode="json"))
    names = [file.stem.removesuffix("-fp32") for file in files]
    names += [f"mean absolute error, {name}" for name, value in summaries[0].items() if isinstance(value, float)]
    table = [(name, *itertools.chain(*cells)) for name, *cells in zip(names, *columns, strict=True)]
    save("calibrate_this_machine", {"runs": summaries, "groups": groups}, header, table)


if __name__ == "__main__":
    main()
