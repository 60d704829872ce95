import copy
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsrp_edge.cli.options import CRITERIA
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.rivals import Rival, RivalName, score_rival
from fsrp_edge.scoring.score import score
from tests.nets import as_classifier, built

INNER = "features.0"
"""A convolution of the plain VGG: alone in its group, but for the batch norm and the next layer's inputs."""


@pytest.fixture(scope="module")
def classifier():
    classifier = built("cifar:vgg16_bn-w0.125", std=0.5)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return classifier


@pytest.fixture(scope="module")
def images(classifier):
    return open_dataset("digits", classifier.spec, seed=0).train.first(12)


def scores_of(classifier, images, name, **options):
    found = score_rival(classifier, images, Rival(name=name, **options), seed=0)
    return np.array(found.layers[INNER].scores)


def test_the_command_line_offers_every_criterion():
    assert sorted(CRITERIA) == sorted([FSRP().name, Reconstruction().name, *get_args(RivalName)])


@pytest.mark.parametrize("name", get_args(RivalName))
def test_every_rival_leads_to_a_plan_and_a_smaller_network(classifier, images, name):
    scores = score(classifier, images, Rival(name=name), seed=0)
    assert scores.criterion == name
    plan = make_plan(classifier, scores, PlanOptions(ratio=0.5))
    pruned = apply_plan(classifier, plan)
    assert pruned.network.features[0].out_channels == 4
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize("name", ["l1", "taylor", "activation"])
def test_a_layer_whose_scores_are_nan_is_named(classifier, images, name):
    broken = copy.deepcopy(classifier)
    with torch.no_grad():
        broken.network.get_submodule(INNER).weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadInputError, match=r"layer .*: \d+ of \d+ channels score NaN or infinity"):
        score_rival(broken, images, Rival(name=name), seed=0)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "batch-norm-scale", "lamp", "taylor", "hessian"])
def test_a_dead_layer_scores_0(classifier, images, name):
    dead = copy.deepcopy(classifier)
    with torch.no_grad():
        for place in (0, 1, 3):  # the convolution, its batch norm, and what reads it
            for parameter in dead.network.features[place].parameters():
                parameter.zero_()
    assert not scores_of(dead, images, name).any()


def test_a_filter_that_has_no_others_to_be_far_from_scores_0(images):
    single = as_classifier(
        nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    )
    assert score_rival(single, images, Rival(name="fpgm"), seed=0).layers["0"].scores == (0.0,)


@pytest.mark.parametrize("name", ["random", "taylor", "hessian", "activation"])
def test_the_same_seed_gives_the_same_scores(classifier, images, name):
    np.testing.assert_array_equal(scores_of(classifier, images, name), scores_of(classifier, images, name))


def test_random_draws_differ_by_seed(classifier, images):
    first, second = (
        score_rival(classifier, images, Rival(name="random"), seed=seed).layers[INNER].scores for seed in (0, 1)
    )
    assert first != second


def test_batch_norm_scale_ranks_by_the_scale(classifier, images):
    scales = classifier.network.features[1].weight.detach().abs().numpy()
    found = scores_of(classifier, images, "batch-norm-scale")
    assert np.argsort(found).tolist() == np.argsort(scales).tolist()


def test_activation_is_the_mean_absolute_response(classifier, images):
    with torch.no_grad():
        pixels = next(images.batches(len(images)))[0]
        maps = classifier.network.features[:3]((pixels - classifier.mean) / classifier.std)
    np.testing.assert_allclose(
        scores_of(classifier, images, "activation", batch_size=5), maps.mean((0, 2, 3)), rtol=1e-4
    )


def test_taylor_looks_at_the_gradient_of_all_images(classifier, images):
    whole = scores_of(classifier, images, "taylor", batch_size=12)
    np.testing.assert_allclose(scores_of(classifier, images, "taylor", batch_size=6), whole, rtol=1e-3)


def test_hessian_counts_every_image(classifier, images):
    """torch-pruning's own accumulation would keep the last image only."""
    last = images.subset(np.array([len(images) - 1]))
    assert not np.allclose(scores_of(classifier, images, "hessian"), scores_of(classifier, last, "hessian"))
    squares = torch.zeros_like(classifier.network.features[0].weight)
    for pixels, labels in images.batches(1):
        loss = F.cross_entropy(classifier(pixels), labels)
        squares += torch.autograd.grad(loss, classifier.network.features[0].weight)[0].square() / len(images)
    by_weight = (squares * classifier.network.features[0].weight.detach().square()).flatten(1).sum(1)
    correlation = np.corrcoef(by_weight.numpy(), scores_of(classifier, images, "hessian"))[0, 1]
    assert correlation > 0.5  # the rest is the batch norm's and the next layer's share in the group


@pytest.mark.parametrize("name", ["l1", "fpgm"])
def test_a_layer_that_torch_pruning_cannot_score_is_told_in_a_line(name):
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 32, 3, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    with pytest.raises(
        ToolFailedError, match=r"can't score 0 \(.*\); choose another criterion, such as --criterion fsrp"
    ):
        score_rival(as_classifier(body), None, Rival(name=name), seed=0)
