"""AutoAttack here against the library's own driver: same network, images, seed and batches, in one process, in turns.

python -m benchmarks.attack_speed --checkpoint robust.safetensors --data cifar-10-batches-bin
"""

import copy
import time
from typing import Any

import torch
from pyautoattack import AutoAttack

from benchmarks.common import checkpoint_parser, name_here, save
from fsrp_edge import compute
from fsrp_edge.attacks import DEFAULT_EPS
from fsrp_edge.data.images import ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.evaluation.autoattack import autoattack_accuracy
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier


def theirs(classifier: Classifier, images: ImageSet) -> torch.Tensor:
    """Verdicts of the library's driver on the network as `load_classifier` returns it."""
    pixels, labels = next(images.batches(len(images)))
    device = compute.device_of(classifier)
    suite = AutoAttack(copy.deepcopy(classifier), norm="Linf", eps=DEFAULT_EPS, seed=0, device=device)
    suite.verbose = False
    _, predicted = suite.run_standard_evaluation(pixels.to(device), labels.to(device), batch_size=len(images))
    return torch.eq(predicted.cpu(), labels)


def ours(classifier: Classifier, images: ImageSet) -> torch.Tensor:
    """Verdicts of `autoattack_accuracy`."""
    network = copy.deepcopy(classifier)
    return autoattack_accuracy(network, images, eps=DEFAULT_EPS, seed=0, batch_size=len(images)).standing


def main() -> None:
    """Attack disjoint parts of the test set both ways, whoever is first taking turns."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--parts", type=int, default=2)
    arguments = parser.parse_args()
    classifier = load_classifier(arguments.checkpoint).to(compute.default_device())
    images = open_dataset(arguments.data, classifier.spec, seed=0).evaluation.first(arguments.images)
    drivers = {"library's driver": theirs, "fsrp-edge": ours}
    parts: list[dict[str, Any]] = []
    for number, positions in enumerate(torch.arange(len(images)).chunk(arguments.parts)):
        part = images.subset(positions.numpy())
        seconds, cpu, standing = {}, {}, {}
        for name in list(drivers)[:: -1 if number % 2 else 1]:
            started, cpu_started = time.perf_counter(), time.process_time()
            standing[name] = drivers[name](classifier, part)
            seconds[name] = time.perf_counter() - started
            cpu[name] = time.process_time() - cpu_started
            print(number, name, f"{seconds[name]:.1f} s", int(standing[name].sum()), flush=True)
        both = list(standing.values())
        parts.append({
            "images": len(part), "seconds": seconds, "cpu_seconds": cpu,
            "standing": {name: int(stood.sum()) for name, stood in standing.items()},
            "images_judged_differently": int((both[0] != both[1]).sum()),
        })  # fmt: skip
        write(arguments.checkpoint.name, classifier.spec.architecture, parts)


def write(checkpoint: str, architecture: str, parts: list[dict[str, Any]]) -> None:
    """The results as far as they are known: a part takes its time."""
    images = sum(part["images"] for part in parts)

    def total(key: str, name: str) -> float:
        return float(sum(part[key][name] for part in parts))

    first = "library's driver"
    rows = [
        [name, f"{100 * total('standing', name) / images:.1f}", f"{total('seconds', name):.0f}",
         f"{total('cpu_seconds', name):.0f}", f"{total('cpu_seconds', first) / total('cpu_seconds', name):.2f}×"]
        for name in parts[0]["seconds"]
    ]  # fmt: skip
    results = {
        "checkpoint": checkpoint, "architecture": architecture, "images": images, "eps": DEFAULT_EPS, "seed": 0,
        "threads": torch.get_num_threads(), "parts": parts,
    }  # fmt: skip
    save(
        name_here("attack_speed"),
        results,
        ("AutoAttack by", "robust accuracy %", "s", "CPU s", "speed-up in CPU s"),
        rows,
    )


if __name__ == "__main__":
    main()
