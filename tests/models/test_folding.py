import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.folding import Folded
from tests.nets import as_classifier, built


def moved(classifier: Classifier) -> Classifier:
    """The same object after training: other weights, running statistics and affine parts."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*classifier.parameters(), *(buffer for buffer in classifier.buffers() if buffer.ndim == 1)):
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=draws))
    return classifier


def batch_norms(classifier: Classifier) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in classifier.modules())


@torch.no_grad()
def difference(one: Classifier, other: Classifier) -> float:
    """As a share of the largest logit, which is tiny where weights are random."""
    pixels = one.example_pixels(4)
    return float((one(pixels) - other(pixels)).abs().max() / one(pixels).abs().max())


class Headed(nn.Module):
    """A convolution without a batch norm, parameters of its own, and a linear layer with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.linear, self.last = nn.Linear(4, 10), nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.depthwise(self.first(x).relu())).mean((2, 3))
        return self.last(self.linear(x * self.scale))


class Undecided(Headed):
    """Not to be traced: what it does depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else x + 1)


@pytest.mark.parametrize("name", ["cifar:resnet20-a", "cifar:vgg16_bn-w0.25", "torchvision:mobilenet_v2", "headed"])
def test_the_copy_computes_what_the_network_does_before_and_after_its_weights_move(name: str) -> None:
    torch.manual_seed(0)
    original = as_classifier(Headed()) if name == "headed" else built(name)
    folded = Folded(original)
    assert batch_norms(original) and not batch_norms(folded.classifier)
    before = difference(original, folded.classifier)
    moved(original)
    stale = difference(original, folded.classifier)
    folded.follow()
    assert before < 1e-4 and difference(original, folded.classifier) < 1e-4
    assert stale > 1e-2


def test_the_network_itself_stays_as_it_is() -> None:
    original = built("cifar:resnet20-a").train()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in original.parameters()]
    Folded(original).follow()
    assert all(module.training for module in original.modules())
    assert [parameter.requires_grad for parameter in original.parameters()] == trainable
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


def test_what_cannot_be_folded_is_the_network_itself() -> None:
    rounded = as_classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10)))
    parametrize.register_parametrization(rounded.network[0], "weight", nn.Tanh())  # type: ignore[index, arg-type]
    without = as_classifier(nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    for classifier in (as_classifier(Undecided()), rounded, without):
        folded = Folded(classifier)
        folded.follow()
        assert folded.classifier is classifier
