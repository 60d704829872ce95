import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fsrp_edge.exporting.onnx import Int8Quantizer, export_onnx
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import open_session
from fsrp_edge.training.int8 import rounded_activation, rounded_to_int8
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import recover


def test_activations_keep_256_values_and_zero() -> None:
    values = torch.linspace(-0.3, 2.0, 5001)
    rounded = rounded_activation(values)
    assert len(rounded.unique()) == 256 and (rounded == 0).any()
    assert (rounded - values).abs().max() <= 2.3 / 255 / 2 + 1e-6
    assert torch.equal(rounded_activation(torch.zeros(3)), torch.zeros(3))
    assert rounded_activation(torch.full((3,), 7.0)).allclose(torch.tensor(7.0))


def test_weights_keep_255_values_a_channel_and_learn_through_the_rounding() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).train()
    before = copy.deepcopy(network.state_dict())
    with rounded_to_int8(network):
        weight = network[0].weight
        for channel, given in zip(weight, before["0.weight"], strict=True):
            step = given.abs().max() / 127
            assert torch.allclose(channel / step, (given / step).round(), atol=1e-3)
        network(torch.rand(6, 3, 8, 8)).sum().backward()
    assert not hasattr(network[0], "parametrizations") and network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "norms too"
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("normed", [weight_norm, spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_layers_that_compute_their_weight_stay_as_they_are(normed) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), normed(nn.Linear(64, 2)))
    before = copy.deepcopy(network.state_dict())
    with rounded_to_int8(network):
        assert parametrize.is_parametrized(network[0])
        network(torch.rand(6, 3, 8, 8)).sum().backward()
    assert network.state_dict().keys() == before.keys()


def test_layers_that_are_called_by_name_are_rounded_alike() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 4)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.layer(input=features)  # type: ignore[no-any-return]

    network, features = ByName(), torch.rand(6, 64)
    with rounded_to_int8(network):
        assert torch.equal(network(features), network.layer(features))


def test_seven_bits_are_for_all_weights_but_those_of_depthwise_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(6, 6, 5), nn.Conv2d(6, 6, 5, groups=6), nn.Conv2d(6, 6, 5, groups=2))
    with rounded_to_int8(network, 7):
        steps = [layer.weight[0].abs().max() / layer.weight[0].unique().diff().min() for layer in network]
    assert [round(float(each)) for each in steps] == [64, 127, 64]


@pytest.mark.parametrize(("activation", "bits"), [("uint8", 8), ("int8", 8), ("uint8", 7)])
def test_it_computes_what_an_int8_file_computes(
    digit_sets, small_cnn, tmp_path: Path, activation: Any, bits: Any
) -> None:
    """Where eight bits hurt, they hurt both alike: large weights of a channel that is always 0 leave the others few."""
    network, images = small_cnn().eval(), digit_sets[0].first(64)
    widen(network, 50)
    export_onnx(network, tmp_path / "m.onnx", opset=13, ir_version=7)
    quantizer = Int8Quantizer(
        tmp_path / "m.onnx", tmp_path, activation=activation, weight_bits=bits, calibration=images
    )
    quantizer.quantize(tmp_path / "int8.onnx")
    pixels, _ = next(images.batches(64))
    file = open_session(tmp_path / "int8.onnx").run(pixels.numpy())
    with torch.no_grad():
        exact = network(pixels).numpy()
        with rounded_to_int8(network, bits):
            rounded = network(pixels).numpy()
    assert np.abs(file - rounded).mean() < 0.2 * np.abs(file - exact).mean()


def test_passes_for_int8_win_back_what_rounding_loses(digit_sets, small_cnn, tmp_path: Path) -> None:
    """Accuracy of int8 files of a network whose outlying weights leave the others few steps."""
    learnt, judged = digit_sets
    recipe = Recipe(method="natural", epochs=6, batch_size=50, learning_rate=0.05)
    network = recover(small_cnn(), learnt, recipe, seed=1).classifier
    widen(network, 200)

    def accuracy_of_file() -> float:
        export_onnx(network, tmp_path / "m.onnx", opset=13, ir_version=7)
        quantizer = Int8Quantizer(tmp_path / "m.onnx", tmp_path, activation="uint8", calibration=learnt.first(128))
        quantizer.quantize(tmp_path / "int8.onnx")
        pixels, labels = next(judged.batches(len(judged)))
        return float((open_session(tmp_path / "int8.onnx").predict(pixels).argmax(1) == labels).float().mean())

    before = accuracy_of_file()
    assert before < 0.85
    recover(
        network,
        learnt,
        recipe.model_copy(update={"epochs": 0, "int8_epochs": 4, "learning_rate": 0.2}),
        seed=1,
    )
    assert accuracy_of_file() > max(before + 0.08, 0.85)


def widen(network: Classifier, factor: float) -> None:
    """Make the first feature always 0, and its weights in the second convolution larger than all others."""
    inner: Any = network.network
    with torch.no_grad():
        inner[1].weight[0], inner[1].bias[0] = 0, -1
        inner[3].weight[:, 0] = factor * inner[3].weight.abs().amax()
