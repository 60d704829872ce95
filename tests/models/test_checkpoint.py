import argparse
import datetime
import os
import pickle
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fsrp_edge import progress
from fsrp_edge.errors import BadInputError
from fsrp_edge.models import registry
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.saved import save_checkpoint_pt, save_classifier, weights_sha256
from tests.nets import built

SHARED = Path(__file__).parents[2] / "../shared/models"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/models/{name} is not here")
    return path


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return registry.build("cifar:resnet20-a", classes=4).eval()


@pytest.fixture(scope="module")
def state(network) -> dict[str, torch.Tensor]:
    return dict(network.state_dict())


def saved(tmp_path: Path, value: object, name: str = "net.pt") -> Path:
    path = tmp_path / name
    torch.save(value, path)
    return path


def assert_same_network(classifier, network) -> None:
    x = classifier.example_pixels(2)
    with torch.no_grad():
        assert torch.equal(classifier(x), network((x - classifier.mean) / classifier.std))


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def track(self, items, description, total):
        yield from items

    def log(self, message: str) -> None:
        self.lines.append(message)


# --- files as users have them


def test_a_published_resnet20():
    classifier = load_classifier(shared("resnet20-cifar10.th"))
    assert classifier.spec.architecture == "cifar:resnet20-a"
    assert classifier.spec.classes == 10 and classifier.spec.mean == (0.485, 0.456, 0.406)
    assert not classifier.training


def test_half_precision_safetensors():
    classifier = load_classifier(shared("vgg16-cifar10-nfgsm.safetensors"))
    assert classifier.spec.architecture == "cifar:vgg16_bn"
    assert {tensor.dtype for tensor in classifier.parameters()} == {torch.float32}
    with safetensors.safe_open(shared("vgg16-cifar10-nfgsm.safetensors"), "pt") as file:
        assert torch.equal(classifier.network.classifier.weight, file.get_tensor("classifier.weight").float())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "best_prec1": 91.7, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda s: {"model_state_dict": s},
        lambda s: {"net": s, "acc": 93.1},
        lambda s: {"ema": s},
        lambda s: {"state_dict_ema": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"my_own_name": s, "epoch": 1},
    ],
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.module.", "my_cnn.body."]
)
def test_nestings_and_prefixes(tmp_path, state, network, wrap, prefix):
    path = saved(tmp_path, wrap({prefix + name: tensor for name, tensor in state.items()}))
    classifier = load_classifier(path)
    assert classifier.spec.architecture == "cifar:resnet20-a" and classifier.spec.classes == 4
    assert_same_network(classifier, network)


@pytest.mark.parametrize("suffix", [".pth", ".th", ".ckpt", ".pt"])
def test_the_suffix_does_not_matter(tmp_path, state, network, suffix):
    assert_same_network(load_classifier(saved(tmp_path, state, "net" + suffix)), network)


def test_safetensors_of_others_and_the_legacy_torch_format(tmp_path, state, network):
    safetensors.torch.save_file(state, tmp_path / "net.safetensors", metadata={"format": "pt"})
    assert_same_network(load_classifier(tmp_path / "net.safetensors"), network)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_network(load_classifier(tmp_path / "old.pth"), network)


def test_lightning_and_averaging_leftovers_are_left_out_and_said(tmp_path, state, network):
    mixed = {f"model.{name}": tensor for name, tensor in state.items()}
    mixed |= {"criterion.weight": torch.ones(4), "n_averaged": torch.tensor(3)}
    listener = Listener()
    with progress.listen(listener):
        classifier = load_classifier(saved(tmp_path, {"state_dict": mixed, "epoch": 1}))
    assert_same_network(classifier, network)
    assert any("1 tensors such as criterion.weight" in line for line in listener.lines)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
@pytest.mark.parametrize("name", ["criterion.weight", "class_weights", "loss_fn.bce.pos_weight"])
def test_the_weights_of_a_loss_are_left_out(tmp_path, state, network, prefix, name):
    mixed = {name: torch.ones(4)} | {prefix + each: tensor for each, tensor in state.items()}
    assert_same_network(load_classifier(saved(tmp_path, mixed)), network)


def test_the_nearest_is_found_behind_a_wrapper_of_any_name(tmp_path, state):
    wrapped = {f"my_cnn.{name.replace('linear', 'top')}": tensor for name, tensor in state.items()}
    with pytest.raises(BadInputError, match=r"the first my_cnn\.conv1.*Nearest: cifar:resnet20-a: 2 tensors missing"):
        load_classifier(saved(tmp_path, wrapped))


def test_a_file_of_nothing_but_a_loss_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no known architecture"):
        load_classifier(saved(tmp_path, {"criterion.weight": torch.ones(4)}))


@pytest.mark.parametrize(
    ("mean_name", "std_name", "shape"),
    [
        ("mean", "std", (1, 3, 1, 1)),
        ("normalize.mean", "normalize.std", (3,)),
        ("module.normalizer.new_mean", "module.normalizer.new_std", (3, 1, 1)),
        ("mu", "sigma", (3,)),
        ("0.mean", "0.std", (3,)),
    ],
)
def test_a_normalization_beside_the_weights_is_taken_and_said(tmp_path, state, network, mean_name, std_name, shape):
    outer = {"module": "module.model.", "0": "1."}.get(mean_name.partition(".")[0], "model.")
    mixed = {outer + name: tensor for name, tensor in state.items()}
    mixed |= {mean_name: torch.tensor([0.1, 0.25, 0.5]).view(shape), std_name: torch.full(shape, 0.75)}
    path = saved(tmp_path, {"state_dict": mixed})
    listener = Listener()
    with progress.listen(listener):
        classifier = load_classifier(path)
    assert classifier.spec.mean == (0.1, 0.25, 0.5) and classifier.spec.std == (0.75,) * 3
    assert_same_network(classifier, network)
    assert any("0.1,0.25,0.5,0.75" in line for line in listener.lines)
    spec = load_classifier(path, mean=[0.0] * 3).spec
    assert spec.mean == (0.0,) * 3 and spec.std == (0.75,) * 3


@pytest.mark.parametrize(("mean_name", "std_name"), [("mu", "sigma"), ("normalize.mean", "normalize.std")])
def test_a_normalization_among_bare_weights_is_taken(tmp_path, state, network, mean_name, std_name):
    constants = {mean_name: torch.tensor([0.1, 0.25, 0.5]).view(1, 3, 1, 1), std_name: torch.full((3,), 0.75)}
    classifier = load_classifier(saved(tmp_path, state | constants))
    assert classifier.spec.mean == (0.1, 0.25, 0.5) and classifier.spec.std == (0.75,) * 3
    assert_same_network(classifier, network)


@pytest.mark.parametrize("wrap", [torch.tensor, list, tuple])
def test_a_normalization_that_a_script_saved_beside_the_weights_is_taken(tmp_path, state, network, wrap):
    beside = {"mean": wrap([0.1, 0.25, 0.5]), "std": wrap([0.75] * 3)}
    classifier = load_classifier(saved(tmp_path, {"epoch": 3, "state_dict": state} | beside))
    assert classifier.spec.mean == (0.1, 0.25, 0.5) and classifier.spec.std == (0.75,) * 3
    assert_same_network(classifier, network)


@pytest.mark.parametrize("beside", [{"mean": "imagenet", "std": 1}, {"mean": [], "std": []}, {"mean": [0.5] * 3}])
def test_what_is_no_normalization_is_not_taken_for_one(tmp_path, state, network, beside):
    classifier = load_classifier(saved(tmp_path, {"state_dict": state} | beside))
    assert classifier.spec.mean == load_classifier(saved(tmp_path, state)).spec.mean
    assert_same_network(classifier, network)


def test_the_group_of_a_wide_resnet_that_trades_never_runs_is_left_out(tmp_path):
    network = registry.build("cifar:wide_resnet10_2", classes=10).eval()
    state = network.state_dict()
    unused = {f"sub_{name}": tensor + 1 for name, tensor in state.items() if name.startswith("block1.")}
    assert_same_network(load_classifier(saved(tmp_path, state | unused)), network)


def test_the_files_of_madrylab_s_robustness_which_hold_everything_twice(tmp_path, state, network):
    mixed = {}
    for outer, normalizer in (("module.", "normalizer"), ("module.attacker.", "normalize")):
        mixed[f"{outer}{normalizer}.new_mean"] = torch.tensor([0.1, 0.25, 0.5]).view(3, 1, 1)
        mixed[f"{outer}{normalizer}.new_std"] = torch.full((3, 1, 1), 0.75)
        mixed |= {f"{outer}model.{name}": tensor for name, tensor in state.items()}
    classifier = load_classifier(saved(tmp_path, {"model": mixed, "epoch": 90, "optimizer": {"state": {}}}))
    assert_same_network(classifier, network)
    assert classifier.spec.mean == (0.1, 0.25, 0.5) and classifier.spec.std == (0.75,) * 3


def test_a_normalization_of_other_pixels_is_refused_unless_one_is_given(tmp_path, state):
    mixed = {f"model.{name}": tensor for name, tensor in state.items()}
    path = saved(tmp_path, mixed | {"mean": torch.full((3,), 127.5), "std": torch.full((3,), 51.0)})
    with pytest.raises(BadInputError, match=r"127.5.* not for pixels in \[0, 1\]: give that with --mean and --std"):
        load_classifier(path)
    assert load_classifier(path, mean=[0.5] * 3, std=[0.2] * 3).spec.std == (0.2,) * 3


def test_averaged_weights_are_preferred_and_said(tmp_path, state, network):
    other = {name: tensor * 2 for name, tensor in state.items()}
    listener = Listener()
    with progress.listen(listener):
        classifier = load_classifier(saved(tmp_path, {"state_dict": other, "ema": state}))
    assert_same_network(classifier, network)
    assert any("'ema' is taken" in line for line in listener.lines)


def test_averaged_weights_beside_the_others_are_preferred_and_said(tmp_path, state, network):
    both = {f"model.{name}": tensor * 2 for name, tensor in state.items()}
    both |= {f"ema_model.{name}": tensor for name, tensor in state.items()}
    listener = Listener()
    with progress.listen(listener):
        classifier = load_classifier(saved(tmp_path, {"state_dict": both}))
    assert_same_network(classifier, network)
    assert any("are left out; ema_model.* is taken" in line for line in listener.lines)


def test_a_head_that_reads_a_known_network_is_not_dropped(tmp_path, state):
    more = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"fc.weight": torch.ones(7, 4)}
    with pytest.raises(BadInputError, match=r"fc\.weight seems to read the 4 outputs of cifar:resnet20-a: .*--arch"):
        load_classifier(saved(tmp_path, more))


def test_tied_weights_that_safetensors_keeps_once(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stem = nn.Conv2d(3, 4, 3)\n"
        "        self.features = nn.Sequential(self.stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "        self.head = nn.Linear(4, 6)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.features(x))\n"
    )
    network = registry.build(f"{file}:Net", classes=6).eval()
    safetensors.torch.save_model(network, tmp_path / "net.safetensors")
    flags = {"input_size": 20, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert_same_network(load_classifier(tmp_path / "net.safetensors", architecture=f"{file}:Net", **flags), network)


@pytest.mark.parametrize("nest", [lambda average: average, lambda average: {"decay": 0.999, "shadow": average}])
def test_averages_without_the_statistics_of_batch_norms_are_not_preferred(tmp_path, state, network, nest):
    average = {name: tensor for name, tensor in state.items() if "running" not in name and "num_batches" not in name}
    path = saved(tmp_path, {"state_dict": state, "ema": nest(average), "epoch": 3})
    assert_same_network(load_classifier(path), network)


def test_tensors_beside_a_state_dict_are_not_taken_for_it(tmp_path, state, network):
    path = saved(tmp_path, {"mean": torch.zeros(3), "std": torch.ones(3), "best_weights": state})
    assert_same_network(load_classifier(path), network)


def test_harmless_values_beside_the_weights(tmp_path, state, network):
    beside = {
        "state_dict": state,
        "acc": np.float64(93.1),
        "step": np.int64(3),
        "args": argparse.Namespace(lr=0.1, data=Path("/data/cifar"), logs=PureWindowsPath("C:/logs")),
        "ended": datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        "day": datetime.date(2024, 5, 6),
    }
    assert_same_network(load_classifier(saved(tmp_path, beside)), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, state, dtype):
    path = saved(tmp_path, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    classifier = load_classifier(path)
    assert {each.dtype for each in classifier.parameters()} == {torch.float32}
    assert torch.equal(classifier.network.conv1.weight, state["conv1.weight"].to(dtype).float())


def test_old_key_names_of_torchvisions_densenet(tmp_path):
    network = registry.build("torchvision:densenet121", classes=3)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: tensor
        for name, tensor in network.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    classifier = load_classifier(saved(tmp_path, old), input_size=64)
    assert_same_network(classifier, network.eval())


def loaded_by_own_code(tmp_path, code):
    """A class `Net` of a user's own file, a network of it, and that network as it comes back from a checkpoint."""
    (tmp_path / "own.py").write_text(code)
    architecture = f"{tmp_path / 'own.py'}:Net"
    network = registry.build(architecture, classes=5).eval()
    flags = {"input_size": 16, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return (
        architecture,
        network,
        load_classifier(saved(tmp_path, network.state_dict()), architecture=architecture, **flags),
    )


def test_names_of_a_users_own_are_not_changed(tmp_path):
    architecture, network, classifier = loaded_by_own_code(
        tmp_path,
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.denselayer1 = nn.Module()\n"
        "        self.denselayer1.conv = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))\n"
        "        self.head = nn.Linear(4, 5)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.denselayer1.conv(x).mean((2, 3)))\n",
    )
    assert_same_network(classifier, network)
    save_classifier(classifier, tmp_path / "own.safetensors")
    assert_same_network(load_classifier(tmp_path / "own.safetensors", architecture=architecture), network)


def test_what_a_module_keeps_beside_its_tensors_is_built_anew(tmp_path):
    architecture, network, classifier = loaded_by_own_code(
        tmp_path,
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
        "    def get_extra_state(self):\n"
        "        return {'version': 1}\n"
        "    def set_extra_state(self, state):\n"
        "        assert state == {'version': 1}\n",
    )
    for save, name in ((save_classifier, "own.safetensors"), (save_checkpoint_pt, "own.pt")):
        save(classifier, tmp_path / name)
        loaded = load_classifier(tmp_path / name, architecture=architecture)
        assert_same_network(loaded, network)
        assert weights_sha256(loaded) == weights_sha256(network)


# --- what the user says


def test_input_mean_and_std_of_the_user(tmp_path):
    network = registry.build("torchvision:resnet18", classes=3, input_channels=1)
    classifier = load_classifier(
        saved(tmp_path, network.state_dict()),
        input_size=56,
        mean=[0.1],
        std=[0.5],
    )
    spec = classifier.spec
    assert spec.input_shape == (1, 56, 56) and spec.mean == (0.1,) and spec.std == (0.5,)
    assert spec.classes == 3
    assert spec.preprocessing.resize == 64  # 256 / 224 of the input, as published


@pytest.mark.parametrize("name", ["resnet18", "cifar:resnet18"])
def test_a_bare_name_takes_the_network_that_fits(tmp_path, name):
    """`resnet18` is torchvision's unless the weights are those of the one for 32x32 images."""
    network = registry.build("cifar:resnet18", classes=3)
    classifier = load_classifier(saved(tmp_path, network.state_dict()), architecture=name)
    assert classifier.spec.architecture == "cifar:resnet18"


def test_a_users_own_factory(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.model = nn.Conv2d(3, 4, 3)\n"
        "        self.head = nn.Linear(4, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.model(x).mean((2, 3)))\n"
    )
    architecture = f"{file}:Net"
    network = registry.build(architecture, classes=6).eval()
    path = saved(tmp_path, {f"module.{name}": tensor for name, tensor in network.state_dict().items()})
    flags = {"input_size": 20, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    classifier = load_classifier(path, architecture=architecture, **flags)
    assert classifier.spec.classes == 6 and classifier.spec.architecture == architecture
    assert_same_network(classifier, network)
    with pytest.raises(BadInputError, match="--input-size 224 --mean"):
        load_classifier(path, architecture=architecture)


@pytest.mark.parametrize(
    ("arguments", "made", "message"),
    [
        ("x", "super().forward(x.mean((2, 3)).squeeze())", r"returns \(2,\) for a batch of one image"),
        ("x, depth", "super().forward(x.mean((2, 3)) * depth)", r"takes more than images.*'depth'.*factory"),
    ],
)
def test_a_network_that_makes_no_logits_of_images_is_told_why(tmp_path, arguments, made, message):
    with pytest.raises(BadInputError, match=message):
        loaded_by_own_code(
            tmp_path,
            "from torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self):\n"
            "        super().__init__(3, 2)\n"
            f"    def forward(self, {arguments}):\n"
            f"        return {made}\n",
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"architecture": "resnet56-a"}, r"these are not weights of cifar:resnet56-a: .*missing"),
        ({"architecture": "resnet1"}, "unknown architecture 'resnet1'"),
        ({"mean": [0.5]}, "mean and std need 3 values"),
        ({"mean": [123.675, 116.28, 103.53]}, "not for pixels in .0, 1.; .* --mean 0.485,0.456,0.406"),
        ({"std": [0, 1, 1]}, "greater than 0"),
        ({"input_size": 0}, "greater than 0"),
    ],
)
def test_wishes_that_do_not_fit(tmp_path, state, flags, message):
    with pytest.raises(BadInputError, match=message):
        load_classifier(saved(tmp_path, state), **flags)


def test_an_input_size_that_the_network_does_not_take(tmp_path):
    network = registry.build("cifar:vgg16_bn-w0.0625", classes=3)
    with pytest.raises(BadInputError, match="does not take 3x16x16 images"):
        load_classifier(saved(tmp_path, network.state_dict()), input_size=16)


# --- files that must not be believed


class Hostile:
    """Unpickling it creates a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, state, new_format):
    target = tmp_path / "owned"
    path = tmp_path / "net.pt"
    torch.save({"state_dict": state, "x": Hostile(target)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(BadInputError, match="--trust-pickle") as refused:
        load_classifier(path)
    assert "unpickling them runs code from the file" in str(refused.value) and "mkdir" in str(refused.value)
    assert not target.exists()
    load_classifier(path, trust_pickle=True)
    assert target.exists()


def test_a_plain_pickle_does_not_run_either(tmp_path):
    target = tmp_path / "owned"
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(BadInputError):
        load_classifier(path)
    assert not target.exists()


def test_a_pickled_network_that_is_known_is_rebuilt(tmp_path, network):
    path = saved(tmp_path, {"model": nn.DataParallel(network)})
    with pytest.raises(BadInputError, match=r"\(torch.nn.parallel.data_parallel.DataParallel\).*--trust-pickle"):
        load_classifier(path)
    classifier = load_classifier(path, trust_pickle=True)
    assert classifier.spec.architecture == "cifar:resnet20-a"
    assert_same_network(classifier, network)


def test_a_pickled_network_that_is_unknown_is_refused(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    with pytest.raises(BadInputError, match=r"net\.pt: it holds a whole Sequential.*--arch"):
        load_classifier(saved(tmp_path, module), trust_pickle=True)


def test_a_pickled_network_whose_forward_differs_is_not_taken_for_the_known_one(tmp_path, network):
    """Same names and shapes, other computation: the source is gone when the file is read elsewhere."""
    script = (
        "import sys, torch\n"
        "from fsrp_edge.models import cifar\n"
        "network = cifar.FACTORIES['resnet20-a'](4, 3)\n"
        "network.bn1.eps = 0.9\n"
        "torch.save(network, sys.argv[1])\n"
    )
    path = tmp_path / "net.pt"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=120)
    with pytest.raises(BadInputError, match="it holds a whole ResNet"):
        load_classifier(path, trust_pickle=True)


# --- damaged and mistaken files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"just some text", "neither a torch checkpoint nor safetensors"),
        (b"PK\x03\x04 but no more", "truncated or damaged"),
        (b"\x80\x02garbage", "truncated or damaged"),
    ],
)
def test_mistaken_files(tmp_path, content, message):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=message) as refused:
        load_classifier(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(BadInputError, match="no such file"):
        load_classifier(tmp_path / "none.pt")
    with pytest.raises(BadInputError, match="is a folder"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("value", [{}, {"epoch": 3, "lr": 0.1}, [torch.zeros(2)], torch.zeros(3), {"state_dict": {}}])
def test_files_without_weights(tmp_path, value):
    with pytest.raises(BadInputError, match="holds no weights"):
        load_classifier(saved(tmp_path, value))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["pt", "legacy", "safetensors"]), share=st.floats(0, 0.999))
def test_truncated_files_are_refused_in_one_line(tmp_path, kind, share):
    path = tmp_path / kind
    weights = {"a": torch.arange(50.0), "b": torch.zeros(3, 4)}
    if kind == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInputError) as refused:
        load_classifier(path)
    assert "\n" not in str(refused.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x08\0\0\0\0\0\0\0{", b""]),
    rest=st.binary(max_size=80),
)
def test_arbitrary_bytes_are_refused(tmp_path, start, rest):
    path = tmp_path / "bytes.pt"
    path.write_bytes(start + rest)
    with pytest.raises(BadInputError):
        load_classifier(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, state, bad):
    broken = {name: tensor.clone() for name, tensor in state.items()}
    broken["layer2.1.conv1.weight"][0, 0, 0, 0] = bad
    with pytest.raises(BadInputError, match=r"layer2.1.conv1.weight holds 1 values"):
        load_classifier(saved(tmp_path, broken))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_explained(tmp_path):
    torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)).save(tmp_path / "net.pt")
    with pytest.raises(BadInputError, match="TorchScript"):
        load_classifier(tmp_path / "net.pt")


def test_a_factory_of_gray_networks(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    arch = f"{tmp_path / 'own.py'}:build"
    torch.save(registry.build(arch, classes=3).state_dict(), tmp_path / "own.pth")
    loaded = load_classifier(tmp_path / "own.pth", architecture=arch, input_size=12, mean=(0.5,), std=(0.5,))
    assert loaded.spec.input_shape == (1, 12, 12)
    save_classifier(loaded, tmp_path / "own.safetensors")
    assert load_classifier(tmp_path / "own.safetensors", architecture=arch).spec == loaded.spec


@pytest.mark.parametrize("beside", [{"ema": {"decay": 0.999}}, {"model_ema": {}}, {"net": {"name": "resnet20"}}])
def test_settings_are_not_taken_for_weights(tmp_path, beside):
    state = registry.build("cifar:resnet20-a", classes=10).state_dict()
    torch.save({**beside, "weights": state}, tmp_path / "net.pth")
    assert load_classifier(tmp_path / "net.pth").spec.architecture == "cifar:resnet20-a"


def test_own_files_are_loaded_by_the_short_name_and_refuse_images_that_are_too_small(tmp_path):
    save_classifier(built("cifar:vgg16_bn-w0.25"), tmp_path / "vgg.safetensors")
    with pytest.raises(BadInputError, match="try --input-size"):
        load_classifier(tmp_path / "vgg.safetensors", input_size=16)
    save_classifier(built("cifar:mobilenet_v2"), tmp_path / "net.safetensors")
    again = load_classifier(tmp_path / "net.safetensors", architecture="mobilenet_v2")
    assert again.spec.architecture == "cifar:mobilenet_v2"
