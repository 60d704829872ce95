"""Which form of the FSRP criterion keeps most: a robust VGG16 on CIFAR-10 loses a share of every layer's channels.

Batch norm is recalibrated and nothing is trained, so that the criterion alone decides. All forms are scored on the same
adversarial examples and judged on the same images and random starts. Finished cells are kept: run again to resume.

python -m benchmarks.criterion_ablation --checkpoint vgg16-cifar10-nfgsm.safetensors --data cifar-10-batches-bin
"""

import itertools
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, checkpoint_parser, load_both, provenance_now, save
from fsrp_edge import compute
from fsrp_edge.attacks import PGD, attackable, pgd
from fsrp_edge.data.images import ArraySource, Dataset, ImageSet
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.training.batchnorm import recalibrate_batch_norm

CELLS = RESULTS / "criterion_ablation_cells"
SCORE_IMAGES, JUDGE_IMAGES, STEPS = 256, 500, 10


def forms() -> dict[str, FSRP | Rival]:
    """Every form that is tried, by name; the attack is off because the examples are made beforehand."""
    clean = PGD(eps=0)
    found: dict[str, FSRP | Rival] = {}
    for read_at, radius in itertools.product(("convolution", "batch-norm", "activation"), (0.125, 0.25, 0.5)):
        found[f"fsrp {read_at} r={radius}"] = FSRP(read_at=read_at, radius=radius, attack=clean)
    after_activation = FSRP(read_at="activation", radius=0.25, attack=clean)
    for name, change in (
        ("activation r=0.25 square", {"region": "square"}),
        ("activation r=0.25 power 1", {"power": 1}),
        ("activation r=0.25 ratio of means", {"aggregate": "ratio-of-means"}),
        ("convolution r=0.25 ratio of means", {"read_at": "convolution", "aggregate": "ratio-of-means"}),
    ):
        found[f"fsrp {name}"] = after_activation.model_copy(update=change)
    for name in ("l1", "fpgm", "batch-norm-scale", "taylor", "activation"):
        found[name] = Rival.model_validate({"name": name})
    return found | {f"random {seed}": Rival(name="random") for seed in range(3)}


def adversarial(classifier: Classifier, images: ImageSet, seed: int) -> ImageSet:
    """PGD examples of `images`, rounded to 8 bits, with their labels."""
    generator, batches = compute.generator(seed), []
    with attackable(classifier):
        for pixels, labels in images.batches(64):
            batches.append(pgd(classifier, pixels, labels, PGD(steps=STEPS), generator))
    pixels = torch.cat(batches).mul(255).round().to(torch.uint8).contiguous()
    return ImageSet.of(f"{images.name} adversarial", ArraySource(pixels.numpy()), images.labels)


def cell(
    dense: Classifier,
    dataset: Dataset,
    examples: dict[str, ImageSet],
    name: str,
    form: FSRP | Rival,
    ratio: float,
) -> dict[str, Any]:
    """Prune by one form, recalibrate, judge."""
    seed = int(name.rsplit(maxsplit=1)[-1]) if name.startswith("random") else 0
    images = examples["clean" if isinstance(form, Rival) or name.endswith("clean examples") else "adversarial"]
    scores = score(dense, images, form, seed=seed)
    pruned = apply_plan(dense, make_plan(dense, scores, PlanOptions(ratio=ratio)))
    pruned.to_fast_layout(torch.device("cpu"))
    recalibrate_batch_norm(pruned, dataset.train, max_images=1024)
    judged = dataset.evaluation.first(JUDGE_IMAGES)
    with torch.no_grad():
        right = torch.cat([pruned(pixels).argmax(1) == labels for pixels, labels in judged.batches(128)])
    robust = pgd_accuracy(pruned, judged, PGD(steps=STEPS), seed=0)
    return {
        "name": name,
        "ratio": ratio,
        "clean": float(right.float().mean()),
        "robust": robust.result.accuracy,
        "standing": "".join("1" if stands else "0" for stands in robust.standing.tolist()),
        "provenance": provenance_now(),
    }


def main() -> None:
    """Fill in the missing cells, then write the table."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--ratio", type=float, default=0.2)
    arguments = parser.parse_args()
    dense, dataset = load_both(arguments)
    chosen = dataset.train.sample(SCORE_IMAGES, 0)
    examples = {"clean": chosen, "adversarial": adversarial(dense, chosen, 0)}
    cells = []
    on_clean = FSRP(read_at="activation", radius=0.25, attack=PGD(eps=0))
    named = forms() | {"fsrp activation r=0.25, clean examples": on_clean}
    for name, form in named.items():
        path = CELLS / f"{arguments.checkpoint.stem}-{arguments.ratio:g}-{name}.json"
        if not path.exists():
            write_json(path, cell(dense, dataset, examples, name, form, arguments.ratio))
            print(path.read_text()[:120], flush=True)
        cells.append(read_json(path))
    reference = np.array([stands == "1" for stands in cells[0]["standing"]])
    rows = []
    for result in sorted(cells, key=lambda found: -found["robust"]):
        standing = np.array([stands == "1" for stands in result["standing"]])
        difference = standing.astype(float) - reference
        error = difference.std() / len(difference) ** 0.5
        rows.append([
            result["name"], f"{100 * result['clean']:.1f}", f"{100 * result['robust']:.1f}",
            f"{100 * difference.mean():+.1f} ± {196 * error:.1f}",
        ])  # fmt: skip
    header = ("form", "clean %", f"PGD-{STEPS} %", f"against {cells[0]['name']}, paired, 95 %")
    results = {
        "checkpoint": arguments.checkpoint.stem,
        "cells": cells,
        "images": JUDGE_IMAGES,
        "ratio": arguments.ratio,
    }
    save("criterion_ablation", results, header, rows)


if __name__ == "__main__":
    main()
