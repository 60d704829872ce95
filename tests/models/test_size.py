import torch
from torch import nn

from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.registry import build
from fsrp_edge.models.size import macs_by_layer, measure_size
from tests.nets import as_classifier


def classifier(network: nn.Module, shape: tuple[int, int, int], classes: int) -> Classifier:
    return as_classifier(network, shape=shape, classes=classes).train()


def test_sizes_are_those_that_paper_and_pencil_give() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 8·3·9 weights at 6·4 places
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8),  # 8·9 weights at 3·2 places
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    network.train()
    size = measure_size(classifier(network, (3, 6, 4), 5))
    convolution, depthwise, linear = 8 * 3 * 9 * 24, 8 * 9 * 6, 48 * 5
    assert size.macs == convolution + depthwise + linear
    assert size.parameters == 8 * 3 * 9 + 16 + 8 * 9 + 8 + 48 * 5 + 5
    assert size.channels == 16
    by_layer = macs_by_layer(classifier(network, (3, 6, 4), 5))
    assert (by_layer["0"], by_layer["2"], by_layer["4"], by_layer[""]) == (
        convolution,
        depthwise,
        linear,
        size.macs,
    )
    assert network.training and network[1].training


def test_attention_counts() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, stride=4)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens)[0].mean(1)

    size = measure_size(classifier(Attending(), (3, 16, 16), 16))
    patches, projections, products = 16 * 48 * 16, 16 * 16 * 16 * 4, 2 * 16 * 16 * 16
    assert size.macs == patches + projections + products


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    shared = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(shared, nn.ReLU(), shared, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    size = measure_size(classifier(network, (3, 4, 4), 3))
    assert (size.macs, size.parameters, size.channels) == (2 * 9 * 16, 12, 3)


def test_published_figures_are_met() -> None:
    """Torchvision states 1.814 GMACs and 11,689,512 parameters for resnet18 at 224x224."""
    with torch.random.fork_rng():
        size = measure_size(classifier(build("torchvision:resnet18", classes=1000), (3, 224, 224), 1000))
    assert round(size.macs / 1e9, 3) == 1.814 and size.parameters == 11_689_512


def test_a_layer_with_two_names_is_counted_under_the_first() -> None:
    class NamedTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.features = nn.Sequential(self.convolution, nn.Flatten(), nn.Linear(8 * 24, 5))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.features(images)

    by_layer = macs_by_layer(classifier(NamedTwice(), (3, 6, 4), 5))
    assert by_layer["convolution"] == 8 * 3 * 9 * 24 and "features.0" not in by_layer
