"""What allocation is worth, at equal estimated latency on a Raspberry Pi 4 and after the same recovery.

The plan of the knapsack beside the one that removes the same share everywhere; both are compensated, and a robust
network is recovered on adversarial examples (`--method n-fgsm`). Finished cells are kept: run again to resume.

python -m benchmarks.budget_allocation --checkpoint resnet20-cifar10.th --data cifar-10-batches-bin --latency 50%
python -m benchmarks.budget_allocation --checkpoint vgg16-cifar10-nfgsm.safetensors --data cifar-10-batches-bin \\
    --latency 12% --method n-fgsm --images 15000 --epochs 2 --attacked 2000
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import (
    RESULTS,
    bits,
    checkpoint_parser,
    load_both,
    mean_lead,
    percent,
    provenance_now,
    save,
)
from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import Dataset
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import costing, named_graph
from fsrp_edge.pruning.budgets import Budgets, Limit
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.refinement import Gauge, Planner, probe_images
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.load import load_target
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import recover

CELLS = RESULTS / "budget_allocation_cells"
TARGET, RUNTIME = "raspberry-pi-4", "litert"
SCORE_IMAGES = 128
ALLOCATIONS = ("uniform", "knapsack")
Pair = tuple[dict[str, Any], dict[str, Any]]
"""Of results: uniform, knapsack."""


def plans(dense: Classifier, dataset: Dataset, share: str, seed: int) -> dict[str, tuple[PruningPlan, float]]:
    """The uniform plan within the budget, the knapsack's within the latency of that, and how far each moves outputs."""
    target = load_target(TARGET)
    images = dataset.train.sample(SCORE_IMAGES, seed)
    scores = score(dense, images, Reconstruction(attack=PGD(steps=5)), seed=seed)
    gauge = Gauge(dense, dataset.train.sample(probe_images(dense.spec), seed), compensated=True)
    costs = costing(named_graph(dense), target, "fp32", [RUNTIME])
    wanted = PlanOptions(
        budgets=Budgets.model_validate({"latency": share}),
        allocation="uniform",
        channel_multiple=target.channel_multiple,
    )
    uniform = make_plan(dense, scores, wanted, costs)
    reached = Budgets(latency=Limit(amount=uniform.budgets[0].planned * (1 + 1e-9)))
    wanted = wanted.model_copy(update={"budgets": reached, "allocation": "knapsack"})
    made = {"uniform": uniform, "knapsack": Planner(gauge, scores).plan(wanted, costs)}
    return {
        name: (plan, gauge.divergence({group.root: group.kept for group in plan.groups})) for name, plan in made.items()
    }


def cell(
    dense: Classifier,
    dataset: Dataset,
    plan: PruningPlan,
    outputs: DenseOutputs,
    method: Any,
    images: int,
    epochs: int,
    seed: int,
    attacked: int,
) -> dict[str, Any]:
    """Prune, recover on so many training images, judge; the first `attacked` images under attack, too."""
    pruned = apply_plan(dense, plan, outputs)
    pruned.to_fast_layout(torch.device("cpu"))
    before = clean_accuracy(pruned, dataset.evaluation)
    recipe = Recipe(method=method, epochs=epochs, learning_rate=0.05, flip=True, crop_padding=4)
    recovered = recover(pruned, dataset.train.sample(images, seed), recipe, seed=seed).classifier.eval()
    clean = clean_accuracy(recovered, dataset.evaluation)
    robust = {}
    if attacked:
        standing = pgd_accuracy(recovered, dataset.evaluation.first(attacked), PGD(), seed=0).standing
        robust = {"standing": bits(standing)}
    (latency,) = plan.budgets
    return {
        "allocation": plan.allocation,
        "seed": seed,
        "images": images,
        "epochs": epochs,
        "estimated_ms": latency.planned,
        "dense_ms": latency.dense,
        "kept": [len(group.kept) for group in plan.groups],
        "parameters": measure_size(recovered).parameters,
        "accuracy_before_training": before.result.accuracy,
        "accuracy": clean.result.accuracy,
        "right": bits(clean.standing),
        **robust,
        "provenance": provenance_now(),
    }


def main() -> None:
    """Fill in the missing cells, then write the table."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--latency", default="50%", help="share of the dense network's")
    parser.add_argument("--images", type=int, default=50_000, help="training images of the recovery")
    parser.add_argument("--epochs", type=int, default=3, help="of the recovery")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", choices=("natural", "n-fgsm"), default="natural", help="of the recovery")
    parser.add_argument("--attacked", type=int, default=0, help="images that are judged under PGD-10, too")
    arguments = parser.parse_args()
    dense, dataset = load_both(arguments)
    name = f"{arguments.checkpoint.stem}-{arguments.latency.rstrip('%')}-{arguments.images}x{arguments.epochs}"
    name += "" if arguments.method == "natural" else f"-{arguments.method}"
    name += f"-attacked{arguments.attacked}" if arguments.attacked else ""
    for seed in arguments.seeds:
        paths = {how: CELLS / f"{name}-{how}-{seed}.json" for how in ALLOCATIONS}
        missing = [how for how, path in paths.items() if not path.exists()]
        if not missing:
            continue
        outputs = DenseOutputs(dense, dataset.train.sample(most_images(dense.spec), seed))
        chosen = plans(dense, dataset, arguments.latency, seed)
        for how in missing:
            plan, moved = chosen[how]
            result = cell(
                dense,
                dataset,
                plan,
                outputs,
                arguments.method,
                images=arguments.images,
                epochs=arguments.epochs,
                seed=seed,
                attacked=arguments.attacked,
            )
            write_json(paths[how], result | {"divergence": moved})
            print(name, how, seed, result["accuracy"], result["kept"], flush=True)
    write_table()


def write_table() -> None:
    """One row for each network, latency and seed that has both cells, and one for the mean over the seeds."""
    cells = {path.stem: read_json(path) for path in sorted(CELLS.glob("*.json"))}
    pairs: dict[str, list[Pair]] = {}
    for name, uniform in cells.items():
        if "-uniform-" in name and (allocated := cells.get(name.replace("-uniform-", "-knapsack-"))):
            pairs.setdefault(name.partition("-uniform-")[0], []).append((uniform, allocated))
    rows = []
    for run, found in pairs.items():
        name = run.partition("-attacked")[0]  # how many were attacked decides which runs are alike, no more
        rows += [_row(name, str(uniform["seed"]), [(uniform, allocated)]) for uniform, allocated in found]
        rows.append(_row(name, f"mean of {len(found)}", found))
    header = (
        "network, share of latency, images and epochs", "seed", "dense ms", "uniform ms", "knapsack ms",
        "uniform, k parameters", "knapsack", "uniform moves outputs by, nats", "knapsack by",
        "uniform before training %", "knapsack before training %",
        "uniform %", "knapsack %", "paired difference, 95 %",
        "uniform, PGD-10 %", "knapsack, PGD-10 %", "paired difference, 95 %",
    )  # fmt: skip
    results = {"cells": cells, "target": TARGET, "runtime": RUNTIME}
    save("budget_allocation", results, header, rows)


def _row(name: str, seed: str, pairs: Sequence[Pair]) -> list[str]:
    def means(of: str, scale: float, digits: int, sides: Sequence[int] = (0, 1)) -> list[str]:
        return [f"{scale * statistics.mean(pair[side][of] for pair in pairs):.{digits}f}" for side in sides]

    return [
        name, seed, *means("dense_ms", 1, 2, (0,)), *means("estimated_ms", 1, 2), *means("parameters", 1e-3, 0),
        *means("divergence", 1, 3), *means("accuracy_before_training", 100, 1),
        *_compared(pairs, "right"), *_compared(pairs, "standing"),
    ]  # fmt: skip


def _compared(pairs: Sequence[Pair], of: str) -> list[str]:
    """Percent of both, and their difference, paired by image."""
    if of not in pairs[0][0]:
        return [""] * 3
    uniform, allocated = ([pair[side][of] for pair in pairs] for side in (0, 1))
    return [percent("".join(uniform)), percent("".join(allocated)), mean_lead(allocated, uniform)]


if __name__ == "__main__":
    main()
