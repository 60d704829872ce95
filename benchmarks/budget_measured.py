"""How close is the measured latency to the budget on the machine that runs this (generic-x86)?

The plan is made as `compress --latency` makes it, with trial files; then the dense file and the pruned one are measured
anew, in turns. Nothing is trained. Finished cells of this machine are kept: run again to resume.

python -m benchmarks.budget_measured --checkpoint resnet20-cifar10.th vgg16-cifar10-nfgsm.safetensors
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, machine_here, parser_of, provenance_now, save
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.exporting.onnx import export_onnx
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pipeline.budgeting import Workplace, plan_with_trials, settle
from fsrp_edge.pruning.budgets import Budgets
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import least_network, make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.load import load_target

CELLS = RESULTS / "budget_measured_cells" / machine_here()
SHARES = ("75%", "50%", "25%")
METHOD = Method(runs=200, seconds=4, rounds=4)


def cell(dense: Classifier, share: str) -> dict[str, Any]:
    target = load_target("generic-x86")
    images = ImageSet.of(
        "noise",
        ArraySource((dense.example_pixels(8) * 255).byte().numpy()),
        torch.zeros(8, dtype=torch.long),
    )
    place = Workplace(target, (ArtifactRequest("onnx", "fp32"),), parse_address("local"), target.threads, images)
    budgets = Budgets.model_validate({"latency": share})
    costs = place.costing(dense, absolute=False)
    wanted = PlanOptions(channel_multiple=target.channel_multiple)
    most, least = (place.try_network(each, costs, ("latency",)) for each in (dense, least_network(dense, wanted)))
    costs, budgets = settle(place, costs, most, least, budgets)
    wanted = wanted.model_copy(update={"budgets": budgets})
    scores = score(dense, images, Rival(name="l1"), seed=0)

    def make(options: PlanOptions, costing: Costing) -> PruningPlan:
        return make_plan(dense, scores, options, costing)

    try:
        plan = make(wanted, plan_with_trials(place, costs, dense, wanted, make))
    except BadInputError as error:
        return {"share": share, "refused": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "dense.onnx"), Path(folder, "pruned.onnx")]
        for network, path in zip((dense, apply_plan(dense, plan)), files, strict=True):
            export_onnx(
                network,
                path,
                opset=target.choices.onnx_opset.value,
                ir_version=target.choices.onnx_ir_version.value,
            )
        found = measure_on(place.device, files, Setup(threads=place.threads), method=METHOD)
    before, after = (each.latency for each in found)
    return {
        "share": share, "budget_ms": plan.budgets[0].limit, "dense_p50_ms": before.p50_ms, "p50_ms": after.p50_ms,
        "dense_min_ms": before.min_ms, "min_ms": after.min_ms, "valid": before.valid and after.valid,
        "invalid_because": [*before.invalid_because, *after.invalid_because],
        "kept": [len(group.kept) for group in plan.groups],
    }  # fmt: skip


def main() -> None:
    """Fill in the missing cells, then write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True)
    rows, cells = [], []
    for checkpoint in parser.parse_args().checkpoint:
        dense = load_classifier(checkpoint)
        dense.to_fast_layout(torch.device("cpu"))
        for share in SHARES:
            path = CELLS / f"{checkpoint.stem}-{share.rstrip('%')}.json"
            if not path.exists():
                found = cell(dense, share)
                write_json(path, {"network": checkpoint.stem, **found, "provenance": provenance_now()})
            found = read_json(path)
            cells.append(found)
            if "refused" in found:
                rows.append([found["network"], share, found["refused"], *[""] * 5])
                continue
            asked = float(share.rstrip("%")) / 100
            rows.append([
                found["network"], share, f"{found['budget_ms']:.3f}", f"{found['p50_ms']:.3f}",
                f"{found['p50_ms'] / found['budget_ms'] - 1:+.1%}",
                f"{found['p50_ms'] / found['dense_p50_ms'] / asked - 1:+.1%}",
                f"{found['min_ms'] / found['dense_min_ms'] / asked - 1:+.1%}", "yes" if found["valid"] else "no",
            ])  # fmt: skip
            print(rows[-1], flush=True)
    header = ("network", "asked", "budget ms", "p50 ms", "against the budget", "against the dense p50 then",
              "the same of minima", "undisturbed")  # fmt: skip
    save("budget_measured", cells, header, rows)


if __name__ == "__main__":
    main()
