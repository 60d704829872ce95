"""Score, plan, prune, fit, train and judge where the network is on a GPU."""

import math

import numpy as np
import pytest
import torch

from fsrp_edge.compute import default_device, device_of
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pruning.budgets import Budgets
from fsrp_edge.pruning.compensation import DenseOutputs
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.refinement import Gauge, Planner
from fsrp_edge.pruning.stepwise import plan_by_strategy
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import Criterion, score
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import recover
from tests.nets import built

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def images(count: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(count) % 10)


def dense() -> Classifier:
    classifier = built("cifar:resnet20-a")
    classifier.to_fast_layout(default_device())
    return classifier


@pytest.mark.parametrize("criterion", [
    FSRP(), Reconstruction(), *(Rival(name=name) for name in ("l1", "fpgm", "taylor", "batch-norm-scale", "activation"))
], ids=lambda criterion: criterion.name)  # fmt: skip
def test_scores_are_those_of_the_cpu(criterion: Criterion):
    here, there = dense(), built("cifar:resnet20-a")
    ours, theirs = (score(network, images(64), criterion, seed=0) for network in (here, there))
    for layer, found in ours.layers.items():
        values = np.array([found.scores, theirs.layers[layer].scores])
        assert np.isfinite(values).all()
        assert math.isclose(*values.sum(1), rel_tol=0.1, abs_tol=1e-6)


@pytest.mark.parametrize("strategy", ["one-shot", "sequential", "gradual"])
def test_a_network_is_pruned_fitted_trained_and_judged(strategy: str):
    network, some = dense(), images(128)

    def scorer(classifier: Classifier) -> FilterScores:
        assert device_of(classifier).type == "cuda"
        return score(classifier, some, FSRP(), seed=0)

    options = PlanOptions(ratio=0.5, strategy=strategy)  # type: ignore[arg-type]
    plan = plan_by_strategy(network, make_plan(network, scorer(network), options), options, scorer)
    pruned = apply_plan(network, plan, DenseOutputs(network, some))
    recipe = Recipe(method="pgd", attack_steps=2, epochs=1, batch_size=16, distillation=0.5, ema_decay=0.9)
    recovered = recover(pruned, some, recipe, seed=0, teacher=network).classifier
    found = evaluate(recovered, images(32), EvaluationPlan(attacks=("pgd-5", "autoattack")))
    assert len({evaluation.result.attack for evaluation in found}) == 4


def test_plans_are_weighed():
    network, some = dense(), images(128)
    scores = score(network, some, Rival(name="l1"), seed=0)
    wanted = PlanOptions(budgets=Budgets.model_validate({"parameters": "0.5"}), allocation="knapsack")
    plan = Planner(Gauge(network, some, compensated=True), scores).plan(wanted, None)
    assert device_of(apply_plan(network, plan)).type == "cuda"
