"""A short training run that a test starts as a process, to kill it: `python digits_run.py CHECKPOINT`."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsrp_edge import progress
from fsrp_edge.data.embedded import digits
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.training.loop import TrainingResult, train
from fsrp_edge.training.recipe import Recipe

RECIPE = Recipe(method="n-fgsm", eps=0.1, epochs=6, batch_size=64, learning_rate=0.05, crop_padding=1, ema_decay=0.9)


def small_cnn() -> Classifier:
    spec = ModelSpec(
        architecture="tests:small_cnn",
        input_shape=(1, 16, 16),
        classes=10,
        mean=(0.3,),
        std=(0.35,),
        preprocessing=Preprocessing(resize=16),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(32 * 16, 10),
        )
    return Classifier(network, spec)


def digit_sets() -> tuple[ImageSet, ImageSet]:
    held_out, rest = digits(small_cnn().spec).train.split(100, 0)
    return rest.first(600), held_out


def run(checkpoint: Path | None) -> TrainingResult:
    learnt, held_out = digit_sets()
    return train(small_cnn(), learnt, held_out, RECIPE, seed=5, checkpoint=checkpoint)


class Console:
    def track(self, items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        yield from items

    def log(self, message: str) -> None:
        print(message, flush=True)


if __name__ == "__main__":
    with progress.listen(Console()):
        run(Path(sys.argv[1]))
