import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fsrp_edge.cli import cli
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.onnx import Int8Quantizer, convert_to_fp16
from fsrp_edge.models.registry import build
from fsrp_edge.targets.work import BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("estimate") / "small.onnx"
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    torch.onnx.export(network.eval(), (torch.rand(1, 3, 32, 32),), path, dynamo=False)
    return path


def test_the_table_says_estimated_with_an_interval_and_what_it_rests_on(model: Path) -> None:
    result = CliRunner().invoke(cli, ["estimate", str(model), "--target", "raspberry-pi-4"])
    assert result.exit_code == 0, result.output
    assert "estimated " in result.output
    assert "\n 0 " in result.output  # by the layer's name
    assert "published measurements" in result.output
    assert "fits" in result.output


def test_operators_of_one_name_in_several_blocks_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build("resnet18", classes=10).eval()
    torch.onnx.export(network, (torch.rand(1, 3, 32, 32),), tmp_path / "net.onnx", dynamo=False)
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["estimate", str(tmp_path / "net.onnx"), "--target", "raspberry-pi-4", "--top", "20"]
    rows = [line.split() for line in CliRunner().invoke(cli, arguments).output.splitlines() if "% " in line]
    kinds = {row[0]: row[1] for row in rows if len(row) == 7}
    layers = {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    assert len(kinds) == 20 and len(layers & kinds.keys()) >= 18
    assert set(kinds.values()) <= {"winograd", "convolution", "pointwise", "pooling", "elementwise"}  # unbroken


def test_a_file_of_a_fixed_batch_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "four.onnx"
    torch.onnx.export(nn.Conv2d(3, 8, 3).eval(), (torch.rand(4, 3, 32, 32),), path, dynamo=False)
    result = CliRunner().invoke(cli, ["estimate", str(path), "--target", "raspberry-pi-4"])
    assert "all 4 images that the file takes at once" in " ".join(result.output.split())


def test_a_file_in_half_precision_is_estimated_so_where_the_device_gains_from_it(model: Path, tmp_path: Path) -> None:
    convert_to_fp16(model, tmp_path / "half.onnx")
    for target, precision in (("raspberry-pi-5", "fp16"), ("raspberry-pi-4", "fp32")):  # which computes in fp32
        arguments = ["estimate", str(tmp_path / "half.onnx"), "--target", target, "--json"]
        found = json.loads(CliRunner().invoke(cli, arguments).stdout)
        parameters = 3 * 9 * 8 + 8 + 8 * 4 + 4
        assert (found["precision"], found["weight_bytes"]) == (precision, parameters * BYTES[found["precision"]])


def test_a_file_in_half_precision_is_estimated_in_fp32_where_only_that_is_known(model: Path, tmp_path: Path) -> None:
    convert_to_fp16(model, tmp_path / "half.onnx")
    arguments = ["estimate", str(tmp_path / "half.onnx"), "--target", "pixel-3", "--json"]
    found = json.loads(CliRunner().invoke(cli, arguments).stdout)
    assert (found["precision"], found["calibrated"]) == ("fp32", True)
    asked = CliRunner().invoke(cli, [*arguments, "--precision", "fp16"])
    assert isinstance(asked.exception, BadInputError) and "nothing was published for litert" in str(asked.exception)


def test_layers_in_float_of_an_int8_file_are_told(model: Path, tmp_path: Path) -> None:
    images = ImageSet.of("gray", ArraySource(np.full((2, 3, 32, 32), 127, np.uint8)), torch.zeros(2))
    quantizer = Int8Quantizer(model, tmp_path, activation="int8", calibration=images)
    arguments = ["estimate", str(tmp_path / "int8.onnx"), "--target", "raspberry-pi-4", "--json"]
    for keep, told in (((), False), (quantizer.layers[:1], True)):
        quantizer.quantize(tmp_path / "int8.onnx", keep=keep)
        found = json.loads(CliRunner().invoke(cli, arguments).stdout)
        assert found["precision"] == "int8" and ("; layers in float, counted as int8: 1" in found["basis"]) == told


def test_json_adds_up(model: Path) -> None:
    arguments = ["estimate", str(model), "--target", "raspberry-pi-4", "--runtime", "ncnn", "--json"]
    found = json.loads(CliRunner().invoke(cli, arguments).stdout)
    assert found["estimated"] is True and found["batch"] == 1
    assert found["runtime"] == "ncnn"
    assert sum(each["milliseconds"] for each in found["operators"]) == pytest.approx(found["milliseconds"])
