"""Small networks with what pruning leaves behind: odd channel counts, beside a non-square input."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing


class OddNetwork(nn.Module):
    """Convolutions of 13 and 37 channels, a depthwise pair, a residual sum and asymmetric arithmetic."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 13, 3, 2, 1, bias=False), nn.BatchNorm2d(13), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(13, 13, 3, 1, 1, groups=13), nn.BatchNorm2d(13), nn.ReLU6())
        self.widen = nn.Sequential(nn.Conv2d(13, 37, (3, 1), padding=(1, 0)), nn.BatchNorm2d(37), nn.Hardswish())
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten())
        self.head = nn.Linear(74, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        logits: Tensor = self.head(self.pool(self.widen(features + self.depthwise(features))))
        return logits


@pytest.fixture(scope="session")
def images() -> ImageSet:
    generator = np.random.default_rng(0)
    # Coarse blobs, brighter to one side: real enough to give activations a distribution.
    coarse = generator.integers(0, 160, (48, 3, 6, 8)).astype(np.uint8).repeat(8, axis=2).repeat(8, axis=3)
    slope = np.linspace(0, 90, 64).astype(np.uint8)
    return ImageSet.of("blobs", ArraySource(coarse + slope), torch.arange(48) % 5)


@pytest.fixture(scope="session")
def classifier(images: ImageSet) -> Classifier:
    spec = ModelSpec(
        architecture="tests:odd",
        input_shape=(3, 48, 64),
        classes=5,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        preprocessing=Preprocessing(resize=48),
    )
    torch.manual_seed(0)
    odd = Classifier(OddNetwork(5), spec).train()
    optimizer = torch.optim.SGD(odd.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        for pixels, labels in images.batches(24):
            optimizer.zero_grad()
            nn.functional.cross_entropy(odd(pixels), labels).backward()
            optimizer.step()
    return odd.eval()
