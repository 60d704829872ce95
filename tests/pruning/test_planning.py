import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.channel_graph import ChannelGroup, Member, PruningGraph
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.saved import save_checkpoint_pt, save_classifier, weights_sha256
from fsrp_edge.models.size import measure_size
from fsrp_edge.pruning import surgery
from fsrp_edge.pruning.budgets import Budgets
from fsrp_edge.pruning.candidates import group_scores, kept_count
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.overview import inspect_network
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import least_network, make_plan
from fsrp_edge.pruning.surgery import apply_plan, remove_channels
from fsrp_edge.scoring.rivals import Rival, score_rival
from fsrp_edge.scoring.scores import FilterScores, LayerScores
from tests.nets import as_classifier


@pytest.fixture(scope="module")
def resnet(carried):
    return carried("cifar:resnet20-b")


@given(st.integers(1, 4096), st.floats(0, 0.999), st.integers(1, 64), st.integers(1, 4))
def test_kept_count_is_a_multiple_nearest_to_the_ratio(channels, ratio, step, steps):
    least = steps * step
    kept = kept_count(channels, ratio, step, least)
    assert min(least, channels) <= kept <= channels
    if kept < channels:
        assert kept % step == 0
        assert kept == least or abs(kept - channels * (1 - ratio)) <= step
    assert kept_count(channels, 0, step, least) == channels


def test_coupled_layers_weigh_the_same_whatever_their_scale_and_order():
    members = (Member("a", (0, 1), (0, 1)), Member("b", (1, 0), (0, 1)), Member("unscored", (0, 1), (0, 1)))
    layers = {"a": LayerScores(scores=(1.0, 3.0)), "b": LayerScores(scores=(900.0, 100.0))}
    scores = FilterScores(
        criterion="l1", options={}, architecture="x", model_sha256="", data_sha256=None, images=0, seed=0, layers=layers
    )  # fmt: skip
    found = group_scores(ChannelGroup("a", 2, members, ()), scores)
    assert found == pytest.approx([(0.5 + 0.2) / 2, (1.5 + 1.8) / 2])


def test_energies_do_not_mix_with_ratios_of_bands():
    """As those of a squeeze-excite gate with the ratios of the maps that it multiplies."""
    maps, gate = Member("maps", (0, 1), (0, 1)), Member("gate", (0, 1, 2), (0, 1, 2))
    layers = {"maps": LayerScores(scores=(1.0, 3.0), map_size=(8, 8))}
    for size in ((1, 1), (2, 2), (16, 1)):
        layers["gate"] = LayerScores(scores=(64.0, 1.0, 1.0), map_size=size)
        scores = FilterScores(
            criterion="fsrp", options={}, architecture="x", model_sha256="", data_sha256=None, images=0, seed=0,
            layers=layers,
        )  # fmt: skip
        found = group_scores(ChannelGroup("gate", 3, (gate, maps), ()), scores)
        assert found == pytest.approx([0.5, 1.5, 1 / 22])  # the third channel has no other score
        alone = group_scores(ChannelGroup("gate", 3, (gate,), ()), scores)
        assert alone == pytest.approx([64 / 22, 1 / 22, 1 / 22])


def test_scores_that_are_not_one_a_channel_are_refused(resnet):
    scores = score_rival(resnet, None, Rival(name="l1"), seed=0)
    cut = scores.layers | {"conv1": LayerScores(scores=scores.layers["conv1"].scores[:5])}
    for layers, why in (
        (cut, "5 scores of layer conv1, which has 16 channels"),
        ({"bn1": cut["conv1"]}, "has no channels"),
    ):
        with pytest.raises(BadInputError, match=why):
            make_plan(resnet, scores.model_copy(update={"layers": layers}), PlanOptions(ratio=0.5))


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_ratio_of_parameters_or_macs_is_met(resnet, planned, of, ratio):
    plan = planned(resnet, ratio=ratio, ratio_of=of)
    before, after = measure_size(resnet), measure_size(apply_plan(resnet, plan))
    assert 1 - getattr(after, of) / getattr(before, of) == pytest.approx(ratio, abs=0.02)
    assert (plan.ratio, plan.ratio_of) == (ratio, of)


def test_a_share_that_goes_anyway_takes_no_more(resnet, planned):
    """Because of layers with ratios of their own, or as one channel is more than that."""
    own = {"layer_ratios": [("layer3.*", 0.9)], "ratio": 0.2, "ratio_of": "parameters", "channel_multiple": 12}
    for allocation in ("uniform", "global"):
        plan = planned(resnet, allocation=allocation, **own)
        assert {group.root.partition(".")[0] for group in plan.groups if len(group.kept) < group.channels} == {"layer3"}
    plan = planned(resnet, ratio=0.0005, ratio_of="parameters", allocation="global")
    assert sum(group.channels - len(group.kept) for group in plan.groups) == 1


def test_unreachable_ratio_names_the_nearest_which_is_reachable(resnet, planned):
    with pytest.raises(BadInputError, match=r"99\.0% of the macs cannot be removed.*8\d\.\d% is the most") as raised:
        planned(resnet, ratio=0.99, ratio_of="macs", channel_multiple=8)
    nearest = float(str(raised.value).partition("--ratio ")[2].split()[0])
    plan = planned(resnet, ratio=nearest, ratio_of="macs", channel_multiple=8)
    least = inspect_network(resnet, 8).minimum
    assert measure_size(apply_plan(resnet, plan)) == least


def test_locks_keep_outputs_inputs_and_the_first_layer(resnet, planned):
    plan = planned(resnet, ratio=0.5, keep=["layer1.?.conv1"], keep_inputs=["layer2.1.conv2"], keep_first=True)
    groups = {group.root: group for group in plan.groups}
    for root, reason in {
        "layer1.1.conv1": "--keep layer1.?.conv1",
        "layer2.1.conv1": "--keep-inputs layer2.1.conv2",
        "conv1": "--keep-first",
    }.items():
        assert len(groups[root].kept) == groups[root].channels and reason in groups[root].note
    pruned = apply_plan(resnet, plan).network
    assert pruned.layer2[1].conv2.in_channels == 32 and pruned.layer2[1].conv2.out_channels == 16
    assert len(groups["layer3.1.conv1"].kept) == 32


def test_layer_ratio_overrides_the_common_one(resnet, planned):
    plan = planned(resnet, ratio=0.5, layer_ratios=[("layer3.*.conv1", 0.75), ("layer3.0.conv1", 0)])
    kept = {group.root: len(group.kept) for group in plan.groups}
    assert (kept["layer3.0.conv1"], kept["layer3.1.conv1"], kept["layer2.1.conv1"]) == (64, 16, 16)


@pytest.mark.parametrize("option", ["keep", "keep_inputs", "layer_ratios"])
def test_pattern_without_a_layer_is_refused_with_the_nearest(resnet, planned, option):
    pattern = "layer1.0.conv3"
    value = [(pattern, 0.5)] if option == "layer_ratios" else [pattern]
    with pytest.raises(BadInputError, match=r"no layer is called 'layer1.0.conv3'; nearest: layer1\.0\.conv"):
        planned(resnet, **{option: value})


def test_plan_file_gives_the_same_network_from_another_copy_of_the_checkpoint(resnet, planned, tmp_path):
    planned(resnet, ratio=0.6, channel_multiple=4).save(tmp_path / "plan.json")
    pruned = []
    for name, save in (("a.safetensors", save_classifier), ("b.pt", save_checkpoint_pt)):
        save(resnet, tmp_path / name)
        loaded = load_classifier(tmp_path / name)
        pruned.append(apply_plan(loaded, PruningPlan.load(tmp_path / "plan.json")))
        save_classifier(pruned[-1], tmp_path / f"pruned-{name}.safetensors")
    assert weights_sha256(pruned[0]) == weights_sha256(pruned[1])
    first, second = (tmp_path / f"pruned-{name}.safetensors" for name in ("a.safetensors", "b.pt"))
    assert first.read_bytes() == second.read_bytes()
    assert weights_sha256(load_classifier(first)) == weights_sha256(pruned[0])


def test_plan_that_touches_a_locked_group_is_refused(resnet, planned):
    plan = planned(resnet, ratio=0.5)
    groups = tuple(
        group.model_copy(update={"kept": (0, 1)}) if group.root == "linear" else group for group in plan.groups
    )
    with pytest.raises(BadInputError, match="removes channels of linear, but these channels are the network's output"):
        apply_plan(resnet, plan.model_copy(update={"groups": groups}))


def test_overview_accounts_for_every_layer(resnet):
    overview = inspect_network(resnet, 8)
    assert sum(group.macs for group in overview.groups) == overview.dense.macs
    assert sum(group.parameters for group in overview.groups) == overview.dense.parameters
    assert [group.layers for group in overview.groups if group.reason_to_keep] == [("linear",)]


def scores_of(classifier, layers):
    return FilterScores(
        criterion="l1",
        options={},
        architecture="own:network",
        model_sha256=weights_sha256(classifier.network),
        data_sha256=None,
        images=0,
        seed=0,
        layers={name: LayerScores(scores=(1.0,) * count) for name, count in layers.items()},
    )


def test_channels_that_fewer_layers_make_score_no_less():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.a1, self.a2, self.b = (nn.Conv2d(3, n, 1) for n in (16, 8, 8, 8))
            self.linear = nn.Linear(16, 10)

        def forward(self, x):
            y = torch.cat((self.a1(x) + self.a2(x), self.b(x)), 1) + self.c(x)
            return self.linear(y.mean((2, 3)))

    dense = as_classifier(Network(), "own:network", shape=(3, 8, 8))
    group = PruningGraph(dense).groups()[0]
    scores = scores_of(dense, {"c": 16, "a1": 8, "a2": 8, "b": 8})
    np.testing.assert_allclose(group_scores(group, scores), np.ones(16))


class Twice(nn.Module):
    """A layer that stands twice in a concatenation, which is flattened: its channels are not followed."""

    def __init__(self):
        super().__init__()
        self.stem, self.second, self.linear = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(8 * 64, 10)

    def forward(self, x):
        x = self.stem(x)
        half = self.second(x)
        return self.linear((torch.cat([half, half], 1) + x).flatten(1))


def test_scores_of_a_locked_group_are_not_looked_up(planned):
    dense = as_classifier(Twice(), "own:network", shape=(3, 8, 8))
    with pytest.raises(BadInputError, match=r"nothing can be removed .* flattened after a concatenation"):
        planned(dense, ratio=0.5)


class Branches(nn.Module):
    """Four layers that make a quarter each of what is added up."""

    def __init__(self, width):
        super().__init__()
        self.stem, self.last, self.linear = nn.Conv2d(3, 4 * width, 1), nn.Conv2d(4 * width, 8, 1), nn.Linear(8, 10)
        self.branches = nn.ModuleList(nn.Conv2d(4 * width, width, 1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        return self.linear(self.last(x + torch.cat([branch(x) for branch in self.branches], 1)).mean((2, 3)))


def branches(width=4):
    return as_classifier(Branches(width), "own:network", shape=(3, 8, 8))


@pytest.mark.parametrize(
    "asked", [{"ratio": 0.9}, {"budgets": {"macs": "25%"}}, {"ratio": 0.9, "allocation": "global"}]
)
@pytest.mark.parametrize(("multiple", "least"), [(1, 4), (3, 6)])
def test_every_layer_before_a_concatenation_keeps_a_channel(planned, asked, multiple, least):
    pruned = branches()
    plan = planned(pruned, channel_multiple=multiple, **asked)
    assert least <= len(plan.groups[0].kept) < 16
    remove_channels(pruned.network, PruningGraph(pruned).groups(), {group.root: group.kept for group in plan.groups})
    assert min(branch.out_channels for branch in pruned.network.branches) >= 1
    assert pruned(pruned.example_pixels(2)).shape == (2, 10)


def test_the_least_that_a_plan_may_leave_runs_behind_a_concatenation(monkeypatch):
    monkeypatch.setattr(surgery, "with_layer_shapes", lambda _, spec: spec)  # no file makes this network
    least = least_network(branches(), PlanOptions())
    assert [branch.out_channels for branch in least.network.branches] == [1, 1, 1, 1]
    assert measure_size(least) == inspect_network(branches(), 1).minimum


def test_a_group_of_which_each_layer_needs_a_channel_can_lose_none():
    reason = inspect_network(branches(width=1), 1).groups[0].reason_to_keep
    assert reason.startswith("4 channels are no more than the 4 that its layers need")


def test_a_network_whose_layer_lost_all_channels_is_refused_in_a_line():
    dense = branches()
    with pytest.raises(
        ToolFailedError, match=r"does not run after channels were removed .* needs all channels of stem"
    ):
        surgery.smaller(dense, PruningGraph(dense).groups(), {"stem": (0, 1)})


def test_a_budget_that_scored_groups_cannot_meet_is_refused():
    dense = as_classifier(
        nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3),
                      nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        "own:network", shape=(3, 16, 16),
    )  # fmt: skip
    scores = score_rival(dense, None, Rival(name="batch-norm-scale"), seed=0)
    options = PlanOptions(budgets=Budgets(parameters="30%"))
    with pytest.raises(BadInputError, match="cannot be reached"):
        make_plan(dense, scores, options)
