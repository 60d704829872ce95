"""Cost of reading every filter's spectrum, beside a plain forward pass and beside the naive way.

python -m benchmarks.scoring [--rounds 5]
"""

import functools
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, median_ratio, parser_of, random_network, save
from fsrp_edge.attacks import PGD, attackable
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.rivals import Rival, score_rival

NETWORKS = {"cifar:vgg16_bn": 128, "torchvision:resnet18": 16}
RADIUS = FSRP().radius


def make_classifier(architecture: str) -> Classifier:
    """A network with random weights in the layout that scoring uses."""
    classifier = random_network(architecture)
    classifier.to_fast_layout(torch.device("cpu"))
    return classifier


def make_images(classifier: Classifier, count: int) -> ImageSet:
    """Random pixels; only time is measured on them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *classifier.spec.input_shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classifier.spec.classes, (count,), generator=generator)
    return ImageSet.of("random", ArraySource(pixels.numpy()), labels)


@torch.no_grad()
def forward(classifier: Classifier, images: ImageSet, batch_size: int) -> None:
    """A plain pass over the same batches."""
    for pixels, _ in images.batches(batch_size):
        classifier(pixels)


@torch.no_grad()
def naive(classifier: Classifier, images: ImageSet, batch_size: int) -> dict[str, Tensor]:
    """Hooks store every convolution's map; then fft2, fftshift, a mask, two sums."""
    ratios: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}

    def keep(_module: nn.Module, _inputs: Any, output: Tensor, *, name: str) -> None:
        maps[name] = output

    handles = [
        module.register_forward_hook(functools.partial(keep, name=name))
        for name, module in classifier.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    for pixels, _ in images.batches(batch_size):
        classifier(pixels)
        for name, output in maps.items():
            height, width = output.shape[2:]
            rows = torch.fft.fftshift(torch.fft.fftfreq(height)).abs() * 2
            columns = torch.fft.fftshift(torch.fft.fftfreq(width)).abs() * 2
            inside = rows[:, None] ** 2 + columns[None, :] ** 2 <= RADIUS**2
            power = torch.fft.fftshift(torch.fft.fft2(output), dim=(2, 3)).abs().square()
            low = (power * inside).sum(dim=(2, 3))
            high = (power * ~inside).sum(dim=(2, 3))
            ratios[name] = ratios.get(name, torch.zeros(())) + (low / (high + 1e-12)).sum(dim=0)
    for handle in handles:
        handle.remove()
    return ratios


def score_clean(classifier: Classifier, images: ImageSet, batch_size: int) -> None:
    """Scoring without making adversarial examples: what is left is reading the maps."""
    score_fsrp(classifier, images, FSRP(attack=PGD(eps=0), batch_size=batch_size), seed=0)


def reading_cost(architecture: str, rounds: int) -> dict[str, Any]:
    """Seconds of forward, scoring and the naive way, taken in turns."""
    batch_size = NETWORKS[architecture]
    classifier = make_classifier(architecture)
    images = make_images(classifier, 4 * batch_size)
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(classifier, images, batch_size),
        "scoring": lambda: score_clean(classifier, images, batch_size),
        "naive": lambda: naive(classifier, images, batch_size),
    }
    with attackable(classifier):
        times = alternate(work, rounds)
    return {
        "network": architecture,
        "input": list(classifier.spec.input_shape),
        "images": len(images),
        "seconds": times,
        "scoring_to_forward": median_ratio(times, "scoring", "forward"),
        "naive_to_forward": median_ratio(times, "naive", "forward"),
        "naive_to_scoring": median_ratio(times, "naive", "scoring"),
        "naive_to_scoring_beyond_forward": statistics.median(
            (naive_time - plain) / (ours - plain)
            for plain, ours, naive_time in zip(times["forward"], times["scoring"], times["naive"], strict=True)
        ),
    }


def whole_cost(rounds: int) -> dict[str, Any]:
    """Whole scoring with PGD-10 beside torch-pruning's Taylor and Hessian on the same images."""
    classifier = make_classifier("cifar:vgg16_bn")
    images = make_images(classifier, 32)
    work: dict[str, Callable[[], object]] = {
        "fsrp, PGD-10": lambda: score_fsrp(classifier, images, FSRP(batch_size=32), seed=0),
        "taylor": lambda: score_rival(classifier, images, Rival(name="taylor", batch_size=32), seed=0),
        "hessian": lambda: score_rival(classifier, images, Rival(name="hessian"), seed=0),
    }
    return {"network": "cifar:vgg16_bn", "images": len(images), "seconds": alternate(work, rounds)}


def peak_memory(count: int) -> float:
    """MiB at the peak of a process of its own that scores `count` images, one uint8 array of which is made there."""
    code = f"import benchmarks.scoring as b; b.score_many({count})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def score_many(count: int) -> None:
    """Score `count` images and print the peak memory beyond the images themselves, in MiB."""
    classifier = make_classifier("cifar:vgg16_bn")
    images = make_images(classifier, count)
    score_clean(classifier, images, 64)
    own = count * 3 * 32 * 32 / 2**20
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - own)


def main() -> None:
    """Run everything and write results/scoring.json and .md."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    reading = [reading_cost(architecture, rounds) for architecture in NETWORKS]
    whole = whole_cost(max(1, rounds // 2))
    memory = {count: peak_memory(count) for count in (256, 4096)}
    ratios = {
        "scoring_to_forward": "scoring / forward",
        "naive_to_scoring": "naive / scoring",
        "naive_to_forward": "naive / forward (the most that naive / scoring can be)",
        "naive_to_scoring_beyond_forward": "naive / scoring, forward pass taken off both",
    }
    save(
        "scoring",
        {"reading": reading, "whole": whole, "peak_memory_mib": memory, "threads": torch.get_num_threads()},
        ("network", "input", *ratios.values()),
        [
            [each["network"], "x".join(map(str, each["input"])), *(f"{each[ratio]:.2f}" for ratio in ratios)]
            for each in reading
        ],
    )
    print({name: min(times) for name, times in whole["seconds"].items()}, memory)


if __name__ == "__main__":
    main()
