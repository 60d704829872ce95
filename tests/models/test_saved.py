import json
import sys

import pytest
import safetensors
import safetensors.torch
import torch
import torch_pruning
from torch import nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.models import registry
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.models.layer_shapes import with_layer_shapes
from fsrp_edge.models.saved import METADATA_KEY, save_checkpoint_pt, save_classifier, weights_sha256

SAVERS = [(save_classifier, "net.safetensors"), (save_checkpoint_pt, "net.pt")]


def classifier_of(architecture: str, size: int = 32, classes: int = 5) -> Classifier:
    torch.manual_seed(0)
    network = registry.build(architecture, classes=classes)
    _, mean, std, preprocessing = registry.published_input(architecture)
    spec = ModelSpec(
        architecture=architecture,
        input_shape=(3, size, size),
        classes=classes,
        mean=mean,
        std=std,
        preprocessing=preprocessing,
        class_names=tuple("abcde"[:classes]),
    )
    return Classifier(network, spec).eval()


def pruned(classifier: Classifier) -> Classifier:
    network = classifier.network
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch_pruning.pruner.MetaPruner(
        network,
        classifier.example_pixels(),
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[head],
        round_to=4,
    ).step()
    return Classifier(network, with_layer_shapes(network, classifier.spec)).eval()


@pytest.fixture(scope="module")
def small() -> Classifier:
    return classifier_of("cifar:vgg16_bn-w0.0625")


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize(
    "architecture",
    ["torchvision:resnet18", "cifar:resnet20-a", "torchvision:mobilenet_v2", "torchvision:convnext_tiny"],
)
def test_a_pruned_network_comes_back_bit_for_bit_without_torch_pruning(tmp_path, architecture, monkeypatch):
    dense = classifier_of(architecture, size=64)
    before = sum(each.numel() for each in dense.parameters())
    classifier = pruned(dense)
    assert sum(each.numel() for each in classifier.parameters()) < 0.6 * before
    x = classifier.example_pixels(2)
    with torch.no_grad():
        expected = classifier(x)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # importing it fails from here on
    for save, name in SAVERS:
        save(classifier, tmp_path / name)
        loaded = load_classifier(tmp_path / name)
        assert loaded.spec == classifier.spec and not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(x), expected)
        assert weights_sha256(loaded) == weights_sha256(classifier)
        # Trainable exactly where it was: option A's shortcut stays fixed.
        assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
            n: p.requires_grad for n, p in classifier.named_parameters()
        }


def test_the_same_classifier_gives_the_same_bytes(tmp_path, small):
    files = []
    for number in range(6):
        save_classifier(small, tmp_path / f"{number}.safetensors")
        files.append((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(set(files)) == 1


def test_channels_last_networks_are_saved(tmp_path, small):
    save_classifier(small, tmp_path / "a.safetensors")
    moved = Classifier(small.network.to(memory_format=torch.channels_last), small.spec)
    save_classifier(moved, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_pt_file_is_a_plain_one(tmp_path, small):
    save_checkpoint_pt(small, tmp_path / "net.pt")
    contents = torch.load(tmp_path / "net.pt", weights_only=True)
    assert contents.keys() == {"state_dict", "fsrp_edge_spec"}
    assert json.loads(contents["fsrp_edge_spec"])["architecture"] == small.spec.architecture


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_wishes_replace_what_was_saved(tmp_path, save, name):
    classifier = classifier_of("cifar:resnet20-a")
    save(classifier, tmp_path / name)
    spec = load_classifier(tmp_path / name, input_size=64, mean=(0, 0, 0)).spec
    assert spec.input_shape == (3, 64, 64) and spec.preprocessing.resize == 64
    assert spec.mean == (0, 0, 0) and spec.std == classifier.spec.std and spec.class_names == tuple("abcde")


def test_the_digest_sees_values_names_and_shapes_but_not_the_layout(small):
    network = small.network
    digest = weights_sha256(network)
    assert digest == weights_sha256(small) == weights_sha256(network.to(memory_format=torch.channels_last))
    assert weights_sha256(nn.Linear(2, 3)) != weights_sha256(nn.Linear(2, 3))
    with torch.no_grad():
        network.classifier.bias[0] += 1
        assert weights_sha256(network) != digest
        network.classifier.bias[0] -= 1


def test_a_specification_that_does_not_describe_the_network_is_refused(tmp_path):
    classifier = classifier_of("cifar:resnet20-a")
    dense = classifier.spec
    wrong = Classifier(pruned(classifier).network, dense)
    for save, name in SAVERS:
        with pytest.raises(BadInputError, match="with_layer_shapes"):
            save(wrong, tmp_path / name)
        assert not (tmp_path / name).exists()


def rewritten(tmp_path, classifier, change):
    """A file of ours whose specification was changed by hand."""
    path = tmp_path / "net.safetensors"
    save_classifier(classifier, path)
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    change(about)
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file(weights, path, metadata={METADATA_KEY: json.dumps(about)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.pop("spec"), "damaged specification"),
        (lambda about: about["spec"].update(surprise=1), "this version does not read"),
        (lambda about: about["spec"].update(classes=6), "classifier.bias is"),
        (
            lambda about: about["spec"].update(layer_shapes={"classifier": {"tensors": {"weight": [10**6, 10**6]}}}),
            "classifier.weight is",
        ),
        *(
            (
                lambda about, sizes=sizes: about["spec"].update(
                    layer_shapes={"classifier": {"tensors": {"weight": sizes}}}
                ),
                "damaged specification: no tensor can have the recorded sizes",
            )
            for sizes in ([10**9, 10**9, 3, 3], [10**20, 1])
        ),
        (
            lambda about: about["spec"].update(layer_shapes={"absent": {"tensors": {"weight": [1]}}}),
            "the architecture lacks",
        ),
        (
            lambda about: about["spec"].update(layer_shapes={"classifier": {"attributes": {"forward": 1}}}),
            "'forward'",
        ),
        (lambda about: about["spec"].update(architecture="os:getcwd"), "--arch"),
    ],
)
def test_a_file_with_a_wrong_specification_is_refused(tmp_path, small, change, message):
    spec = small.spec.model_copy(update={"class_names": None})
    path = rewritten(tmp_path, Classifier(small.network, spec), change)
    with pytest.raises(BadInputError, match=message):
        load_classifier(path)


def test_a_users_factory_has_to_be_named_again(tmp_path):
    """Building it runs the user's code, which a file alone must not start."""
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    layers = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(4, num_classes))\n"
    )
    spec = classifier_of("cifar:vgg16_bn-w0.0625").spec.model_copy(update={"architecture": f"{file}:net"})
    classifier = Classifier(registry.build(f"{file}:net", classes=5), spec).eval()
    save_classifier(classifier, tmp_path / "net.safetensors")
    with pytest.raises(BadInputError, match="--arch"):
        load_classifier(tmp_path / "net.safetensors")
    loaded = load_classifier(tmp_path / "net.safetensors", architecture=f"{file}:net")
    assert weights_sha256(loaded) == weights_sha256(classifier)
