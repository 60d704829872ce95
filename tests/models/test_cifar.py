import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fsrp_edge.models import cifar

LARGE = {"resnet56-b", "resnet110-a", "resnet110-b", "wide_resnet28_10", "wide_resnet34_10"}
SMALL = [name for name in cifar.FACTORIES if name not in LARGE]


@settings(max_examples=25, deadline=None)
@given(inputs=st.integers(1, 9), extra=st.integers(0, 5), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_pad_shortcut_is_exactly_slicing_and_padding(inputs, extra, size, seed):
    x = torch.randn(2, inputs, size, size, generator=torch.Generator().manual_seed(seed))
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
    assert torch.equal(cifar.PadShortcut(inputs, inputs + 2 * extra)(x), expected)


def test_pad_shortcut_weight_stays_fixed_when_a_pruner_replaces_it():
    shortcut = cifar.PadShortcut(4, 8)
    assert not shortcut.weight.requires_grad
    shortcut.weight = nn.Parameter(shortcut.weight[:6].clone())
    assert not shortcut.weight.requires_grad
    assert "weight" in shortcut.state_dict()


def test_published_option_a_weights_load_without_the_shortcut_and_ours_with_it():
    network = cifar.FACTORIES["resnet20-a"](10, 3)
    state = network.state_dict()
    published = {name: tensor for name, tensor in state.items() if "shortcut" not in name}
    assert len(published) == len(state) - 2
    network.load_state_dict(published)
    changed = {**state, "layer2.0.shortcut.weight": torch.full_like(state["layer2.0.shortcut.weight"], 0.5)}
    network.load_state_dict(changed)
    assert network.get_submodule("layer2.0.shortcut").weight.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As their authors count them; option A's shortcuts are not trained.
        ("resnet20-a", 269_722),
        ("resnet56-a", 853_018),
        ("resnet18", 11_173_962),
        ("mobilenet_v2", 2_296_922),
        ("vgg16_bn", 14_724_042),
        ("wide_resnet28_10", 36_479_194),
        ("wide_resnet34_10", 46_160_474),
    ],
)
def test_trained_parameters(name, parameters):
    network = cifar.FACTORIES[name](10, 3)
    assert sum(each.numel() for each in network.parameters() if each.requires_grad) == parameters


@pytest.mark.parametrize("name", [*SMALL, "vgg16_bn-w0.25", "wide_resnet10_2"])
@torch.no_grad()
def test_logits_in_both_modes(name):
    network = cifar.factory(name)(7, 1)
    x = torch.rand(2, 1, 32, 32)
    assert network.train()(x).shape == (2, 7)
    assert network.eval()(x).shape == (2, 7)


def wide_as_published(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A WideResNet of one block a group, written down from TRADES' code and no other."""

    def activated(name: str, x: torch.Tensor) -> torch.Tensor:
        statistics = (state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics).relu()

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for block, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        layer = f"{block}.layer.0"
        x = activated(f"{layer}.bn1", x)
        out = activated(f"{layer}.bn2", F.conv2d(x, state[f"{layer}.conv1.weight"], stride=stride, padding=1))
        out = F.conv2d(out, state[f"{layer}.conv2.weight"], padding=1)
        x = F.conv2d(x, state[f"{layer}.convShortcut.weight"], stride=stride) + out
    x = F.avg_pool2d(activated("bn1", x), 8).flatten(1)
    return F.linear(x, state["fc.weight"], state["fc.bias"])


@torch.no_grad()
def test_a_wide_resnet_is_the_published_one():
    network = cifar.factory("wide_resnet10_2")(10, 3).eval()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in network.state_dict().items()}
    state |= {name: tensor - 0.5 for name, tensor in state.items() if "running_var" not in name}
    network.load_state_dict(state)
    x = torch.rand(3, 3, 32, 32, generator=generator)
    expected = wide_as_published(state, x)
    assert expected.std(dim=0).min() > 0.1
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("name", [
    "resnet21-a", "vgg16_bn-w0", "vgg16_bn-wide", "vgg16_bn-w-1", "vgg16_bn-wnan",
    "wide_resnet29_10", "wide_resnet04_10", "wide_resnet28_0", "wide_resnet28", "wide_resnet50_2",
])  # fmt: skip
def test_unknown_names_have_no_factory(name):
    assert cifar.factory(name) is None
