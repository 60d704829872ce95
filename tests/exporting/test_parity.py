import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsrp_edge.data.images import ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError, GateFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.onnx import Int8Quantizer, convert_to_fp16, export_onnx
from fsrp_edge.exporting.parity import (
    Probe,
    Reference,
    compare,
    probe_pixels,
    require_file_of,
    require_parity,
)
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import open_session


class Permuted(nn.Module):
    """A network that sees its input with axes mixed up."""

    def __init__(self, network: nn.Module, permutation: str) -> None:
        super().__init__()
        self.network, self.permutation = network, permutation

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.permutation == "channels":
            pixels = pixels.flip(1)
        elif self.permutation == "swapped":
            pixels = pixels.transpose(2, 3)
        else:
            pixels = pixels.flip(3)
        logits: torch.Tensor = self.network(pixels)
        return logits


def artifact_of(precision: str = "fp32") -> Artifact:
    return Artifact.model_validate(
        {
            "path": "m.onnx",
            "format": "onnx",
            "precision": precision,
            "layout": "NCHW",
            "bytes": 1,
            "sha256": "",
        }
    )


def test_every_precision_of_a_network_passes(classifier: Classifier, images: ImageSet, tmp_path: Path) -> None:
    source = tmp_path / "fp32.onnx"
    made = [export_onnx(classifier, source, opset=13, ir_version=7)]
    made.append(convert_to_fp16(source, tmp_path / "fp16.onnx"))
    quantizer = Int8Quantizer(source, tmp_path, activation="uint8", calibration=images)
    made.append(quantizer.quantize(tmp_path / "int8.onnx"))
    errors = []
    for artifact in made:
        parities = Reference.of(classifier, images).check(tmp_path / artifact.path, artifact)
        assert [parity.inputs for parity in parities] == ["random", "real"]
        assert [parity.images for parity in parities] == [8, len(images)]
        require_parity(parities)
        errors.append(parities[1].mean_abs_error)
    assert 0 < errors[0] < errors[1] < errors[2], "each precision is measured, not assumed"


@pytest.mark.parametrize("permutation", ["channels", "swapped", "mirrored"])
def test_mixed_up_axes_are_found_even_on_square_images(
    classifier: Classifier, tmp_path: Path, permutation: str
) -> None:
    square = Classifier(classifier.network, classifier.spec.model_copy(update={"input_shape": (3, 32, 32)}))
    wrong = Classifier(Permuted(classifier.network, permutation), square.spec)
    artifact = export_onnx(wrong.eval(), tmp_path / "m.onnx", opset=13, ir_version=7)
    with pytest.raises(GateFailedError, match=r"onnx fp32 in onnxruntime on 8 random images: relative error"):
        require_parity(Reference.of(square.eval()).check(tmp_path / "m.onnx", artifact))


@pytest.mark.parametrize("permutation", ["swapped", None])
def test_random_images_alone_tell_mixed_up_axes_of_int8_files(
    trained_checkpoint: Path, digits_npz: Path, tmp_path: Path, permutation: str | None
) -> None:
    """Later checks of a file have no real images: those of `verify`, and of a device.

    Where all random images are of one class to a network, its answers say little; here they differ.
    """
    trained = load_classifier(trained_checkpoint)
    (*_, head) = (layer for layer in trained.network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        head.bias -= trained(probe_pixels(trained.spec.input_shape, 64, seed=1)).mean(0)
    seen = Classifier(Permuted(trained.network, permutation), trained.spec) if permutation else trained
    images = open_dataset(digits_npz, trained.spec, seed=0).train.first(32)
    export_onnx(seen.eval(), tmp_path / "m.onnx", opset=13, ir_version=7)
    quantizer = Int8Quantizer(tmp_path / "m.onnx", tmp_path, activation="int8", calibration=images)
    artifact = quantizer.quantize(tmp_path / "int8.onnx")
    passed = {parity.passed for parity in Reference.of(trained).check(tmp_path / artifact.path, artifact)}
    assert passed == {permutation is None}


def test_the_file_that_is_told_is_the_furthest_from_its_own_limit() -> None:
    reference = np.array([[100.0, -50.0], [20.0, 80.0]], np.float32)
    coarse = compare(reference, reference + np.array([[20], [-20]]), artifact_of("int8"), "onnxruntime", "real")
    fine = compare(reference, reference + 0.5, artifact_of(), "onnxruntime", "real")
    assert coarse.relative_error > fine.relative_error and not coarse.passed and not fine.passed
    with pytest.raises(GateFailedError, match="2 of 2 parity checks failed; worst: onnx fp32"):
        require_parity([coarse, fine])


def test_other_weights_fail_in_every_precision(classifier: Classifier, images: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = Classifier(type(classifier.network)(5), classifier.spec).eval()  # type: ignore[call-arg,arg-type]
    source = tmp_path / "fp32.onnx"
    made = [export_onnx(other, source, opset=13, ir_version=7)]
    made.append(convert_to_fp16(source, tmp_path / "fp16.onnx"))
    quantizer = Int8Quantizer(source, tmp_path, activation="int8", calibration=images)
    made.append(quantizer.quantize(tmp_path / "int8.onnx"))
    for artifact in made:
        parities = Reference.of(classifier, images).check(tmp_path / artifact.path, artifact)
        assert not any(parity.passed for parity in parities), artifact.name


def test_figures_are_those_defined() -> None:
    reference = np.array([[4.0, -2.0], [1.0, 3.0]], np.float32)
    logits = np.array([[4.0, -1.0], [3.5, 3.0]], np.float32)
    parity = compare(reference, logits, artifact_of(), "onnxruntime", "real")
    assert parity.max_abs_error == pytest.approx(2.5)
    assert parity.mean_abs_error == pytest.approx(3.5 / 4)
    assert parity.relative_error == pytest.approx(2.5 / 4)
    assert parity.cosine == pytest.approx(30.5 / np.sqrt(30 * 38.25))
    assert parity.top1_agreement == 0.5
    assert not parity.passed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_logits_that_are_no_numbers_fail(precision: str) -> None:
    reference = np.ones((3, 2), np.float32)
    logits = np.full((3, 2), np.nan, np.float32)
    for inputs in ("random", "real"):
        parity = compare(reference, logits, artifact_of(precision), "onnxruntime", inputs)  # type: ignore[arg-type]
        assert not parity.passed


def test_probe_differs_along_every_axis_and_keeps_the_range() -> None:
    pixels = probe_pixels((3, 8, 8), 4, seed=1)
    assert torch.equal(pixels, probe_pixels((3, 8, 8), 4, seed=1))
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    for changed in (pixels.flip(1), pixels.transpose(2, 3), pixels.flip(2), pixels.flip(3), pixels.flip(0)):
        assert (changed - pixels).abs().mean() > 0.05


def test_a_probe_stands_for_the_network(classifier: Classifier, tmp_path: Path) -> None:
    artifact = export_onnx(classifier, tmp_path / "m.onnx", opset=13, ir_version=7)
    probe = Probe.model_validate_json(Probe.of(classifier).model_dump_json())
    parity = probe.judge(open_session(tmp_path / "m.onnx").run(probe.pixels()), artifact)
    assert parity.passed and parity.images == 8
    mirrored = Classifier(Permuted(classifier.network, "mirrored"), classifier.spec).eval()
    export_onnx(mirrored, tmp_path / "m.onnx", opset=13, ir_version=7)
    assert not probe.judge(open_session(tmp_path / "m.onnx").run(probe.pixels()), artifact).passed


def test_a_file_of_another_network_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    export_onnx(classifier, tmp_path / "own.onnx", opset=17, ir_version=8)
    require_file_of(classifier, tmp_path / "own.onnx")
    torch.manual_seed(1)
    other = Classifier(type(classifier.network)(5), classifier.spec).eval()  # type: ignore[call-arg,arg-type]
    export_onnx(other, tmp_path / "other.onnx", opset=17, ir_version=8)
    with pytest.raises(BadInputError, match=r"other\.onnx is not a file of this network: on 8 random images, cosine"):
        require_file_of(classifier, tmp_path / "other.onnx")


def test_what_is_published_passed_on_the_images_that_check_it_later(classifier: Classifier) -> None:
    (published,), later = Reference.of(classifier).batches["random"], Probe.of(classifier).pixels()
    assert np.array_equal(published.numpy(), later)


def test_what_an_uninstalled_package_left_is_no_runtime(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    program = "from pathlib import Path; from fsrp_edge.exporting.parity import installed_runtimes\n"
    program += "import sys; sys.path = [sys.argv[1], *(each for each in sys.path if 'site-packages' not in each)]\n"
    program += "print(installed_runtimes(Path('net.tflite')))"
    shown = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert shown.stdout.strip() == "('litert',)"
