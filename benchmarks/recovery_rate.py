"""How fast should a compensated network be trained again? A high learning rate undoes what compensation kept.

Every layer loses the same share of its channels, chosen by fsrp-reconstruction; the same recovery follows with each
rate. Finished cells are kept: run again to resume.

python -m benchmarks.recovery_rate --checkpoint resnet20-cifar10.th --data cifar-10-batches-bin
python -m benchmarks.recovery_rate --checkpoint vgg16-cifar10-nfgsm.safetensors --data cifar-10-batches-bin \\
    --method n-fgsm --attacked 10000
"""

from typing import Any

import torch

from benchmarks.common import RESULTS, bits, checkpoint_parser, lead, load_both, percent, provenance_now, save
from fsrp_edge.attacks import PGD
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.files import read_json, write_json
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.score import score
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import recover

CELLS = RESULTS / "recovery_rate_cells"
SCORE_IMAGES, MULTIPLE = 512, 8
RATES = (0.1, 0.05, 0.03)
"""Peaks of one cycle."""


def main() -> None:
    """Fill in the missing cells, then write the table."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--ratio", type=float, default=0.5, help="of every layer's channels")
    parser.add_argument("--method", choices=("natural", "n-fgsm"), default="natural")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--attacked", type=int, default=0, help="images that are judged under PGD-20, too")
    arguments = parser.parse_args()
    dense, dataset = load_both(arguments)
    for seed in arguments.seeds:
        images = dataset.train.sample(SCORE_IMAGES, seed)
        scores = score(dense, images, Reconstruction(attack=PGD(steps=5)), seed=seed)
        plan = make_plan(dense, scores, PlanOptions(ratio=arguments.ratio, channel_multiple=MULTIPLE))
        outputs = DenseOutputs(dense, dataset.train.sample(most_images(dense.spec), seed))
        for rate in RATES:
            name = f"{arguments.checkpoint.stem}-{arguments.ratio:g}-{arguments.method}"
            judged = f"-attacked{arguments.attacked}" if arguments.attacked else ""
            path = CELLS / f"{name}-{arguments.epochs}-{rate:g}-{seed}{judged}.json"
            if path.exists():
                continue
            pruned = apply_plan(dense, plan, outputs)
            pruned.to_fast_layout(torch.device("cpu"))
            recipe = Recipe(
                method=arguments.method, epochs=arguments.epochs, learning_rate=rate, flip=True, crop_padding=4,
            )  # fmt: skip
            result = recover(pruned, dataset.train, recipe, seed=seed)
            recovered = result.classifier.eval()
            standing = {"clean": clean_accuracy(recovered, dataset.evaluation).standing}
            if arguments.attacked:
                attacked = dataset.evaluation.first(arguments.attacked)
                standing["PGD-20"] = pgd_accuracy(recovered, attacked, PGD(steps=20), seed=0).standing
            cell = {
                "network": name,
                "recipe": recipe.model_dump(mode="json"),
                "seed": seed,
                "best_epoch": result.best_epoch,
                "history": [record.model_dump(mode="json") for record in result.history],
                "standing": {attack: bits(stands) for attack, stands in standing.items()},
                "provenance": provenance_now(),
            }
            write_json(path, cell)
            print(path.stem, {attack: float(stands.float().mean()) for attack, stands in standing.items()})
    write_table()


def write_table() -> None:
    """One row for each network, length, seed and rate, beside the first rate of the same."""
    cells = [read_json(path) for path in sorted(CELLS.glob("*.json"))]

    def run(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["network"], one["recipe"]["epochs"], one["seed"]

    def alike(one: dict[str, Any]) -> tuple[Any, ...]:
        return *run(one), len(one["standing"].get("PGD-20", ""))

    cells.sort(key=lambda one: (*alike(one), RATES.index(one["recipe"]["learning_rate"])))
    rows = []
    for one in cells:
        first = next(other for other in cells if alike(other) == alike(one))
        shown: list[str] = []
        for attack in ("clean", "PGD-20"):
            if attack not in one["standing"]:
                shown += ["–", "–"]
                continue
            mine = one["standing"][attack]
            shown += [percent(mine), "–" if one is first else lead(mine, first["standing"][attack])]
        rows.append([*run(one), f"{one['recipe']['learning_rate']:g}", *shown])
    header = (
        "network, removed, method", "epochs", "seed", "learning rate", "clean %",
        "against the first row", "PGD-20 %", "against the first row",
    )  # fmt: skip
    save("recovery_rate", {"cells": cells}, header, rows)


if __name__ == "__main__":
    main()
