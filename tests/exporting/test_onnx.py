import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.onnx import Int8Quantizer, convert_to_fp16, export_onnx
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.parity import Reference, require_parity
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import open_session
from tests.nets import as_classifier


def quantize_to_int8(source: Path, path: Path, **given: Any) -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        return Int8Quantizer(source, Path(folder), **given).quantize(path)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 1), (4, 1)])
def test_padding_by_word_is_exported(tmp_path: Path, kernel: int, dilation: int) -> None:
    convolution = nn.Conv2d(3, 8, kernel, padding="same", dilation=dilation)
    dense = as_classifier(nn.Sequential(convolution, nn.Flatten(), nn.Linear(8 * 32 * 32, 10)))
    export_onnx(dense, tmp_path / "m.onnx", opset=17, ir_version=8)
    pixels = dense.example_pixels()
    with torch.no_grad():
        expected = dense(pixels).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    np.testing.assert_allclose(session.run(None, {"pixels": pixels.numpy()})[0], expected, atol=1e-4)
    assert convolution.padding == "same"  # the network itself stays as it is


def test_int8_layers_that_share_weights_are_run(images: ImageSet, tmp_path: Path) -> None:
    """onnxruntime's exact mode of x86 refuses such files, and those with a constant that several operators read."""
    shared = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 48 * 64, 5))
    dense = as_classifier(network, shape=(3, 48, 64), classes=5)
    fp32 = export_onnx(dense, tmp_path / "fp32.onnx", opset=17, ir_version=8)
    int8 = quantize_to_int8(tmp_path / fp32.path, tmp_path / "int8.onnx", activation="int8", calibration=images)
    require_parity(Reference.of(dense, images).check(tmp_path / int8.path, int8))


def test_attention_is_exported(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.attention = nn.Conv2d(3, 16, 8, 8), nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            places = self.patches(images).flatten(2).transpose(1, 2)
            attended, _ = self.attention(places, places, places, need_weights=False)
            logits: torch.Tensor = self.head(attended.mean(1))
            return logits

    dense = as_classifier(Attends())
    artifact = export_onnx(dense, tmp_path / "m.onnx", opset=17, ir_version=8)
    require_parity(Reference.of(dense).check(tmp_path / "m.onnx", artifact))
    assert torch.backends.mha.get_fastpath_enabled(), "as it was"


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 7), (17, 8), (20, 9), (23, 13)])
def test_file_keeps_the_caps_of_the_device(classifier: Classifier, tmp_path: Path, opset: int, ir_version: int) -> None:
    artifact = export_onnx(classifier, tmp_path / "m.onnx", opset=opset, ir_version=ir_version)
    model = onnx.load(tmp_path / "m.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", min(opset, 20))]
    assert artifact.opset == min(opset, 20)
    assert artifact.ir_version == model.ir_version <= ir_version
    assert [node.name for node in model.graph.input] == ["pixels"]
    assert [node.name for node in model.graph.output] == ["logits"]
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 48, 64]


def test_ir_version_that_the_opset_cannot_keep_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"opset 17 needs IR version 8, but the target takes 7"):
        export_onnx(classifier, tmp_path / "m.onnx", opset=17, ir_version=7)
    assert not list(tmp_path.iterdir())


def test_batch_norm_is_folded_away(classifier: Classifier, tmp_path: Path) -> None:
    export_onnx(classifier, tmp_path / "m.onnx", opset=13, ir_version=7)
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators


def test_same_network_gives_the_same_bytes_in_every_precision(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    digests = []
    for turn in ("a", "b"):
        folder = tmp_path / turn
        fp32 = export_onnx(classifier, folder / "fp32.onnx", opset=13, ir_version=7, metadata={"seed": "0"})
        fp16 = convert_to_fp16(folder / "fp32.onnx", folder / "fp16.onnx")
        int8 = quantize_to_int8(
            folder / "fp32.onnx", folder / "int8.onnx", activation="uint8", calibration=images.first(8)
        )
        digests.append([artifact.sha256 for artifact in (fp32, fp16, int8)])
        for path in folder.iterdir():
            content = path.read_bytes()
            assert b".py" not in content
            assert str(Path(torch.__file__).parents[2]).encode() not in content
            assert str(tmp_path).encode() not in content
    assert digests[0] == digests[1]


def test_metadata_is_in_the_file(classifier: Classifier, tmp_path: Path) -> None:
    facts = {"source": "abc", "architecture": "tests:odd"}
    export_onnx(classifier, tmp_path / "m.onnx", opset=13, ir_version=7, metadata=facts)
    assert {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props} == facts


def test_exporting_leaves_the_network_as_it_was(classifier: Classifier, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    classifier.train()
    try:
        export_onnx(classifier, tmp_path / "m.onnx", opset=13, ir_version=7)
        assert classifier.training
    finally:
        classifier.eval()
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize(("activation", "kind"), [("uint8", np.uint8), ("int8", np.int8)])
def test_int8_types_are_the_target_s(
    classifier: Classifier, images: ImageSet, tmp_path: Path, activation: str, kind: type
) -> None:
    export_onnx(classifier, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    artifact = quantize_to_int8(
        tmp_path / "fp32.onnx",
        tmp_path / "int8.onnx",
        activation=activation,
        calibration=images.first(8),
    )
    assert (artifact.opset, artifact.ir_version) == (13, 7)
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantized = {constants[node.input[2]].dtype for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert quantized == {np.dtype(kind)}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    producers = {node.output[0]: node for node in model.graph.node}
    weights = [producers[node.input[1]] for node in convolutions]
    assert len(weights) == 3
    for weight in weights:
        values, scales, zeros = (constants[name] for name in weight.input)
        assert values.dtype == np.int8
        assert scales.shape == (values.shape[0],), "per channel"
        assert not zeros.any(), "symmetric"
    session = open_session(tmp_path / "int8.onnx")
    assert (session.input.dtype, session.output.dtype) == (np.float32, np.float32)


def test_fp16_halves_the_file_and_keeps_float32_ports(tmp_path: Path, classifier: Classifier) -> None:
    whole = export_onnx(classifier, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    half = convert_to_fp16(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    assert half.bytes < 0.75 * whole.bytes
    assert half.opset == 13
    session = open_session(tmp_path / "fp16.onnx")
    assert (session.input.dtype, session.output.dtype) == (np.float32, np.float32)


def test_int8_without_images_is_refused(classifier: Classifier, images: ImageSet, tmp_path: Path) -> None:
    export_onnx(classifier, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    with pytest.raises(BadInputError, match="calibration images"):
        quantize_to_int8(tmp_path / "fp32.onnx", tmp_path / "i.onnx", activation="uint8", calibration=images.first(0))


def test_network_that_cannot_be_exported_says_so_once(
    classifier: Classifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(images).mean(1)

    with pytest.raises(ToolFailedError, match=r"exporting tests:odd to onnx fp32 failed: .*svd"):
        export_onnx(Classifier(Spectrum(), classifier.spec), tmp_path / "m.onnx", opset=13, ir_version=7)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_tensorrt_gets_zero_points_of_0_and_float_biases(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    export_onnx(classifier, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    given = {"activation": "int8", "calibration": images.first(8), "for_tensorrt": True}
    quantize_to_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", **given)
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if "Quantize" in node.op_type]
    assert nodes and not any(constants[node.input[2]].any() for node in nodes)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert all(constants[node.input[2]].dtype == np.float32 for node in convolutions)


def test_input_of_bytes_is_the_same_network(classifier: Classifier, images: ImageSet, tmp_path: Path) -> None:
    artifact = export_onnx(
        classifier, tmp_path / "m.onnx", opset=13, ir_version=7, options=ExportOptions(uint8_input=True)
    )
    session = open_session(tmp_path / "m.onnx")
    pixels, _ = next(images.batches(8))
    assert artifact.input == "uint8" and session.input.dtype == np.uint8
    np.testing.assert_array_equal(session.prepare(pixels.numpy()), (255 * pixels).round().byte().numpy())
    np.testing.assert_allclose(session.run(pixels.numpy()), classifier(pixels).detach().numpy(), rtol=1e-4, atol=1e-4)
    given = {"activation": "uint8", "calibration": images.first(8)}
    quantize_to_int8(tmp_path / "m.onnx", tmp_path / "int8.onnx", **given)
    assert open_session(tmp_path / "int8.onnx").input.dtype == np.uint8
    half = convert_to_fp16(tmp_path / "m.onnx", tmp_path / "half.onnx")
    assert half.input == "uint8"
    require_parity(Reference.of(classifier, images).check(tmp_path / "half.onnx", half))


def test_batch_is_open_where_it_is_asked_for(classifier: Classifier, images: ImageSet, tmp_path: Path) -> None:
    options = ExportOptions(dynamic_batch=True)
    artifact = export_onnx(classifier, tmp_path / "m.onnx", opset=13, ir_version=7, options=options)
    session = open_session(tmp_path / "m.onnx")
    assert artifact.dynamic_batch and session.input.shape == (None, 3, 48, 64)
    pixels, _ = next(images.batches(5))
    reference = classifier(pixels).detach().numpy()
    for count in (1, 5):
        np.testing.assert_allclose(session.invoke(pixels[:count].numpy()), reference[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_ranges_by_every_method_give_a_file_that_agrees(
    classifier: Classifier, images: ImageSet, tmp_path: Path, method: str
) -> None:
    export_onnx(classifier, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    given = {"activation": "uint8", "calibration": images.first(24)}
    made = {
        name: quantize_to_int8(tmp_path / "fp32.onnx", tmp_path / f"{name}.onnx", method=name, **given)
        for name in ("min-max", method)
    }
    assert made[method].sha256 != made["min-max"].sha256
    pixels, _ = next(images.batches(48))
    reference = open_session(tmp_path / "fp32.onnx").run(pixels.numpy())
    answer = open_session(tmp_path / f"{method}.onnx").run(pixels.numpy())
    assert (answer * reference).sum() / np.linalg.norm(answer) / np.linalg.norm(reference) > 0.99


def test_sums_of_large_products_are_not_cut_off(classifier: Classifier, tmp_path: Path) -> None:
    """By default x86 without VNNI adds products in 16 bits: weights of 8 bits overflow that, those of 7 don't."""
    summing = torch.nn.Conv2d(3, 8, 3, bias=False)
    torch.nn.init.ones_(summing.weight)
    spec = classifier.spec.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3, "classes": 8})
    network = Classifier(torch.nn.Sequential(summing, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), spec)
    white = ImageSet.of("white", ArraySource(np.full((2, 3, 48, 64), 255, np.uint8)), torch.zeros(2))
    export_onnx(network.eval(), tmp_path / "fp32.onnx", opset=13, ir_version=7)
    quantize_to_int8(
        tmp_path / "fp32.onnx", tmp_path / "int8.onnx", activation="uint8", weight_bits=7, calibration=white
    )
    as_users_do = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    (logits,) = as_users_do.run(None, {"pixels": np.ones((1, 3, 48, 64), np.float32)})
    np.testing.assert_allclose(logits, 27, rtol=0.02)


def test_seven_bits_are_for_all_weights_but_those_of_depthwise_convolutions(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    export_onnx(classifier, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    given = {"activation": "uint8", "weight_bits": 7, "calibration": images.first(4)}
    quantize_to_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", **given)
    tensors = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    largest = {one.shape: np.abs(one.astype(int)).max() for one in tensors if one.dtype == np.int8 and one.ndim > 1}
    assert largest == {(13, 3, 3, 3): 64, (13, 1, 3, 3): 127, (37, 13, 3, 1): 64, (5, 74): 64}


def test_weights_that_are_computed_do_not_stop_seven_bits(images: ImageSet, tmp_path: Path) -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters, self.head = nn.Linear(3, 27), nn.Linear(3, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            weight = self.filters(images.mean((0, 2, 3))).view(3, 1, 3, 3)
            logits: torch.Tensor = self.head(nn.functional.conv2d(images, weight, groups=3).mean((2, 3)))
            return logits

    dense = as_classifier(Dynamic(), shape=(3, 48, 64), classes=5)
    export_onnx(dense, tmp_path / "fp32.onnx", opset=13, ir_version=7)
    given = {"activation": "uint8", "weight_bits": 7, "calibration": images.first(4)}
    assert quantize_to_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", **given).precision == "int8"
