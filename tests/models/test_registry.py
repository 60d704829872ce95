import importlib.util
import sys

import pytest
import torch
from torch import nn

from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models import registry


@pytest.mark.parametrize(
    ("given", "identifier"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("cifar:resnet18", "cifar:resnet18"),
        ("resnet20-a", "cifar:resnet20-a"),
        ("vgg16_bn-w0.25", "cifar:vgg16_bn-w0.25"),
        ("timm:efficientnet_lite0", "timm:efficientnet_lite0"),
        ("mine.nets:small", "mine.nets:small"),
        ("nets/mine.py:small", "nets/mine.py:small"),
    ],
)
def test_normalize_name(given, identifier):
    assert registry.normalize_name(given) == identifier
    assert registry.normalize_name(identifier) == identifier


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("resnet19", "torchvision:resnet18"),
        ("torchvision:resnet20-a", "cifar:resnet20-a"),
        ("mobilenet-v2", "mobilenet_v2"),
        ("zzz", "timm:NAME"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(given, near):
    with pytest.raises(BadInputError) as refused:
        registry.normalize_name(given)
    assert near in str(refused.value) and given in str(refused.value)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_return_logits_in_both_modes(name):
    network = registry.build_without_weights(f"torchvision:{name}", 5)
    images = torch.zeros(2, 3, 299, 299, device="meta")
    assert network.train()(images).shape == (2, 5)
    assert network.eval()(images).shape == (2, 5)


def test_input_channels_reach_the_stem():
    network = registry.build("torchvision:resnet18", classes=3, input_channels=1).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


def test_without_weights_keeps_small_computations():
    """A RegNet computes its block widths with tensors, which have no values on the meta device."""
    network = registry.build_without_weights("torchvision:regnet_y_400mf", 3)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.fc.weight.shape == (3, 440)


@pytest.mark.parametrize(
    ("architecture", "size", "resizing", "mean", "std"),
    [
        ("torchvision:resnet18", 224, (256, "bilinear"), 0.485, 0.229),
        ("torchvision:efficientnet_b1", 240, (255, "bilinear"), 0.485, 0.229),
        ("torchvision:vit_h_14", 224, (224, "bicubic"), 0.485, 0.229),
        ("torchvision:googlenet", 224, (256, "bilinear"), 0.5, 0.5),
        ("cifar:resnet20-a", 32, (32, "bilinear"), 0.485, 0.229),
        ("cifar:vgg16_bn-w0.5", 32, (32, "bilinear"), 0.4914, 0.2470),
        ("cifar:resnet18", 32, (32, "bilinear"), 0.4914, 0.2023),
        ("cifar:wide_resnet34_10", 32, (32, "bilinear"), 0.0, 1.0),
    ],
)
def test_published_input(architecture, size, resizing, mean, std):
    shape, means, stds, preprocessing = registry.published_input(architecture)
    assert shape == (3, size, size)
    assert (means[0], stds[0]) == (mean, std)
    assert (preprocessing.resize, preprocessing.interpolation) == resizing


def test_published_input_of_grey_images_averages():
    shape, mean, std, _ = registry.published_input("torchvision:resnet18", input_channels=1)
    assert shape == (1, 224, 224)
    assert mean == pytest.approx((0.449,)) and std == pytest.approx((0.226,))


def test_a_googlenet_normalized_by_half_equals_torchvisions_transform_input():
    torch.manual_seed(0)
    network = registry.build("torchvision:googlenet", classes=4).eval()
    pixels = torch.rand(1, 3, 64, 64)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    with torch.no_grad():
        ours = network((pixels - 0.5) / 0.5)
        network.transform_input = True
        theirs = network((pixels - mean) / std)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


FACTORIES = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, num_classes=6):
        super().__init__(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
def fixed():
    return Net(9)
def anything(**options):
    return Net(**options)
def wrong():
    return 3
def lazy():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5))
def half():
    return Net().half()
def raises():
    raise KeyError("depth")
def leaves():
    raise SystemExit(2)
"""


@pytest.mark.parametrize(("factory", "classes"), [("Net", 5), ("fixed", 9), ("anything", 5)])
def test_factories_of_a_users_file(tmp_path, factory, classes):
    file = tmp_path / "nets.py"
    file.write_text(FACTORIES)
    network = registry.build(f"{file}:{factory}", classes=5)
    assert isinstance(network, nn.Sequential) and network[3].out_features == classes


def test_a_users_network_is_of_float32_whatever_it_was_trained_in(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(FACTORIES)
    network = registry.build(f"{file}:half", classes=6)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


def test_factories_of_an_importable_module(tmp_path, monkeypatch):
    (tmp_path / "my_little_nets.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.build("my_little_nets:fixed", classes=5)[3].out_features == 9


def test_a_users_code_finds_what_lies_beside_it_and_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "my_layers.py").write_text(FACTORIES)
    (tmp_path / "my_nets" / "by_script.py").write_text("from my_layers import fixed\n")
    (tmp_path / "my_nets" / "by_package.py").write_text(
        "def fixed():\n    import my_nets.my_layers as own\n    return own.fixed()\n"
    )
    for location in ("my_nets/by_script.py", "my_nets/by_package.py", "my_nets.by_package"):
        assert registry.build(f"{location}:fixed", classes=5)[3].out_features == 9


def test_factories_that_do_not_work_are_refused(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(FACTORIES)
    for name, message in [
        (f"{file}:absent", "has no function 'absent'"),
        (f"{file}:wrong", "returned int"),
        (f"{file}:lazy", "size is not known yet, such as nn.LazyLinear"),
        (
            f"{file}:raises",
            r"nets\.py:raises failed: KeyError: 'depth'; a factory is called with num_classes",
        ),
        (f"{file}:leaves", r"nets\.py:leaves failed: SystemExit"),
        ("json:loads", "json:loads failed: TypeError: .*missing 1 required"),
        (f"{tmp_path}/none.py:f", "no such file"),
        ("no_such_module_at_all:f", "PYTHONPATH"),
        (":f", "cannot import '': .* as package.module:FUNCTION"),
        (".relative:f", "cannot import '.relative': .* as package.module:FUNCTION"),
    ]:
        with pytest.raises(BadInputError, match=message):
            registry.build(name, classes=5)
    with pytest.raises(BadInputError, match="--input-size"):
        registry.published_input(f"{file}:Net")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def net(:", r"SyntaxError: invalid syntax \(nets\.py, line 1\)"),
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    ],
)
def test_files_that_cannot_be_imported_are_refused(tmp_path, code, message):
    file = tmp_path / "nets.py"
    file.write_text(code)
    with pytest.raises(BadInputError, match=rf"cannot import '.*nets\.py': {message}"):
        registry.build(f"{file}:net", classes=5)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_missing_names_the_extra():
    with pytest.raises(ToolFailedError, match=r'pip install "fsrp-edge\[timm\]"'):
        registry.build("timm:resnet18", classes=5)


def test_timm_networks():
    pytest.importorskip("timm", reason="timm is not installed")
    network = registry.build("timm:resnet18", classes=5, input_channels=1)
    assert network.conv1.in_channels == 1 and network.fc.out_features == 5
    assert registry.published_input("timm:resnet18")[0] == (3, 224, 224)
    with pytest.raises(BadInputError, match="timm:resnet18"):
        registry.build("timm:resnet18x", classes=5)
