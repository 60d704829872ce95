"""Arm code through the whole way of ssh: shell, agent and both runtimes are aarch64, emulated; `make test-arm`."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.describe import describe
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.results import BenchResults
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.exporting.export import ArtifactRequest

ARM = Path(__file__).parents[2] / ".arm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ARM.is_dir(), reason="no Arm machine here; `make test-arm` makes one"),
]
SHORT = Method(warmup_runs=1, warmup_seconds=0, runs=2, seconds=0, rounds=1)
LIMITS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.0}
"""Largest difference between x86 and Arm, relative to the largest output."""


def export(checkpoint: Path, folder: Path, target: str, pairs: Iterable[Any]) -> dict[Any, Path]:
    """A network trained on handwritten digits as files for a target, by format and precision."""
    pytest.importorskip("onnx", reason="needs the onnx extra")
    pytest.importorskip("litert_torch", reason="needs the tflite extra")
    from fsrp_edge.data.embedded import digits
    from fsrp_edge.exporting.verified import export_verified
    from fsrp_edge.models.checkpoint import load_classifier
    from fsrp_edge.targets.load import load_target

    classifier = load_classifier(checkpoint)
    data = digits(classifier.spec)
    requests = [ArtifactRequest(*pair) for pair in pairs]
    exported = export_verified(
        classifier,
        requests,
        folder,
        target=load_target(target),
        calibration=data.train.sample(64, 0),
        images=data.evaluation,
    )
    return {(one.format, one.precision): folder / one.path for one in exported.artifacts}


@pytest.fixture(scope="module")
def files(trained_checkpoint, tmp_path_factory) -> dict[tuple[Format, Precision], Path]:
    folder = tmp_path_factory.mktemp("arm") / "artifacts"
    return export(trained_checkpoint, folder, "raspberry-pi-4", itertools.product(("onnx", "tflite"), LIMITS))


def test_the_far_side_is_an_arm_machine(server):
    device = describe(parse_address(server.arm_address()))
    assert device.machine == "aarch64"
    assert device.missing() == []


def test_every_file_computes_on_arm_what_it_computes_here(server, files, trained_checkpoint):
    from fsrp_edge.data.embedded import digits
    from fsrp_edge.models.checkpoint import load_classifier

    images = digits(load_classifier(trained_checkpoint).spec).evaluation.first(16)
    address, setup = parse_address(server.arm_address()), Setup(images=images)
    measured = measure_on(address, list(files.values()), setup, method=SHORT)
    errors: dict[Any, Any] = {key: one.agreement.relative_error for key, one in zip(files, measured, strict=True)}
    assert len(errors) == 6
    assert {key: error for key, error in errors.items() if error > LIMITS[key[1]]} == {}
    for one in measured:
        assert one.recognition.same_as_here == 16
        assert one.recognition.correct >= 14


def test_int8_of_either_sign_and_symmetry_computes_on_arm_what_it_computes_here(server, trained_checkpoint, tmp_path):
    """uint8 activations as x86 wants them, int8 as Arm does, and int8 without zero points as TensorRT does."""
    targets = ("generic-x86", "raspberry-pi-4", "jetson-orin-nano")
    paths = [
        export(trained_checkpoint, tmp_path / target, target, [("onnx", "int8")])["onnx", "int8"] for target in targets
    ]
    measured = measure_on(parse_address(server.arm_address()), paths, Setup(), method=SHORT)
    assert [one.agreement.relative_error for one in measured] == [0, 0, 0]


def test_compress_measures_on_arm_and_holds_the_outputs_against_the_network(
    server, trained_checkpoint, digits_npz, tmp_path
):
    out = tmp_path / "run"
    command = ["compress", str(trained_checkpoint), "--data", str(digits_npz), "--target", "raspberry-pi-4"]
    command += ["--format", "tflite", "--precision", "fp32", "--recover-epochs", "0", "--attack", "fgsm"]
    command += ["--score-images", "16", "--score-steps", "1", "--robust-images", "16", "--file-images", "0"]
    command += ["--quick-bench", "--bench-on", server.arm_address(), "--out", str(out), "--quiet"]
    assert run(cli, command) == 0
    measured = BenchResults.load(out / "bench.json").measurements
    assert len(measured) == 2
    for one in measured:
        assert one.latency.device.startswith(f"ssh://127.0.0.1:{server.arm_port}: ARMv8")
        assert one.agreement.passed and one.agreement.network_error <= LIMITS["fp32"]
    assert "ARMv8" in (out / "report.html").read_text()


def test_a_fleet_of_three_and_the_comparison(server, files, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    devices = ["local", server.address(), server.arm_address()]
    fleet = [part for device in devices for part in ("--device", device)]
    for name, precision in (("before", "fp32"), ("after", "int8")):
        out = str(tmp_path / f"{name}.json")
        command = [
            "bench",
            str(files["tflite", precision]),
            *fleet,
            "--sustained",
            "1s",
            "--out",
            out,
            "--quiet",
        ]
        assert run(cli, command) == 0
    table = capfd.readouterr().out
    assert "ARMv8" in table
    results = BenchResults.load(tmp_path / "after.json")
    assert len({measurement.address for measurement in results.measurements}) == 3
    assert run(cli, ["bench", "compare", str(tmp_path / "before.json"), str(tmp_path / "after.json")]) == 0
    assert sum("→" in line for line in capfd.readouterr().out.splitlines()) == 3
