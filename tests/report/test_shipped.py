"""What a second export into the same folder makes of the first one's files."""

from pathlib import Path
from typing import Any

import pytest

from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Probe
from fsrp_edge.exporting.verified import Exported
from fsrp_edge.files import read_json, write_json
from fsrp_edge.report.manifest import Manifest, load_manifest
from fsrp_edge.report.schema import RunReport, TargetReference
from fsrp_edge.report.shipped import manifest_of_export, with_earlier_export, write_manifest
from fsrp_edge.report.verify import verify

TARGET = TargetReference(name="generic-x86", sha256="e" * 64)


def export(
    folder: Path,
    report: RunReport,
    precision: Any,
    weights: str = "a",
    calibration: str = "b",
    target: TargetReference = TARGET,
    suffix: str = "onnx",
    std: tuple[float, ...] | None = None,
    **options: Any,
) -> Manifest:
    """What `fsrp-edge export` does after its files were verified."""
    folder.mkdir(exist_ok=True)
    path = folder / f"model-{precision}.{suffix}"
    path.write_text(f"{precision} {weights} {calibration}")
    exported = Exported(
        artifacts=(Artifact.at(path, precision),),
        parities=((),),
        weights_sha256=weights,
        calibration_sha256=calibration,
        probe=Probe(shape=(1, 2, 2), seed=1, logits=((0.0, 1.0),)),
    )
    model = report.source.model.model_copy(update={"std": std} if std else {})
    source = report.source.model_copy(update={"model": model})
    made = manifest_of_export(exported, source=source, target=target, options=options, seed=0, data=report.data)
    return write_manifest(with_earlier_export(made, folder), folder)


def listed(folder: Path) -> list[str]:
    return sorted(artifact.path.name for artifact in load_manifest(folder).artifacts)


def test_files_of_the_same_network_are_all_listed(run_report: RunReport, tmp_path: Path) -> None:
    export(tmp_path, run_report, "fp32")
    export(tmp_path, run_report, "int8")
    manifest = export(tmp_path, run_report, "int8")  # again: it replaces its own
    assert listed(tmp_path) == ["model-fp32.onnx", "model-int8.onnx"]
    assert manifest.files.keys() >= set(listed(tmp_path)) and manifest.parity.keys() == set(listed(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "c"},
        {"std": (0.5, 0.5, 0.5)},
        {"calibration": "c"},
        {"calibration_method": "mse"},
        {"int8_max_drop": 1.0},
        {"target": TargetReference(name="jetson-nano", sha256="f" * 64)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_files_that_the_new_manifest_cannot_speak_for_are_removed(
    run_report: RunReport, tmp_path: Path, other: dict[str, Any]
) -> None:
    export(tmp_path, run_report, "int8")
    export(tmp_path, run_report, "int8", suffix="tflite", **other)
    assert listed(tmp_path) == ["model-int8.tflite"] == [path.name for path in tmp_path.glob("model-*")]


def test_an_export_without_int8_leaves_the_int8_file_and_how_it_was_calibrated(
    run_report: RunReport, tmp_path: Path
) -> None:
    calibrated = {"calibration_images": 512, "calibration_method": "percentile", "int8_max_drop": 1.0}
    usual = {"calibration_images": 256, "calibration_method": "min-max", "int8_max_drop": None, "uint8_input": True}
    export(tmp_path, run_report, "int8", calibration="c", **calibrated)
    manifest = export(tmp_path, run_report, "fp16", **usual)
    assert listed(tmp_path) == ["model-fp16.onnx", "model-int8.onnx"]
    assert manifest.options == usual | calibrated and manifest.origins["."].calibration_sha256 == "c"
    # Of these the next int8 file has to be, too.
    export(tmp_path, run_report, "int8", suffix="tflite", **usual)
    assert listed(tmp_path) == ["model-fp16.onnx", "model-int8.tflite"]


def test_an_export_on_other_data_cannot_speak_for_an_int8_file(run_report: RunReport, tmp_path: Path) -> None:
    export(tmp_path, run_report, "int8")
    other = run_report.data.model_copy(update={"description": "other images"})
    export(tmp_path, run_report.model_copy(update={"data": other}), "fp16")
    assert listed(tmp_path) == ["model-fp16.onnx"]


def test_how_int8_is_calibrated_says_nothing_of_other_files(run_report: RunReport, tmp_path: Path) -> None:
    export(tmp_path, run_report, "fp32")
    export(tmp_path, run_report, "int8", calibration="c", calibration_method="mse", int8_max_drop=1.0)
    assert listed(tmp_path) == ["model-fp32.onnx", "model-int8.onnx"]


def test_files_that_no_export_left_stay_and_verify_names_them(run_report: RunReport, tmp_path: Path) -> None:
    export(tmp_path, run_report, "int8")
    (tmp_path / "model-int8.onnx").write_text("the user's own")
    export(tmp_path, run_report, "fp32", weights="c")
    assert listed(tmp_path) == ["model-fp32.onnx"]
    (unknown,) = [finding for finding in verify(tmp_path) if finding.check == "manifest"]
    assert unknown.path == "model-int8.onnx" and not unknown.passed


@pytest.mark.parametrize("folder", ["..", "/etc"])
def test_a_manifest_does_not_lead_out_of_its_folder(run_report: RunReport, tmp_path: Path, folder: str) -> None:
    export(tmp_path, run_report, "fp32")
    content = read_json(tmp_path / "manifest.json")
    content["origins"][folder] = content["origins"]["."]
    write_json(tmp_path / "manifest.json", content)
    with pytest.raises(BadInputError, match="leads out of the folder"):
        verify(tmp_path)
