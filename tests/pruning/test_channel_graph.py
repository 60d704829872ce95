import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_pruning import importance

from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.channel_graph import IS_OUTPUT, PruningGraph
from fsrp_edge.models.size import measure_size
from fsrp_edge.pruning.candidates import choose_channels
from fsrp_edge.pruning.counting import SizeCounter
from fsrp_edge.pruning.surgery import apply_plan, remove_channels
from tests.nets import as_classifier
from tests.pruning.conftest import CountsChannels

CUSTOM = Path(__file__).parents[2] / "benchmarks" / "custom_network.py"


def custom_module():
    spec = importlib.util.spec_from_file_location("custom_network", CUSTOM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classifier_of(network, architecture="own:network"):
    return as_classifier(network, architecture, std=0.5)


def groups_of(network):
    return {group.root: group for group in PruningGraph(classifier_of(network)).groups()}


def assert_pruned_as_masked(dense, planned, error_against_masking, names):
    """The layers of these names lose channels, and what is left computes what the dense network does without those."""
    groups = PruningGraph(dense).groups()
    plan = planned(dense, ratio=0.5)
    kept = {group.root: group.kept for group in plan.groups}
    pruned = copy.deepcopy(dense)
    remove_channels(pruned.network, groups, kept)
    for name in names:
        assert pruned.network.get_submodule(name).out_channels < dense.network.get_submodule(name).out_channels
    assert error_against_masking(dense, pruned, groups, plan) < 1e-9


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("cifar:resnet20-a", 32),
        ("cifar:mobilenet_v2", 32),
        ("cifar:wide_resnet10_2", 32),
        ("torchvision:shufflenet_v2_x0_5", 64),
        ("torchvision:regnet_y_400mf", 64),
        ("torchvision:efficientnet_b0", 64),
        ("torchvision:squeezenet1_1", 64),
        ("torchvision:googlenet", 64),
    ],
)
def test_pruned_network_computes_what_the_masked_one_does(architecture, size, carried, planned, error_against_masking):
    dense = carried(architecture, size)
    groups = PruningGraph(dense).groups()
    plan = planned(dense, ratio=0.5, channel_multiple=4)
    pruned = copy.deepcopy(dense)
    kept = {group.root: group.kept for group in plan.groups}
    remove_channels(pruned.network, groups, kept)
    assert measure_size(pruned).macs < 0.75 * measure_size(dense).macs
    assert error_against_masking(dense, pruned, groups, plan) < 1e-9
    assert SizeCounter(dense, groups).size(kept) == measure_size(pruned)
    off = [group for group in plan.groups if len(group.kept) % 4]
    assert all(group.note for group in off)


def test_custom_network_is_pruned_where_channels_are_known(planned, error_against_masking):
    torch.manual_seed(0)
    dense = classifier_of(custom_module().build())
    groups = PruningGraph(dense).groups()
    plan = planned(dense, ratio=0.5, keep=["wide"])  # a group norm mixes: its outputs could not be compared
    pruned = copy.deepcopy(dense)
    remove_channels(pruned.network, groups, {group.root: group.kept for group in plan.groups})
    assert error_against_masking(dense, pruned, groups, plan) < 1e-9
    kept = {group.root: len(group.kept) for group in plan.groups}
    assert kept["stem"] == 16  # frozen, and coupled with a layer that is used twice
    assert kept["middle"] == 32 and pruned.network.grouped.groups == 4
    assert kept["multiplier"] == 64 and pruned.network.multiplier.groups == 8
    assert not pruned.network.stem.weight.requires_grad
    locked = {group.root: group.locked for group in groups if group.locked}
    assert "conv2d in the network" in locked["before_functional"]
    assert "indexing" in locked["after_functional"]
    assert "in eca" in locked["halves"]
    assert "in spatial" in locked["before_spatial"]
    assert locked["head"] == IS_OUTPUT


def test_group_norm_loses_equal_positions_of_every_block(planned):
    dense = classifier_of(custom_module().build())
    plan = planned(dense, ratio=0.5)
    kept = next(group.kept for group in plan.groups if group.root == "wide")
    assert len(kept) == 32
    assert all(
        {channel % 16 for channel in kept if channel // 16 == block} == {c % 16 for c in kept} for block in range(4)
    )


class Body(nn.Module):
    def __init__(self, between, width=16):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 16, 3, padding=1)
        self.between = between
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(F.relu(self.second(self.between(self.first(x)))).mean((2, 3)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def assigned(target, index, value):
    target = target.clone()
    target[index] = value
    return target


HALF, PLACES = (slice(None), slice(8)), (slice(None), slice(None), slice(2))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("assignment to an index", lambda x: assigned(x, HALF, 0)),
        ("assignment to an index", lambda x: assigned(torch.zeros(x.shape), (slice(None), slice(16)), x)),
        ("channel_shuffle", lambda x: F.channel_shuffle(x, 4)),
        ("flip", lambda x: x.flip(1)),
        ("roll", lambda x: torch.roll(x, 1, 1)),
        ("indexing", lambda x: x[:, torch.arange(15, -1, -1)]),
        ("chunk", lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1)),
        ("softmax", lambda x: x.softmax(dim=1)),
        ("reshape", lambda x: x.reshape(x.shape[0], 4, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
        ("pad", lambda x: F.pad(x, (0, 0, 0, 0, 8, 8))[:, 8:-8]),
        ("pad", lambda x: F.pad(x, (0, 0, 0, 0, 1, -1))),
        ("pad", lambda x: F.pad(input=x, pad=(0, 0, 0, 0, -1, 1))),
        ("indexing", lambda x: F.pad(x.flatten(2)[:, :, 1:], (1, 0)).reshape(x.shape)),
        ("matmul", lambda x: (x.flatten(2).transpose(1, 2) @ torch.eye(16)).transpose(1, 2).reshape(x.shape)),
        ("mean", lambda x: x * x.permute(0, 2, 3, 1).mean(3)[:, None]),
        ("cat", lambda x: torch.cat([x, x], dim=2)[:, :, : x.shape[2]] if False else torch.cat([x, x], 2)),
    ],
)
def test_operations_that_reorder_or_mix_channels_lock_them_by_name(name, function):
    group = groups_of(Body(Call(function)))["first"]
    assert group.locked and name in group.locked and "in between" in group.locked


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(F.gelu(x), 2),
        lambda x: F.interpolate(x, scale_factor=2.0),
        lambda x: torch.max(x, 0.1 * x).min(x.tanh()),
        lambda x: F.pad(x, (1, 1, 1, 1))[:, :, ::2, ::2],
        lambda x: assigned(assigned(x, PLACES, 0), PLACES, x[PLACES]),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: x * torch.sigmoid(x.mean((2, 3)))[:, :, None, None],
        lambda x: x * torch.sigmoid(torch.mean(input=x, dim=(2, 3)).unsqueeze(2).unsqueeze(3)),
        lambda x: torch.unsqueeze(input=F.pad(input=x, pad=(1, 1, 1, 1)), dim=4).squeeze(4),
        lambda x: torch.reshape(torch.flatten(input=x, start_dim=2), x.shape),
        lambda x: F.dropout(x.clamp(-1, 1), 0.1) / 2 + 1,
        lambda x: 1 / (1 + 2 ** x.reciprocal()),
        lambda x: F.pad(F.pad(x, (1, 1, 0, 0, 0, 0)).flatten(2), (1, -1)).reshape(*x.shape[:-1], -1),
        lambda x: x - x.permute(0, 2, 3, 1).transpose(-1, 1).mean((2, 3), keepdim=True),
    ],
)
def test_operations_on_each_channel_alone_do_not_lock(function):
    assert groups_of(Body(Call(function)))["first"].locked is None


def test_bare_parameter_is_cut_along_its_channel_axis(planned, error_against_masking):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(16, 1, 1))

        def forward(self, x):
            return x * self.gamma

    torch.manual_seed(0)
    dense = classifier_of(Body(Scale()))
    groups, plan = PruningGraph(dense).groups(), planned(dense, ratio=0.5)
    pruned = copy.deepcopy(dense)
    remove_channels(pruned.network, groups, {group.root: group.kept for group in plan.groups})
    assert pruned.network.between.gamma.shape == (8, 1, 1)
    assert error_against_masking(dense, pruned, groups, plan) < 1e-9


@pytest.mark.parametrize("shape", [(-1, 1, 1), (16, 1, 1), (1, -1, 1, 1)])
def test_bare_parameter_that_takes_another_shape_locks_the_channels_it_meets(shape):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma, self.factor = nn.Parameter(torch.randn(16)), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * self.gamma.reshape(shape) * self.factor.view(1, 1, 1, 1)

    groups = groups_of(Body(Scale()))
    assert "reshape in between" in groups["first"].locked and groups["second"].locked is None


@pytest.mark.parametrize("change", [torch.sigmoid, lambda gamma: 1 + gamma])
def test_one_value_a_channel_is_computed_with_before_it_meets_them(change):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(16))

        def forward(self, x):
            return x * change(self.gamma)[None, :, None, None]

    groups = groups_of(Body(Gate()))
    assert "indexing in between" in groups["first"].locked and groups["second"].locked is None


@pytest.mark.parametrize(
    ("shape", "function"),
    [
        ((), lambda x, alpha: x + alpha * F.relu(x)),
        ((), lambda x, alpha: x * (1 / alpha)),
        ((), lambda x, alpha: x * torch.erf(alpha[None])),
        ((3,), lambda x, alphas: x * alphas[0]),
        ((2,), lambda x, alphas: x * alphas.softmax(0)[0] + F.relu(x) * alphas.softmax(0)[1]),
    ],
)
def test_one_learned_value_locks_no_channels(shape, function, planned, error_against_masking):
    class Weighs(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha = nn.Parameter(torch.full(shape, 0.7))

        def forward(self, x):
            return function(x, self.alpha)

    dense = classifier_of(Body(Weighs()))
    assert_pruned_as_masked(dense, planned, error_against_masking, ["first", "second"])


class Shifts(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.register_buffer("shift", torch.randn(shape))

    def forward(self, x):
        return x + self.shift


@pytest.mark.parametrize("shape", [(16, 1, 1), (1, 16, 1, 1), (1, 16, 32, 32)])
def test_a_buffer_of_one_value_a_channel_locks_the_channels_it_meets(shape):
    groups = groups_of(Body(Shifts(shape)))
    assert "constant of one value a channel in between" in groups["first"].locked and groups["second"].locked is None


@pytest.mark.parametrize("shape", [(), (1,), (32, 32), (1, 1, 32, 32)])
def test_a_buffer_of_one_value_for_all_channels_locks_none(shape):
    assert groups_of(Body(Shifts(shape)))["first"].locked is None


def test_frozen_batch_norms_lock_the_channels_they_normalize():
    from torchvision.ops import FrozenBatchNorm2d  # once fsrp_edge has mended it

    groups = groups_of(Body(FrozenBatchNorm2d(16)))
    assert "in between" in groups["first"].locked and groups["second"].locked is None


def test_a_bare_parameter_of_two_names_locks_the_channels_it_meets():
    network = Cat(lambda net, a, b: torch.cat([a * net.gamma, b * net.same], 1))
    network.gamma = network.same = nn.Parameter(torch.randn(1, 8, 1, 1))
    groups = groups_of(network)
    assert "2 names in the network" in groups["a"].locked and groups["last"].locked is None


class NamesItsInput(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(input=x, weight=self.weight, bias=self.bias)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_a_convolution_may_name_its_input(order):
    turned = Call(lambda x: x.permute(order))
    groups = groups_of(Body(nn.Sequential(turned, NamesItsInput(32 if order[1] == 2 else 16, 16, 1))))
    assert bool(groups["first"].locked) == (order[1] == 2)


@pytest.mark.parametrize(
    ("tail", "features"),
    [
        (lambda net, a, b: torch.cat([net.t(a), net.t(b)], 1).mean((2, 3)), 16),
        (lambda net, a, b: net.t(b).flatten(1), 512),
    ],
)
def test_one_slope_for_all_channels_is_followed(tail, features, planned, error_against_masking):
    dense = as_classifier(TwoConvolutions(tail, features, t=nn.PReLU()), "own:network", shape=(3, 8, 8))
    assert_pruned_as_masked(dense, planned, error_against_masking, "ab")


def test_weight_computed_elsewhere_is_named():
    network = Body(nn.Identity())
    nn.utils.parametrizations.weight_norm(network.first)
    assert "first computes its weight" in groups_of(network)["first"].locked


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_gradients_rank_the_groups_whose_weights_have_some(norm):
    network = Body(nn.Identity())
    norm(network.first)
    classifier = classifier_of(network)
    graph = PruningGraph(classifier)
    classifier(classifier.example_pixels()).sum().backward()
    assert graph.ranked_by(importance.TaylorImportance()).keys() == {"second", "head"}
    assert graph.ranked_by(importance.MagnitudeImportance()).keys() == {"first", "second", "head"}


def test_tracing_leaves_the_network_as_it_was():
    network = Body(nn.BatchNorm2d(16)).train()
    network.first.requires_grad_(False)
    classifier = classifier_of(network).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    PruningGraph(classifier).groups()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training for module in classifier.modules())
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == [
        "first.weight",
        "first.bias",
    ]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("network", [nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), nn.Conv2d(3, 10, 32)])
def test_network_without_filters_to_prune_is_refused(network):
    with pytest.raises(BadInputError, match="there are no filters to prune"):
        PruningGraph(classifier_of(network))


class TwoConvolutions(nn.Module):
    def __init__(self, tail, features, **more):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail, self.linear = tail, nn.Linear(features, 10)
        for name, layer in more.items():
            self.add_module(name, layer)

    def forward(self, x):
        a = F.relu(self.a(x))
        return self.linear(self.tail(self, a, F.relu(self.b(a))))


TAILS = {
    "flattened with channels last": (lambda _, a, b: b.permute(0, 2, 3, 1).flatten(1), 512, {}),
    "concatenated, then flattened": (lambda _, a, b: torch.cat((a, b), 1).flatten(1), 1024, {}),
    "linear over places": (lambda net, a, b: net.t(b.flatten(2)).mean(2), 8, {"t": nn.Linear(64, 64)}),
    "reshaped with channels last": (
        lambda net, a, b: net.t(b.permute(0, 2, 3, 1).reshape(len(b), 8, -1)).mean(1),
        8,
        {"t": nn.Linear(64, 8)},
    ),
    "convolved along height": (
        lambda net, a, b: net.t(b.transpose(1, -2)).mean((2, 3)),
        8,
        {"t": nn.Conv2d(8, 8, 1)},
    ),
    "flattened beside what is cut": (
        lambda net, a, b: net.t(b.flatten(1)) + net.u(a.permute(0, 2, 3, 1).reshape(len(a), 8, -1)).mean(1),
        8,
        {"t": nn.Linear(512, 8), "u": nn.Linear(64, 8)},
    ),
    "layer norm over width": (lambda net, a, b: net.t(b).mean((2, 3)), 8, {"t": nn.LayerNorm(8)}),
}


def pooled(maps, side=1):
    return F.adaptive_avg_pool2d(maps, side).flatten(1)


def pooled_twice(maps):
    return torch.cat([F.adaptive_avg_pool2d(maps, 1), F.adaptive_max_pool2d(maps, 1)], 1).flatten(1)


@pytest.mark.parametrize(
    ("tail", "features"),
    [
        (lambda _, a, b: torch.cat([pooled(a), pooled(b)], 1), 16),
        (lambda _, a, b: torch.cat([pooled_twice(b), a.mean((2, 3))], 1), 24),
        (lambda _, a, b: torch.cat([a.mean((2, 3)).view(len(a), -1), pooled_twice(a), pooled_twice(b)], 1), 40),
    ],
)
def test_maps_of_several_levels_are_pruned_where_they_are_pooled(tail, features, planned, error_against_masking):
    torch.manual_seed(0)
    assert_pruned_as_masked(classifier_of(TwoConvolutions(tail, features)), planned, error_against_masking, "ab")


@pytest.mark.parametrize("axes", [(), (None, None)])
@pytest.mark.parametrize(("side", "other"), [(2, 1), (1, 2), (2, 2), (3, 2)])
def test_flattened_maps_that_are_concatenated_stay(side, other, axes):
    def tail(_, a, b):
        parts = [pooled(maps, size)[:, :, *axes] for maps, size in ((a, side), (b, other))]
        return torch.cat(parts, 1).flatten(1)

    groups = groups_of(TwoConvolutions(tail, 8 * (side**2 + other**2)))
    assert all("pass through cat" in groups[name].locked for name in "ab")


def test_a_sum_with_a_concatenation_that_is_flattened_is_planned_around(planned):
    tail = lambda net, a, b: (a + torch.cat([F.relu(net.t(b)), net.u(b)], 1)).flatten(1)  # noqa: E731
    network = TwoConvolutions(tail, 512, t=nn.Conv2d(8, 4, 1), u=nn.Conv2d(8, 4, 1))
    dense = as_classifier(network, "own:network", shape=(3, 8, 8))
    kept = {group.root: len(group.kept) for group in planned(dense, ratio=0.5).groups}
    assert kept["a"] == 8 and kept["b"] == 4


@pytest.mark.parametrize("name", TAILS)
def test_what_reads_channels_elsewhere_locks_them(name):
    tail, features, more = TAILS[name]
    dense = as_classifier(TwoConvolutions(tail, features, **more), "own:network", shape=(3, 8, 8))
    groups = {member.layer: group for group in PruningGraph(dense).groups() for member in group.members}
    assert groups["b"].locked


def test_channels_that_a_linear_layer_makes_last_stay_where_they_are_flattened():
    tail = lambda net, a, b: net.t(b.permute(0, 2, 3, 1)).flatten(1)  # noqa: E731
    dense = as_classifier(TwoConvolutions(tail, 64 * 6, t=nn.Linear(8, 6)), "own:network", shape=(3, 8, 8))
    groups = {group.root: group for group in PruningGraph(dense).groups()}
    assert "pass through flatten" in groups["t"].locked and groups["b"].locked is None


def test_maps_are_flattened_behind_a_gate_of_linear_layers(planned, error_against_masking):
    tail = lambda net, a, b: (b * torch.sigmoid(net.t(b.mean((2, 3))))[:, :, None, None]).flatten(1)  # noqa: E731
    dense = as_classifier(TwoConvolutions(tail, 512, t=nn.Linear(8, 8)), "own:network", shape=(3, 8, 8))
    assert_pruned_as_masked(dense, planned, error_against_masking, "ab")


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.last, self.head = nn.Conv2d(8, 16, 3), nn.Linear(16, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.last(self.second(self.first(self.stem(x)))).mean((2, 3)))


def test_layers_with_one_weight_lose_nothing():
    groups = groups_of(Tied())
    assert all("shares its weight" in groups[name].locked for name in ("stem", "first", "second"))
    assert groups["last"].locked is None


def test_what_a_network_keeps_of_its_last_run_can_be_copied():
    network = Body(nn.Identity())
    network.first = torch.nn.utils.weight_norm(network.first)
    network.second.register_forward_hook(lambda module, inputs, output: setattr(module, "seen", output))
    groups = groups_of(network)
    assert "computes its weight" in groups["first"].locked and groups["second"].locked is None
    copy.deepcopy(network)


def test_a_grouped_convolution_with_one_output_a_group_is_not_taken_for_depthwise(planned, error_against_masking):
    torch.manual_seed(0)
    dense = classifier_of(
        Body(nn.Sequential(nn.ReLU(), nn.Conv2d(32, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 32, 1)), 32)
    )
    groups, plan = PruningGraph(dense).groups(), planned(dense, ratio=0.5)
    pruned = copy.deepcopy(dense)
    remove_channels(pruned.network, groups, {group.root: group.kept for group in plan.groups})
    assert pruned.network.first.out_channels == 16 and pruned.network.between[1].groups == 8
    assert error_against_masking(dense, pruned, groups, plan) < 1e-9
    reason = {group.root: group.locked for group in groups}["between.1"]
    assert reason == "between.1 makes one of them in each of its 8 groups"


class Concatenated(nn.Module):
    """Two layers side by side, what each is followed by, and what reads both; a sum may tie them together."""

    def __init__(self, left, whole, reader, width):
        super().__init__()
        self.whole = nn.Conv2d(3, 32, 1) if whole else None
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
        self.left, self.reader, self.head = left, reader, nn.Linear(width, 10)

    def forward(self, x):
        both = torch.cat([self.left(self.a(x)), self.b(x)], 1)
        return self.head(F.relu(self.reader(both + self.whole(x) if self.whole else both)).mean((2, 3)))


@pytest.mark.parametrize(
    ("left", "whole", "reader", "width"),
    [
        (nn.GroupNorm(4, 16), True, nn.Conv2d(32, 16, 1), 16),
        (nn.Sequential(nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1, groups=8)), True, nn.Conv2d(32, 16, 1), 16),
        (nn.Identity(), False, nn.GroupNorm(4, 32), 32),
        (nn.Identity(), False, nn.Conv2d(32, 16, 1, groups=4), 16),
    ],
)
def test_what_divides_but_some_of_a_groups_channels_or_more_than_these_locks_them(left, whole, reader, width):
    groups = {member.layer: group for group in groups_of(Concatenated(left, whole, reader, width)).values()
              for member in group.members}  # fmt: skip
    assert "divide them differently" in groups["b"].locked
    assert "divide them differently" in groups["whole" if whole else "a"].locked


class Joined(nn.Module):
    """A concatenation tied to a residual sum: two of its layers make but half of a group each."""

    def __init__(self):
        super().__init__()
        self.whole, self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.last, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)
        return self.head(self.last(x).mean((2, 3)))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_no_layer_before_a_concatenation_loses_all_its_channels(count):
    dense = classifier_of(Joined())
    group = groups_of(Joined())["whole"]
    kept = choose_channels(np.arange(16.0), count, group)  # every channel of `left` is worse than any of `right`
    assert kept == (7, *range(17 - count, 16))
    groups = PruningGraph(dense).groups()
    pruned = copy.deepcopy(dense)
    remove_channels(pruned.network, groups, {"whole": kept})
    assert pruned.network.left.out_channels == 1 and pruned.network.right.out_channels == count - 1
    assert pruned(pruned.example_pixels()).shape == (1, 10)


def test_a_plan_that_leaves_a_layer_no_channel_is_refused(planned):
    dense = classifier_of(Joined())
    plan = planned(dense, ratio=0.5)
    groups = [
        group.model_copy(update={"kept": tuple(range(8, 16))}) if group.root == "whole" else group
        for group in plan.groups
    ]
    with pytest.raises(BadInputError, match="leaves no channel to left; keep one of 0 to 7"):
        apply_plan(dense, plan.model_copy(update={"groups": tuple(groups)}))


def test_the_layer_is_named_whose_channels_a_network_counts_on(planned):
    dense = classifier_of(CountsChannels())
    with pytest.raises(ToolFailedError, match="needs all channels of second; keep them with --keep second"):
        apply_plan(dense, planned(dense, ratio=0.5))
    plan = planned(dense, ratio=0.5, keep=["second"])
    remove_channels(dense.network, PruningGraph(dense).groups(), {group.root: group.kept for group in plan.groups})
    assert dense.network.first.out_channels == 4 and dense(dense.example_pixels()).shape == (1, 10)


class Cat(nn.Module):
    """What `join` makes of two convolutions of 8 channels, which a last one reads."""

    def __init__(self, join, width=16, **more):
        super().__init__()
        for name, layer in more.items():
            self.add_module(name, layer)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.join, self.last, self.head = join, nn.Conv2d(width, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.last(self.join(self, self.a(x), self.b(x))).mean((2, 3)))


@pytest.mark.parametrize(("layer", "width"), [(nn.GroupNorm(2, 16), 16), (nn.Conv2d(16, 32, 1, groups=2), 32)])
def test_groups_that_several_layers_fill_lock_them(layer, width):
    groups = groups_of(Cat(lambda net, a, b: net.layer(torch.cat([a, b], 1)), width, layer=layer))
    assert all("layer (2 groups)" in groups[name].locked for name in "ab")


@pytest.mark.parametrize(
    "join",
    [
        lambda net, a, b: net.whole(a) + torch.cat([a, -a], 1),
        lambda net, a, b: net.whole(a) + torch.cat([b, net.depthwise(b)], 1),
    ],
)
def test_channels_that_a_concatenation_ties_to_each_other_stay(join):
    groups = groups_of(Cat(join, whole=nn.Conv2d(8, 16, 1), depthwise=nn.Conv2d(8, 8, 1, groups=8)))
    assert "ties some of them to others" in groups["whole"].locked and groups["last"].locked is None


def test_concatenations_without_ties_lock_nothing():
    groups = groups_of(
        Cat(lambda net, a, b: torch.cat([a, net.depthwise(a)], 1), depthwise=nn.Conv2d(8, 8, 1, groups=8))
    )
    assert groups["depthwise"].locked is None


@pytest.mark.parametrize("error", [AssertionError(), ValueError("16 are expected"), KeyError("channels")])
def test_the_layer_is_named_whatever_a_network_raises(planned, error):
    def insist(x):
        if x.shape[1] != 16:
            raise error
        return x

    dense = classifier_of(Body(Call(insist)))
    with pytest.raises(ToolFailedError, match="needs all channels of first; keep them with --keep first"):
        apply_plan(dense, planned(dense, ratio=0.5))


class Auxiliary(Body):
    """A second head, which evaluation throws away."""

    def __init__(self):
        super().__init__(nn.ReLU())
        self.aux, self.norm, self.aux_head = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        logits, aux = super().forward(x), self.aux_head(self.norm(self.aux(self.first(x).sigmoid())).mean((2, 3)))
        return (logits, aux) if self.training else logits


def test_a_head_that_is_computed_for_training_alone_is_cut_with_what_it_reads(planned, error_against_masking):
    torch.manual_seed(0)
    dense = classifier_of(Auxiliary())
    groups, plan = PruningGraph(dense).groups(), planned(dense, ratio=0.5)
    pruned = copy.deepcopy(dense)
    remove_channels(pruned.network, groups, {group.root: group.kept for group in plan.groups})
    assert pruned.network.first.out_channels == pruned.network.aux.in_channels == 8
    assert error_against_masking(dense, pruned, groups, plan) < 1e-9
    locked = {group.root: group.locked for group in groups}
    assert pruned.network.norm.num_features == 4
    assert locked["aux_head"] == "nothing reads what aux_head makes of them"
