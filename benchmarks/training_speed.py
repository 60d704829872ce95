"""Adversarial training here against a plain PyTorch loop, and how much of it is not forward and backward passes.

The plain loop is what one writes first: a DataLoader over tensors, torchvision's augmentations for each image, the
attack's gradient by `loss.backward()` with everything trainable; on a GPU with bfloat16 autocast and two loading
processes. Random images, so that nothing has to be at hand.

python -m benchmarks.training_speed
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import name_here, parser_of, save
from fsrp_edge import compute, torchvision_compat  # noqa: F401 (before torchvision)
from fsrp_edge.attacks import attackable, input_gradient
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.registry import build
from fsrp_edge.training.loop import train
from fsrp_edge.training.passes import WARM_UP, Passes
from fsrp_edge.training.recipe import Recipe

BATCH, EPS = 128, 8 / 255
RECIPE = Recipe(method="n-fgsm", eps=EPS, epochs=1, batch_size=BATCH, flip=True, crop_padding=4)


def ours(classifier: Classifier, images: ImageSet, held_out: ImageSet) -> float:
    """Seconds of one epoch of `train`."""
    return train(copy.deepcopy(classifier), images, held_out, RECIPE, seed=0).history[0].seconds


def passes_alone(classifier: Classifier, images: ImageSet, _: ImageSet) -> float:
    """Seconds of the epoch's forward and backward passes, on a batch that is there already; recorded, on a GPU."""
    return _passes(classifier, images, compiled=False)


def passes_compiled(classifier: Classifier, images: ImageSet, _: ImageSet) -> float:
    """The same by `torch.compile`; compiling, which takes a minute or two, apart."""
    return _passes(classifier, images, compiled=True)


def _passes(classifier: Classifier, images: ImageSet, *, compiled: bool) -> float:
    network = copy.deepcopy(classifier)
    device = compute.device_of(network)
    network.to_fast_layout(device)
    forward: Any = torch.compile(network) if compiled else network
    pixels, labels = (part.to(device) for part in next(images.batches(BATCH)))
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def launched() -> None:
        with attackable(network):
            input_gradient(forward, pixels, labels)
        network.train()
        with compute.autocast(pixels.device):
            loss = F.cross_entropy(forward(pixels).float(), labels)
        network.zero_grad(set_to_none=True)
        loss.backward()

    recorded = Passes(network.train(), RECIPE.model_copy(update={"flip": False, "crop_padding": 0}), None)
    step = partial(recorded.loss, pixels, labels, 0) if device.type == "cuda" and not compiled else launched
    for _step in range(WARM_UP + 1):
        step()
    started = _now(device)
    for _step in range(len(images) // BATCH):
        step()
    return _now(device) - started


def _now(device: torch.device) -> float:
    """Once what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plain(classifier: Classifier, images: ImageSet, _: ImageSet) -> float:
    """Seconds of one epoch of the loop that one writes first."""
    from torchvision.transforms import v2

    network = copy.deepcopy(classifier).train()
    augment = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    pixels, labels = next(images.batches(len(images)))

    class Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
            return augment(pixels[place]), labels[place]

    device = compute.device_of(network)
    amp = compute.autocast(device, enabled=device.type == "cuda")
    workers = 2 if device.type == "cuda" else 0
    loader = torch.utils.data.DataLoader(
        Pictures(), BATCH, shuffle=True, drop_last=True, num_workers=workers, pin_memory=bool(workers)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    started = _now(device)
    for loaded in loader:
        batch, truth = (part.to(device) for part in loaded)
        noisy = (batch + torch.empty_like(batch).uniform_(-2 * EPS, 2 * EPS)).clamp(0, 1).requires_grad_(True)
        with amp:
            F.cross_entropy(network(noisy), truth).backward()
        assert noisy.grad is not None
        adversarial = (noisy + EPS * noisy.grad.sign()).clamp(0, 1).detach()
        optimizer.zero_grad()
        with amp:
            F.cross_entropy(network(adversarial), truth).backward()
        optimizer.step()
    return _now(device) - started


def main() -> None:
    """Run all of them in turns."""
    parser = parser_of(__doc__)
    parser.add_argument("--arch", default="cifar:vgg16_bn-w0.25")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="torch.compile too, which takes minutes to compile")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture=arguments.arch, input_shape=(3, 32, 32), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3,
        preprocessing=Preprocessing(resize=32),
    )  # fmt: skip
    classifier = Classifier(build(spec.architecture, classes=10), spec).to(compute.default_device())
    draws = np.random.default_rng(0)
    count = arguments.steps * BATCH
    pixels = draws.integers(0, 256, (count + 32, 3, 32, 32), dtype=np.uint8)
    everything = ImageSet.of("random", ArraySource(pixels), torch.from_numpy(draws.integers(0, 10, count + 32)))
    images, held_out = everything.first(count), everything.subset(np.arange(count, count + 32))
    work: dict[str, Callable[..., float]] = {
        "fsrp-edge": ours,
        "plain loop": plain,
        "its passes alone": passes_alone,
    }
    if arguments.compiled:
        work["its passes compiled"] = passes_compiled
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(arguments.rounds + 1):
        for name, function in work.items():
            taken = function(classifier, images, held_out)
            if number:  # the first round warms up
                seconds[name].append(taken)

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))

    results: dict[str, Any] = {
        "architecture": arguments.arch,
        "images": count,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "bfloat16": compute.gains_from_bfloat16(compute.default_device()),
        "seconds": seconds,
        "speed_against_plain_loop": ratio("plain loop", "fsrp-edge"),
        "share_outside_passes": 1 - ratio("its passes alone", "fsrp-edge"),
    }
    rows = [
        [name, f"{count / statistics.median(taken):.0f}", f"{ratio('plain loop', name):.2f}×"]
        for name, taken in seconds.items()
    ]
    rows.append(["share outside the passes", f"{100 * results['share_outside_passes']:.1f} %", ""])
    save(
        name_here(f"training_speed_{arguments.arch.removeprefix('cifar:')}"),
        results,
        ("N-FGSM", "images/s", "against the plain loop"),
        rows,
    )


if __name__ == "__main__":
    main()
