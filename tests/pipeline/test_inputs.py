import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import predictions
from fsrp_edge.models.classifier import Classifier, Preprocessing
from fsrp_edge.models.saved import save_classifier
from fsrp_edge.pipeline.inputs import load_data, prepare
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.training.recipe import Recipe
from tests.nets import built


def with_crop() -> Classifier:
    """As torchvision's networks are: the shorter side resized to more than what is cut out."""
    network = built("cifar:vgg16_bn-w0.125", std=0.5, data="digits")
    network.spec = network.spec.model_copy(update={"preprocessing": Preprocessing(resize=37)})
    return network


def test_preprocessing_is_recorded_as_the_images_were_brought_to_size(tmp_path) -> None:
    """What is shipped has to feed pictures as those that accuracy was measured on."""
    network = with_crop()
    assert load_data(network, "digits", 0).whole and network.spec.preprocessing.resize == 32
    draws, labels = np.random.default_rng(0), np.arange(40) % 10
    images = draws.integers(0, 256, (40, 3, 20, 20), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x=images, y=labels)
    network = with_crop()
    assert load_data(network, str(tmp_path / "other.npz"), 0).whole and network.spec.preprocessing.resize == 32
    np.savez(tmp_path / "same.npz", x=draws.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8), y=labels)
    network = with_crop()
    assert not load_data(network, str(tmp_path / "same.npz"), 0).whole
    assert network.spec.preprocessing.resize == 37, "nobody knows how they were made"


def test_images_without_labels_get_those_of_the_network() -> None:
    network = built("cifar:vgg16_bn-w0.125", std=0.5)
    dataset = load_data(network, "photographs", 0)
    for images in (dataset.train, dataset.evaluation):
        assert torch.equal(images.labels, predictions(network, images))
        assert images.label_kind == "predictions of the dense network"


@pytest.mark.parametrize(
    "asked",
    [
        {"gates": ("size<=1MB", "robust_accuracy>=40%")},
        {"gates": (" clean_drop <= 1",)},
        {"baseline": Path("earlier"), "max_regression": ("robust_accuracy=1",)},
    ],
)
def test_gates_on_accuracy_are_refused_before_the_work_where_nothing_can_measure_it(
    trained_checkpoint: Path, asked: dict[str, Any]
) -> None:
    unlabelled = {"checkpoint": trained_checkpoint, "target": "generic-x86", "data": "photographs"}
    with pytest.raises(BadInputError, match="accuracy can't be measured on images without true labels"):
        prepare(CompressOptions.model_validate(unlabelled | asked))
    prepare(CompressOptions.model_validate(unlabelled | {"gates": ("size<=1MB",)}))


OLD_RUNTIME = """
name: mine
description: A board whose runtime is old.
extends: generic-x86
choices:
  onnx_opset: {value: 11, reason: the runtime takes no newer one}
"""


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"target": "raspberry-pi-4", "dynamic_batch": True}, "tflite has no dynamic batch here; allowed with: onnx"),
        ({"target": "raspberry-pi-5", "uint8_input": True, "formats": ("ncnn",)}, "ncnn has no uint8 input here"),
        ({"target": "generic-x86", "precisions": ("fp32",), "recovery": Recipe(int8_epochs=1)}, "int8-epochs is for"),
        ({"target": "generic-x86", "gates": ("latency_p50[recovered]<=9ms",)}, "no latency is measured there, only of"),
        ({"target": "generic-x86", "formats": ("saved_model",), "gates": ("speed_up>=2",)}, "no latency is measured"),
        ({"target": "mine.yaml"}, "int8 needs onnx_opset 13 or newer, not 11; allowed: refused"),
    ],
)
def test_files_that_cannot_be_made_are_refused_before_the_checkpoint_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], reason: str
) -> None:
    """They would be refused after the recovery else, hours later."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(OLD_RUNTIME)
    with pytest.raises(BadInputError, match=reason):
        prepare(CompressOptions(checkpoint=Path("no-network.pt"), **asked))


def test_a_radius_holds_for_examples_and_recovery_unless_they_have_their_own() -> None:
    asked = CompressOptions(checkpoint=Path("net.pt"), target="generic-x86", eps=2 / 255)
    assert isinstance(asked.criterion, FSRP) and asked.recovery is not None
    assert asked.criterion.attack.eps == asked.recovery.eps == asked.eps == 2 / 255
    own = CompressOptions(checkpoint=Path("net.pt"), target="generic-x86", eps=2 / 255, recovery=Recipe(eps=0.1))
    assert own.recovery is not None and own.recovery.eps == 0.1
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        CompressOptions(checkpoint=Path("net.pt"), target="generic-x86", eps=7)


def test_a_method_that_a_recipe_names_stays() -> None:
    def may_recover_clean(**asked: Any) -> bool:
        return CompressOptions(checkpoint=Path("net.pt"), target="generic-x86", **asked).natural_if_undefended

    assert may_recover_clean() and may_recover_clean(recovery=Recipe(epochs=3)) and may_recover_clean(recovery=None)
    assert not may_recover_clean(recovery=Recipe(method="trades"))
    assert may_recover_clean(recovery=Recipe(method="trades"), natural_if_undefended=True)


def test_classes_are_called_as_the_images_call_them(tmp_path) -> None:
    for name in ("cat", "dog"):
        for index in range(8):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = np.random.default_rng(index + len(name)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{name[0]}{index}.png")
    network = built("cifar:vgg16_bn-w0.125", std=0.5, classes=2)
    load_data(network, str(tmp_path), 0)
    assert network.spec.class_names == ("cat", "dog")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process on a core")
def test_files_are_measured_here_on_no_more_threads_than_cores_we_may_use(tmp_path: Path) -> None:
    save_classifier(built("cifar:vgg16_bn-w0.125", std=0.5, data="digits"), tmp_path / "net.safetensors")
    asked = CompressOptions(checkpoint=tmp_path / "net.safetensors", data="digits", target="raspberry-pi-5")
    inputs, allowed = prepare(asked), os.sched_getaffinity(0)
    assert inputs.target.threads > 1
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert inputs.place.threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
