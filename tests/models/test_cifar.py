import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fsrp_edge.models import cifar

SMALL = [name for name in cifar.FACTORIES if name not in {"resnet56-b", "resnet110-a", "resnet110-b"}]


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
    ],
)
def test_trained_parameters(name, parameters):
    network = cifar.FACTORIES[name](10, 3)
    assert sum(each.numel() for each in network.parameters() if each.requires_grad) == parameters


@pytest.mark.parametrize("name", [*SMALL, "vgg16_bn-w0.25"])
@torch.no_grad()
def test_logits_in_both_modes(name):
    network = cifar.factory(name)(7, 1)
    x = torch.rand(2, 1, 32, 32)
    assert network.train()(x).shape == (2, 7)
    assert network.eval()(x).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet21-a", "vgg16_bn-w0", "vgg16_bn-wide", "vgg16_bn-w-1", "vgg16_bn-wnan"])
def test_unknown_names_have_no_factory(name):
    assert cifar.factory(name) is None
