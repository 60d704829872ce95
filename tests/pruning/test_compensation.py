"""What is removed goes into the layers that read it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.compensation import compensate
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.moments import measure_inputs
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.training.batchnorm import recalibrate_batch_norm
from tests.nets import as_classifier
from tests.pruning.conftest import logits


def images(count: int = 64, side: int = 16) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(count) % 4)


def network(*, transposed: bool = False, groups: int = 1) -> Classifier:
    """Without padding, so that a constant channel is one at every place; one filter repeats another."""
    second = nn.ConvTranspose2d(8, 6, 3) if transposed else nn.Conv2d(8, 6, 3, groups=groups)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, last = nn.Conv2d(3, 8, 3), nn.Linear(6, 4)
        for parameter in second.parameters():
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        first.weight[6], first.bias[6] = 3 * first.weight[1], 3 * first.bias[1]
        first.weight[7], first.bias[7] = 0.0, 0.7  # constant
    body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return as_classifier(body, shape=(3, 16, 16), classes=4)


@pytest.mark.parametrize("transposed", [False, True])
def test_removing_what_others_say_too_changes_nothing(transposed):
    classifier = network(transposed=transposed)
    moments = measure_inputs(classifier, images())
    changed = copy.deepcopy(classifier)
    compensate(changed.network, {"2": {1, 7}}, moments)
    with torch.no_grad():  # as if the two were gone
        changed.network[0].weight[[1, 7]] = 0  # type: ignore[index]
        changed.network[0].bias[[1, 7]] = 0  # type: ignore[index]
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    before, after = logits(classifier, pixels), logits(changed, pixels)
    if transposed:  # fewer taps reach its border, where a constant adds less
        assert (after - before).norm() < 0.3 * before.norm()
    else:
        torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3)


def test_grouped_convolutions_and_unknown_layers_stay_as_they_are():
    classifier = network(groups=2)
    before = weights_sha256(classifier.network)
    compensate(classifier.network, {"2": {1, 5}}, measure_inputs(classifier, images()))
    compensate(classifier.network, {"6": {0}}, {})
    assert weights_sha256(classifier.network) == before


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_a_trained_network_keeps_more_without_any_training(trained_checkpoint, criterion):
    dense = load_classifier(trained_checkpoint)
    dataset = open_dataset("digits", dense.spec, seed=0)
    before, some = weights_sha256(dense.network), dataset.train.sample(256, 0)
    plan = make_plan(dense, score(dense, some, Rival(name=criterion), seed=0), PlanOptions(ratio=0.4))
    pixels = torch.cat([pixels for pixels, _ in dataset.evaluation.batches(64)])
    wanted = logits(dense, pixels).softmax(1)
    errors = []
    for moments in (None, measure_inputs(dense, some)):
        pruned = apply_plan(dense, plan, moments)
        recalibrate_batch_norm(pruned, some)
        errors.append(float((logits(pruned, pixels).softmax(1) - wanted).abs().mean()))
    assert errors[1] < 0.8 * errors[0]
    assert weights_sha256(dense.network) == before


@pytest.mark.parametrize("architecture", ["torchvision:squeezenet1_1", "torchvision:densenet121"])
def test_layers_behind_concatenations_are_compensated_too(carried, architecture):
    dense, some = carried(architecture, 64), images(16, 64)
    plan = make_plan(dense, score(dense, some, Rival(name="l1"), seed=0), PlanOptions(ratio=0.3))
    plain = apply_plan(dense, plan).network.state_dict()
    compensated = apply_plan(dense, plan, measure_inputs(dense, some)).network.state_dict()
    changed = [name for name, tensor in plain.items() if not torch.equal(tensor, compensated[name])]
    assert len([name for name in changed if name.endswith("weight")]) > 10


def test_channels_that_never_vary_are_replaced_by_a_constant():
    classifier = network()
    with torch.no_grad():
        classifier.network[0].weight.zero_()
    moments = measure_inputs(classifier, images())
    changed = copy.deepcopy(classifier)
    compensate(changed.network, {"2": {0, 4, 7}}, moments)
    kept = [1, 2, 3, 5, 6]
    torch.testing.assert_close(changed.network[2].weight[:, kept], classifier.network[2].weight[:, kept])
    with torch.no_grad():
        changed.network[0].bias[[0, 4, 7]] = 0
    pixels = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(logits(changed, pixels), logits(classifier, pixels))
