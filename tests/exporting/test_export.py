import fcntl
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError, GateFailedError, ToolFailedError
from fsrp_edge.exporting.export import (
    ArtifactRequest,
    ExportPlan,
    export_artifacts,
    int8_weight_bits,
    require_possible,
    smoke_test,
)
from fsrp_edge.exporting.ncnn import export_ncnn
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.verified import export_verified
from fsrp_edge.files import MARK, sha256_file
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.targets.load import load_target
from tests.nets import as_classifier


def test_files_asked_for_and_no_others_are_left(
    classifier: Classifier, images: ImageSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    requests = [ArtifactRequest("onnx", "int8"), ArtifactRequest("onnx", "fp16")]
    artifacts = export_artifacts(
        classifier,
        requests,
        tmp_path / "files",
        ExportPlan(
            load_target("generic-x86"),
            calibration=images.first(8),
            metadata={"seed": "3"},
        ),
    )
    assert [str(artifact.path) for artifact in artifacts] == ["model-int8.onnx", "model-fp16.onnx"]
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"model-int8.onnx", "model-fp16.onnx"}
    for artifact in artifacts:
        path = tmp_path / "files" / artifact.path
        assert artifact.bytes == path.stat().st_size
        assert artifact.sha256 == sha256_file(path)
        assert (artifact.opset, artifact.ir_version) == (17, 8)
    assert capfd.readouterr() == ("", "")


def test_what_is_made_on_the_way_lies_beside_the_files(
    classifier: Classifier, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary files may be memory, and those of a killed process stay there; a staging folder is found again."""
    make, made = tempfile.mkdtemp, list[Path]()

    def mkdtemp(*given: Any, **named: Any) -> str:
        made.append(Path(make(*given, **named)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    plan = ExportPlan(load_target("generic-x86"), calibration=images.first(8), list_errors=True)
    export_artifacts(classifier, [ArtifactRequest("onnx", "int8")], tmp_path / "files", plan)
    ours = [folder for folder in made if not folder.name.startswith("ort.quant.")]
    assert ours and all(folder.is_relative_to(tmp_path / "files") for folder in ours)
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["model-int8.onnx"]


def test_impossible_wishes_are_refused_before_the_work(classifier: Classifier, tmp_path: Path) -> None:
    fp32 = ArtifactRequest("onnx", "fp32")
    for requests, reason in (
        ([], "at least one file"),
        ([fp32, fp32], "once"),
        ([fp32, ArtifactRequest("onnx", "int8")], "calibration images"),
        ([fp32, ArtifactRequest("onnx", "int8-dynamic")], "slower than fp32"),
        ([ArtifactRequest("ncnn", "int8-dynamic")], "int8-dynamic is not made for ncnn: .* in no package"),
        ([ArtifactRequest("saved_model", "fp16")], "fp16 is not made for saved_model"),
    ):
        with pytest.raises(BadInputError, match=reason):
            export_artifacts(classifier, requests, tmp_path, ExportPlan(load_target("jetson-nano")))
    assert not list(tmp_path.iterdir())


def test_a_large_constant_that_fp16_files_hold_clipped_is_no_overflow(images: ImageSet, tmp_path: Path) -> None:
    class Masked(nn.Module):
        """Reads the left half of each map, as attention does that masks by a large number."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            maps = self.stem(pixels).flatten(2)
            mask = torch.arange(maps.shape[2]) > maps.shape[2] // 2
            weights = maps.mean(1).masked_fill(mask, -1e9).softmax(-1)
            return self.head((maps * weights.unsqueeze(1)).sum(-1))

    network = as_classifier(Masked(), shape=(3, 48, 64), classes=5)
    plan = ExportPlan(load_target("jetson-nano"), pixels=[pixels for pixels, _ in images.first(8).batches(8)])
    (artifact,) = export_artifacts(network, [ArtifactRequest("onnx", "fp16")], tmp_path / "files", plan)
    assert artifact.precision == "fp16"


def test_fp16_that_would_overflow_is_refused_though_the_file_agrees_here(images: ImageSet, tmp_path: Path) -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    first.weight.data *= 1e3
    second.weight.data *= 1e4
    head = nn.Linear(4, 5)
    head.weight.data *= 1e-7
    large = nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    network = as_classifier(large, shape=(3, 48, 64), classes=5)
    given = {"target": load_target("jetson-nano"), "calibration": images, "images": images}
    overflows = pytest.raises(
        GateFailedError, match=r"^fp16 holds numbers up to 65504, and \S+ reaches \d.*; name other"
    )
    with overflows:
        smoke_test(network, given["target"], half_range_of=images.first(4))
    with overflows:
        export_verified(network, [ArtifactRequest("onnx", "fp16")], tmp_path / "files", **given)
    assert not list(tmp_path.iterdir())
    export_verified(network, [ArtifactRequest("onnx", "fp32")], tmp_path / "files", **given)


@pytest.mark.parametrize(
    ("target", "format_", "reason"),
    [("jetson-nano", "onnx", "TensorRT 8.2 of jetson-nano takes no uint8 input"), ("coral-usb", "tflite", "no CAST")],
)
def test_bytes_are_not_given_to_what_cannot_take_them(target: str, format_: Any, reason: str) -> None:
    bytes_in = ExportOptions(uint8_input=True)
    with pytest.raises(BadInputError, match=reason):
        require_possible([ArtifactRequest(format_, "int8")], load_target(target), bytes_in)
    require_possible([ArtifactRequest("tflite", "int8")], load_target("jetson-nano"), bytes_in)
    require_possible([ArtifactRequest("onnx", "fp32")], load_target("jetson-xavier-nx"), bytes_in)


def test_tensorrt_on_a_pc_gets_an_int8_file_that_it_takes(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    pc = "name: pc\ndescription: a PC with a GPU\nextends: generic-x86\nruntimes: [{name: tensorrt, runs_on: gpu}]\n"
    (tmp_path / "pc.yaml").write_text(pc)
    plan = ExportPlan(load_target(str(tmp_path / "pc.yaml")), calibration=images.first(4))
    export_artifacts(classifier, [ArtifactRequest("onnx", "int8")], tmp_path, plan)
    graph = onnx.load(tmp_path / "model-int8.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros and all(each.dtype == np.int8 and not each.any() for each in zeros)
    assert not onnx.load(tmp_path / "model-int8.onnx").metadata_props, "all 8 bits"


def test_weights_have_the_fewest_bits_of_the_int8_files_asked_for() -> None:
    onnx_file, tflite = ArtifactRequest("onnx", "int8"), ArtifactRequest("tflite", "int8")
    x86, arm = load_target("generic-x86"), load_target("raspberry-pi-4")
    bits = [int8_weight_bits(*given) for given in (([onnx_file, tflite], x86), ([tflite], x86), ([onnx_file], arm))]
    assert bits == [7, 8, 8]


def test_smoke_test_passes_a_good_network_and_stops_one_that_cannot_be_exported(
    classifier: Classifier,
) -> None:
    smoke_test(classifier, load_target("jetson-nano"))

    class Sorted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(images).mean(1)

    with pytest.raises(ToolFailedError, match="exporting tests:odd to onnx fp32 failed"):
        smoke_test(Classifier(Sorted(), classifier.spec), load_target("jetson-nano"))


def test_smoke_test_exports_what_the_files_shall_take() -> None:
    class Branches(nn.Module):
        """Does with two images, of which an open batch is traced, something else than with one or many."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * (-1 if len(images) == 2 else 1)

    branches, target = as_classifier(Branches(), shape=(3, 8, 8), classes=3), load_target("jetson-orin-nano")
    smoke_test(branches, target, options=ExportOptions(uint8_input=True))
    with pytest.raises(GateFailedError, match="onnx fp32"):
        smoke_test(branches, target, options=ExportOptions(dynamic_batch=True))


def test_pooling_whose_bins_are_not_equal_is_exported(classifier: Classifier, tmp_path: Path) -> None:
    """As in VGG below 224 pixels, whose head enlarges its maps; here one axis grows and the other shrinks unevenly."""
    shrunk = nn.Sequential(nn.Conv2d(3, 4, 3, 16, 1), nn.AdaptiveAvgPool2d((7, 3)), nn.Flatten(), nn.Linear(84, 5))
    vgg = Classifier(shrunk, classifier.spec).eval()  # 48×64 pixels: maps of 3×4
    for format_ in ("onnx", "tflite"):
        smoke_test(vgg, load_target("jetson-nano"), (format_,))
    assert isinstance(shrunk[1], nn.AdaptiveAvgPool2d), "the network itself stays as it is"

    class PoolsByName(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self[3](self[2](self[1](input=self[0](images))))  # type: ignore[no-any-return]

    smoke_test(Classifier(PoolsByName(*shrunk), classifier.spec).eval(), load_target("jetson-nano"), ("onnx",))

    class PoolsTwoSizes(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps, pool = self[0](images), self[1]
            return self[3](pool(maps).flatten(1) + pool(maps[:, :, 1:]).flatten(1))  # type: ignore[no-any-return]

    twice = Classifier(PoolsTwoSizes(*shrunk), classifier.spec).eval()
    for format_ in ("onnx", "tflite"):
        smoke_test(twice, load_target("jetson-nano"), (format_,))


def test_weights_that_are_computed_are_exported(classifier: Classifier) -> None:
    normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, 4))
    network = nn.Sequential(normed, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    smoke_test(Classifier(network, classifier.spec).eval(), load_target("raspberry-pi-4"))
    assert nn.utils.parametrize.is_parametrized(normed), "the network itself stays as it is"


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
    reason="there is one file system",
)
def test_files_are_published_across_file_systems(
    classifier: Classifier, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pnnx")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        monkeypatch.setattr(tempfile, "tempdir", other)
        export_ncnn(classifier, tmp_path / "m.ncnn", "fp32")
        (tmp_path / "out").symlink_to(other)
        export_verified(
            classifier, [ArtifactRequest("onnx", "fp32")], tmp_path / "out", target=load_target("jetson-nano"),
            calibration=images, images=images,
        )  # fmt: skip
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"model-fp32.onnx", "build_engines.sh"}


def test_an_export_removes_what_killed_ones_left_but_not_what_others_are_writing(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    killed, at_work = tmp_path / ".unverified.killed", tmp_path / ".unverified.at-work"
    for folder in (killed, at_work):
        folder.mkdir()
        (folder / MARK).touch()
        (folder / "model-fp32.onnx").touch()
    with (at_work / MARK).open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        export_verified(
            classifier, [ArtifactRequest("onnx", "fp32")], tmp_path, target=load_target("generic-x86"),
            calibration=images, images=images,
        )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"model-fp32.onnx", at_work.name}
    assert (at_work / "model-fp32.onnx").exists()


@pytest.mark.parametrize("asked", [False, True])
def test_layers_of_an_int8_file_that_is_good_enough_are_looked_at_only_where_asked(
    classifier: Classifier, images: ImageSet, tmp_path: Path, asked: bool
) -> None:
    exported = export_verified(
        classifier, [ArtifactRequest("onnx", "int8")], tmp_path, target=load_target("generic-x86"), calibration=images,
        images=images, options=ExportOptions(int8_max_drop=50), list_errors=asked,
    )  # fmt: skip
    assert exported.artifacts[0].kept_in_float == ()
    assert [len(found) for found in exported.layer_errors.values()] == ([4] if asked else [])


def test_int8_is_refused_at_an_opset_that_cannot_hold_it() -> None:
    """A profile that offers it so is refused when it is read; a caller may ask for what a profile refuses."""
    target = load_target("generic-x86")
    opset = target.choices.onnx_opset.model_copy(update={"value": 11})
    older = target.model_copy(update={"choices": target.choices.model_copy(update={"onnx_opset": opset})})
    with pytest.raises(BadInputError, match="int8 ONNX needs opset 13 or newer, not 11; leave int8 out"):
        require_possible([ArtifactRequest("onnx", "int8")], older, ExportOptions())
