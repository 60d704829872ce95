"""Formats that are folders, and what is written for TensorRT."""

import subprocess
from pathlib import Path

import pytest

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
from fsrp_edge.exporting.ncnn import export_ncnn
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.parity import Reference, require_parity
from fsrp_edge.exporting.saved_model import export_saved_model
from fsrp_edge.exporting.tensorrt import write_engine_script
from fsrp_edge.exporting.verified import export_verified
from fsrp_edge.files import sha256_file
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import open_session
from fsrp_edge.targets.load import load_target


def test_ncnn_computes_what_the_network_computes(classifier: Classifier, images: ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("ncnn"), pytest.importorskip("pnnx")
    made = [export_ncnn(classifier, tmp_path / f"m-{precision}.ncnn", precision) for precision in ("fp32", "fp16")]
    for artifact in made:
        assert {file.name for file in (tmp_path / artifact.path).iterdir()} == {"model.param", "model.bin"}
        require_parity(Reference.of(classifier, images).check(tmp_path / artifact.path, artifact))
    assert made[1].bytes < 0.7 * made[0].bytes
    again = export_ncnn(classifier, tmp_path / "again.ncnn", "fp32")
    assert again.sha256 == made[0].sha256 == sha256_file(tmp_path / "m-fp32.ncnn")


def test_a_saved_model_computes_what_the_network_computes(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    artifact = export_saved_model(classifier, tmp_path / "m.saved_model")
    assert (artifact.layout, open_session(tmp_path / artifact.path).input.shape) == ("NHWC", (1, 48, 64, 3))
    (random, real) = Reference.of(classifier, images.first(4)).check(tmp_path / artifact.path, artifact)
    assert random.runtime == "tensorflow"
    require_parity([random, real])
    # A second one takes the first one's place.
    export_saved_model(classifier, tmp_path / "m.saved_model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.saved_model"]


def test_what_a_format_does_not_have_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    plan = ExportPlan(load_target("jetson-nano"), options=ExportOptions(dynamic_batch=True))
    with pytest.raises(BadInputError, match="tflite has no dynamic batch here; allowed with: onnx"):
        export_artifacts(classifier, [ArtifactRequest("tflite", "fp32")], tmp_path, plan)
    plan = ExportPlan(load_target("jetson-nano"), options=ExportOptions(uint8_input=True))
    with pytest.raises(BadInputError, match="ncnn has no uint8 input here; allowed with: onnx, tflite"):
        export_artifacts(classifier, [ArtifactRequest("ncnn", "fp32")], tmp_path, plan)


def test_engines_are_built_by_the_commands_beside_the_files(
    classifier: Classifier, images: ImageSet, tmp_path: Path
) -> None:
    requests = [ArtifactRequest("onnx", precision) for precision in ("fp32", "fp16", "int8")]
    exported = export_verified(
        classifier,
        requests,
        tmp_path / "files",
        target=load_target("jetson-orin-nano"),
        calibration=images.first(8),
        images=images,
        options=ExportOptions(dynamic_batch=True),
    )
    assert [str(script) for script in exported.scripts] == ["build_engines.sh"]
    # A stand-in for trtexec writes down how it was called.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "trtexec").write_text('#!/bin/sh\necho "$@" >> calls.txt\n')
    (bin_folder / "trtexec").chmod(0o755)
    script = tmp_path / "files" / "build_engines.sh"
    subprocess.run([script], check=True, env={"PATH": f"{bin_folder}:/usr/bin:/bin"})
    shapes = "--shapes=pixels:1x3x48x64"
    assert (tmp_path / "files" / "calls.txt").read_text().splitlines() == [
        f"--onnx=model-fp32.onnx --saveEngine=model-fp32.engine {shapes}",
        f"--onnx=model-fp32.onnx --saveEngine=model-fp32-as-fp16.engine --fp16 {shapes}",
        f"--onnx=model-fp16.onnx --saveEngine=model-fp16.engine --fp16 {shapes}",
        f"--onnx=model-int8.onnx --saveEngine=model-int8.engine --int8 --fp16 {shapes}",
    ]


def test_no_text_of_a_profile_or_a_name_is_a_command_of_the_engines_script(
    classifier: Classifier, tmp_path: Path
) -> None:
    (artifact,) = export_artifacts(
        classifier, [ArtifactRequest("onnx", "fp32")], tmp_path, ExportPlan(load_target("jetson-nano"))
    )
    hostile = tmp_path / "board.yaml"
    hostile.write_text(
        "extends: jetson-nano\nname: board\nruntimes:\n  - name: tensorrt\n    runs_on: gpu\n"
        '    version: {value: "8.2\\ntouch version\\n#", source: jetpack}\n'
    )
    named = artifact.model_copy(update={"path": Path("a;touch name;.onnx")})
    script = write_engine_script(tmp_path, [named], load_target(str(hostile)), (3, 48, 64))
    assert script is not None
    (tmp_path / "trtexec").write_text("#!/bin/sh\n")
    (tmp_path / "trtexec").chmod(0o755)
    subprocess.run([script], check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=tmp_path)
    assert not (tmp_path / "version").exists() and not (tmp_path / "name").exists()
