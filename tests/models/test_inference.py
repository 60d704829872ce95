import pytest
import torch

from fsrp_edge.models import cifar, registry
from fsrp_edge.models.inference import _FAMILY_KEYS, compare, infer_architecture, no_match

ONE_OF_EACH_FAMILY = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_16",
]


def weights(architecture: str, classes: int, channels: int = 3) -> dict[str, torch.Tensor]:
    """Shapes are all that inference looks at."""
    return registry.build_without_weights(architecture, classes, channels).state_dict()


def test_the_table_of_families_is_complete():
    families = {registry.family_of(name) for name in registry.torchvision_names()}
    assert families == set(_FAMILY_KEYS)
    assert {registry.family_of(name) for name in ONE_OF_EACH_FAMILY} == families


@pytest.mark.parametrize("name", [*ONE_OF_EACH_FAMILY, "resnext50_32x4d", "vgg16_bn", "swin_v2_t"])
def test_torchvision_networks(name):
    match = infer_architecture(weights(f"torchvision:{name}", 37))
    assert match is not None
    assert (match.architecture, match.classes) == (f"torchvision:{name}", 37)


@pytest.mark.parametrize("name", [*cifar.FACTORIES, "vgg16_bn-w0.25", "vgg16_bn-w0.171875", "wide_resnet16_4"])
def test_cifar_networks(name):
    match = infer_architecture(weights(f"cifar:{name}", 10))
    assert match is not None
    assert (match.architecture, match.classes, match.input_channels) == (f"cifar:{name}", 10, 3)


@pytest.mark.slow
def test_no_two_networks_share_names_and_shapes():
    names = [f"cifar:{name}" for name in cifar.FACTORIES]
    names += [f"torchvision:{name}" for name in registry.torchvision_names()]
    signatures = {frozenset((key, tuple(tensor.shape)) for key, tensor in weights(name, 10).items()) for name in names}
    assert len(signatures) == len(names) > 90


def test_input_channels_are_read():
    match = infer_architecture(weights("torchvision:resnet18", 3, channels=1))
    assert match is not None and match.input_channels == 1


def test_training_heads_do_not_count():
    state = weights("torchvision:googlenet", 3) | {"aux1.fc2.weight": torch.zeros(3, 1024, device="meta")}
    match = infer_architecture(state)
    assert match is not None and match.architecture == "torchvision:googlenet"


def test_the_group_that_trades_never_runs_does_not_count():
    state = weights("cifar:wide_resnet10_2", 10)
    state |= {f"sub_{name}": tensor for name, tensor in state.items() if name.startswith("block1.")}
    match = infer_architecture(state)
    assert match is not None and match.architecture == "cifar:wide_resnet10_2"


def test_differences_are_counted_and_named():
    state = weights("torchvision:resnet18", 3)
    state["surprise"] = state.pop("layer1.0.bn1.weight")
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    assert infer_architecture(state) is None
    match = compare("torchvision:resnet18", state)
    assert match.missing == ("layer1.0.bn1.weight",) and match.unexpected == ("surprise",)
    assert match.reshaped == (("conv1.weight", (64, 3, 7, 7), (64, 3, 3, 3)),)
    text = str(no_match(state))
    assert text.count("torchvision:") == 2, "of the others, resnet18 has less than half of the tensors"
    assert "layer1.0.bn1.weight" in text and "conv1.weight (64x3x3x3, not 64x3x7x7)" in text


def test_a_network_wider_than_any_we_carry_is_told_to_be_named():
    state = {"features.0.weight": torch.zeros(300, 3, 3, 3), "classifier.weight": torch.zeros(10, 512)}
    assert infer_architecture(state) is None
    assert "name it with --arch" in str(no_match(state))


def test_pruned_weights_without_their_layout_are_explained():
    state = weights("torchvision:resnet18", 3)
    state["layer1.0.conv1.weight"] = torch.zeros(40, 64, 3, 3)
    state["layer1.0.conv2.weight"] = torch.zeros(64, 40, 3, 3)
    for kind in ("weight", "bias", "running_mean", "running_var"):
        state[f"layer1.0.bn1.{kind}"] = torch.zeros(40)
    assert infer_architecture(state) is None
    assert "cannot be rebuilt without its channel layout" in str(no_match(state))


def renamed(state: dict[str, torch.Tensor], before: str, after: str) -> dict[str, torch.Tensor]:
    return {name.replace(before, after): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("architecture", "head", "near"),
    [
        ("torchvision:resnet50", "fc.", "torchvision:resnet50: 2 tensors missing, such as fc.weight"),
        ("cifar:vgg16_bn", "classifier.", "cifar:vgg16_bn: 2 tensors missing, such as classifier.weight"),
        ("cifar:resnet18", "linear.", "cifar:resnet18: 2 tensors missing, such as linear.weight"),
    ],
)
def test_the_nearest_are_of_the_family_that_begins_alike(architecture, head, near):
    assert f"Nearest: {near}" in str(no_match(renamed(weights(architecture, 10), head, "top.")))


def test_nothing_is_named_as_near_that_shares_little_but_its_first_tensor():
    state = {f"{name}.weight": torch.zeros(6, 3, 5, 5) for name in ("conv1", "conv2", "fc1", "fc2")}
    assert "Nearest" not in str(no_match(state))
    assert "Nearest" not in str(no_match({"stem.weight": torch.zeros(3)}))


def test_a_smaller_kernel_is_no_sign_of_pruning():
    state = weights("torchvision:resnet18", 10) | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    text = str(no_match(state))
    assert "channels removed" not in text
    assert "torchvision:resnet18: 1 of another shape, such as conv1.weight (64x3x3x3, not 64x3x7x7)" in text


def test_a_users_factory_that_takes_no_classes(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))\n")
    state = {"0.weight": torch.zeros(4, 3, 3, 3), "0.bias": torch.zeros(4)}
    full = state | {"1.weight": torch.zeros(2, 4), "1.bias": torch.zeros(2)}
    assert compare(f"{file}:net", full).exact
    assert compare(f"{file}:net", state).missing == ("1.weight", "1.bias")
