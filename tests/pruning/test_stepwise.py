import copy
import functools
import itertools

import numpy as np
import pytest
import torch

from fsrp_edge.attacks import PGD
from fsrp_edge.data.open import open_dataset
from fsrp_edge.models.size import measure_size
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.stepwise import plan_by_strategy, prune_gradually
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from tests.nets import built

CLEAN = FSRP(attack=PGD(eps=0))


@pytest.fixture(scope="module", params=["cifar:vgg16_bn-w0.125", "cifar:resnet20-a"])
def classifier(request):
    return built(request.param, std=0.5)


@pytest.fixture(scope="module")
def images(classifier):
    return open_dataset("digits", classifier.spec, seed=0).train.first(16)


def scorer_on(images):
    """Scores on images; `calls` are the sizes of the networks that were scored."""
    calls = []

    def score(network):
        calls.append(measure_size(network).parameters)
        return score_fsrp(network, images, CLEAN, seed=0)

    score.calls = calls
    return score


@pytest.fixture
def scorer(images):
    return scorer_on(images)


@pytest.fixture(scope="module")
def planned(classifier, images):
    """The plan by some options, made once, and the sizes of the networks that were scored for it."""

    @functools.cache
    def make(**options):
        score = scorer_on(images)
        given = PlanOptions(channel_multiple=4, **options)
        one_shot = make_plan(classifier, score(classifier), given)
        return plan_by_strategy(classifier, one_shot, given, score), tuple(score.calls)

    return make


@pytest.mark.parametrize("strategy", ["sequential", "gradual"])
def test_every_strategy_leaves_as_many_channels_as_one_shot(planned, strategy):
    (once, _), (again, _) = planned(), planned(strategy=strategy)
    assert [len(group.kept) for group in again.groups] == [len(group.kept) for group in once.groups]
    assert again.strategy == strategy
    assert again.groups != once.groups  # some layer looks different once the ones before it are smaller


def test_sequential_scores_the_network_that_is_left(classifier, planned):
    plan, scored = planned(strategy="sequential")
    shrinking = sum(len(group.kept) < group.channels for group in plan.groups)
    assert len(scored) == 1 + shrinking
    sizes = scored[1:]
    assert sizes[0] == measure_size(classifier).parameters
    assert all(after < before for before, after in itertools.pairwise(sizes))


def test_the_first_layer_of_the_sequential_plan_is_that_of_one_shot(classifier, planned):
    (once, _), (again, _) = planned(), planned(strategy="sequential")
    order = [name for name, _ in classifier.network.named_modules()]
    first = min((group.root for group in once.groups if len(group.kept) < group.channels), key=order.index)
    kept = [{group.root: group.kept for group in plan.groups}[first] for plan in (once, again)]
    assert kept[0] == kept[1]


def test_one_round_of_the_gradual_strategy_is_one_shot(planned):
    (once, _), (again, _) = planned(), planned(strategy="gradual", rounds=1)
    assert again.groups == once.groups


@pytest.mark.parametrize("strategy", ["sequential", "gradual"])
def test_the_plan_is_one_for_the_original_checkpoint(classifier, planned, strategy, tmp_path):
    plan, _ = planned(strategy=strategy)
    plan.save(tmp_path / "plan.json")
    pruned = apply_plan(classifier, PruningPlan.load(tmp_path / "plan.json"))
    assert measure_size(pruned).parameters < measure_size(classifier).parameters


def test_global_allocation_takes_more_from_layers_with_more_low_scores(planned):
    (uniform, _), (together, _) = planned(), planned(allocation="global")
    shares = [1 - len(group.kept) / group.channels for group in together.groups if group.note is None]
    assert len({round(share, 2) for share in shares}) > 1
    total = [sum(len(group.kept) for group in plan.groups) for plan in (uniform, together)]
    assert total[1] == pytest.approx(total[0], rel=0.15)
    assert np.all([len(group.kept) >= 4 for group in together.groups])


def in_rounds(classifier, scorer, tune=None):
    plan = make_plan(classifier, scorer(classifier), PlanOptions(channel_multiple=4))
    return prune_gradually(classifier, plan, scorer, rounds=3, multiple=4, tune=tune)


def test_rounds_without_tuning_leave_the_plan_applied(classifier, scorer):
    plan, network = in_rounds(classifier, scorer)
    pixels = classifier.example_pixels(2)
    assert torch.equal(network(pixels), apply_plan(classifier, plan)(pixels))


def test_each_round_but_the_last_is_tuned_and_the_next_sees_it(classifier, scorer):
    before = measure_size(classifier).parameters
    tuned = []

    def tune(network, number):
        tuned.append((number, measure_size(network).parameters))
        network = copy.deepcopy(network)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.5)
        return network

    plan, network = in_rounds(classifier, scorer, tune)
    sizes = [size for _, size in tuned]
    assert [number for number, _ in tuned] == [1, 2]
    assert before > sizes[0] > sizes[1] > measure_size(network).parameters
    assert scorer.calls[2:] == sizes  # the dense network twice, then what was tuned
    for mine, other in zip(network.parameters(), apply_plan(classifier, plan).parameters(), strict=True):
        assert torch.equal(mine, other / 4)
