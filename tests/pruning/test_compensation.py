"""What is removed is made up for by what stays."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.models.channel_graph import PruningGraph
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning import compensation
from fsrp_edge.pruning.compensation import DenseOutputs
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan, remove_channels, removed_outputs
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.training.batchnorm import recalibrate_batch_norm
from tests.nets import as_classifier
from tests.pruning.conftest import logits


def images(count: int = 64, side: int = 16) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(count) % 4)


def network(second: nn.Module | None = None) -> Classifier:
    """One filter repeats another, and one is constant; without padding, so that it is at every place."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, last = nn.Conv2d(3, 8, 3), nn.Linear(6, 4)
        second = second or nn.Conv2d(8, 6, 3, stride=2, dilation=2)
        for parameter in second.parameters():
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        first.weight[6], first.bias[6] = 3 * first.weight[1], 3 * first.bias[1]
        first.weight[7], first.bias[7] = 0.0, 0.7  # constant
    body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return as_classifier(body, shape=(3, 16, 16), classes=4)


def without(classifier: Classifier, gone: set[int], outputs: DenseOutputs) -> Classifier:
    """Some of the first layer's filters removed."""
    groups = PruningGraph(classifier).groups()
    kept = {"0": [channel for channel in range(8) if channel not in gone]}
    changed = copy.deepcopy(classifier)
    remove_channels(changed.network, groups, kept)
    outputs.fit(changed, removed_outputs(groups, kept))
    return changed


def test_removing_what_others_say_too_changes_nothing(monkeypatch):
    monkeypatch.setattr(compensation, "RIDGE", 1e-5)
    classifier = network()
    before, outputs = weights_sha256(classifier.network), DenseOutputs(classifier, images())
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    changed = logits(without(classifier, {1, 7}, outputs), pixels)
    torch.testing.assert_close(changed, logits(classifier, pixels), rtol=3e-3, atol=3e-3)
    assert weights_sha256(classifier.network) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 2, 1, 1), (2, 2, 2, 2), ((1, 3), 1, (0, 1), 1)])
def test_layers_are_fitted_to_what_they_really_read(monkeypatch, shape, padding):
    monkeypatch.setattr(compensation, "RIDGE", 1e-5)
    kernel, stride, pad, groups = shape
    second = nn.Conv2d(8, 6, kernel, stride=stride, padding=pad, groups=groups, padding_mode=padding)
    classifier = network(second)
    with torch.no_grad():  # what goes repeats its neighbour, also in a group
        classifier.network[0].weight[::2] = classifier.network[0].weight[1::2]
        classifier.network[0].bias[::2] = classifier.network[0].bias[1::2]
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    smaller_one = without(classifier, {0, 4}, DenseOutputs(classifier, images()))
    torch.testing.assert_close(logits(smaller_one, pixels), logits(classifier, pixels), rtol=3e-3, atol=3e-3)


class CalledByName(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(input=maps)
        return out


def test_layers_that_are_called_by_name_are_fitted_too(monkeypatch):
    monkeypatch.setattr(compensation, "RIDGE", 1e-5)
    classifier = network(CalledByName(nn.Conv2d(8, 6, 3)))
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    changed = logits(without(classifier, {1, 7}, DenseOutputs(classifier, images())), pixels)
    torch.testing.assert_close(changed, logits(classifier, pixels), rtol=3e-3, atol=3e-3)


def test_a_weight_that_is_computed_from_others_stays_as_it_is():
    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    classifier = network()
    parametrize.register_parametrization(classifier.network[6], "weight", Halved())
    changed = without(classifier, {1, 5}, DenseOutputs(classifier, images(), trained_after=True))
    assert torch.equal(changed.network[6].weight, classifier.network[6].weight)
    kept = [0, 2, 3, 4, 6, 7]
    assert not torch.equal(changed.network[2].weight, classifier.network[2].weight[:, kept])


class SamePadded(nn.Conv2d):
    """As efficientnet_pytorch and timm have it."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(maps, (0, 2, 0, 2)))


class Standardized(nn.Conv2d):
    def _conv_forward(self, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(maps, weight / weight.std(), bias)


class Halved(nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features / 2)


@pytest.mark.parametrize("second", [SamePadded(8, 6, 3), Standardized(8, 6, 3)])
def test_a_layer_with_a_forward_pass_of_its_own_stays_as_it_is(second):
    classifier = network(second)
    classifier.network[6] = Halved(6, 4)
    changed = without(classifier, {1, 5}, DenseOutputs(classifier, images()))
    kept = [0, 2, 3, 4, 6, 7]
    assert torch.equal(changed.network[2].weight, second.weight[:, kept])
    assert torch.equal(changed.network[6].weight, classifier.network[6].weight)


def test_a_weight_of_two_layers_stays_as_it_is():
    second = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 3))
    second[3].weight = second[0].weight
    classifier = network(second)
    changed = without(classifier, set(), DenseOutputs(classifier, images()))
    assert changed.network[2][0].weight is changed.network[2][3].weight
    with torch.no_grad():
        changed.network[0].weight.mul_(0.5)  # what is to be made up for
    DenseOutputs(classifier, images()).fit(changed, {})
    assert torch.equal(changed.network[2][0].weight, second[0].weight)
    assert not torch.equal(changed.network[2][2].weight, second[2].weight)


def test_channels_that_never_vary_are_replaced_by_a_constant():
    classifier = network()
    with torch.no_grad():
        classifier.network[0].weight.zero_()
    pixels = torch.rand(4, 3, 16, 16)
    changed = logits(without(classifier, {0, 4, 7}, DenseOutputs(classifier, images())), pixels)
    torch.testing.assert_close(changed, logits(classifier, pixels))


def test_a_fit_that_does_not_hold_for_other_images_is_left():
    layer, generator = nn.Linear(30, 2), torch.Generator().manual_seed(0)
    before = layer.weight.clone()
    reads, noise = (torch.randn(40, size, generator=generator) for size in (30, 2))
    compensation._fit(layer, reads[:, :, None], layer(reads).detach() + 0.01 * noise)
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        compensation._fit(layer, reads[:, :, None], 2 * reads[:, :2])
    assert not torch.equal(layer.weight, before)


def test_what_is_used_twice_or_is_transposed_stays_as_it_is():
    shared = nn.Conv2d(6, 6, 3, padding=1)
    second = nn.Sequential(nn.ConvTranspose2d(8, 6, 3), nn.ReLU(), shared, nn.ReLU(), shared)
    classifier = network(second)
    changed = without(classifier, {1, 5}, DenseOutputs(classifier, images()))
    kept = [0, 2, 3, 4, 6, 7]
    assert torch.equal(changed.network[2][0].weight, classifier.network[2][0].weight[kept])
    assert torch.equal(changed.network[2][2].weight, shared.weight)
    assert not torch.equal(changed.network[6].weight, classifier.network[6].weight)


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_a_trained_network_keeps_more_without_any_training(trained_checkpoint, criterion):
    dense = load_classifier(trained_checkpoint)
    dataset = open_dataset("digits", dense.spec, seed=0)
    before, some = weights_sha256(dense.network), dataset.train.sample(256, 0)
    plan = make_plan(dense, score(dense, some, Rival(name=criterion), seed=0), PlanOptions(ratio=0.4))
    pixels = torch.cat([pixels for pixels, _ in dataset.evaluation.batches(64)])
    wanted = logits(dense, pixels).softmax(1)
    plain, compensated = apply_plan(dense, plan), apply_plan(dense, plan, DenseOutputs(dense, some))
    recalibrate_batch_norm(plain, some)
    lost, kept = (float((logits(each, pixels).softmax(1) - wanted).abs().mean()) for each in (plain, compensated))
    assert kept < 0.7 * lost
    assert weights_sha256(dense.network) == before


@pytest.mark.parametrize("architecture", ["torchvision:squeezenet1_1", "torchvision:mobilenet_v2"])
def test_layers_behind_concatenations_and_depthwise_ones_are_fitted_too(carried, architecture):
    dense, some = carried(architecture, 64), images(24, 64)
    plan = make_plan(dense, score(dense, some, Rival(name="l1"), seed=0), PlanOptions(ratio=0.3))
    outputs = DenseOutputs(dense, some)
    plain, compensated = apply_plan(dense, plan), apply_plan(dense, plan, outputs)
    before, after = plain.network.state_dict(), compensated.network.state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert len([name for name in changed if name.endswith("weight")]) > 10
    lost, kept = (
        float((logits(each, outputs.pixels) - outputs.logits).square().mean()) for each in (plain, compensated)
    )
    assert kept < 0.7 * lost


def normalized() -> Classifier:
    """A bias before one batch norm, none before the other; statistics as of a trained network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip
    classifier = as_classifier(body, shape=(3, 16, 16), classes=4)
    recalibrate_batch_norm(classifier, images())
    return classifier.eval()


def test_weights_before_a_batch_norm_keep_their_size_and_outputs_are_as_well_fitted(monkeypatch):
    dense = normalized()
    outputs = DenseOutputs(dense, images())
    found = without(dense, {0, 3, 5}, outputs)
    monkeypatch.setattr(compensation, "_keep_size", lambda *_: None)
    free = without(dense, {0, 3, 5}, outputs)
    assert not torch.allclose(found.network[3].weight, free.network[3].weight)
    assert torch.allclose(logits(found, outputs.pixels), logits(free, outputs.pixels), atol=1e-3)
    kept = [channel for channel in range(8) if channel not in {0, 3, 5}]
    sizes = [each.flatten(1).norm(dim=1) for each in (found.network[3].weight, dense.network[3].weight[:, kept])]
    assert torch.allclose(*sizes)


@pytest.mark.parametrize("variance", [1e-4, 1e-2, 1.0])
def test_what_a_batch_norm_puts_out_stays_whatever_share_eps_has(variance):
    """Of its variance's sum with eps: as in torchvision's MobileNetV3 and EfficientNetV2, which have 1e-3."""
    dense = normalized()
    layer, norm = dense.network[3], dense.network[4]
    norm.eps, before = 1e-3, compensation._size(layer)
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        norm.running_var.fill_(variance)
        layer.weight[:3] *= 2  # the others as if fitted weights had shrunk
        layer.weight[3:] /= 2
        grown, wanted = compensation._size(layer), dense.network[:5](pixels)
        compensation._keep_size(layer, before, norm)
        torch.testing.assert_close(dense.network[:5](pixels), wanted, rtol=1e-4, atol=1e-4)
    assert (norm.running_var >= 0).all()
    assert (compensation._size(layer)[:3] < grown[:3]).all()
    torch.testing.assert_close(compensation._size(layer)[3:], before[3:])


@pytest.mark.parametrize(("growth", "left"), [(1.01, True), (100.0, False)])
def test_a_last_layer_that_would_grow_much_is_left_where_training_follows(monkeypatch, growth, left):
    monkeypatch.setattr(compensation, "GROWTH", growth)
    dense = normalized()
    fitted, tamed = (
        without(dense, {0, 3, 5, 6}, DenseOutputs(dense, images(), trained_after=after)) for after in (False, True)
    )
    before, after, always = (dict(each.network[8].named_parameters()) for each in (dense, tamed, fitted))
    assert always["weight"].norm() > 1.01 * before["weight"].norm()
    for name, value in after.items():
        assert torch.equal(value, (before if left else always)[name])
    assert torch.equal(tamed.network[3].weight, fitted.network[3].weight)
