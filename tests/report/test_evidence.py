"""manifest.json, model card, bill of materials, `verify` and `bundle`, on files that were really exported."""

import importlib
import json
import math
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import nn

from fsrp_edge.cli.bench import evaluated_images
from fsrp_edge.data.folder import decode_image
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError, GateFailedError
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.exporting.onnx import export_onnx
from fsrp_edge.exporting.saved_model import export_saved_model
from fsrp_edge.exporting.verified import export_verified
from fsrp_edge.files import read_json, sha256_file
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pipeline.inputs import load_data
from fsrp_edge.report.bundle import EXAMPLES, RUNS, bundle
from fsrp_edge.report.manifest import Manifest, Origin, load_manifest
from fsrp_edge.report.provenance import provenance
from fsrp_edge.report.schema import DataUsed, Source, TargetReference
from fsrp_edge.report.shipped import write_manifest
from fsrp_edge.report.verify import verify
from fsrp_edge.targets.load import load_target
from tests.nets import around, as_classifier

FORMATS = ("onnx", "tflite", "ncnn")


@pytest.fixture(scope="module")
def classifier(trained_checkpoint: Path) -> Classifier:
    return load_classifier(trained_checkpoint)


@pytest.fixture(scope="module")
def exported(classifier: Classifier, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of verified files in every format, with its manifest."""
    folder, target = tmp_path_factory.mktemp("evidence") / "files", load_target("generic-x86")
    dataset = load_data(classifier, str(digits_npz), seed=0)
    made = export_verified(
        classifier,
        [*(ArtifactRequest(name, "fp32") for name in FORMATS), ArtifactRequest("onnx", "int8")],
        folder,
        target=target,
        calibration=dataset.train.first(16),
        images=dataset.evaluation,
    )
    manifest = Manifest(
        artifacts=made.artifacts,
        origins={".": Origin.of(made)},
        source=Source(checkpoint="vgg.pt", sha256="a" * 64, model=classifier.spec),
        target=TargetReference.of(target),
        options={"out": "/home/ada/<b>"},
        seed=0,
        data=DataUsed.of(dataset),
        parity={a.path.as_posix(): checks for a, checks in zip(made.artifacts, made.parities, strict=True)},
        accuracies={"model-fp32.onnx": (clean_accuracy(classifier, dataset.evaluation).result,)},
        provenance=provenance(datetime(2026, 1, 2, tzinfo=UTC)),
    )
    write_manifest(manifest, folder)
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copied"))


def test_every_file_is_in_the_manifest_with_its_digest(exported: Path) -> None:
    manifest = load_manifest(exported)
    there = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert manifest.files.keys() == there - {"manifest.json"}
    for name, entry in manifest.files.items():
        assert (entry.bytes, entry.sha256) == ((exported / name).stat().st_size, sha256_file(exported / name))
    assert {artifact.format for artifact in manifest.artifacts} == set(FORMATS)


def test_what_is_as_it_was_passes_in_every_runtime(exported: Path) -> None:
    findings = verify(exported)
    assert all(finding.passed for finding in findings), [f for f in findings if not f.passed]
    runtimes = {finding.check for finding in findings if finding.check.startswith("parity")}
    assert runtimes == {f"parity in {name}" for name in ("onnxruntime", "litert", "tensorflow", "ncnn")}


def test_a_changed_byte_is_found_and_a_lost_file_too(copied: Path) -> None:
    weights = copied / "model-fp32.ncnn" / "model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x41
    weights.write_bytes(bytes(content))
    (copied / "model-fp32.tflite").unlink()
    failed = {(finding.path, finding.check) for finding in verify(copied) if not finding.passed}
    assert failed >= {
        ("model-fp32.ncnn/model.bin", "digest"),
        ("model-fp32.tflite", "digest"),
        ("model-fp32.tflite", "parity in litert"),
    }
    assert not any(path.endswith(".onnx") for path, _ in failed)


def test_a_file_that_computes_something_else_is_found_even_where_its_digest_was_forged(copied: Path) -> None:
    other = copied / "model-int8.onnx"
    shutil.copy(other, copied / "model-fp32.onnx")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["model-fp32.onnx"] = manifest["files"]["model-int8.onnx"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (failed,) = [finding for finding in verify(copied) if not finding.passed]
    assert (failed.path, failed.check) == ("model-fp32.onnx", "parity in onnxruntime")


def test_a_file_of_another_network_is_found(copied: Path, classifier: Classifier) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(classifier.spec.input_shape), 4))
    other = as_classifier(body, shape=classifier.spec.input_shape, classes=4)
    export_onnx(other, copied / "model-fp32.onnx", opset=17, ir_version=8)
    digest, parity = [finding for finding in verify(copied) if not finding.passed]
    assert (digest.check, parity.check) == ("digest", "parity in onnxruntime")
    assert "puts out 8x4 numbers for 8 images, the network 8x10" in parity.detail


def test_another_runtime_checks_a_file_whose_first_one_is_missing(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.delitem(sys.modules, "ai_edge_litert.interpreter", raising=False)
    findings = verify(exported)
    assert all(finding.passed for finding in findings), [f for f in findings if not f.passed]
    checks = [finding.check for finding in findings if finding.path == "model-fp32.tflite"]
    assert checks == ["digest", "parity in tensorflow"]


def test_a_runtime_that_can_t_be_imported_does_not_hide_what_another_one_found(
    copied: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken" / "tensorflow").mkdir(parents=True)
    (tmp_path / "broken" / "tensorflow" / "__init__.py").write_text("raise ImportError('no libcudart.so.12')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert all(finding.passed for finding in verify(copied))

    manifest = read_json(copied / "manifest.json")
    probe = manifest["origins"]["."]["probe"]
    probe["logits"] = [[-logit for logit in logits] for logits in probe["logits"]]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    failed = [finding.check for finding in verify(copied) if finding.path == "model-fp32.tflite" and not finding.passed]
    assert failed == ["parity in litert"]


def test_a_manifest_that_does_not_say_what_a_file_was_made_from_is_refused(copied: Path) -> None:
    manifest = read_json(copied / "manifest.json")
    manifest["origins"] = {"artifacts": manifest["origins"]["."]}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInputError, match=r"origins say nothing of model-fp32\.onnx"):
        verify(copied)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"has no manifest\.json; give the folder of a run"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(BadInputError, match="not a manifest that this version reads"):
        verify(tmp_path)


def test_the_model_card_has_a_header_that_hubs_read_and_nothing_of_the_user_s_folders(exported: Path) -> None:
    text = (exported / "MODEL_CARD.md").read_text()
    _, header, body = text.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["pipeline_tag"] == "image-classification"
    (index,) = fields["model-index"]
    (metric,) = index["results"][0]["metrics"]
    assert index["name"] == "model-fp32.onnx" and metric["value"] > 0.9
    assert "n=100" in body and "centre cropped" in body and "/home/" not in text


def test_the_bill_of_materials_is_valid_cyclonedx_and_names_models_data_and_software(exported: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (exported / "bom.json").read_text()
    try:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    except ImportError:  # the validator is an extra of the library
        assert json.loads(text)["specVersion"] == "1.6"
    parts: dict[str, list[Any]] = {}
    for part in json.loads(text)["components"]:
        parts.setdefault(part["type"], []).append(part["name"])
    manifest = load_manifest(exported)
    assert sorted(parts["machine-learning-model"]) == sorted(a.path.as_posix() for a in manifest.artifacts)
    assert len(parts["data"]) == 2 and {"torch", "onnxruntime", "fsrp-edge"} <= set(parts["library"])


def test_the_same_folder_gives_the_same_archive(exported: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        bundle(exported, tmp_path / name)
    assert sha256_file(tmp_path / "a.zip") == sha256_file(tmp_path / "b.zip")
    with pytest.raises(BadInputError, match=r"has no manifest\.json"):
        bundle(tmp_path, tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


@pytest.mark.parametrize("name", ["model-fp32.onnx", "model-fp32.ncnn/model.bin"])
def test_a_file_that_was_changed_since_it_was_verified_is_not_bundled(copied: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(copied / "model-int8.onnx", copied / name)
    with pytest.raises(GateFailedError, match=f"{name} is not the file that was verified"):
        bundle(copied, tmp_path / "model.zip")
    (copied / name).unlink()
    with pytest.raises(BadInputError, match=f"{name} is missing"):
        bundle(copied, tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


def answers(folder: Path, classifier: Classifier, digits_npz: Path, scratch: Path) -> None:
    """Run the example for every artifact of a folder that has examples, and compare with the network."""
    # A picture of another size, so that resizing and cropping are part of what is compared.
    pixels = np.load(digits_npz)["x_test"][7].transpose(1, 2, 0).squeeze()
    picture = Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC)
    picture.save(scratch / "digit.png")
    image = decode_image(scratch / "digit.png", classifier.spec)
    logits = classifier(classifier.example_pixels().new_tensor(image)[None] / 255)[0]
    labels = classifier.spec.class_names or tuple(map(str, range(10)))
    for artifact in load_manifest(folder).artifacts:
        script = folder / "examples" / f"{RUNS[artifact.format]}.py"
        assert len(script.read_text().splitlines()) <= 30
        done = subprocess.run(
            [sys.executable, script, folder / artifact.path, scratch / "digit.png"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        share, label = done.stdout.splitlines()[0].split(" ", 1)
        assert label == labels[int(logits.argmax())], artifact.name
        tolerance = 0.1 if artifact.precision == "int8" else 0.001
        assert abs(float(share) - float(logits.softmax(0).max())) < tolerance, artifact.name


def test_the_examples_of_a_bundle_run_and_answer_as_the_network_does(
    exported: Path, classifier: Classifier, digits_npz: Path, tmp_path: Path
) -> None:
    bundle(exported, tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path / "model")
    assert all(finding.passed for finding in verify(tmp_path / "model"))
    answers(tmp_path / "model", classifier, digits_npz, tmp_path)


@pytest.mark.slow
def test_the_example_for_a_saved_model_does_too(
    exported: Path, classifier: Classifier, digits_npz: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    folder = tmp_path / "model"
    artifact = export_saved_model(classifier, folder / "model-fp32.saved_model")
    shutil.copytree(EXAMPLES, folder / "examples")
    bundle(exported, tmp_path / "labels.zip")
    with zipfile.ZipFile(tmp_path / "labels.zip") as archive:
        archive.extractall(folder, ["labels.txt", "preprocessing.json"])
    write_manifest(load_manifest(exported).model_copy(update={"artifacts": (artifact,)}), folder)
    answers(folder, classifier, digits_npz, tmp_path)


def test_the_example_runs_int8_layers_that_share_weights(
    exported: Path, classifier: Classifier, digits_npz: Path, tmp_path: Path
) -> None:
    shape, shared = classifier.spec.input_shape, nn.Conv2d(3, 3, 3, padding=1)
    head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 10))
    twice = around(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), head), classifier).eval()
    dataset = load_data(twice, str(digits_npz), seed=0)
    made = export_verified(
        twice, [ArtifactRequest("onnx", "int8")], tmp_path / "model", target=load_target("raspberry-pi-4"),
        calibration=dataset.train.first(16), images=dataset.evaluation.first(32),
    )  # fmt: skip
    bundle(exported, tmp_path / "labels.zip")
    with zipfile.ZipFile(tmp_path / "labels.zip") as archive:
        others = ["labels.txt", "preprocessing.json", *(f"examples/{n}.py" for n in ("preprocess", "run_onnxruntime"))]
        archive.extractall(tmp_path / "model", others)
    write_manifest(load_manifest(exported).model_copy(update={"artifacts": made.artifacts}), tmp_path / "model")
    answers(tmp_path / "model", twice, digits_npz, tmp_path)


@pytest.mark.parametrize("path", ["../../outside.sh", "/outside.sh", "artifacts/../../outside.sh"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(copied: Path, tmp_path: Path, path: str) -> None:
    manifest = read_json(copied / "manifest.json")
    manifest["files"][path] = next(iter(manifest["files"].values()))
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInputError, match="leads out of the folder"):
        bundle(copied, tmp_path / "model.zip")
    assert not list(tmp_path.glob("*.zip"))


def test_the_example_reads_16_bits_as_evaluation_does(
    exported: Path, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(exported, tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path / "model")
    _, height, width = classifier.spec.input_shape
    grey = np.linspace(0, 65535, height * width).reshape(height, width).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    monkeypatch.syspath_prepend(str(tmp_path / "model" / "examples"))
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    preprocess = importlib.import_module("preprocess")
    assert np.array_equal(
        preprocess.load(str(tmp_path / "grey.png")), decode_image(tmp_path / "grey.png", classifier.spec)
    )


WITHOUT_LITERT = """
import runpy, sys
sys.modules["ai_edge_litert"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0])
"""


@pytest.mark.slow
def test_the_example_for_tflite_runs_where_only_tensorflow_is(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    bundle(exported, tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path / "model")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    script, file = tmp_path / "model/examples/run_litert.py", tmp_path / "model/model-fp32.tflite"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LITERT, script, file, tmp_path / "black.png"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 5


def test_a_file_is_judged_on_the_images_of_its_run(copied: Path, classifier: Classifier) -> None:
    """The manifest's seed draws the crops of photographs."""
    pytest.importorskip("skimage")
    manifest = read_json(copied / "manifest.json")
    (copied / "manifest.json").write_text(json.dumps(manifest | {"seed": 3}))
    images = {seed: open_dataset("photographs", classifier.spec, seed=seed).evaluation for seed in (0, 3)}
    judged = evaluated_images("photographs", copied / "model-fp32.onnx")
    assert judged.digest == images[3].digest != images[0].digest
