"""Plans that are weighed on the whole network."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fsrp_edge import progress
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.models.channel_graph import PruningGraph
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.refinement import Gauge, Planner, most_trials, tempered_divergence
from tests.nets import as_classifier
from tests.pruning.conftest import CountsChannels, random_scores


class Known(Gauge):
    """A network whose groups are worth what we say: so much times the square of the share that is gone."""

    def __init__(self, classifier: Classifier, worth: Mapping[str, float]) -> None:
        self.classifier, self.worth, self.asked = classifier, worth, 0
        self.channels = {group.root: group.channels for group in PruningGraph(classifier).groups()}

    def divergence(self, kept: Mapping[str, Sequence[int]]) -> float:
        self.asked += 1
        gone = {root: 1 - len(channels) / self.channels[root] for root, channels in kept.items()}
        return sum(self.worth.get(root, 1.0) * share**2 for root, share in gone.items())


@pytest.fixture(scope="module")
def resnet(carried):
    return carried("cifar:resnet20-b")


def budgets(**asked: str) -> PlanOptions:
    return PlanOptions.model_validate({"budgets": asked, "channel_multiple": 2})


def counts(plan) -> dict[str, int]:
    return {group.root: len(group.kept) for group in plan.groups}


def test_what_is_worth_nothing_goes_and_what_is_worth_much_stays(resnet):
    scores, wanted = random_scores(resnet), budgets(macs="0.5")
    uniform = make_plan(resnet, scores, wanted.model_copy(update={"allocation": "uniform"}))
    inside = [group.root for group in uniform.groups if len(group.layers) == 1 and len(group.kept) > 2]
    cheap, dear = inside[0], inside[1]
    gauge = Known(resnet, {cheap: 1e-3, dear: 100.0})
    plan = Planner(gauge, scores).plan(wanted, None)
    assert gauge.asked <= most_trials(len(plan.groups))
    assert plan.allocation == "knapsack" and plan.budgets[0].planned <= plan.budgets[0].limit
    assert counts(plan)[cheap] < counts(uniform)[cheap] and counts(plan)[dear] > counts(uniform)[dear]
    before, after = (gauge.divergence({g.root: g.kept for g in each.groups}) for each in (uniform, plan))
    assert after < 0.8 * before


def test_other_budgets_take_no_further_trials(resnet):
    gauge = Known(resnet, {})
    planner = Planner(gauge, random_scores(resnet))
    first = planner.plan(budgets(macs="0.5"), None)
    asked = gauge.asked
    tighter, wider = (planner.plan(budgets(macs=share), None) for share in ("0.45", "0.6"))
    assert gauge.asked == asked
    assert tighter.budgets[0].planned <= tighter.budgets[0].limit < first.budgets[0].planned
    assert first.budgets[0].planned < wider.budgets[0].planned <= wider.budgets[0].limit
    assert all(counts(wider)[root] >= kept for root, kept in counts(first).items())


def test_a_search_is_told_trial_by_trial(resnet):
    """Of a ResNet-50 there is one round, a quarter of an hour long."""
    gauge, asked = Known(resnet, {}), [0]

    def track(items, _description, _total):
        for item in items:
            yield item
            asked.append(gauge.asked)

    with progress.listen(SimpleNamespace(track=track, log=lambda _: None)):
        Planner(gauge, random_scores(resnet)).plan(budgets(macs="0.5"), None)
    assert max(np.diff(asked)) <= 2


def test_without_a_common_ratio_the_scores_decide_where_to_start(resnet):
    scores, wanted = random_scores(resnet), budgets(macs="0.5", parameters="0.95")
    free = max(make_plan(resnet, scores, PlanOptions(ratio=0.5)).groups, key=lambda group: group.channels)
    locked = wanted.model_copy(update={"keep": tuple(free.layers)})
    plan = Planner(Known(resnet, {}), scores).plan(locked, None)
    assert counts(plan)[free.root] == free.channels
    assert all(each.planned <= each.limit for each in plan.budgets)


@pytest.mark.parametrize("compensated", [True, False])
def test_outputs_move_more_with_fewer_channels_and_least_with_none_gone(trained_checkpoint, compensated):
    dense = load_classifier(trained_checkpoint)
    before, images = (
        weights_sha256(dense.network),
        open_dataset("digits", dense.spec, seed=0).train.sample(96, 0),
    )
    gauge, scores = Gauge(dense, images, compensated=compensated), random_scores(dense)
    moved = []
    for ratio in (0.1, 0.3, 0.5):
        plan = make_plan(dense, scores, PlanOptions(ratio=ratio))
        moved.append(gauge.divergence({group.root: group.kept for group in plan.groups}))
    assert gauge.divergence({}) < moved[0] < moved[1] < moved[2]
    assert not compensated or gauge.divergence({}) < 1e-6
    assert weights_sha256(dense.network) == before


def test_what_was_measured_before_an_interruption_is_not_measured_again(resnet, tmp_path: Path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    images = ImageSet.of("noise", ArraySource(pixels), torch.zeros(8))
    root = PruningGraph(resnet).groups()[0].root
    measured = []

    def gauge() -> Gauge:
        return Gauge(resnet, images, compensated=True, unfinished=tmp_path / "trials.json")

    first = gauge()
    before = [first.divergence({root: range(count)}) for count in (4, 6)]
    measure = Gauge._measured
    monkeypatch.setattr(Gauge, "_measured", lambda self, kept: measured.append(kept) or measure(self, kept))
    second = gauge()
    assert [second.divergence({root: range(count)}) for count in (4, 6)] == before and not measured
    assert second.divergence({root: range(5)}) not in before and len(measured) == 1


def test_compensation_moves_outputs_back(trained_checkpoint):
    dense = load_classifier(trained_checkpoint)
    images = open_dataset("digits", dense.spec, seed=0).train.sample(192, 0)
    plan = make_plan(dense, random_scores(dense), PlanOptions(ratio=0.4))
    kept = {group.root: group.kept for group in plan.groups}
    with_it, without = (Gauge(dense, images, compensated=each).divergence(kept) for each in (True, False))
    assert with_it < without


def test_what_is_only_too_sure_of_itself_has_lost_nothing():
    dense = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    assert tempered_divergence(dense, dense) == 0
    assert tempered_divergence(10 * dense, dense) < 1e-6
    other = dense + torch.randn(dense.shape, generator=torch.Generator().manual_seed(1))
    assert tempered_divergence(other, dense) == pytest.approx(tempered_divergence(10 * other, dense), rel=1e-3)
    assert tempered_divergence(other, dense) > 0.1
    assert tempered_divergence(torch.full_like(dense, math.nan), dense) == math.inf


def test_the_search_starts_where_ratios_that_change_through_the_network_lose_less(resnet):
    scores, wanted = random_scores(resnet), budgets(macs="0.5")
    late = {group.root: 100.0 if group.root.startswith("layer3") else 0.01 for group in PruningGraph(resnet).groups()}
    plan = Planner(Known(resnet, late), scores).plan(wanted, None)
    uniform = make_plan(resnet, scores, wanted.model_copy(update={"allocation": "uniform"}))
    for group in plan.groups:
        if group.root.startswith("layer3"):
            assert len(group.kept) > counts(uniform)[group.root]


def test_images_may_be_few(resnet):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    gauge = Gauge(resnet, ImageSet.of("noise", ArraySource(pixels), torch.zeros(2)), compensated=True)
    assert np.isfinite(gauge.divergence({"layer1.0.conv1": (0, 1)}))


@pytest.mark.parametrize("compensated", [True, False])
def test_the_layer_is_named_whose_channels_a_network_counts_on(compensated):
    dense = as_classifier(CountsChannels())
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    gauge = Gauge(dense, ImageSet.of("noise", ArraySource(pixels), torch.zeros(8)), compensated=compensated)
    with pytest.raises(ToolFailedError, match="needs all channels of second; keep them with --keep second"):
        Planner(gauge, random_scores(dense)).plan(budgets(macs="0.5"), None)
