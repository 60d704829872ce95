"""What moves the ranking of filters: other images, other starts, bfloat16, stopping early, fewer steps, no attack.

Each variant is scored once and compared, layer by layer, with the reference (float32, PGD-10, one set of images).

python -m benchmarks.score_stability --checkpoint vgg16-cifar10-nfgsm.safetensors --data cifar-10-batches-bin
"""

import time
from unittest import mock

import numpy as np

from benchmarks.common import checkpoint_parser, load_both, save
from fsrp_edge import compute
from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.scoring.explain import rank_correlation, same_lower_half
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.scores import FilterScores

STEPS = 10


def variants(images: ImageSet, others: ImageSet) -> dict[str, tuple[ImageSet, PGD, int, bool]]:
    """By name: images, attack, seed of the starts, and whether examples are made in bfloat16."""
    attack = PGD(steps=STEPS)
    return {
        "reference": (images, attack, 0, False),
        "other starts": (images, attack, 1, False),
        "other images": (others, attack, 0, False),
        "examples in bfloat16": (images, attack, 0, True),
        "early stop": (images, attack.model_copy(update={"early_stop": True}), 0, False),
        "3 steps": (images, PGD(steps=3), 0, False),
        "clean images": (images, PGD(eps=0), 0, False),
    }


def scored(
    classifier: Classifier, images: ImageSet, attack: PGD, seed: int, bfloat16: bool
) -> tuple[FilterScores, float]:
    """Scores and the seconds they took; bfloat16 also where it does not pay, as the ranking is the question."""
    started = time.perf_counter()
    with mock.patch.object(compute, "gains_from_bfloat16", lambda device: bfloat16):
        scores = score_fsrp(classifier, images, FSRP(attack=attack, batch_size=64), seed=seed)
    return scores, time.perf_counter() - started


def main() -> None:
    """Score every variant and write results/score_stability.json and .md."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    classifier, dataset = load_both(arguments)
    train = dataset.train
    both = train.sample(2 * arguments.images, 0)
    half = np.arange(arguments.images)
    found = {}
    for name, choice in variants(both.subset(half), both.subset(half + arguments.images)).items():
        found[name] = scored(classifier, *choice)
        print(f"{name}: {found[name][1]:.0f} s", flush=True)
    reference = found["reference"][0].layers
    results, rows = [], []
    for name, (scores, seconds) in found.items():
        pairs = [
            (np.array(layer.scores), np.array(scores.layers[key].scores))
            for key, layer in reference.items()
            if len(layer.scores) > classifier.spec.classes
        ]
        correlations = [rank_correlation(*pair) for pair in pairs]
        halves = [same_lower_half(*pair) for pair in pairs]
        results.append(
            {"variant": name, "rank_correlation": correlations, "same_lower_half": halves, "seconds": seconds}
        )
        rows.append([name, f"{np.mean(correlations):.3f}", f"{min(correlations):.3f}", f"{np.mean(halves):.3f}"])
    header = ("variant", "rank correlation, mean over layers", "lowest layer", "same lower half, mean")
    save(
        "score_stability",
        {"images": arguments.images, "layers": list(reference), "variants": results},
        header,
        rows,
    )


if __name__ == "__main__":
    main()
