"""What a pruned network keeps before any training: with which criterion, and with or without compensation.

A share of every layer's channels goes; what stays is fitted to the dense network's layers, or left as it is with its
batch norm recalibrated. All criteria see the same examples and all networks are judged on the same images and random
starts.
Finished cells are kept: run again to resume.

python -m benchmarks.compensation --checkpoint vgg16-cifar10-nfgsm.safetensors --data cifar-10-batches-bin
python -m benchmarks.compensation --checkpoint resnet20-cifar10.th --data cifar-10-batches-bin --ratio 0.3 --clean
"""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.common import RESULTS, bits, checkpoint_parser, lead, load_both, percent, provenance_now, save
from benchmarks.criterion_ablation import adversarial
from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import Dataset, ImageSet
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import Criterion, score
from fsrp_edge.training.batchnorm import recalibrate_batch_norm

CELLS = RESULTS / "compensation_cells"
SCORE_IMAGES, STEPS = 256, 10
AS_MADE = PGD(eps=0)
"""The examples are made beforehand."""
FORMS: dict[str, Criterion] = {
    "fsrp-reconstruction": Reconstruction(attack=AS_MADE),
    "fsrp-reconstruction r=0.125": Reconstruction(attack=AS_MADE, radius=0.125),
    "fsrp-reconstruction r=0.25": Reconstruction(attack=AS_MADE, radius=0.25),
    "fsrp-reconstruction r=1": Reconstruction(attack=AS_MADE, radius=1.0),
    "fsrp-reconstruction on clean images": Reconstruction(attack=AS_MADE),
    "fsrp": FSRP(attack=AS_MADE),
    **{name: Rival.model_validate({"name": name}) for name in ("l1", "fpgm", "batch-norm-scale", "taylor")},
    **{f"random {seed}": Rival(name="random") for seed in range(3)},
}


def cell(
    dense: Classifier,
    dataset: Dataset,
    scored: Mapping[str, ImageSet],
    name: str,
    ratio: float,
    outputs: DenseOutputs | None,
    *,
    images: int,
    attacked: bool,
) -> dict[str, Any]:
    """Prune, compensate or recalibrate, judge."""
    form = FORMS[name]
    seed = int(name.split()[1]) if name.startswith("random") else 0
    clean = isinstance(form, Rival) or name.endswith("clean images")
    scores = score(dense, scored["clean" if clean else "adversarial"], form, seed=seed)
    pruned = apply_plan(dense, make_plan(dense, scores, PlanOptions(ratio=ratio)), outputs)
    pruned.to_fast_layout(torch.device("cpu"))
    if outputs is None:
        recalibrate_batch_norm(pruned, dataset.train, max_images=1024)
    judged = dataset.evaluation.first(images)
    standing = {"clean": clean_accuracy(pruned, judged).standing}
    if attacked:
        standing[f"PGD-{STEPS}"] = pgd_accuracy(pruned, judged, PGD(steps=STEPS), seed=0).standing
    return {
        "name": name,
        "compensated": outputs is not None,
        "ratio": ratio,
        "images": images,
        "standing": {attack: bits(stands) for attack, stands in standing.items()},
        "provenance": provenance_now(),
    }


def main() -> None:
    """Fill in the missing cells, then write the table."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=1000, help="to judge by")
    parser.add_argument("--clean", action="store_true", help="the network is not robust: no attacks")
    arguments = parser.parse_args()
    dense, dataset = load_both(arguments)
    chosen = dataset.train.sample(SCORE_IMAGES, 0)
    scored = {"clean": chosen, "adversarial": chosen if arguments.clean else adversarial(dense, chosen, 0)}
    dense_outputs = DenseOutputs(dense, dataset.train.sample(most_images(dense.spec), 0))
    for name in FORMS:
        for outputs in (dense_outputs, None):
            kind = "compensated" if outputs else "plain"
            path = CELLS / f"{arguments.checkpoint.stem}-{arguments.ratio:g}-{name}-{kind}.json"
            if not path.exists():
                result = cell(
                    dense, dataset, scored, name, arguments.ratio, outputs,
                    images=arguments.images, attacked=not arguments.clean,
                )  # fmt: skip
                write_json(path, {"network": arguments.checkpoint.stem} | result)
                print(
                    path.stem,
                    {key: value.count("1") for key, value in result["standing"].items()},
                    flush=True,
                )
    write_table()


def write_table() -> None:
    """One row for each network, ratio and criterion, compensated and plain."""
    cells = [read_json(path) for path in sorted(CELLS.glob("*.json"))]
    order = list(FORMS)
    cells.sort(key=lambda one: (one["network"], one["ratio"], not one["compensated"], order.index(one["name"])))
    rows = []
    for one in cells:
        leader = next(
            other
            for other in cells
            if (other["network"], other["ratio"]) == (one["network"], one["ratio"])
            and (other["name"], other["compensated"]) == (order[0], True)
        )
        shown = []
        for attack in ("clean", f"PGD-{STEPS}"):
            if attack not in one["standing"]:
                shown += ["–", "–"]
                continue
            mine = one["standing"][attack]
            shown += [percent(mine), "–" if one is leader else lead(leader["standing"][attack], mine)]
        kind = "compensated" if one["compensated"] else "plain"
        rows.append([one["network"], f"{one['ratio']:.0%}", one["name"], kind, *shown])
    header = (
        "network", "removed", "criterion", "", "clean %", "the first row's lead", f"PGD-{STEPS} %",
        "the first row's lead",
    )  # fmt: skip
    save("compensation", {"cells": cells}, header, rows)


if __name__ == "__main__":
    main()
